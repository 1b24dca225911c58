package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestConfigurationFile gives "config check" and serve files that cannot be used. The check exits with 1; serve goes on
// with what was in force, and with the file when it is good.
func TestConfigurationFile(t *testing.T) {
	a := newAbove(t)
	img := a.push("acme/first:1", 64*kib, "a")
	good := document(a.link.Addr(), "http")
	tests := map[string]struct {
		write func(path string) error
		says  []string
	}{
		"unknown key":     {text(strings.Replace(good, `"mode"`, `"mod"`, 1)), []string{"mod"}},
		"nested key":      {text(strings.Replace(good, `"gatewayEndpoint"`, `"gatewayEndpiont"`, 1)), []string{"parent.gatewayEndpiont"}},
		"wrong type":      {text(strings.Replace(good, `"ReadWrite"`, `[1]`, 1)), []string{"mode"}},
		"wrong value":     {text(strings.Replace(good, `"ReadWrite"`, `"WriteOnly"`, 1)), []string{"mode", "WriteOnly"}},
		"broken JSON":     {text(good[:len(good)-40]), []string{"line 1, column"}},
		"a comment":       {text("// mine\n" + good), []string{"line 1, column 1"}},
		"an empty file":   {text(""), []string{"document is empty"}},
		"an empty object": {text("{}"), []string{"no properties"}},
		"an array":        {text("[]"), []string{"object"}},
		"not there":       {func(string) error { return nil }, []string{"config.json", "no such file"}},
		"a directory":     {func(path string) error { return os.Mkdir(path, 0o755) }, []string{"config.json", "regular file"}},
		"a pipe":          {func(path string) error { return syscall.Mkfifo(path, 0o644) }, []string{"config.json", "regular file"}},
		"a device":        {func(path string) error { return os.Symlink("/dev/zero", path) }, []string{"config.json", "regular file"}},
		"100 MB": {func(path string) error {
			return os.WriteFile(path, bytes.Repeat([]byte(" "), 100_000_000), 0o644)
		}, []string{"config.json", "bytes"}},
		"binary": {func(path string) error {
			b, err := os.ReadFile(binary)
			if err != nil {
				return err
			}
			return os.WriteFile(path, b[:4096], 0o644)
		}, []string{"not UTF-8"}},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, t.TempDir())
			// In force first: what is good.
			d.configure(good)
			d.start()
			d.synced(1)
			must(t, os.Remove(d.file))
			must(t, c.write(d.file))
			out, code := check(t, d.file)
			if code != 1 || !contains(out, c.says) || !strings.Contains(out, d.file) || strings.Contains(out, ": : ") {
				t.Errorf("config check: exit code %d: %s", code, out)
			}
			t.Logf("config check, exit code %d: %s", code, strings.TrimSpace(strings.ReplaceAll(out, filepath.Dir(d.file), "...")))
			says := append([]string{d.file}, c.says...)
			status := ""
			d.until("the status says what is wrong", func() (bool, string) { // for a moment the file is not there
				status, _ = d.run("status")
				return strings.Contains(status, "! Configuration") && contains(status, says), fmt.Sprintf("want %q in\n%s", says, status)
			})
			t.Logf("status:\n%s", strings.ReplaceAll(hints(status), filepath.Dir(d.file), "..."))
			if !contains(d.logged(), says) {
				t.Errorf("want %q in the log:\n%s", says, d.tail())
			}
			d.has("acme/first:1", img)
			// A start with it: the last good one is in force.
			d.end(syscall.SIGTERM)
			d.start()
			d.shows(`(?m)^! Configuration `, `acme/first +1`)
			if s, ok := d.status(); !ok || s.Mode != "ReadWrite" && name != "unknown key" { // that took the mode away, and its default is ReadOnly
				t.Errorf("mode %s after a restart", s.Mode)
			}
			d.has("acme/first:1", img)
			must(t, os.RemoveAll(d.file))
			d.configure(good)
			d.until("the trouble is over", func() (bool, string) {
				out, _ := d.run("status")
				return !strings.Contains(out, "! Configuration"), out
			})
			if out, code := check(t, d.file); code != 0 || !strings.Contains(out, "good") {
				t.Errorf("config check of a good file: exit code %d: %s", code, out)
			}
		})
	}
}

// check runs "config check".
func check(t *testing.T, file string) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b, err := exec.CommandContext(ctx, binary, "config", "check", file).CombinedOutput()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return string(b), exit.ExitCode()
	}
	must(t, err)
	return string(b), 0
}

func text(s string) func(string) error {
	return func(path string) error { return os.WriteFile(path, []byte(s), 0o644) }
}
