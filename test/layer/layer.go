// Package layer runs the real binary as one layer's registry: a process with its data volume, its configuration file
// and its address, which can be killed and started again.
package layer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// Options describe a layer.
type Options struct {
	Binary       string            // path of connected-registry
	Dir          string            // holds the data volume, the configuration and the log
	Name         string            // connected registry name
	Mode         registry.Mode     // empty is ReadOnly
	Parent       string            // host:port over http; empty is none
	Repositories map[string]string // the document's repositories
	Schedule     string            // empty is continuous
	Listen       string            // address; empty is a free port of 127.0.0.1
	Closed       bool              // nobody pulls without a token, and User is not known
	Document     map[string]any    // sections of the configuration document, over what the fields above say
	Args         []string          // more flags of serve
	Env          []string          // more of its environment
	Module       bool              // as on a device: Env and the module twin alone say what it does; give Closed with it
}

// Layer is one registry. Its methods are for one goroutine, apart from Status, Ready and RSS.
type Layer struct {
	Options
	Addr string // host:port of /v2/

	release func()
	control *http.Client
	cmd     *exec.Cmd
	exited  chan struct{} // closed when the process has ended
}

const (
	startLimit = 30 * time.Second
	stopLimit  = 10 * time.Second // for an orderly end; then the process is killed
	pollPeriod = 10 * time.Millisecond
)

// New writes the configuration, unless there is one; nothing runs yet.
func New(o Options) (*Layer, error) {
	l := &Layer{Options: o, Addr: o.Listen, release: func() {}}
	if l.Addr == "" {
		addr, release, err := linkproxy.ReservePort()
		if err != nil {
			return nil, err
		}
		l.Addr, l.release = addr, release
	}
	l.control = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(l.DataDir(), "control.sock"))
		},
	}}
	if err := os.MkdirAll(l.DataDir(), 0o700); err != nil {
		return nil, err
	}
	if l.Module {
		return l, nil
	}
	if _, err := os.Stat(l.configFile()); err == nil {
		return l, nil
	}
	return l, l.Configure()
}

// DataDir is the data volume.
func (l *Layer) DataDir() string { return filepath.Join(l.Dir, "data") }

// LogFile holds what the process wrote.
func (l *Layer) LogFile() string { return filepath.Join(l.Dir, "log") }

// Pid is the number of the process; 0 when none runs.
func (l *Layer) Pid() int {
	if l.cmd == nil {
		return 0
	}
	return l.cmd.Process.Pid
}

// Configure writes the configuration document of the options, in one step, as a running registry sees it.
func (l *Layer) Configure() error {
	schedule, mode := l.Schedule, l.Mode
	if schedule == "" {
		schedule = "* * * * *"
	}
	if mode == "" {
		mode = registry.ReadOnly
	}
	doc := map[string]any{
		"schemaVersion": "1.0", "mode": mode, "repositories": l.Repositories,
		"parent": map[string]any{
			"gatewayEndpoint": l.Parent, "protocol": "http", "syncProperties": map[string]string{"schedule": schedule},
		},
	}
	if l.Parent == "" {
		delete(doc, "parent")
	}
	if !l.Closed {
		Admit(doc)
	}
	maps.Copy(doc, l.Document)
	body, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	tmp := l.configFile() + ".new"
	if err := os.WriteFile(tmp, body, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, l.configFile())
}

func (l *Layer) configFile() string { return filepath.Join(l.Dir, "config.json") }

// Start runs the process and waits until it answers, at most half a minute. The process ends when ctx does.
func (l *Layer) Start(ctx context.Context) error {
	log, err := os.OpenFile(l.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	args := []string{
		"serve", "--data-dir", l.DataDir(), "--config", l.configFile(), "--listen", l.Addr, "--management", "127.0.0.1:0",
		"--name", l.Name, "--allow-insecure-parent",
	}
	if l.Module {
		args = []string{"serve", "--data-dir", l.DataDir(), "--listen", l.Addr, "--management", "127.0.0.1:0"}
	}
	if !l.Closed {
		args = append(args, "--insecure-anonymous-pull")
	}
	cmd := exec.CommandContext(ctx, l.Binary, append(args, l.Args...)...)
	cmd.Env = append(environment(), l.Env...)
	if !l.Closed && l.Mode == registry.ReadWrite && l.Parent != "" {
		cmd.Env = append(cmd.Env, "ACR_REGISTRY_CONNECTION_STRING="+Below(l.Name, l.Parent))
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopLimit
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in the log
		close(exited)
	}()
	l.cmd, l.exited = cmd, exited
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return l.Ready(ctx)
}

// environment is the caller's without what would configure a registry.
func environment() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ACR_") && !strings.HasPrefix(v, "IOTEDGE_") && !strings.HasPrefix(v, "SYNC_TOKEN_") {
			env = append(env, v)
		}
	}
	return env
}

// Ready waits until /v2/ answers.
func (l *Layer) Ready(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	return l.Until(ctx, "it answers on "+l.Addr, func(ctx context.Context) (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Addr+"/v2/", nil)
		if err != nil {
			return false, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return false, nil // not yet
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK || l.Closed && resp.StatusCode == http.StatusUnauthorized, nil
	})
}

// Until asks again and again until cond is true, ctx ends, cond fails or the process ends.
func (l *Layer) Until(ctx context.Context, what string, cond func(context.Context) (bool, error)) error {
	tick := time.NewTicker(pollPeriod)
	defer tick.Stop()
	for {
		ok, err := cond(ctx)
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: waiting until %s: %w\n%s", l.Name, what, context.Cause(ctx), l.logTail())
		case <-l.exited:
			return fmt.Errorf("%s: the process ended while waiting until %s\n%s", l.Name, what, l.logTail())
		case <-tick.C:
		}
	}
}

// logTail is the end of the log, for an error.
func (l *Layer) logTail() string {
	body, err := os.ReadFile(l.LogFile())
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(body), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-15):], []byte("\n")))
}

// Status asks the process over its control socket.
func (l *Layer) Status(ctx context.Context) (registry.Status, error) {
	var s registry.Status
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://control/status", nil)
	if err != nil {
		return s, err
	}
	resp, err := l.control.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return s, fmt.Errorf("%s: status answers %s", l.Name, resp.Status)
	}
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// Has reports whether the layer holds so many tags, all of them whole, and its last sync iteration succeeded. It fails
// when the process has ended.
func (l *Layer) Has(ctx context.Context, tags int) (bool, registry.Status, error) {
	s, err := l.Status(ctx)
	if err != nil {
		select {
		case <-l.exited:
			return false, s, fmt.Errorf("%s: the process ended\n%s", l.Name, l.logTail())
		default:
			return false, s, nil // not yet: the socket comes after the listener
		}
	}
	for _, r := range s.Repositories {
		if len(r.Behind) > 0 {
			return false, s, nil
		}
	}
	return s.Storage.Tags >= tags && s.Sync.SyncState == registry.SyncSucceeded, s, nil
}

// Sync runs "connected-registry sync": an iteration now. It returns when the iteration has ended.
func (l *Layer) Sync(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, l.Binary, "sync", "--data-dir", l.DataDir()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: sync: %w: %s", l.Name, err, bytes.TrimSpace(out))
	}
	return nil
}

// Exited returns a channel that is closed when the process that Start started has ended.
func (l *Layer) Exited() <-chan struct{} { return l.exited }

// Kill ends the process as a power cut would, and waits for its end.
func (l *Layer) Kill() error { return l.signal(syscall.SIGKILL) }

// Stop ends the process in order.
func (l *Layer) Stop() error {
	if l.cmd == nil {
		return nil
	}
	t := time.AfterFunc(stopLimit, func() { _ = l.cmd.Process.Kill() })
	defer t.Stop()
	return l.signal(syscall.SIGTERM)
}

// Close ends the process and gives the address back. It fails when the process has reported a data race or a panic.
func (l *Layer) Close() error {
	err := l.Stop()
	l.release()
	log, readErr := os.ReadFile(l.LogFile())
	if readErr != nil && !errors.Is(readErr, os.ErrNotExist) {
		return errors.Join(err, readErr)
	}
	for _, mark := range []string{"WARNING: DATA RACE", "\npanic: ", "\nfatal error: "} {
		if i := bytes.Index(log, []byte(mark)); i >= 0 {
			err = errors.Join(err, fmt.Errorf("%s: %s", l.Name, log[i:min(len(log), i+4000)]))
		}
	}
	return err
}

func (l *Layer) signal(sig syscall.Signal) error {
	if l.cmd == nil {
		return nil
	}
	err := l.cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-l.exited
	l.cmd = nil
	return err
}

// RSS returns the memory of the process and its peak, in bytes; 0 where the system has no /proc.
func (l *Layer) RSS() (now, peak int64) {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.Pid()))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(body)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			now = kib << 10
		case "VmHWM:":
			peak = kib << 10
		}
	}
	return now, peak
}
