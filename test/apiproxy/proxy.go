package apiproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Options describe the API proxy of one device.
type Options struct {
	Dir         string // nginx's own; holds configuration, logs and what it buffers
	Host        string // the device's address, and the name by which those below know it
	Port        int    // the same on every device
	Certificate Certificate
	TrustBundle []byte        // PEM
	Registry    string        // host:port of the registry here, plain http; empty: /v2 is for the parent
	Parent      string        // host of the device above; empty: there is none
	Module      string        // this module's name
	Silence     time.Duration // how long who is asked may say nothing; 0 is an hour
}

// Proxy is one nginx. Its methods are for one goroutine, apart from Log.
type Proxy struct {
	Options

	cmd    *exec.Cmd
	exited chan struct{}
}

const (
	startLimit = 10 * time.Second
	stopLimit  = 5 * time.Second
	pollPeriod = 10 * time.Millisecond
)

// New returns a proxy that does not run yet.
func New(o Options) *Proxy { return &Proxy{Options: o} }

// Addr is host:port.
func (p *Proxy) Addr() string { return net.JoinHostPort(p.Host, strconv.Itoa(p.Port)) }

// Start writes what nginx reads and runs it until it takes connections. The process ends when ctx does.
func (p *Proxy) Start(ctx context.Context) error {
	conf, err := p.render()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return err
	}
	for name, body := range map[string][]byte{
		"nginx.conf": conf, "server.pem": p.Certificate.Chain, "server.key": p.Certificate.Key, "trust.pem": p.TrustBundle,
	} {
		if err := os.WriteFile(filepath.Join(p.Dir, name), body, 0o600); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "nginx", "-p", p.Dir, "-c", "nginx.conf", "-e", "error.log")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // a kill would leave its worker
	cmd.WaitDelay = stopLimit
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // why it ended is in the error log
		close(exited)
	}()
	p.cmd, p.exited = cmd, exited
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return p.listening(ctx)
}

// listening waits until a connection is taken.
func (p *Proxy) listening(ctx context.Context) error {
	tick := time.NewTicker(pollPeriod)
	defer tick.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.Addr())
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.exited:
			return fmt.Errorf("nginx on %s ended: %s", p.Addr(), p.ErrorLog())
		case <-ctx.Done():
			return fmt.Errorf("nginx on %s: %w: %s", p.Addr(), context.Cause(ctx), p.ErrorLog())
		case <-tick.C:
		}
	}
}

// Stop ends nginx at once: connections are cut wherever they are.
func (p *Proxy) Stop() error {
	if p.cmd == nil {
		return nil
	}
	err := p.cmd.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-p.exited:
	case <-time.After(stopLimit):
		err = errors.Join(err, fmt.Errorf("nginx on %s did not stop in %v", p.Addr(), stopLimit), p.cmd.Process.Kill())
		<-p.exited
	}
	p.cmd = nil
	return err
}

// ErrorLog is what nginx complained of, connections that failed included.
func (p *Proxy) ErrorLog() string {
	body, err := os.ReadFile(filepath.Join(p.Dir, "error.log"))
	if err != nil {
		return err.Error()
	}
	return string(body)
}

// Access is one line of the access log.
type Access struct {
	Method    string  `json:"method"`
	URI       string  `json:"uri"` // as it came, with its query
	Status    int     `json:"status,string"`
	Seconds   float64 `json:"seconds,string"`
	In        int64   `json:"in,string"`  // bytes of the request, header included, TLS not
	Out       int64   `json:"out,string"` // bytes of the answer, header included, TLS not
	TLS       string  `json:"tls"`
	Agent     string  `json:"agent"`
	Range     string  `json:"range"`
	Version   string  `json:"version"`   // x-ms-version
	User      string  `json:"user"`      // of Basic
	Upstream  string  `json:"upstream"`  // host:port that was asked; empty: nobody
	Location  string  `json:"location"`  // of the answer
	Challenge string  `json:"challenge"` // of the answer
}

// Log returns the access log of all runs. A request is in it when its answer has been sent, which a client may notice
// a moment earlier.
func (p *Proxy) Log() ([]Access, error) {
	body, err := os.ReadFile(filepath.Join(p.Dir, "access.log"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Access
	for line := range bytes.Lines(body) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		var a Access
		if err := json.Unmarshal(line, &a); err != nil {
			return all, fmt.Errorf("access log of %s: %w: %s", p.Addr(), err, line)
		}
		all = append(all, a)
	}
	return all, nil
}
