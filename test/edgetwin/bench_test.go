package edgetwin

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/connected-registry/connected-registry/internal/twin"
	"github.com/connected-registry/connected-registry/test/edgesim"
)

const (
	id       = "connected-registry"
	patience = 20 * time.Second // for what must happen
)

// TestMain waits a little longer than goleak does: the library looks once a second whether its work is done.
func TestMain(m *testing.M) {
	code := m.Run()
	var err error
	for range 30 {
		if err = goleak.Find(); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// logText is written and read at once.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// bench is a device and our client on it.
type bench struct {
	*edgesim.Device
	t        *testing.T
	hub      *twin.EdgeHub
	workload *twin.Workload
	edge     twin.Edge
	log      *logText
	dials    dials
	stop     context.CancelFunc
	docs     <-chan twin.Document
	last     twin.Document
}

// dials counts the connections to each port, and closes some.
type dials struct {
	mu     sync.Mutex
	closed map[string]bool // ports
	count  map[string]int
}

func (d *dials) dialled(port string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count[port]++
	if d.closed[port] {
		return fmt.Errorf("port %s is closed by the test", port)
	}
	return nil
}

type option struct {
	device func(*edgesim.Options)
	env    map[string]string
	hub    func(*twin.EdgeHubOptions)
	faults func(*edgesim.Faults)
}

func start(t *testing.T, o option) *bench {
	t.Helper()
	do := edgesim.Options{
		DeviceID: "l4", Hostname: "edge-l4", MQTTPort: -1, HTTPSPort: -1, Timing: edgesim.Scaled(60),
		Modules: []edgesim.Module{{ID: id, Desired: map[string]any{"mode": "ReadOnly"}}},
	}
	if o.device != nil {
		o.device(&do)
	}
	d, err := edgesim.New(do)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	if o.faults != nil {
		d.SetFaults(o.faults)
	}
	return watch(t, d, o)
}

// watch starts our client on a device.
func watch(t *testing.T, d *edgesim.Device, o option) *bench {
	t.Helper()
	b := &bench{Device: d, t: t, log: &logText{}, dials: dials{closed: map[string]bool{}, count: map[string]int{}}}
	env := d.Env(id)
	for k, v := range o.env {
		env[k] = v
	}
	edge, errs := twin.EdgeEnvironment(func(name string) (string, bool) { s, ok := env[name]; return s, ok })
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	b.edge = edge
	log := slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if b.workload, err = twin.NewWorkload(edge, twin.WorkloadOptions{Timeout: 5 * time.Second, Log: log}); err != nil {
		t.Fatal(err)
	}
	ho := twin.EdgeHubOptions{Product: "connected-registry/0.1 (test)", Log: log, Rand: func() float64 { return 0 }, Dial: b.dial, ConnectTimeout: 5 * time.Second}
	if o.hub != nil {
		o.hub(&ho)
	}
	b.hub = twin.NewEdgeHub(edge, b.workload, ho)
	ctx, cancel := context.WithCancel(t.Context())
	b.docs = b.hub.Watch(ctx)
	var once sync.Once
	b.stop = func() {
		once.Do(func() {
			cancel()
			for range b.docs { // until it is closed
			}
		})
	}
	t.Cleanup(b.stop)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", b.log)
		}
	})
	return b
}

// dial leads the two ports of edgeHub to the device's.
func (b *bench) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || network != "tcp" || host != "edge-l4" {
		return nil, fmt.Errorf("dials %s %s", network, addr)
	}
	if err := b.dials.dialled(port); err != nil {
		return nil, err
	}
	addr = b.MQTTAddr()
	if port == "443" {
		addr = b.HTTPSAddr()
	}
	return new(net.Dialer).DialContext(ctx, network, addr)
}

// until waits for a condition of the device or of the client.
func (b *bench) until(what string, cond func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (b *bench) connected() {
	b.t.Helper()
	b.until("a connection", func() bool { return b.hub.Connected() == nil })
}

// document waits for one that cond likes.
func (b *bench) document(what string, cond func(twin.Document) bool) twin.Document {
	b.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case d, ok := <-b.docs:
			if !ok {
				b.t.Fatalf("the source has ended, waiting for %s", what)
			}
			b.last = d
			if cond(d) {
				return d
			}
		case <-deadline:
			b.t.Fatalf("waited in vain for %s; the last document: %d %s %v", what, b.last.Version, b.last.Raw, b.last.Err)
		}
	}
}

func (b *bench) version(want int64) twin.Document {
	b.t.Helper()
	return b.document(fmt.Sprint("version ", want), func(d twin.Document) bool { return d.Err == nil && d.Version == want })
}

func (b *bench) update(patch map[string]any) int64 {
	b.t.Helper()
	v, err := b.UpdateDesired(id, patch)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

func (b *bench) invoke(name, payload string) (int, string) {
	b.t.Helper()
	r, err := b.InvokeMethod(b.t.Context(), id, edgesim.Method{Name: name, Payload: []byte(payload), ConnectTimeout: patience, ResponseTimeout: patience})
	if err != nil {
		b.t.Errorf("%s: %v", name, err)
	}
	return r.Status, string(r.Payload)
}

func (b *bench) logged(text string) bool { return strings.Contains(b.log.String(), text) }
