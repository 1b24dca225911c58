package twin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// fakeHub is an edge hub without a network.
type fakeHub struct {
	mu     sync.Mutex
	twin   string
	getErr error
	slow   time.Duration // until an answer
	lose   int           // that many answers never come
	refuse error         // of opening
	links  []*fakeLink
	tries  []bool // WebSocket or not, of each opening
	gets   []time.Time
	other  []string // reports and outputs
}

type fakeLink struct {
	hub    *fakeHub
	r      receiver
	opened time.Time
	once   sync.Once
	ended  chan struct{}
	closed bool
}

func (h *fakeHub) open(_ context.Context, webSocket bool, r receiver) (link, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tries = append(h.tries, webSocket)
	if h.refuse != nil {
		return nil, h.refuse
	}
	l := &fakeLink{hub: h, r: r, opened: time.Now(), ended: make(chan struct{})}
	h.links = append(h.links, l)
	return l, nil
}

func (h *fakeHub) set(f func(*fakeHub)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h)
}

func (h *fakeHub) link() *fakeLink {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.links[len(h.links)-1]
}

func (h *fakeHub) counts() (links, gets int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.links), len(h.gets)
}

func (l *fakeLink) get(ctx context.Context) ([]byte, error) {
	h := l.hub
	h.mu.Lock()
	h.gets = append(h.gets, time.Now())
	slow, lost := h.slow, h.lose != 0
	if lost {
		h.lose--
	}
	h.mu.Unlock()
	if lost {
		slow = 1000 * time.Hour
	}
	timer := time.NewTimer(slow)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("edgeHub: get: %w", ctx.Err())
	case <-l.ended:
		return nil, ErrNotConnected
	case <-timer.C:
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return []byte(h.twin), h.getErr
}

func (l *fakeLink) report(_ context.Context, body []byte) error {
	l.hub.set(func(h *fakeHub) { h.other = append(h.other, string(body)) })
	return nil
}

func (l *fakeLink) output(_ context.Context, name string, body []byte) error {
	l.hub.set(func(h *fakeHub) { h.other = append(h.other, name+string(body)) })
	return nil
}

func (l *fakeLink) lost() <-chan struct{} { return l.ended }
func (l *fakeLink) cut()                  { l.once.Do(func() { close(l.ended) }) }

func (l *fakeLink) close() {
	l.cut()
	l.hub.set(func(*fakeHub) { l.closed = true })
}

// bench is an EdgeHub at a fakeHub, and what it has posted.
type bench struct {
	*fakeHub
	edge *EdgeHub
	mu   sync.Mutex
	docs []Document
	log  logBuffer
}

// logBuffer is written and read at once.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (b *bench) take() []Document {
	b.mu.Lock()
	defer b.mu.Unlock()
	docs := b.docs
	b.docs = nil
	return docs
}

func twinOf(version int, properties string) string {
	if version == 0 {
		return `{"desired":{` + properties + `},"reported":{}}`
	}
	if properties != "" {
		properties += ","
	}
	return fmt.Sprintf(`{"desired":{%s"$version":%d},"reported":{"x":1}}`, properties, version)
}

const mode = `"mode":"ReadOnly"`

// onBench runs f in a bubble of time, with the EdgeHub watching.
func onBench(t *testing.T, change func(*EdgeHubOptions, *fakeHub), f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{fakeHub: &fakeHub{twin: twinOf(1, mode)}}
		o := EdgeHubOptions{Rand: func() float64 { return 0.5 }, Log: slog.New(slog.NewTextHandler(&b.log, nil))}
		if change != nil {
			change(&o, b.fakeHub)
		}
		b.edge = NewEdgeHub(Edge{GatewayHostname: "edge", Generation: "g1", DeviceID: "d", ModuleID: "m"}, nil, o)
		b.edge.open = b.open
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for d := range b.edge.Watch(ctx) {
				b.mu.Lock()
				b.docs = append(b.docs, d)
				b.mu.Unlock()
			}
		}()
		f(t, b)
		cancel()
		<-done
		synctest.Wait()
		b.set(func(h *fakeHub) {
			for i, l := range h.links {
				if !l.closed {
					t.Errorf("link %d was not closed", i)
				}
			}
		})
		if b.edge.Connected() == nil {
			t.Error("connected after the end")
		}
	})
}

func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// expect compares what was posted: "5 {json}" for a document, "!text" for an error that holds it.
func (b *bench) expect(t *testing.T, want ...string) {
	t.Helper()
	docs := b.take()
	if len(docs) != len(want) {
		t.Fatalf("posted %+v, want %q", docs, want)
	}
	for i, d := range docs {
		if text, isErr := strings.CutPrefix(want[i], "!"); isErr {
			if d.Err == nil || d.Raw != nil || !strings.Contains(d.Err.Error(), text) {
				t.Errorf("posted %+v, want an error with %q", d, text)
			}
			continue
		}
		if got := fmt.Sprintf("%d %s", d.Version, d.Raw); got != want[i] || d.Err != nil || d.Generation != "g1" {
			t.Errorf("posted %q (%v), want %q", got, d.Err, want[i])
		}
	}
}

func TestEdgeHubPostsTheTwin(t *testing.T) {
	var connected []map[string]any
	onBench(t, func(o *EdgeHubOptions, _ *fakeHub) {
		o.TokenLife = 24 * time.Hour
		o.Connected = func(reported map[string]any) { connected = append(connected, reported) }
	}, func(t *testing.T, b *bench) {
		wait(time.Second)
		b.expect(t, `1 {"mode":"ReadOnly"}`)
		if len(connected) != 1 || connected[0]["x"] != 1.0 || b.edge.Connected() != nil {
			t.Errorf("connected %v, %v", connected, b.edge.Connected())
		}
		wait(59 * time.Minute)
		b.set(func(h *fakeHub) { h.twin = twinOf(2, mode) }) // nobody tells: the hourly request finds it
		b.expect(t)
		wait(2 * time.Minute)
		b.expect(t, `2 {"mode":"ReadOnly"}`)
	})
}

// Gap 7: what was sent while there was no link is found by the request after it; the hub does not repeat it.
func TestGap07PatchesThatWereMissed(t *testing.T) {
	onBench(t, nil, func(t *testing.T, b *bench) {
		wait(time.Second)
		b.expect(t, `1 {"mode":"ReadOnly"}`)
		b.set(func(h *fakeHub) { h.twin = twinOf(4, `"mode":"ReadWrite"`) })
		b.link().cut()
		wait(3 * time.Second)
		b.expect(t, `4 {"mode":"ReadWrite"}`)
		// A patch that shows a gap, and one that edgeHub has not caught up with itself.
		b.link().r.patched(9)
		wait(time.Second)
		b.expect(t)
		b.set(func(h *fakeHub) { h.twin = twinOf(9, mode) })
		wait(3 * time.Second)
		b.expect(t, `9 {"mode":"ReadOnly"}`)
		_, before := b.counts()
		wait(40 * time.Minute)
		if _, after := b.counts(); after != before {
			t.Errorf("%d requests although the twin is as new as the patch", after-before)
		}
	})
}

// Gap 6: patches come in any order; only the answer to a request is applied, by its version.
func TestGap06PatchesOutOfOrder(t *testing.T) {
	onBench(t, nil, func(t *testing.T, b *bench) {
		wait(time.Second)
		b.take()
		b.set(func(h *fakeHub) { h.twin = twinOf(300, mode) })
		_, before := b.counts()
		l := b.link()
		for i := range 300 {
			go l.r.patched(int64(300 - i))
		}
		wait(10 * time.Second)
		b.expect(t, `300 {"mode":"ReadOnly"}`)
		if _, after := b.counts(); after-before > 3 {
			t.Errorf("%d requests for a burst of patches", after-before)
		}
		_, before = b.counts()
		for range 50 { // a stream does not put the request off
			l.r.patched(301)
			wait(100 * time.Millisecond)
		}
		if _, after := b.counts(); after == before {
			t.Error("no request during a stream of patches")
		}
	})
}

func TestEdgeHubStaleTwins(t *testing.T) {
	last := Record{Generation: "g1", Version: 5, Raw: []byte(`{"mode":"ReadWrite"}`)}
	for _, tt := range []struct{ name, twin, want string }{
		{"an empty one of an edgeHub without a cloud", twinOf(0, ""), "!no version"},
		{"one that lost its properties", twinOf(6, ""), "!no desired properties"},
		{"an older one", twinOf(4, mode), "!older than version 5"},
		{"no JSON", `{`, "!twin"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onBench(t, func(o *EdgeHubOptions, h *fakeHub) { o.Last, h.twin = last, tt.twin }, func(t *testing.T, b *bench) {
				wait(time.Second)
				if docs := b.take(); len(docs) != 1 || docs[0].Err == nil || docs[0].Raw != nil || !strings.Contains(docs[0].Err.Error(), tt.want[1:]) {
					t.Fatalf("posted %+v", docs)
				}
				if b.edge.Connected() != nil {
					t.Error("an answer proves the link, whatever it says")
				}
				wait(10 * time.Minute)
				b.expect(t) // the same again is no news
				b.set(func(h *fakeHub) { h.twin = twinOf(5, mode) })
				wait(6 * time.Minute)
				b.expect(t, `5 {"mode":"ReadOnly"}`)
			})
		})
	}
	onBench(t, func(o *EdgeHubOptions, h *fakeHub) {
		o.Last = Record{Generation: "g0", Version: 50, Raw: last.Raw}
	}, func(t *testing.T, b *bench) {
		wait(time.Second)
		b.expect(t, `1 {"mode":"ReadOnly"}`) // a module that was made anew begins again
	})
}

// Gap 17: a lost answer is asked for again after a while, a second loss ends the link.
func TestGap17LostAnswers(t *testing.T) {
	onBench(t, func(_ *EdgeHubOptions, h *fakeHub) { h.lose = 1 }, func(t *testing.T, b *bench) {
		wait(69 * time.Second)
		b.expect(t)
		wait(2 * time.Second)
		b.expect(t, `1 {"mode":"ReadOnly"}`)
		if links, _ := b.counts(); links != 1 {
			t.Errorf("%d links", links)
		}
		// Gap 10: a link on which nothing is answered, as after a subscription that was lost, is made anew.
		b.set(func(h *fakeHub) { h.lose = 2; h.twin = twinOf(2, mode) })
		b.link().r.patched(2)
		wait(145 * time.Second)
		b.expect(t, `2 {"mode":"ReadOnly"}`)
		if links, _ := b.counts(); links != 2 {
			t.Errorf("%d links", links)
		}
	})
}

// The cloud's 50 s of hanging are not mistaken for a loss.
func TestEdgeHubSlowAnswer(t *testing.T) {
	onBench(t, func(_ *EdgeHubOptions, h *fakeHub) { h.slow = 55 * time.Second }, func(t *testing.T, b *bench) {
		wait(56 * time.Second)
		b.expect(t, `1 {"mode":"ReadOnly"}`)
		if links, gets := b.counts(); links != 1 || gets != 1 {
			t.Errorf("%d links, %d requests", links, gets)
		}
	})
}

// Gap 16: an answer with a code is an error with that code, and no reason to connect anew.
func TestGap16Codes(t *testing.T) {
	err := hubError("get", errors.New("request failed with 429 response code"))
	var answer *HubError
	if !errors.As(err, &answer) || answer.Code != 429 || answer.Call != "get" {
		t.Errorf("429: %v", err)
	}
	if errors.As(hubError("get", errors.New("not Connected")), &answer) && answer.Code != 429 {
		t.Error("every error is an answer")
	}
	if hubError("get", nil) != nil {
		t.Error("success is an error")
	}
	onBench(t, func(_ *EdgeHubOptions, h *fakeHub) { h.getErr = &HubError{Call: "get", Code: 500} }, func(t *testing.T, b *bench) {
		wait(10 * time.Minute)
		b.expect(t, "!answered with 500")
		links, gets := b.counts()
		if links != 1 || gets < 5 || gets > 12 || b.edge.Connected() != nil {
			t.Errorf("%d links, %d requests, %v", links, gets, b.edge.Connected())
		}
		b.set(func(h *fakeHub) { h.getErr = nil })
		wait(5 * time.Minute)
		b.expect(t, `1 {"mode":"ReadOnly"}`)
	})
}

func TestEdgeHubConnectsForEver(t *testing.T) {
	onBench(t, func(_ *EdgeHubOptions, h *fakeHub) { h.refuse = errors.New("edgeHub: no such host") }, func(t *testing.T, b *bench) {
		wait(24 * time.Hour)
		b.expect(t, "!no such host")
		if err := b.edge.Connected(); err == nil || !strings.Contains(err.Error(), "no such host") {
			t.Errorf("Connected: %v", err)
		}
		if err := b.edge.Report(t.Context(), nil); !errors.Is(err, ErrNotConnected) {
			t.Errorf("Report: %v", err)
		}
		b.set(func(h *fakeHub) {
			if n := len(h.tries); n < 1400 || n > 1500 {
				t.Errorf("%d attempts in a day", n)
			}
			if h.tries[0] || !h.tries[1] || h.tries[2] {
				t.Errorf("ports in the order %v", h.tries[:4])
			}
			h.refuse = nil
		})
		if n := strings.Count(b.log.String(), "no such host"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		wait(time.Minute + time.Second)
		b.expect(t, `1 {"mode":"ReadOnly"}`)
	})
}

// A link that never lives long, as with a second instance of the same name, does not make the attempts denser.
func TestGap12NoFight(t *testing.T) {
	onBench(t, nil, func(t *testing.T, b *bench) {
		for range 600 {
			wait(time.Second)
			if links, _ := b.counts(); links > 0 {
				b.link().cut()
			}
		}
		if links, _ := b.counts(); links > 20 {
			t.Errorf("%d links in ten minutes", links)
		}
	})
}

func TestEdgeHubRemembersThePort(t *testing.T) {
	onBench(t, nil, func(t *testing.T, b *bench) {
		wait(2 * time.Minute)
		b.link().cut()
		wait(2 * time.Second)
		b.set(func(h *fakeHub) {
			if len(h.tries) != 2 || h.tries[0] || h.tries[1] {
				t.Errorf("ports in the order %v", h.tries)
			}
		})
	})
}

// Gap 18: a token is renewed before it ends, in a quiet moment, and not much later in any other.
func TestGap18TokenIsRenewed(t *testing.T) {
	var release chan struct{}
	onBench(t, func(o *EdgeHubOptions, _ *fakeHub) {
		release = make(chan struct{})
		o.Methods = func(context.Context, string, []byte) (int, []byte) { <-release; return 200, nil }
	}, func(t *testing.T, b *bench) {
		wait(47 * time.Minute)
		if links, _ := b.counts(); links != 1 {
			t.Fatalf("%d links", links)
		}
		go b.link().r.method("slow", nil)
		wait(3 * time.Minute)
		if links, _ := b.counts(); links != 1 {
			t.Fatalf("%d links while a method runs", links)
		}
		close(release)
		wait(5 * time.Second)
		links, gets := b.counts()
		if links != 2 || gets != 2 {
			t.Fatalf("%d links, %d requests in a quiet moment", links, gets)
		}
		b.expect(t, `1 {"mode":"ReadOnly"}`)
		if b.edge.Connected() != nil {
			t.Errorf("after the renewal: %v", b.edge.Connected())
		}
	})
	var never chan struct{}
	onBench(t, func(o *EdgeHubOptions, _ *fakeHub) {
		never = make(chan struct{})
		o.Methods = func(context.Context, string, []byte) (int, []byte) { <-never; return 200, nil }
	}, func(t *testing.T, b *bench) {
		wait(time.Minute)
		go b.link().r.method("endless", nil)
		wait(57 * time.Minute)
		if links, _ := b.counts(); links != 2 {
			t.Errorf("%d links shortly before the token ends", links)
		}
		close(never)
	})
}

// Gaps 14 and 15: every call has an answer, whatever its name and payload are.
func TestGap14UnknownMethod(t *testing.T) {
	block := make(chan struct{})
	handler := func(_ context.Context, name string, payload []byte) (int, []byte) {
		switch name {
		case "echo":
			return 200, payload
		case "none":
			return 204, nil
		case "text":
			return 200, []byte("ok")
		case "large":
			return 200, bytes.Repeat([]byte("1"), maxMethodAnswer+1)
		case "block":
			<-block
			return 200, nil
		}
		return 0, nil
	}
	h := NewEdgeHub(Edge{}, nil, EdgeHubOptions{Methods: handler})
	for _, tt := range []struct {
		name, payload string
		status        int
		body          string
	}{
		{"echo", `{"a":1}`, 200, `{"a":1}`},
		{"echo", `[1]`, 200, `[1]`},
		{"echo", `"x"`, 200, `"x"`},
		{"echo", `null`, 200, `null`},
		{"echo", ``, 200, `null`},
		{"none", ``, 204, `null`},
		{"text", ``, 500, `{"message":"the answer is not JSON"}`},
		{"missing", `{}`, 404, `{"message":"unknown method \"missing\""}`},
		{"", `{}`, 404, `{"message":"unknown method \"\""}`},
	} {
		status, body := h.method(t.Context(), tt.name, []byte(tt.payload))
		if status != tt.status || string(body) != tt.body {
			t.Errorf("%s(%s): %d %s, want %d %s", tt.name, tt.payload, status, body, tt.status, tt.body)
		}
	}
	if status, body := h.method(t.Context(), "large", nil); status != 500 || len(body) > 200 {
		t.Errorf("a large answer: %d, %d bytes", status, len(body))
	}
	if status, _ := NewEdgeHub(Edge{}, nil, EdgeHubOptions{}).method(t.Context(), "echo", nil); status != 404 {
		t.Errorf("without methods: %d", status)
	}
	var group sync.WaitGroup
	for range methodsAtOnce {
		group.Go(func() { h.method(t.Context(), "block", nil) })
	}
	for h.busy.Load() < methodsAtOnce {
		time.Sleep(time.Millisecond)
	}
	if status, _ := h.method(t.Context(), "echo", nil); status != 429 {
		t.Errorf("with %d running: %d", methodsAtOnce, status)
	}
	close(block)
	group.Wait()
}

// Gap 13: what would make a packet that ends the connection, again and again, is not sent.
func TestGap13OutputsAreChecked(t *testing.T) {
	onBench(t, nil, func(t *testing.T, b *bench) {
		wait(time.Second)
		fits := maxPacket - b.edge.outputTopic("events") - 2
		for _, tt := range []struct{ name, body, wrong string }{
			{"registryEvents", `{"a":1}`, ""},
			{"two words", `{}`, "want 1 to 64 letters"},
			{"a/b", `{}`, "want 1 to 64"},
			{"", `{}`, "want 1 to 64"},
			{"a+b", `{}`, "want 1 to 64"},
			{"a#", `{}`, "want 1 to 64"},
			{strings.Repeat("a", 65), `{}`, "want 1 to 64"},
			{"events", `text`, "not JSON"},
			{"events", `"` + strings.Repeat("x", fits) + `"`, ""},
			{"events", `"` + strings.Repeat("x", fits+1) + `"`, "want at most"},
		} {
			err := b.edge.Output(t.Context(), tt.name, []byte(tt.body))
			if (err != nil) != (tt.wrong != "") || err != nil && !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("%q, %d bytes: %v, want %q", tt.name, len(tt.body), err, tt.wrong)
			}
		}
		if err := b.edge.Report(t.Context(), map[string]any{"a": nil, "b": registry.Online}); err != nil {
			t.Error(err)
		}
		if err := b.edge.Report(t.Context(), map[string]any{"a": make(chan int)}); err == nil {
			t.Error("what is no JSON is reported")
		}
		b.set(func(h *fakeHub) {
			if len(h.other) != 3 || h.other[0] != `registryEvents{"a":1}` || h.other[2] != `{"a":null,"b":"Online"}` {
				t.Errorf("sent %.100q", h.other)
			}
		})
	})
}

// Gap 11: nobody reads, patches come, and it ends without a panic or anybody left behind.
func TestGap11NobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := &fakeHub{twin: twinOf(1, mode)}
		e := NewEdgeHub(Edge{Generation: "g1"}, nil, EdgeHubOptions{})
		e.open = hub.open
		ctx, cancel := context.WithCancel(t.Context())
		docs := e.Watch(ctx)
		wait(time.Second)
		for v := 2; v < 40; v++ {
			hub.set(func(h *fakeHub) { h.twin = twinOf(v, mode) })
			hub.link().r.patched(int64(v))
			wait(time.Second)
		}
		if d := <-docs; d.Version != 39 {
			t.Errorf("a slow reader gets version %d, want the newest", d.Version)
		}
		l := hub.link()
		cancel()
		wait(time.Second)
		for range 20 {
			l.r.patched(99) // a message that was on its way
		}
		if _, ok := <-docs; ok {
			t.Error("a document after the end")
		}
	})
}

func TestPatchReceiver(t *testing.T) {
	var got []int64
	f := patchReceiver(func(v int64) { got = append(got, v) })
	for _, body := range []string{`{"a":1,"$version":7}`, `{`, `null`, `{"$version":"x"}`} {
		f.Dispatch([]byte(body))
	}
	if fmt.Sprint(got) != "[7 0 0 0]" {
		t.Errorf("hints %v", got)
	}
	status, body, err := methodReceiver(func(string, []byte) (int, []byte) { return 404, []byte("{}") }).Dispatch("x", nil)
	if status != 404 || string(body) != "{}" || err != nil {
		t.Errorf("%d %s %v", status, body, err)
	}
	if !json.Valid(body) {
		t.Error("no JSON")
	}
}
