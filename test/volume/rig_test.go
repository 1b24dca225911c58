package volume

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// daemon is the binary on one data volume, started as an operator starts it.
type daemon struct {
	t    *testing.T
	data string // the data volume
	file string // the configuration
	log  string
	addr string // of /v2/
	mgmt string // of /healthz, /readyz and /status

	args   []string // more of serve
	env    []string
	uid    uint32   // 0 is the test's own
	before []string // what runs the binary: prlimit --fsize=...

	cmd    *exec.Cmd
	exited chan struct{}
}

// newDaemon prepares a process on data; nothing runs yet.
func newDaemon(t *testing.T, data string) *daemon {
	t.Helper()
	dir := scratch(t)
	d := &daemon{t: t, data: data, file: filepath.Join(dir, "config.json"), log: filepath.Join(dir, "log")}
	for _, addr := range []*string{&d.addr, &d.mgmt} {
		a, release, err := linkproxy.ReservePort()
		d.must(err)
		t.Cleanup(release)
		*addr = a
	}
	t.Cleanup(func() { d.end(syscall.SIGTERM); d.sound() })
	return d
}

func (d *daemon) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// document is a configuration with this parent, and acme/first and acme/next in scope.
func document(parent, protocol string) string {
	doc, _ := json.Marshal(map[string]any{
		"schemaVersion": "1.0", "mode": "ReadWrite", "repositories": map[string]string{"all": "acme/first acme/next"},
		"parent":    map[string]any{"gatewayEndpoint": parent, "protocol": protocol},
		"storage":   map[string]int{"reserveMiB": 0}, // the volumes here are small
		"scopeMaps": map[string]string{"all": layer.Everything("*")}, "clientTokens": map[string]any{layer.User: layer.Token("all", layer.Password)},
	})
	return string(doc)
}

// configure writes the configuration.
func (d *daemon) configure(doc string) {
	d.t.Helper()
	d.must(os.WriteFile(d.file+".new", []byte(doc), 0o644))
	d.must(os.Rename(d.file+".new", d.file))
}

// start runs the process and returns when it answers on its management address.
func (d *daemon) start() {
	d.t.Helper()
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	d.must(err)
	defer log.Close() // the process has its own
	args := append(append([]string{}, d.before...), binary, "serve", "--data-dir", d.data, "--config", d.file, "--listen", d.addr,
		"--management", d.mgmt, "--insecure-anonymous-pull", "--allow-insecure-parent")
	args = append(args, d.args...)
	d.cmd = exec.Command(args[0], args[1:]...)
	d.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, d.env...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = d.attributes()
	d.must(d.cmd.Start())
	d.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait() // how it ended is in the log
		close(exited)
	}(d.cmd, d.exited)
	d.until("the process answers", func() (bool, string) {
		status, body := d.health("/healthz")
		return status == http.StatusOK, body
	})
}

func (d *daemon) attributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{}
	if d.uid != 0 {
		a.Credential = &syscall.Credential{Uid: d.uid, Gid: d.uid}
	}
	return a
}

// end ends the process, if one runs.
func (d *daemon) end(sig syscall.Signal) {
	if d.cmd == nil {
		return
	}
	kill := time.AfterFunc(15*time.Second, func() { _ = d.cmd.Process.Kill() })
	defer kill.Stop()
	_ = d.cmd.Process.Signal(sig) // it may have ended
	<-d.exited
	d.cmd = nil
}

// sound fails for a panic or a data race in the log.
func (d *daemon) sound() {
	for _, mark := range []string{"WARNING: DATA RACE", "\npanic: ", "\nfatal error: "} {
		if text := d.logged(); strings.Contains(text, mark) {
			d.t.Errorf("the log has %q:\n%s", mark, text)
		}
	}
}

// alive fails when the process has ended.
func (d *daemon) alive() {
	d.t.Helper()
	select {
	case <-d.exited:
		d.t.Fatalf("the process has ended\n%s", d.tail())
	default:
	}
}

// until asks again and again, at most for as long as patience; seen is for the error.
func (d *daemon) until(what string, cond func() (ok bool, seen string)) {
	d.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, seen := cond()
		if ok {
			return
		}
		select {
		case <-d.exited:
			d.t.Fatalf("the process has ended while waiting until %s\n%s", what, d.tail())
		case <-timeout.C:
			d.t.Fatalf("after %v it is not so that %s; seen last:\n%s\nlog:\n%s", patience, what, seen, d.tail())
		case <-tick.C:
		}
	}
}

func (d *daemon) logged() string {
	body, _ := os.ReadFile(d.log) // none yet is an empty one
	return string(body)
}

func (d *daemon) tail() string {
	text := d.logged()
	return text[max(0, len(text)-4000):]
}

// run runs one of the operator's commands on the data volume.
func (d *daemon) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(args, "--data-dir", d.data)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = d.attributes()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// status is what a program reads; ok says that the process answered.
func (d *daemon) status() (s registry.Status, ok bool) {
	code, body := d.health("/status")
	return s, code == http.StatusOK && json.Unmarshal([]byte(body), &s) == nil
}

// shows waits until "connected-registry status" says what matches all of the patterns, and returns it.
func (d *daemon) shows(patterns ...string) string {
	d.t.Helper()
	var out string
	d.until("the status shows "+strings.Join(patterns, " and "), func() (bool, string) {
		out, _ = d.run("status", "--management", d.mgmt) // its error is in the output
		for _, p := range patterns {
			if !regexp.MustCompile(p).MatchString(out) {
				return false, out
			}
		}
		return true, out
	})
	return out
}

// hints returns the lines of a status that say what is wrong, for the log of the test.
func hints(status string) string {
	var lines []string
	for line := range strings.Lines(status) {
		if strings.HasPrefix(line, "!") || strings.HasPrefix(line, "LAST SYNC") || strings.HasPrefix(line, "connected-registry:") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, "\n")
}

// health asks the management listener.
func (d *daemon) health(path string) (int, string) { return ask("GET", "http://"+d.mgmt+path) }

// v2 asks the registry.
func (d *daemon) v2(method, path string) (int, string) {
	return ask(method, "http://"+d.addr+"/v2/"+path)
}

func ask(method, url string) (int, string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return 0, err.Error()
	}
	req.SetBasicAuth(layer.User, layer.Password)
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64*mib))
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

// has pulls an image with all of its layers and compares it.
func (d *daemon) has(ref string, img v1.Image) {
	d.t.Helper()
	if err := d.pull(ref, img); err != nil {
		d.t.Errorf("%s: %v\n%s", ref, err, d.tail())
	}
}

func (d *daemon) pull(ref string, img v1.Image) error {
	want, err := img.Digest()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	got, err := cloud.Pull(ctx, d.addr, ref)
	if err == nil && got.Digest != want {
		err = errors.New("the digest is " + got.Digest.String() + ", want " + want.String())
	}
	return err
}

// synced waits until so many tags are here and the last iteration succeeded after the call.
func (d *daemon) synced(tags int) {
	d.t.Helper()
	begin := time.Now()
	d.until("it is in sync", func() (bool, string) {
		s, ok := d.status()
		seen, _ := json.Marshal(s)
		for _, r := range s.Repositories {
			ok = ok && len(r.Behind) == 0
		}
		return ok && s.Storage.Tags >= tags && s.Sync.SyncState == registry.SyncSucceeded && !s.Sync.LastSyncEndTime.Before(begin.Add(-time.Minute)), string(seen)
	})
}

// above is a cloud registry behind a link that is counted.
type above struct {
	t      *testing.T
	cloud  *cloud.Cloud
	link   *linkproxy.Proxy
	unique cloud.Unique
}

func newAbove(t *testing.T) *above {
	t.Helper()
	a := &above{t: t}
	var err error
	if a.cloud, err = cloud.Start(""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.cloud.Close() })
	if a.link, err = linkproxy.New(a.cloud.Addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.link.Close() })
	return a
}

// image makes an image of layers of n bytes, whose content is made from their names.
func image(t *testing.T, n int, names ...string) v1.Image {
	t.Helper()
	var layers []v1.Layer
	for _, name := range names {
		l, err := cloud.Layer(name, n)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := cloud.Image(layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// push puts an image into the cloud.
func (a *above) push(ref string, n int, names ...string) v1.Image {
	a.t.Helper()
	img := image(a.t, n, names...)
	if _, err := a.unique.Image(img); err != nil {
		a.t.Fatal(err)
	}
	if err := cloud.Push(a.t.Context(), a.cloud.Addr, ref, img); err != nil {
		a.t.Fatal(err)
	}
	return img
}

// down is what has crossed the link so far, in bytes.
func (a *above) down() int64 { return a.link.Counters().Down }

func (a *above) set(f linkproxy.Fault) {
	a.t.Helper()
	if err := a.link.Set(linkproxy.Plan{Fault: f}); err != nil {
		a.t.Fatal(err)
	}
}

// files lists the regular files below a directory with their sizes, in order.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		list = append(list, rel)
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return list
}

// copyTree copies a data volume.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, bytes.TrimSpace(out))
	}
	_ = os.Remove(filepath.Join(to, "control.sock"))
}
