//go:build interop

package apiproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// device is the registry of a device: the real binary as a process, with its configuration, its data volume and what
// IoT Edge sets in its environment.
type device struct {
	t    *testing.T
	ctx  context.Context
	name string
	dir  string
	addr string         // host:port of plain http, for the proxy of the same device alone
	doc  map[string]any // configuration document; configure writes it
	env  []string
	args []string // more for serve

	cmd    *exec.Cmd
	exited chan struct{}
}

func newDevice(t *testing.T, ctx context.Context, name string) *device {
	t.Helper()
	addr, release, err := linkproxy.ReservePort()
	must(t, err)
	d := &device{t: t, ctx: ctx, name: name, dir: t.TempDir(), addr: addr}
	must(t, os.Mkdir(d.data(), 0o700))
	t.Cleanup(func() {
		d.stop()
		release()
		if t.Failed() {
			t.Logf("%s:\n%s", name, d.log())
		}
	})
	return d
}

func (d *device) data() string { return filepath.Join(d.dir, "data") }

// trust makes a bundle what the parent's certificate is verified with; nil takes the file away.
func (d *device) trust(bundle []byte) {
	file := filepath.Join(d.dir, "trust-bundle.pem")
	if d.args == nil {
		d.args = []string{"--parent-ca", file}
	}
	if bundle == nil {
		must(d.t, os.Remove(file))
		return
	}
	must(d.t, os.WriteFile(file, bundle, 0o600))
}

// configure writes the document, in one step, with some properties changed; a running registry sees it.
func (d *device) configure(change map[string]any) {
	d.t.Helper()
	maps.Copy(d.doc, change)
	body, err := json.Marshal(d.doc)
	must(d.t, err)
	file := filepath.Join(d.dir, "config.json")
	must(d.t, os.WriteFile(file+".new", body, 0o600))
	must(d.t, os.Rename(file+".new", file))
}

// start runs the process and waits until it serves from its data volume.
func (d *device) start() {
	d.t.Helper()
	d.configure(nil)
	log, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(d.t, err)
	defer log.Close() // the process has its own
	args := []string{"serve", "--data-dir", d.data(), "--config", filepath.Join(d.dir, "config.json"), "--listen", d.addr, "--management", ""}
	cmd := exec.CommandContext(d.ctx, binary, append(args, d.args...)...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ACR_") && !strings.HasPrefix(v, "IOTEDGE_") && !strings.HasPrefix(v, "SYNC_TOKEN_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, d.env...)
	cmd.Stdout, cmd.Stderr = log, log
	must(d.t, cmd.Start())
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in the log
		close(exited)
	}()
	d.cmd, d.exited = cmd, exited
	d.until("it serves with its configuration", func(st registry.Status) bool {
		return st.Storage.State == "ok" && st.Configuration.Source == "file" && len(st.Configuration.Errors) == 0
	})
}

func (d *device) signal(sig os.Signal) {
	if err := d.cmd.Process.Signal(sig); !errors.Is(err, os.ErrProcessDone) {
		must(d.t, err)
	}
}

// stop ends the process in order. A race or a panic that it has reported fails the test.
func (d *device) stop() {
	if d.cmd == nil {
		return
	}
	d.signal(syscall.SIGCONT)
	d.signal(syscall.SIGTERM)
	t := time.AfterFunc(10*time.Second, func() { _ = d.cmd.Process.Kill() })
	defer t.Stop()
	<-d.exited
	d.cmd = nil
	for _, mark := range []string{"WARNING: DATA RACE", "\npanic: ", "\nfatal error: "} {
		if strings.Contains(d.log(), mark) {
			d.t.Errorf("%s: %s", d.name, mark)
		}
	}
}

func (d *device) log() string {
	body, err := os.ReadFile(filepath.Join(d.dir, "log"))
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(body, []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-30):], []byte("\n")))
}

// until asks for the status again and again until it is as wanted.
func (d *device) until(what string, ok func(registry.Status) bool) registry.Status {
	d.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var st registry.Status
	for {
		st = registry.Status{}
		if module.Control(d.ctx, d.data(), "GET", "/status", nil, &st) == nil && ok(st) {
			return st
		}
		select {
		case <-tick.C:
		case <-d.exited:
			d.t.Fatalf("%s: the process ended while waiting until %s", d.name, what)
		case <-d.ctx.Done():
			text, _ := json.MarshalIndent(st, "", "  ")
			d.t.Fatalf("%s: waiting until %s: %v\n%s", d.name, what, context.Cause(d.ctx), text)
		}
	}
}

// sync runs an iteration now, as an operator does.
func (d *device) sync() {
	d.t.Helper()
	out, err := exec.CommandContext(d.ctx, binary, "sync", "--data-dir", d.data()).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s: sync: %v\n%s", d.name, err, out)
	}
}
