package syncer_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// TestClimbInItsWindow: with a schedule nothing is sent outside its windows, after a restart and under new settings neither,
// and a push into one that is open goes at once. A window that was missed is made up for where something waited for it, and
// who asks for it has it sent at any time.
func TestClimbInItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		set := climbing(t, p)
		set.Schedule = every(t, "0 2 * * *") // for an hour
		o := syncer.Options{ConfirmAfter: -1, Clock: clock.System()}
		f := newFloor(t, set, o, false)
		midnight := time.Now()
		at := func(day int, clock time.Duration) {
			t.Helper()
			time.Sleep(time.Until(midnight.Add(time.Duration(day)*24*time.Hour + clock)))
			synctest.Wait()
		}
		sent := func(tag string, want bool) {
			t.Helper()
			if got := stands(t, p.Registry, tag) != ""; got != want {
				t.Errorf("at %s %s was sent: %v, want %v; the outbox is %+v", time.Now().Format("Jan 2 15:04"), tag, got, want, f.entries())
			}
		}
		at(0, 12*time.Hour)
		f.push("noon", registrytest.NewImage(1, 10))
		at(0, 18*time.Hour)
		f.stop()
		f.start(set, o)
		at(0, 19*time.Hour)
		set.Parallel++
		f.Update(set)
		at(1, time.Hour)
		sent("noon", false)
		at(1, 2*time.Hour+10*time.Minute)
		sent("noon", true)
		f.push("inside", registrytest.NewImage(2, 10))
		at(1, 2*time.Hour+11*time.Minute)
		sent("inside", true)
		at(3, 12*time.Hour) // with nothing to send windows pass by
		f.push("missed", registrytest.NewImage(3, 10))
		at(4, time.Hour)
		sent("missed", false)
		f.stop()
		at(4, 5*time.Hour)
		f.start(set, o)
		at(4, 5*time.Hour+time.Minute)
		sent("missed", true)
		at(4, 12*time.Hour)
		f.push("asked", registrytest.NewImage(4, 10))
		at(4, 13*time.Hour)
		sent("asked", false)
		f.retry()
		at(4, 13*time.Hour+time.Minute)
		sent("asked", true)
	})
}

// TestClimbWithinTheBudget: a byte budget that is used up ends the pass and not an entry; what waits goes on when there is a
// new one, without being counted as a failure.
func TestClimbWithinTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		link := &meteredLink{until: time.Now().Add(time.Hour), left: 1 << 20}
		p.spend = link.use
		f := newFloor(t, climbing(t, p), syncer.Options{ConfirmAfter: -1, Clock: clock.System(), Link: link}, false)
		for _, tag := range []string{"a", "b", "c"} {
			f.push(tag, registrytest.NewImage(uint64(tag[0]), 700<<10))
		}
		for hours := range 3 {
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			if list := f.entries(); len(list) != 2-hours || slices.ContainsFunc(list, func(e registry.OutboxEntry) bool { return e.State != registry.OutboxWaiting || e.Attempts > 0 }) {
				t.Errorf("in hour %d the outbox is %+v", hours, list)
			}
			if o := f.status().Outbox; hours < 2 && (!o.Held || !strings.Contains(o.Error, "budget")) {
				t.Errorf("in hour %d: %+v", hours, o)
			}
			time.Sleep(50 * time.Minute)
		}
	})
}

// TestClimbFirst: what the scope names as first goes over the link as such, and all else behind it.
func TestClimbFirst(t *testing.T) {
	p := newParent()
	set := climbing(t, p)
	set.First = registry.Scope{{Repository: "app", Tag: "urgent"}}
	f := newFloor(t, set, syncer.Options{ConfirmAfter: -1}, false)
	f.push("urgent", registrytest.NewImage(1, 10))
	f.push("other", registrytest.NewImage(2, 10))
	f.empty()
	p.mu.Lock()
	defer p.mu.Unlock()
	if got := p.classes; got["urgent"] != transport.First || got["other"] != transport.Background {
		t.Errorf("classes %v", got)
	}
}

func (f *floor) status() (s registry.Status) {
	f.Describe(&s)
	return s
}

// TestRemovalRefused: a token at the parent that may not delete keeps the removal in the queue, with the reason. Given up,
// what the parent kept comes back here.
func TestRemovalRefused(t *testing.T) {
	p := newParent()
	a, b := registrytest.NewImage(1, 10), registrytest.NewImage(2, 20)
	push(t, p, "app", "a", a)
	push(t, p, "app", "b", b)
	denied := registry.ErrDenied.WithMessage("the token may not delete")
	p.broken = map[string]error{"untag app a": denied, "delete app " + b.Digest.String(): denied}
	f := newFloor(t, climbing(t, p, "app"), syncer.Options{ConfirmAfter: -1}, true)
	f.until("it is synced", func() bool { return stands(t, f.store, "a") != "" && stands(t, f.store, "b") != "" })
	if err := errors.Join(f.store.DeleteTag(t.Context(), "app", "a"), f.store.DeleteManifest(t.Context(), "app", b.Digest)); err != nil {
		t.Fatal(err)
	}
	f.until("both are refused", func() bool {
		list := f.entries()
		return len(list) == 2 && !slices.ContainsFunc(list, func(e registry.OutboxEntry) bool {
			return e.State != registry.OutboxRefused || e.Error != denied.Message
		})
	})
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if stands(t, f.store, "a") != "" || stands(t, f.store, "b") != "" {
		t.Error("what was removed here came back while its removal is queued")
	}
	for _, e := range f.entries() {
		if _, err := f.OutboxDrop(t.Context(), e.Seq); err != nil {
			t.Fatal(err)
		}
	}
	f.until("what the parent kept is here again", func() bool {
		return stands(t, f.store, "a") == a.Digest && stands(t, f.store, "b") == b.Digest
	})
}
