//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// subject is a registry that is compared.
type subject struct {
	name, version, binary string
	// command prepares dir and returns arguments and environment of a registry with everything allowed, on addr.
	command func(dir, addr string, cert certificate) (args, env []string, err error)
}

// instance is a subject that runs.
type instance struct {
	subject
	dir, addr string
	cert      certificate // zero: plain http
	wrap      []string    // what the command is given to
	far       bool        // runs on the clients' cores
	cmd       *exec.Cmd
	exited    chan struct{}
	release   func()
}

const (
	startLimit = 60 * time.Second
	stopLimit  = 15 * time.Second
)

// start runs a subject on a new directory and waits until it answers.
func (b *bench) start(ctx context.Context, s subject, cert certificate) (*instance, error) {
	dir, err := b.scratch(s.name)
	if err != nil {
		return nil, err
	}
	i, err := b.instance(s, dir, cert)
	if err != nil {
		return nil, err
	}
	if err := i.start(ctx); err != nil {
		return nil, err
	}
	return i, i.admitted(ctx)
}

// admitted waits until who pushes is somebody: on an empty volume the tokens come with the configuration, which is read
// after the first answer.
func (i *instance) admitted(ctx context.Context) error {
	p := i.pusher()
	defer p.client.CloseIdleConnections()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		_, err := p.do(ctx, http.MethodGet, "/v2/", "", nil, http.StatusOK)
		if err == nil || ctx.Err() != nil || time.Since(began) > startLimit {
			return err
		}
	}
}

// instance prepares one on an address of its own; it does not run yet. It ends with the run at the latest.
func (b *bench) instance(s subject, dir string, cert certificate) (*instance, error) {
	addr, release, err := linkproxy.ReservePort()
	if err != nil {
		return nil, err
	}
	i := &instance{subject: s, dir: dir, addr: addr, cert: cert, release: release}
	b.endsWith(i.kill)
	return i, nil
}

// kill ends the process if it runs.
func (i *instance) kill() {
	if i.cmd != nil && i.cmd.Process != nil {
		_ = syscall.Kill(-i.cmd.Process.Pid, syscall.SIGKILL)
	}
}

// start runs the process and waits for the first 200.
func (i *instance) start(ctx context.Context) error {
	args, env, err := i.command(i.dir, i.addr, i.cert)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(i.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	line := append(append(append([]string{}, i.wrap...), i.binary), args...)
	i.cmd = exec.CommandContext(ctx, line[0], line[1:]...)
	i.cmd.Env = append(append(os.Environ(), "OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none", "OTEL_LOGS_EXPORTER=none"), env...)
	i.cmd.Stdout, i.cmd.Stderr = log, log
	i.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	place := pinned
	if i.far {
		place = func(f func() error) error { return f() }
	}
	if err := place(i.cmd.Start); err != nil {
		return err
	}
	i.exited = make(chan struct{})
	go func(done chan struct{}, cmd *exec.Cmd) {
		_ = cmd.Wait()
		close(done)
	}(i.exited, i.cmd)
	client := i.client(2 * time.Second)
	defer client.CloseIdleConnections()
	for began := time.Now(); time.Since(began) < startLimit; {
		resp, err := get(ctx, client, http.MethodGet, i.url("/v2/"))
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-i.exited:
			return fmt.Errorf("%s ended: %s", i.name, i.tail())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return fmt.Errorf("%s does not start: %s", i.name, i.tail())
}

func (i *instance) tail() []byte {
	body, err := os.ReadFile(filepath.Join(i.dir, "log"))
	if err != nil {
		return []byte(err.Error())
	}
	return bytes.TrimSpace(body[max(0, len(body)-1500):])
}

func (i *instance) url(path string) string {
	if i.cert.file != "" {
		return "https://" + i.addr + path
	}
	return "http://" + i.addr + path
}

// end stops the process and removes what it stored.
func (i *instance) end() error {
	err := i.stop(syscall.SIGTERM)
	i.release()
	return errors.Join(err, os.RemoveAll(i.dir))
}

// stop ends the process and waits for its end.
func (i *instance) stop(sig syscall.Signal) error {
	if i.cmd == nil || i.exited == nil {
		return nil
	}
	_ = syscall.Kill(-i.cmd.Process.Pid, sig)
	select {
	case <-i.exited:
	case <-time.After(stopLimit):
		_ = syscall.Kill(-i.cmd.Process.Pid, syscall.SIGKILL)
		<-i.exited
	}
	i.cmd, i.exited = nil, nil
	return nil
}

// cpu is the processor time of the process so far: user and system, of all its threads, by the clock of the kernel.
func (i *instance) cpu() time.Duration { return cpuOf(i.cmd.Process.Pid) }

func cpuOf(pid int) time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|2), &ts) != nil { // CPUCLOCK_SCHED of another process, clock_getcpuclockid(3)
		return 0
	}
	return time.Duration(ts.Nano())
}

// rss returns the resident memory and its peak, in MiB.
func (i *instance) rss() (now, peak float64) { return rssOf(i.cmd.Process.Pid) }

func rssOf(pid int) (now, peak float64) {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(body)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			now = kib / 1024
		}
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 {
			peak = kib / 1024
		}
	}
	return now, peak
}

func oursCommand(dir, addr string, cert certificate) ([]string, []string, error) {
	conf := filepath.Join(dir, "config.json")
	doc := map[string]any{"schemaVersion": "1.0", "mode": "ReadWrite"}
	layer.Admit(doc)
	body, err := json.Marshal(doc)
	if err != nil {
		return nil, nil, err
	}
	args := []string{"serve", "--data-dir", filepath.Join(dir, "data"), "--config", conf, "--management", "", "--insecure-anonymous-pull", "--listen"}
	var env []string
	if cert.file == "" {
		args = append(args, addr)
	} else {
		args = append(args, "127.0.0.1:0", "--listen-tls", addr)
		env = append(env, "ACR_REGISTRY_CERTIFICATE_VOLUME="+filepath.Dir(cert.file))
	}
	return args, env, errors.Join(os.WriteFile(conf, body, 0o600), os.MkdirAll(filepath.Join(dir, "data"), 0o700))
}

// distributionConfig is its example with what costs it time taken out: the access log, and warnings.
func distributionConfig(dir, addr string, cert certificate) map[string]any {
	listen := map[string]any{"addr": addr, "secret": "of this run"}
	if cert.file != "" {
		listen["tls"] = map[string]any{"certificate": cert.file, "key": cert.key}
	}
	return map[string]any{
		"version": "0.1",
		"log":     map[string]any{"level": "error", "accesslog": map[string]any{"disabled": true}},
		"storage": map[string]any{
			"cache":      map[string]any{"blobdescriptor": "inmemory"},
			"filesystem": map[string]any{"rootdirectory": filepath.Join(dir, "data")},
			"delete":     map[string]any{"enabled": true},
		},
		"http": listen,
	}
}

func distributionCommand(dir, addr string, cert certificate) ([]string, []string, error) {
	return writeConfig(dir, distributionConfig(dir, addr, cert))
}

// writeConfig leaves distribution's configuration; JSON is YAML.
func writeConfig(dir string, config map[string]any) ([]string, []string, error) {
	conf := filepath.Join(dir, "config.yml")
	body, err := json.Marshal(config)
	if err != nil {
		return nil, nil, err
	}
	return []string{"serve", conf}, nil, os.WriteFile(conf, body, 0o600)
}

func olaregCommand(dir, addr string, cert certificate) ([]string, []string, error) {
	host, port, _ := strings.Cut(addr, ":")
	args := []string{"serve", "--dir", filepath.Join(dir, "data"), "--addr", host, "--port", port, "--api-delete"}
	if cert.file != "" {
		args = append(args, "--tls-cert", cert.file, "--tls-key", cert.key)
	}
	return args, nil, os.MkdirAll(filepath.Join(dir, "data"), 0o700)
}

func floorCommand(durable bool) func(dir, addr string, cert certificate) ([]string, []string, error) {
	return func(dir, addr string, cert certificate) ([]string, []string, error) {
		env := []string{floorAddr + "=" + addr, floorDir + "=" + filepath.Join(dir, "data"), floorCert + "=" + cert.file, floorKey + "=" + cert.key}
		if durable {
			env = append(env, floorSync+"=yes")
		}
		return nil, env, os.MkdirAll(filepath.Join(dir, "data"), 0o700)
	}
}

// module is a command of another project, at the version that was measured.
type module struct{ path, version, command string }

// build makes the command as its own project would, in its own module, and keeps it below tools.
func (m module) build(ctx context.Context, tools string) (string, error) {
	out := filepath.Join(tools, filepath.Base(m.command)+"-"+m.version)
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	said, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", m.path+"@"+m.version).Output()
	var info struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(said, &info); jsonErr != nil || info.Dir == "" {
		return "", fmt.Errorf("go mod download %s@%s: %w %s", m.path, m.version, errors.Join(err, jsonErr), info.Error)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./"+m.command)
	cmd.Dir, cmd.Env = info.Dir, append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s@%s: %w: %s", m.path, m.version, err, said)
	}
	return out, nil
}
