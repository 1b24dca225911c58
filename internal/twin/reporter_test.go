package twin_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/twin"
)

// hub is the other side of a Reporter: it merges patches as a twin does.
type hub struct {
	mu    sync.Mutex
	sent  []string
	times []time.Time
	have  map[string]any
	err   error
	stall chan struct{} // where set, a report waits for it
}

func (h *hub) report(_ context.Context, p map[string]any) error {
	h.mu.Lock()
	err, stall := h.err, h.stall
	h.mu.Unlock()
	if stall != nil {
		<-stall
	}
	body, _ := json.Marshal(p)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sent = append(h.sent, string(body))
	h.times = append(h.times, time.Now())
	if err == nil {
		var patch map[string]any
		_ = json.Unmarshal(body, &patch)
		h.have = merge(h.have, patch)
	}
	return err
}

func (h *hub) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
}

// take returns what was sent since the last call.
func (h *hub) take() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	sent := h.sent
	h.sent = nil
	return sent
}

// known is what the hub has.
func (h *hub) known() map[string]any {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.have
}

func merge(have, patch map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range have {
		out[k] = v
	}
	for k, v := range patch {
		inner, ok := v.(map[string]any)
		was, _ := out[k].(map[string]any)
		switch {
		case v == nil:
			delete(out, k)
		case ok:
			out[k] = merge(was, inner)
		default:
			out[k] = v
		}
	}
	return out
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("sent %q, want %q", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("sent %q, want %q", got, want)
		}
	}
}

// reporting runs f with a Reporter in a bubble of time.
func reporting(t *testing.T, f func(t *testing.T, h *hub, r *twin.Reporter)) {
	synctest.Test(t, func(t *testing.T) {
		h := &hub{}
		r := twin.NewReporter(h.report, twin.ReporterOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.Run(ctx); close(done) }()
		f(t, h, r)
		cancel()
		<-done
	})
}

func TestReporterSendsDifferences(t *testing.T) {
	reporting(t, func(t *testing.T, h *hub, r *twin.Reporter) {
		begin := time.Now()
		for i := range 100 { // a burst is one report
			r.Set(map[string]any{"a": i, "o": map[string]any{"x": 1, "y": 2}})
		}
		time.Sleep(4 * time.Second)
		want(t, h.take())
		time.Sleep(2 * time.Second)
		want(t, h.take(), `{"a":99,"o":{"x":1,"y":2}}`)
		if d := h.times[0].Sub(begin); d < 5*time.Second {
			t.Errorf("reported after %v", d)
		}
		r.Set(map[string]any{"a": 99, "o": map[string]any{"x": 1, "y": 2}})
		time.Sleep(time.Minute)
		want(t, h.take()) // nothing is different
		r.Set(map[string]any{"o": map[string]any{"x": 1, "z": []any{1}}})
		time.Sleep(time.Minute)
		want(t, h.take(), `{"a":null,"o":{"y":null,"z":[1]}}`)
		r.Set(map[string]any{"o": 1})
		time.Sleep(time.Minute)
		want(t, h.take(), `{"o":1}`)
	})
}

func TestReporterResendsAfterReconnect(t *testing.T) {
	reporting(t, func(t *testing.T, h *hub, r *twin.Reporter) {
		h.fail(twin.ErrNotConnected)
		r.Set(map[string]any{"a": 1})
		time.Sleep(time.Hour)
		if n := len(h.take()); n != 1 {
			t.Fatalf("%d reports without a connection", n)
		}
		h.fail(nil)
		r.Resend(map[string]any{"a": 1, "old": map[string]any{"b": 2}})
		time.Sleep(time.Minute)
		want(t, h.take(), `{"a":1,"old":null}`)
		r.Resend(nil)
		time.Sleep(time.Minute)
		want(t, h.take(), `{"a":1}`)
	})
}

func TestReporterTriesAgain(t *testing.T) {
	reporting(t, func(t *testing.T, h *hub, r *twin.Reporter) {
		h.fail(errors.New("no answer"))
		r.Set(map[string]any{"a": 1})
		time.Sleep(time.Hour)
		if n := len(h.take()); n < 8 || n > 25 {
			t.Errorf("%d attempts in an hour", n)
		}
		h.fail(nil)
		time.Sleep(6 * time.Minute)
		want(t, h.take(), `{"a":1}`)

		h.fail(&twin.HubError{Call: "report", Code: 400})
		r.Set(map[string]any{"a": 2})
		time.Sleep(time.Hour)
		want(t, h.take(), `{"a":2}`) // what is refused is refused again
		h.fail(nil)
		r.Set(map[string]any{"a": 3})
		time.Sleep(time.Minute)
		want(t, h.take(), `{"a":3}`)
	})
}

func TestReporterNeverBlocks(t *testing.T) {
	reporting(t, func(t *testing.T, h *hub, r *twin.Reporter) {
		stall := make(chan struct{})
		h.stall = stall
		r.Set(map[string]any{"a": 1})
		time.Sleep(10 * time.Second) // the report is under way and hangs
		begin := time.Now()
		r.Set(map[string]any{"a": 2})
		r.Resend(nil) // a new connection: what hangs counts no more
		if time.Since(begin) != 0 {
			t.Error("Set waited")
		}
		close(stall)
		time.Sleep(time.Minute)
		want(t, h.take(), `{"a":1}`, `{"a":2}`)

		stall = make(chan struct{})
		h.mu.Lock()
		h.stall = stall
		h.mu.Unlock()
		r.Set(map[string]any{"a": 3})
		time.Sleep(10 * time.Second)
		r.Resend(nil) // nothing else has changed
		close(stall)
		time.Sleep(time.Minute)
		want(t, h.take(), `{"a":3}`, `{"a":3}`)
	})
}

// Whatever is set, and whatever gets lost on the way, the other side ends with the last that was set.
func TestReporterConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		value := rapid.Custom(func(t *rapid.T) any {
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				return rapid.IntRange(0, 3).Draw(t, "n")
			case 1:
				return map[string]any{"x": rapid.IntRange(0, 2).Draw(t, "x")}
			case 2:
				return map[string]any{"y": map[string]any{"z": rapid.Bool().Draw(t, "z")}}
			}
			return []any{rapid.IntRange(0, 2).Draw(t, "e")}
		})
		properties := rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c"}), value, 0, 3)
		steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) any {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				return errors.New("lost")
			case 1:
				return "reconnect"
			}
			return properties.Draw(t, "p")
		}), 1, 8).Draw(rt, "steps")
		last := properties.Draw(rt, "last")
		first := properties.Draw(rt, "first")
		var got, wanted string
		reporting(t, func(t *testing.T, h *hub, r *twin.Reporter) {
			h.have = merge(nil, first)
			r.Resend(first)
			for _, step := range steps {
				switch s := step.(type) {
				case error:
					h.fail(s)
				case string:
					h.fail(nil)
					r.Resend(h.known())
				case map[string]any:
					r.Set(s)
				}
				time.Sleep(7 * time.Second)
			}
			h.fail(nil)
			r.Set(last)
			time.Sleep(20 * time.Minute)
			a, _ := json.Marshal(h.known())
			b, _ := json.Marshal(merge(nil, last))
			got, wanted = string(a), string(b)
		})
		if got != wanted {
			rt.Fatalf("has %s, want %s", got, wanted)
		}
	})
}
