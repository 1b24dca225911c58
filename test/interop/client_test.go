//go:build interop

package interop

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// patience bounds one run of a client.
const patience = 2 * time.Minute

// client is a program with a home of its own.
type client struct {
	t       *testing.T
	program string
	home    string
	env     []string
	args    []string // before those of each run
}

// program finds a client: in the repository's tools, where they are built, or in the path.
func program(t *testing.T, name string) string {
	t.Helper()
	if own, err := filepath.Abs(filepath.Join("..", "..", ".tools", "bin", name)); err == nil {
		if _, err := os.Stat(own); err == nil {
			return own
		}
	}
	for _, dir := range []string{"", "/usr/sbin/", "/sbin/"} {
		if p, err := exec.LookPath(dir + name); err == nil {
			return p
		}
	}
	t.Fatalf("%s is missing: scripts/interop-setup installs it, and make test-interop runs that", name)
	return ""
}

// client returns a program that trusts the site's root and finds its settings in a home of its own. args stand before
// those of each run.
func (d *door) client(name string, args ...string) *client {
	d.t.Helper()
	c := &client{t: d.t, program: program(d.t, name), home: d.t.TempDir(), args: args}
	c.env = []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "TMPDIR=" + c.home, "HOME=" + c.home, "SSL_CERT_FILE=" + d.caFile,
		"XDG_CONFIG_HOME=" + c.home + "/config", "XDG_CACHE_HOME=" + c.home + "/cache", "XDG_DATA_HOME=" + c.home + "/data",
		"XDG_RUNTIME_DIR=" + c.home + "/run", "DOCKER_CONFIG=" + c.home + "/docker", "REGISTRY_AUTH_FILE=" + c.home + "/auth.json",
	}
	must(d.t, os.MkdirAll(c.home+"/run", 0o700))
	must(d.t, os.WriteFile(c.home+"/auth.json", []byte("{}"), 0o600)) // Podman wants it to be there
	return c
}

func (c *client) command(ctx context.Context, args []string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.CommandContext(ctx, c.program, append(c.args[:len(c.args):len(c.args)], args...)...)
	cmd.Env, cmd.Dir = c.env, c.home
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	return cmd, &stderr
}

// run runs the client, which has to succeed, and returns what it wrote to standard output, and what to standard error.
func (c *client) both(args ...string) (stdout, stderr []byte) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	cmd, errs := c.command(ctx, args)
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("%s: %v\n%s%s", c.line(args), err, out, errs.Bytes())
	}
	return out, errs.Bytes()
}

// run is both without standard error.
func (c *client) run(args ...string) []byte {
	c.t.Helper()
	out, _ := c.both(args...)
	return out
}

// login signs in by the client's own command. The password goes through standard input.
func (c *client) login(d *door, args ...string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	cmd, errs := c.command(ctx, args)
	cmd.Stdin = strings.NewReader(d.password + "\n")
	if out, err := cmd.Output(); err != nil {
		c.t.Fatalf("%s: %v\n%s%s", c.line(args), err, out, errs.Bytes())
	}
}

// fails runs the client, which has to fail, and returns all that it wrote.
func (c *client) fails(args ...string) []byte {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	cmd, errs := c.command(ctx, args)
	out, err := cmd.Output()
	if err == nil {
		c.t.Errorf("%s succeeds", c.line(args))
	}
	return append(out, errs.Bytes()...)
}

// succeeds runs the client, and tells how it ended.
func (c *client) succeeds(args ...string) bool {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	cmd, _ := c.command(ctx, args)
	return cmd.Run() == nil
}

func (c *client) line(args []string) string {
	return filepath.Base(c.program) + " " + strings.Join(append(c.args[:len(c.args):len(c.args)], args...), " ")
}
