// Package script runs the real binary through each flow of the product, as scripts in testdata/*.txtar: the files that
// a reader would write, and the commands that he would type.
package script

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// patience bounds each wait of a script.
const patience = 60 * time.Second

var bin string // directory of the binary

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "connected-registry-script-")
	if err == nil {
		defer os.RemoveAll(dir)
		bin = dir
		err = layer.Build(context.Background(), filepath.Join(dir, "connected-registry"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata",
		RequireUniqueNames: true,
		Setup:              setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"push": push, "same": same, "link": link, "eventually": eventually, "http": request, "referrers": referrers,
		},
	})
}

type world struct{ link *linkproxy.Proxy }

// setup starts a cloud registry behind a link: $CLOUD is its own address, $LINK what a registry below is configured
// with. $A, $B and $C are addresses to listen on.
func setup(env *testscript.Env) error {
	env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
	above, err := cloud.Start("")
	if err != nil {
		return err
	}
	env.Defer(func() { _ = above.Close() })
	proxy, err := linkproxy.New(above.Addr)
	if err != nil {
		return err
	}
	env.Defer(func() { _ = proxy.Close() })
	env.Setenv("CLOUD", above.Addr)
	env.Setenv("LINK", proxy.Addr())
	for _, name := range []string{"A", "B", "C"} {
		addr, release, err := linkproxy.ReservePort()
		if err != nil {
			return err
		}
		env.Defer(release)
		env.Setenv(name, addr)
	}
	env.Values[world{}] = world{proxy}
	return nil
}

// within returns a context for one command of a script.
func within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// place splits host:port/repository:tag.
func place(ts *testscript.TestScript, s string) (addr, ref string) {
	addr, ref, ok := strings.Cut(s, "/")
	if !ok {
		ts.Fatalf("%s: want host:port/repository:tag", s)
	}
	return addr, ref
}

// expect fails unless the error is there exactly when the command is negated. A negated command takes a word that the
// error must contain.
func expect(ts *testscript.TestScript, neg bool, err error, want string) {
	switch {
	case !neg:
		ts.Check(err)
	case err == nil:
		ts.Fatalf("no error, want one with %q", want)
	case !strings.Contains(err.Error(), want):
		ts.Fatalf("error %v, want one with %q", err, want)
	}
}

// push PLACE LAYER...: pushes an image of these layers, 64 KiB each, whose content is made from their names. A layer
// sbom=PLACE makes it an artifact that refers to that image instead.
func push(ts *testscript.TestScript, neg bool, args []string) {
	addr, ref := place(ts, args[0])
	want, names := "", args[1:]
	if neg {
		want, names = args[1], args[2:]
	}
	ctx, cancel := within()
	defer cancel()
	img, err := image(ctx, names)
	ts.Check(err)
	if d, err := img.Digest(); strings.Contains(names[0], "=") && err == nil {
		ref = ref[:strings.IndexByte(ref, ':')] + "@" + d.String()
	}
	expect(ts, neg, cloud.Push(ctx, addr, ref, img), want)
}

// same PLACE PLACE: pulls both, checks every byte, and wants one digest. same! fails otherwise with a word.
func same(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := within()
	defer cancel()
	pull := func(s string) (cloud.Pulled, error) {
		addr, ref := place(ts, s)
		return cloud.Pull(ctx, addr, ref)
	}
	one, err := pull(args[0])
	ts.Check(err)
	two, err := pull(args[1])
	if err == nil && one.Digest != two.Digest {
		err = fmt.Errorf("digests differ: %s is %s, %s is %s", args[0], one.Digest, args[1], two.Digest)
	}
	expect(ts, neg, err, strings.Join(args[2:], " "))
}

// referrers PLACE N: wants so many artifacts that refer to the image.
func referrers(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := within()
	defer cancel()
	addr, ref := place(ts, args[0])
	p, err := cloud.Pull(ctx, addr, ref)
	ts.Check(err)
	repo, _, _ := strings.Cut(ref, ":")
	got, err := cloud.Referrers(ctx, addr, repo, p.Digest)
	ts.Check(err)
	if strconv.Itoa(len(got)) != args[1] {
		ts.Fatalf("%s has %d referrers, want %s", args[0], len(got), args[1])
	}
}

// link up|refuse|reset|hole: changes the link between $CLOUD and $LINK.
func link(ts *testscript.TestScript, _ bool, args []string) {
	faults := map[string]linkproxy.Fault{"up": linkproxy.None, "refuse": linkproxy.Refuse, "reset": linkproxy.Reset, "hole": linkproxy.BlackHole}
	fault, ok := faults[args[0]]
	if !ok {
		ts.Fatalf("link %s: want one of %v", args[0], faults)
	}
	ts.Check(ts.Value(world{}).(world).link.Set(linkproxy.Plan{Fault: fault}))
}

// eventually PATTERN COMMAND...: runs the command until its output matches.
func eventually(ts *testscript.TestScript, _ bool, args []string) {
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	ctx, cancel := within()
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		out, err := command(ctx, ts, args[1:])
		if err == nil && pattern.MatchString(out) {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("%s: after %v still %v:\n%s", args[0], patience, err, out)
		case <-tick.C:
		}
	}
}

// command runs one, the script's own http included.
func command(ctx context.Context, ts *testscript.TestScript, args []string) (string, error) {
	if args[0] == "http" {
		status, body, err := ask(ctx, args[1], args[2])
		return status + "\n" + body, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, args[0]), args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// http METHOD URL: prints status and body.
func request(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := within()
	defer cancel()
	status, body, err := ask(ctx, args[0], args[1])
	ts.Check(err)
	fmt.Fprintln(ts.Stdout(), status)
	fmt.Fprintln(ts.Stdout(), body)
}

func ask(ctx context.Context, method, url string) (status, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return "", "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.Status, string(b), err
}
