package twin

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
)

const (
	reportEvery = 5 * time.Second // edgeHub sends no more often to the cloud
	reportCap   = 5 * time.Minute
)

// ReporterOptions are the options of a Reporter. The zero value works.
type ReporterOptions struct {
	// Every is the least time between two reports; 0 is 5 s.
	Every time.Duration
	Log   *slog.Logger
}

// Reporter keeps the reported properties as they were last Set. Changes of five seconds become one report, which has
// only what is different, and null for what went; after a new connection all of it is sent once, because nobody knows
// what the other side has forgotten.
type Reporter struct {
	send func(ctx context.Context, properties map[string]any) error
	o    ReporterOptions
	wake chan struct{}

	mu    sync.Mutex
	want  map[string]any // nil until Set
	have  map[string]any // what the other side has, as far as known
	all   bool           // send all
	round int            // of Resend: what was sent before the last one counts no more
}

// NewReporter returns a Reporter that reports by send, which is EdgeHub.Report.
func NewReporter(send func(ctx context.Context, properties map[string]any) error, o ReporterOptions) *Reporter {
	if o.Every <= 0 {
		o.Every = reportEvery
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Reporter{send: send, o: o, wake: make(chan struct{}, 1)}
}

// Set replaces the properties that are to be reported. It does not block, and does not keep p.
func (r *Reporter) Set(p map[string]any) {
	want := plain(p)
	r.mu.Lock()
	r.want = want
	r.mu.Unlock()
	r.wakeUp()
}

// Resend has everything sent again. reported is what the other side has, which is where properties of earlier versions
// are found that have to go; nil is not known. It does not block: give it to EdgeHub as Connected.
func (r *Reporter) Resend(reported map[string]any) {
	have := plain(reported)
	r.mu.Lock()
	r.all = true
	r.round++
	if reported != nil {
		r.have = have
	}
	r.mu.Unlock()
	r.wakeUp()
}

func (r *Reporter) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) {
	pause := r.o.Every
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		for {
			if clock.Wait(ctx, pause) != nil { // first, so that changes come together
				return
			}
			err := r.report(ctx)
			var answer *HubError
			switch {
			case err == nil:
				pause = r.o.Every
			case errors.As(err, &answer) && answer.Code == 400:
				r.o.Log.Error("reported properties are refused; waiting for a change", "error", err)
			case errors.Is(err, ErrNotConnected):
				r.o.Log.Debug("reported properties wait for the connection") // which wakes us by Resend
			default:
				pause = min(2*pause, reportCap)
				r.o.Log.Debug("reported properties: trying again", "in", pause, "error", err)
				continue
			}
			break
		}
	}
}

// report sends what is different.
func (r *Reporter) report(ctx context.Context) error {
	r.mu.Lock()
	want, round := r.want, r.round
	patch := difference(r.have, want, r.all)
	r.mu.Unlock()
	if want == nil || len(patch) == 0 {
		return nil
	}
	if err := r.send(ctx, patch); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.round == round {
		r.have, r.all = want, false
	}
	return nil
}

// difference is the patch that makes want of have: what is new or other, and null for what is gone. With all, what is
// the same is in it too.
func difference(have, want map[string]any, all bool) map[string]any {
	patch := map[string]any{}
	for k, w := range want {
		h, known := have[k]
		wo, isObject := w.(map[string]any)
		ho, wasObject := h.(map[string]any)
		switch {
		case isObject && wasObject:
			if inner := difference(ho, wo, all); len(inner) > 0 {
				patch[k] = inner
			}
		case all || !known || !reflect.DeepEqual(h, w):
			patch[k] = w
		}
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			patch[k] = nil
		}
	}
	return patch
}

// plain is a copy in the types of JSON, so that values can be compared wherever they came from.
func plain(p map[string]any) map[string]any {
	body, err := json.Marshal(p)
	if err != nil {
		return maps.Clone(p) // the report says so
	}
	var out map[string]any
	_ = json.Unmarshal(body, &out) // just marshalled
	return out
}
