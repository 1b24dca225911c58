package edgetwin

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
	"github.com/connected-registry/connected-registry/test/edgesim"
)

// Port 8883 does not work: port 443 is tried, and the way back is open.
func TestWebSocketAsFallback(t *testing.T) {
	t.Parallel()
	b := start(t, option{hub: echo})
	b.version(1)
	if over := b.Status(id).Over; over != "tls" {
		t.Errorf("over %s", over)
	}
	b.dials.mu.Lock()
	b.dials.closed["8883"] = true
	b.dials.mu.Unlock()
	b.Kick(id)
	b.until("a connection over WebSocket", func() bool { s := b.Status(id); return s.Connected && s.Over == "wss" && b.hub.Connected() == nil })
	if status, body := b.invoke("echo", `{"a":1}`); status != 200 || body != `{"a":1}` {
		t.Errorf("method: %d %s", status, body)
	}
	b.version(b.update(map[string]any{"large": strings.Repeat("x", 4000)}))
	if err := b.hub.Output(t.Context(), "events", []byte(`"`+strings.Repeat("x", 200_000)+`"`)); err != nil {
		t.Errorf("a large message over WebSocket: %v", err)
	}
	b.dials.mu.Lock()
	b.dials.closed["8883"], b.dials.closed["443"] = false, true
	b.dials.mu.Unlock()
	b.Kick(id)
	b.until("a connection over TLS", func() bool { s := b.Status(id); return s.Connected && s.Over == "tls" })
}

func TestWebSocketAsConfigured(t *testing.T) {
	t.Parallel()
	b := start(t, option{env: map[string]string{"UpstreamProtocol": "AmqpWs"}})
	b.version(1)
	if s := b.Status(id); s.Over != "wss" || s.Connects != 1 {
		t.Errorf("%+v", s)
	}
	// The certificate is verified there too.
	bad := start(t, option{env: map[string]string{"UpstreamProtocol": "AmqpWs"}, faults: func(f *edgesim.Faults) { f.WrongCert = true }})
	d := bad.document("an error", func(d twin.Document) bool { return d.Err != nil })
	var unknown x509.UnknownAuthorityError
	if !errors.As(d.Err, &unknown) {
		t.Errorf("error %v", d.Err)
	}
}

// The cloud is away: edgeHub's memory is served, an empty one is not taken for an order, and what changed meanwhile
// arrives when the cloud is back.
func TestCloudAway(t *testing.T) {
	t.Parallel()
	b := start(t, option{device: func(o *edgesim.Options) { o.Timing.TwinSync = 10 * time.Millisecond }})
	b.version(1)
	b.SetCloud(false)
	next := b.update(map[string]any{"mode": "ReadWrite"})
	b.Kick(id)
	b.until("a new connection", func() bool { return b.Status(id).Connects == 2 && b.hub.Connected() == nil })
	b.ForgetTwin(id)
	b.Kick(id)
	d := b.document("a stale twin", func(d twin.Document) bool { return d.Err != nil })
	if !errors.Is(d.Err, twin.ErrStale) || !strings.Contains(d.Err.Error(), "no version") {
		t.Errorf("error %v", d.Err)
	}
	b.SetCloud(true)
	if d := b.version(next); string(d.Raw) != `{"mode":"ReadWrite"}` {
		t.Errorf("document %s", d.Raw)
	}
}

// A start at an edgeHub that remembers less than the store; and one of a module that was made anew.
func TestLastGoodIsNewer(t *testing.T) {
	t.Parallel()
	b := start(t, option{hub: func(o *twin.EdgeHubOptions) { o.Last = twin.Record{Version: 9, Raw: []byte(`{"mode":"ReadWrite"}`)} }})
	b.version(1) // of another generation: versions begin again
	b.stop()
	generation := b.edge.Generation
	stale := watch(t, b.Device, option{hub: func(o *twin.EdgeHubOptions) {
		o.Last = twin.Record{Generation: generation, Version: 9, Raw: []byte(`{"mode":"ReadWrite"}`)}
	}})
	d := stale.document("a stale twin", func(d twin.Document) bool { return true })
	if !errors.Is(d.Err, twin.ErrStale) || d.Raw != nil || d.Version != 1 {
		t.Errorf("document %+v", d)
	}
	stale.stop()
	if err := b.AddModule(edgesim.Module{ID: id, Desired: map[string]any{"mode": "ReadOnly"}}); err != nil {
		t.Fatal(err)
	}
	anew := watch(t, b.Device, option{hub: func(o *twin.EdgeHubOptions) {
		o.Last = twin.Record{Generation: generation, Version: 9, Raw: []byte(`{"mode":"ReadWrite"}`)}
	}})
	anew.version(1)
}

// The workload API is away, throttled, or answers with errors for a while: it works out in the end.
func TestWorkloadTrouble(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*edgesim.Faults){
		"down": func(f *edgesim.Faults) { f.WorkloadDown = true }, "500": func(f *edgesim.Faults) { f.WorkloadStatus = 500 }, "slow": func(f *edgesim.Faults) { f.WorkloadDelay = 300 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, option{faults: fault})
			time.Sleep(500 * time.Millisecond)
			if b.hub.Connected() == nil && name != "slow" {
				t.Error("connected without a token")
			}
			b.SetFaults(func(f *edgesim.Faults) { f.WorkloadDown, f.WorkloadStatus = false, 0 })
			b.version(1)
		})
	}
}

// Fifty callers at a daemon that serves ten connections.
func TestWorkloadThrottle(t *testing.T) {
	t.Parallel()
	b := start(t, option{faults: func(f *edgesim.Faults) { f.WorkloadDelay = 20 * time.Millisecond }})
	other, err := twin.NewWorkload(b.edge, twin.WorkloadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			w := b.workload
			if i%2 == 0 {
				w = other
			}
			if _, err := w.Sign(t.Context(), fmt.Append(nil, i)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

func TestServerCertificate(t *testing.T) {
	t.Parallel()
	b := start(t, option{})
	c, err := b.workload.ServerCertificate(t.Context(), "edge-l4")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := c.TLS()
	if err != nil {
		t.Fatal(err)
	}
	roots, err := b.workload.Roots(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(ca)
	}
	for _, name := range []string{"edge-l4", id} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if life := time.Until(c.Expiry); life < 29*24*time.Hour || life > 31*24*time.Hour {
		t.Errorf("good for %v", life)
	}
	stranger := b.edge
	stranger.ModuleID = "edgeHub"
	w, err := twin.NewWorkload(stranger, twin.WorkloadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var answer *twin.WorkloadError
	if _, err := w.Sign(t.Context(), nil); !errors.As(err, &answer) || answer.Status != 403 {
		t.Errorf("in another's name: %v", err)
	}
}

// The status of a registry reaches the cloud, follows its changes, survives a reconnection and a loss of edgeHub's
// memory, and leaves nothing of an earlier version behind.
func TestReportedReachesTheCloud(t *testing.T) {
	t.Parallel()
	var reporter *twin.Reporter
	ready := make(chan struct{})
	b := start(t, option{hub: func(o *twin.EdgeHubOptions) {
		o.Connected = func(reported map[string]any) { <-ready; reporter.Resend(reported) }
	}})
	reporter = twin.NewReporter(b.hub.Report, twin.ReporterOptions{Every: 50 * time.Millisecond})
	close(ready)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { reporter.Run(ctx) })
	defer group.Wait()
	defer cancel()
	b.version(1)
	if err := b.hub.Report(t.Context(), map[string]any{"fromBefore": map[string]any{"x": 1}}); err != nil {
		t.Fatal(err)
	}
	status := registry.Status{
		Name: "linea", Version: "0.1", Mode: registry.ReadOnly, ConnectionState: registry.Online,
		StatusDetails: []registry.StatusDetail{{Type: "Disk", Code: "DiskError", Description: "No space left on device."}},
	}
	acks := map[string]twin.Ack{"mode": {Value: "ReadOnly", Code: twin.AckApplied, Version: 1}}
	reporter.Set(twin.Reported(status, acks))
	cloud := func(key string) any { return b.Twin(id).Reported[key] }
	b.until("the status in the cloud", func() bool { return cloud("connectionState") == "Online" && cloud("statusDetails") != nil })
	if mode, _ := cloud("mode").(map[string]any); fmt.Sprint(mode) != "map[ac:200 av:1 value:ReadOnly]" {
		t.Errorf("mode: %v", mode)
	}
	status.StatusDetails, status.ConnectionState = nil, registry.Offline
	reporter.Set(twin.Reported(status, acks))
	b.until("the change in the cloud", func() bool { return cloud("connectionState") == "Offline" && cloud("statusDetails") == nil })
	b.SetCloud(false)
	status.ConnectionState = registry.Syncing
	reporter.Set(twin.Reported(status, acks))
	b.until("edgeHub keeps it", func() bool {
		c, ok := b.CachedTwin(id)
		return ok && c.Reported["connectionState"] == "Syncing"
	})
	b.SetCloud(true)
	b.until("the cloud gets it", func() bool { return cloud("connectionState") == "Syncing" })
	if cloud("fromBefore") == nil {
		t.Fatal("what the test needs is gone")
	}
	b.Kick(id)
	b.until("what is not ours goes", func() bool { return cloud("fromBefore") == nil && cloud("connectionState") == "Syncing" })
}
