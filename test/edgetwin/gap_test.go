package edgetwin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/twin"
	"github.com/connected-registry/connected-registry/test/edgesim"
)

// echo answers what it gets; "slow" takes its time.
func echo(o *twin.EdgeHubOptions) {
	o.Methods = func(ctx context.Context, name string, payload []byte) (int, []byte) {
		switch name {
		case "echo":
			return 200, payload
		case "slow":
			select {
			case <-time.After(300 * time.Millisecond):
			case <-ctx.Done():
			}
			return 200, payload
		}
		return 0, nil
	}
}

// The daemon reads no body that is not called JSON; and the answer of edgeHub to the token is what counts.
func TestGap01Sign(t *testing.T) {
	t.Parallel()
	b := start(t, option{})
	if d := b.version(1); string(d.Raw) != `{"mode":"ReadOnly"}` || d.Generation != b.edge.Generation {
		t.Errorf("document %s of %s", d.Raw, d.Generation)
	}
}

// Without a bundle, with a wrong one, and with any fault of edgeHub's certificate no byte of MQTT is sent; and it works
// as soon as the fault is mended.
func TestGap02NoTrustNoConnection(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*edgesim.Faults){
		"empty bundle":   func(f *edgesim.Faults) { f.EmptyBundle = true },
		"wrong bundle":   func(f *edgesim.Faults) { f.WrongBundle = true },
		"no bundle":      func(f *edgesim.Faults) { f.WorkloadStatus = 404 },
		"wrong root":     func(f *edgesim.Faults) { f.WrongCert = true },
		"wrong host":     func(f *edgesim.Faults) { f.WrongHostCert = true },
		"expired":        func(f *edgesim.Faults) { f.ExpiredCert = true },
		"broken answers": func(f *edgesim.Faults) { f.WorkloadBroken = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, option{faults: fault})
			b.document("an error", func(d twin.Document) bool { return d.Err != nil })
			if err := b.hub.Report(t.Context(), map[string]any{"a": 1}); !errors.Is(err, twin.ErrNotConnected) {
				t.Errorf("Report: %v", err)
			}
			if n := b.Status(id).Connects; n != 0 {
				t.Errorf("%d CONNECT packets were sent", n)
			}
			b.SetFaults(func(f *edgesim.Faults) { *f = edgesim.Faults{} })
			b.version(1)
		})
	}
}

func TestGap03TrustIsReadAtEachDial(t *testing.T) {
	t.Parallel()
	authority, err := edgesim.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, option{device: func(o *edgesim.Options) { o.Authority = authority }})
	b.version(1)
	for range 2 { // another root, and edgeHub restarts with a certificate of it
		if err := authority.Rotate(false); err != nil {
			t.Fatal(err)
		}
		if err := b.RotateEdgeCA(); err != nil {
			t.Fatal(err)
		}
		b.version(b.update(map[string]any{"n": time.Now().String()}))
	}
}

// Slow methods, a storm of patches, reports and outputs at once: all answered, and the link still works.
func TestGap04NoDeadlock(t *testing.T) {
	t.Parallel()
	b := start(t, option{hub: echo})
	b.version(1)
	begin := time.Now()
	var group sync.WaitGroup
	for i := range 6 {
		group.Go(func() {
			if status, body := b.invoke("slow", fmt.Sprint(i)); status != 200 || body != fmt.Sprint(i) {
				t.Errorf("method %d: %d %s", i, status, body)
			}
		})
	}
	var last int64
	for i := range 20 {
		last = b.update(map[string]any{"n": i})
		group.Go(func() {
			if err := b.hub.Report(t.Context(), map[string]any{"n": i}); err != nil {
				t.Error(err)
			}
			if err := b.hub.Output(t.Context(), "events", []byte(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	b.version(last)
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	if n := b.Status(id).Connects; n != 1 {
		t.Errorf("%d connections", n)
	}
	if n := len(b.Messages(id)); n != 20 {
		t.Errorf("%d messages", n)
	}
}

// A method may use the link itself.
func TestGap05HubFromAHandler(t *testing.T) {
	t.Parallel()
	var b *bench
	ready := make(chan struct{})
	b = start(t, option{hub: func(o *twin.EdgeHubOptions) {
		o.Methods = func(ctx context.Context, _ string, _ []byte) (int, []byte) {
			<-ready
			if err := b.hub.Report(ctx, map[string]any{"called": true}); err != nil {
				return 500, nil
			}
			if err := b.hub.Output(ctx, "events", []byte(`{}`)); err != nil {
				return 501, nil
			}
			return 200, nil
		}
	}})
	b.version(1)
	close(ready)
	if status, _ := b.invoke("use", "null"); status != 200 {
		t.Errorf("status %d", status)
	}
}

func TestGap06PatchesOutOfOrder(t *testing.T) {
	t.Parallel()
	b := start(t, option{faults: func(f *edgesim.Faults) { f.ReorderPatches = true }})
	b.version(1)
	var last int64
	for i := range 30 {
		last = b.update(map[string]any{"n": i})
	}
	if d := b.version(last); string(d.Raw) != `{"mode":"ReadOnly","n":29}` {
		t.Errorf("converged to %s", d.Raw)
	}
}

func TestGap07PatchesWhileAway(t *testing.T) {
	t.Parallel()
	b := start(t, option{})
	b.version(1)
	b.SetFaults(func(f *edgesim.Faults) { f.HubDown = true })
	b.until("the loss is seen", func() bool { return b.hub.Connected() != nil })
	b.update(map[string]any{"n": 2})
	last := b.update(map[string]any{"n": 3, "mode": nil})
	b.SetFaults(func(f *edgesim.Faults) { f.HubDown = false })
	if d := b.version(last); string(d.Raw) != `{"n":3}` {
		t.Errorf("after the absence: %s", d.Raw)
	}
	// Lost on a link that stays: the next patch shows the gap.
	b.SetFaults(func(f *edgesim.Faults) { f.LosePatches = 3 })
	for i := range 3 {
		b.update(map[string]any{fmt.Sprint("lost", i): true})
	}
	if d := b.version(b.update(map[string]any{"n": 4})); string(d.Raw) != `{"lost0":true,"lost1":true,"lost2":true,"n":4}` {
		t.Errorf("after a gap: %s", d.Raw)
	}
}

// The link goes down at any moment of the first connection: all subscriptions stand in the end.
func TestGap08SubscribedInTheEnd(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*edgesim.Faults){
		"dropped":    func(f *edgesim.Faults) { f.DropConnects = 2 },
		"refused":    func(f *edgesim.Faults) { f.Refuse = 5 },
		"not heard":  func(f *edgesim.Faults) { f.LoseResponses = 2 },
		"not served": func(f *edgesim.Faults) { f.RefuseSubscribe = true },
		"hub down":   func(f *edgesim.Faults) { f.HubDown = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, option{faults: fault, hub: func(o *twin.EdgeHubOptions) { echo(o); o.AnswerTimeout = 300 * time.Millisecond }})
			b.until("two attempts", func() bool {
				b.dials.mu.Lock()
				defer b.dials.mu.Unlock()
				return b.dials.count["8883"]+b.dials.count["443"] >= 2
			})
			b.SetFaults(func(f *edgesim.Faults) { *f = edgesim.Faults{} })
			b.version(1)
			b.connected()
			if status, body := b.invoke("echo", `1`); status != 200 || body != "1" {
				t.Errorf("method: %d %s", status, body)
			}
			b.version(b.update(map[string]any{"n": 1}))
			if subs := b.Status(id).Subscriptions; len(subs) != 3 {
				t.Errorf("subscriptions %v", subs)
			}
		})
	}
}

// After each of several reconnections methods are answered and patches arrive; nothing of the first link's life counts.
func TestGap09EveryLinkIsNew(t *testing.T) {
	t.Parallel()
	b := start(t, option{hub: func(o *twin.EdgeHubOptions) { echo(o); o.AnswerTimeout = time.Second }})
	b.version(1)
	for i := range 3 {
		b.Kick(id)
		b.until("a new connection", func() bool { return b.Status(id).Connects == i+2 && b.hub.Connected() == nil })
		time.Sleep(1100 * time.Millisecond) // longer than any time-out that a subscription could have kept
		if status, body := b.invoke("echo", `"x"`); status != 200 || body != `"x"` {
			t.Errorf("method: %d %s", status, body)
		}
		b.version(b.update(map[string]any{"n": i}))
	}
}

// A subscription that edgeHub does not grant is no link.
func TestGap10RefusedSubscription(t *testing.T) {
	t.Parallel()
	b := start(t, option{faults: func(f *edgesim.Faults) { f.RefuseSubscribe = true }})
	d := b.document("an error", func(d twin.Document) bool { return d.Err != nil })
	if !strings.Contains(d.Err.Error(), "refused") || b.hub.Connected() == nil {
		t.Errorf("%v; connected: %v", d.Err, b.hub.Connected())
	}
}

// It ends while patches pour in and nobody reads documents.
func TestGap11EndInAStormOfPatches(t *testing.T) {
	t.Parallel()
	b := start(t, option{})
	b.connected()
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := b.UpdateDesired(id, map[string]any{"n": i}); err != nil {
				t.Error(err)
			}
		}
	})
	b.until("many patches", func() bool { return b.Status(id).Patches > 200 })
	begin := time.Now()
	b.stop()
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("it took %v to end", d)
	}
	close(stop)
	group.Wait()
	b.until("the connection is gone", func() bool { return !b.Connected(id) })
}

// Ended in the middle of a connection: nothing of it connects afterwards. Answered too late: no fight of two clients.
func TestGap12NoZombies(t *testing.T) {
	t.Parallel()
	b := start(t, option{faults: func(f *edgesim.Faults) { f.ConnackDelay = 4 * time.Second }})
	b.until("a CONNECT", func() bool { return b.Status(id).Connects == 1 })
	begin := time.Now()
	b.stop()
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("it took %v to end", d)
	}
	time.Sleep(6 * time.Second)
	if s := b.Status(id); s.Connects != 1 || s.Connected {
		t.Errorf("after the end: %+v", s)
	}

	late := start(t, option{
		faults: func(f *edgesim.Faults) { f.ConnackDelay = 400 * time.Millisecond },
		hub:    func(o *twin.EdgeHubOptions) { o.ConnectTimeout = 200 * time.Millisecond },
	})
	time.Sleep(5 * time.Second)
	if n := late.Status(id).Connects; n > 6 {
		t.Errorf("%d attempts in 5 s", n)
	}
	late.until("a second attempt", func() bool { return late.Status(id).Connects > 1 })
	late.SetFaults(func(f *edgesim.Faults) { f.ConnackDelay = 0 })
	late.connected()
	n := late.Status(id).Connects
	time.Sleep(2 * time.Second)
	if now := late.Status(id).Connects; now != n || late.hub.Connected() != nil {
		t.Errorf("%d more connections while one stands", now-n)
	}
}

// What goes out is encoded; what would end the connection does not go out; nothing is sent again by a later link.
func TestGap13NoPoison(t *testing.T) {
	t.Parallel()
	b := start(t, option{})
	b.version(1)
	if err := b.hub.Output(t.Context(), "registryEvents", []byte(`{"text":"+ # / ? & = % $"}`)); err != nil {
		t.Fatal(err)
	}
	m := b.Messages(id)
	if len(m) != 1 || m[0].Output != "registryEvents" || m[0].Properties["$.ct"] != "application/json" || m[0].Properties["$.ce"] != "utf-8" || string(m[0].Payload) != `{"text":"+ # / ? & = % $"}` {
		t.Errorf("received %+v", m)
	}
	if err := b.hub.Output(t.Context(), "two words", []byte(`{}`)); err == nil {
		t.Error("a name with a blank is sent")
	}
	large := []byte(`"` + strings.Repeat("x", 262144-2) + `"`)
	if err := b.hub.Output(t.Context(), "events", large); err == nil {
		t.Error("what is too large is sent")
	}
	for cut := 1; ; cut++ { // the largest that is taken passes
		if err := b.hub.Output(t.Context(), "events", append(large[:len(large)-cut:len(large)-cut], '"')); err == nil {
			break
		}
		if cut > 1000 {
			t.Fatal("nothing large passes")
		}
	}
	if n := b.Status(id).Connects; n != 1 {
		t.Errorf("%d connections", n)
	}
	sent := len(b.Messages(id))
	b.Kick(id)
	b.until("a new connection", func() bool { return b.Status(id).Connects == 2 && b.hub.Connected() == nil })
	if n := len(b.Messages(id)); n != sent {
		t.Errorf("%d messages were sent again", n-sent)
	}
}

func TestGap14UnknownMethod(t *testing.T) {
	t.Parallel()
	b := start(t, option{hub: echo})
	b.connected()
	if status, body := b.invoke("reboot", `{}`); status != 404 || !strings.Contains(body, "unknown method") {
		t.Errorf("%d %s", status, body)
	}
}

func TestGap15AnyPayload(t *testing.T) {
	t.Parallel()
	b := start(t, option{hub: echo})
	b.connected()
	for _, payload := range []string{`{"a":[1,null]}`, `[1]`, `"text"`, `42`, `true`, `null`} {
		if status, body := b.invoke("echo", payload); status != 200 || body != payload {
			t.Errorf("%s: %d %s", payload, status, body)
		}
	}
}

func TestGap16TypedErrors(t *testing.T) {
	t.Parallel()
	b := start(t, option{})
	b.version(1)
	var answer *twin.HubError
	for _, bad := range []map[string]any{{"list": []any{1, nil}}, {"large": 1 << 53}, {"a.b": 1}, {"long": strings.Repeat("x", 4097)}} {
		if err := b.hub.Report(t.Context(), bad); !errors.As(err, &answer) || answer.Code != 400 {
			t.Errorf("%.40v: %v", bad, err)
		}
	}
	b.SetFaults(func(f *edgesim.Faults) { f.TwinStatus = 429 })
	if err := b.hub.Report(t.Context(), map[string]any{"a": 1}); !errors.As(err, &answer) || answer.Code != 429 {
		t.Errorf("throttled: %v", err)
	}
	b.SetFaults(func(f *edgesim.Faults) { f.TwinStatus = 0 })
	if err := b.hub.Report(t.Context(), map[string]any{"a": 1}); err != nil || b.Status(id).Connects != 1 {
		t.Errorf("afterwards: %v, %d connections", err, b.Status(id).Connects)
	}
}

func TestGap17LostAnswer(t *testing.T) {
	t.Parallel()
	b := start(t, option{
		faults: func(f *edgesim.Faults) { f.LoseResponses = 1 },
		hub:    func(o *twin.EdgeHubOptions) { o.AnswerTimeout = 300 * time.Millisecond },
	})
	b.version(1)
	if s := b.Status(id); s.Connects != 1 || s.TwinGets != 2 {
		t.Errorf("%d connections, %d requests", s.Connects, s.TwinGets)
	}
	b.SetFaults(func(f *edgesim.Faults) { f.LoseResponses = -1 })
	b.update(map[string]any{"n": 1})
	b.until("a new connection", func() bool { return b.Status(id).Connects >= 2 })
	b.SetFaults(func(f *edgesim.Faults) { f.LoseResponses = 0 })
	b.version(2)
}

// A token is renewed before edgeHub looks for it; where that fails, the connection that edgeHub ends is made anew.
func TestGap18TokenRenewal(t *testing.T) {
	t.Parallel()
	const life = 12 * time.Second
	b := start(t, option{hub: func(o *twin.EdgeHubOptions) { o.TokenLife = life }, device: func(o *edgesim.Options) { o.Timing.Reauthenticate = 100 * time.Millisecond }})
	b.version(1)
	first := b.Status(id).TokenExpiry
	var next time.Time
	b.until("another token", func() bool {
		s := b.Status(id)
		next = s.TokenExpiry
		return s.Connected && next.After(first)
	})
	if made := next.Add(-life); !made.Before(first) {
		t.Errorf("renewed at %v, after the end of the first at %v", made, first)
	}
	if b.logged("no connection") {
		t.Error("a renewal counts as a failure")
	}
	b.version(b.update(map[string]any{"n": 1}))

	old := start(t, option{device: func(o *edgesim.Options) { o.Timing.Reauthenticate = 100 * time.Millisecond }})
	old.version(1)
	old.SetFaults(func(f *edgesim.Faults) { f.Clock = 2 * time.Hour }) // the device's clock was set
	old.until("dropped", func() bool { return old.hub.Connected() != nil })
	old.SetFaults(func(f *edgesim.Faults) { f.Clock = 0 })
	old.version(old.update(map[string]any{"n": 1}))
}

func TestGap19TwoDevices(t *testing.T) {
	t.Parallel()
	one := start(t, option{})
	two := start(t, option{device: func(o *edgesim.Options) {
		o.DeviceID, o.Modules = "l3", []edgesim.Module{{ID: id, Desired: map[string]any{"mode": "ReadWrite"}}}
	}})
	if d := one.version(1); string(d.Raw) != `{"mode":"ReadOnly"}` {
		t.Errorf("one: %s", d.Raw)
	}
	if d := two.version(1); string(d.Raw) != `{"mode":"ReadWrite"}` {
		t.Errorf("two: %s", d.Raw)
	}
	odd := start(t, option{device: func(o *edgesim.Options) { o.DeviceID = "l4:a@b=(c),$d!" }}) // names are escaped in token and path
	odd.version(1)
}

// The environment that edgeAgent makes has neither HOSTNAME nor, on some versions, IOTEDGE_APIVERSION.
func TestGap20Environment(t *testing.T) {
	t.Parallel()
	b := start(t, option{device: func(o *edgesim.Options) { o.ParentHostname = "edge-l5" }})
	if b.edge.ParentHostname != "edge-l5" || b.Env(id)["HOSTNAME"]+b.Env(id)["IOTEDGE_APIVERSION"] != "" {
		t.Errorf("%+v", b.edge)
	}
	b.version(1)
}

func TestGap21Product(t *testing.T) {
	t.Parallel()
	b := start(t, option{})
	b.connected()
	if got := b.Status(id).Product; got != "connected-registry/0.1 (test)" {
		t.Errorf("product %q", got)
	}
}

// Neither port is reached through a proxy that the environment names.
func TestGap22NoProxy(t *testing.T) {
	for _, name := range []string{"ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		t.Setenv(name, "socks5://127.0.0.1:1")
	}
	b := start(t, option{})
	b.version(1)
	ws := start(t, option{env: map[string]string{"UpstreamProtocol": "MqttWs"}})
	ws.version(1)
	// The machine's own dialer, on the standard port.
	direct := start(t, option{
		device: func(o *edgesim.Options) { o.Address, o.Hostname, o.MQTTPort = "127.0.83.22", "127.0.83.22", 8883 },
		hub:    func(o *twin.EdgeHubOptions) { o.Dial = nil },
	})
	direct.version(1)
}

// All that is said goes to the logger, and no secret is in it.
func TestGap23Log(t *testing.T) {
	stdout := os.Stdout
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout = w
	b := start(t, option{hub: echo, faults: func(f *edgesim.Faults) { f.Refuse = 5 }})
	b.document("an error", func(d twin.Document) bool { return d.Err != nil })
	b.SetFaults(func(f *edgesim.Faults) { f.Refuse = 0 })
	b.version(1)
	b.invoke("echo", `1`)
	b.Kick(id)
	b.version(b.update(map[string]any{"n": 1}))
	b.stop()
	os.Stdout = stdout
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(r)
	if err != nil || len(said) > 0 {
		t.Errorf("on standard output: %q, %v", said, err)
	}
	text := b.log.String()
	for _, secret := range []string{"SharedAccessSignature", "sig=", "digest", "PRIVATE KEY"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
	if !strings.Contains(text, "edgeHub: connected") || !strings.Contains(text, "level=WARN") {
		t.Errorf("the log does not tell how it fares:\n%s", text)
	}
}
