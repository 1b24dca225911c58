package syncer_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// TestParentChangesMode lets a parent that was accepted become one that the child may not stand below.
func TestParentChangesMode(t *testing.T) {
	p := newParent()
	p.kind, p.info = registry.KindConnected, registry.LayerInfo{Name: "upper", Mode: registry.ReadWrite, InstanceID: "x"}
	p.changes = func() (registry.Changes, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.info.Mode == registry.ReadOnly {
			return registry.Changes{}, registry.ErrConflict.WithMessage("a text that was cut")
		}
		return registry.Changes{Cursor: "1", Full: true}, nil
	}
	set := settings(t, p, "app")
	set.Mode = registry.ReadWrite
	r, _ := newReplica(t, t.TempDir(), set, syncer.Options{Name: "lower"})
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []registry.Mode{registry.ReadOnly, registry.ReadWrite} {
		p.set(func(p *parent) { p.info.Mode = mode })
		err := r.Sync(t.Context())
		var st registry.Status
		r.Describe(&st)
		if fits := mode == registry.ReadWrite; fits != (err == nil) || fits != (st.ConnectionState != registry.Unhealthy) || fits != (len(st.StatusDetails) == 0) {
			t.Errorf("below a parent that became %s: %v, %s %+v", mode, err, st.ConnectionState, st.StatusDetails)
		}
		if err != nil && !strings.Contains(err.Error(), "'upper' mode is 'ReadOnly'") {
			t.Errorf("the error does not say why: %v", err)
		}
	}
}

// TestBrokenPieceKeepsNothingElse lets single questions fail for good, the first in every order, one transfer at a time.
func TestBrokenPieceKeepsNothingElse(t *testing.T) {
	broken, good := registrytest.NewImage(1, 1000), registrytest.NewImage(2, 1000)
	answers := map[string]error{
		"broken": registry.ErrUnavailable.WithMessage("HTTP 500"), "forbidden": registry.ErrDenied, "unauthorised": registry.ErrUnauthorized,
	}
	for _, what := range []string{"manifest app " + broken.Digest.String(), "head app a", "tags a"} {
		for name, answer := range answers {
			t.Run(what[:6]+" "+name, func(t *testing.T) {
				p := newParent()
				push(t, p, "a", "v1", good)
				push(t, p, "app", "a", good)
				push(t, p, "app", "b", good)
				set := settings(t, p, "a", "app")
				set.Parallel = 1
				r, _ := newReplica(t, t.TempDir(), set, syncer.Options{})
				if err := r.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				push(t, p, "app", "a", broken) // it moves
				push(t, p, "app", "c", good)
				push(t, p, "z", "v1", good)
				p.set(func(p *parent) { p.broken = map[string]error{what: answer} })
				set.Scope = append(set.Scope, registry.RepositoryRule{Repository: "z"})
				r.Update(set)
				if err := r.Sync(t.Context()); !errors.Is(err, answer) {
					t.Errorf("sync: %v, want %v", err, answer)
				}
				mustHave(t, r.store, "a", "v1", good) // what the parent cannot list is not gone
				mustHave(t, r.store, "app", "b", good)
				mustHave(t, r.store, "app", "c", good)
				mustHave(t, r.store, "z", "v1", good)
				if what != "tags a" {
					mustHave(t, r.store, "app", "a", good)
				}
				var st registry.Status
				r.Describe(&st)
				behind := 0
				for _, repo := range st.Repositories {
					for _, b := range repo.Behind {
						if behind++; b.Error == "" || (repo.Repository == "app") != (b.Tag == "a") {
							t.Errorf("%s behind: %+v", repo.Repository, b)
						}
					}
				}
				if behind != 1 || st.ConnectionState == registry.Offline || st.Sync.SyncState != registry.SyncFailed {
					t.Errorf("%d tags behind; %s %+v", behind, st.ConnectionState, st.Sync)
				}
				p.set(func(p *parent) { p.broken = nil })
				if err := r.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				mustHave(t, r.store, "app", "a", broken)
			})
		}
	}
}

// atEnd is a log that calls a function when an iteration has ended.
type atEnd struct {
	slog.Handler
	do func()
}

func (h atEnd) Enabled(context.Context, slog.Level) bool { return true }

func (h atEnd) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "sync iteration done" {
		h.do()
	}
	return nil
}

// TestSettingsChangeAtTheEnd: settings that change in the moment in which an iteration ends are followed at once, and not
// when the schedule has its next turn.
func TestSettingsChangeAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		one, other := newParent(), newParent()
		img := registrytest.NewImage(1, 1000)
		push(t, one, "app", "v1", img)
		push(t, other, "app", "v2", img)
		set := settings(t, one, "app")
		set.Schedule = every(t, "0 3 * * *")
		next := settings(t, other, "app")
		next.Schedule = set.Schedule
		var r *replica
		started := make(chan struct{})
		var once sync.Once
		log := slog.New(atEnd{slog.DiscardHandler, func() { <-started; once.Do(func() { r.Update(next) }) }})
		r, stop := newReplica(t, dir, set, syncer.Options{Logger: log})
		close(started)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		mustHave(t, r.store, "app", "v2", img)
		stop()
	})
}

// TestParentTooSlow takes a parent that does not answer in time for one that is away, and not for the window's end:
// it is tried again long before the schedule's next occurrence.
func TestParentTooSlow(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		img := registrytest.NewImage(1, 1000)
		push(t, p, "app", "v1", img)
		p.away = away.Wrap(context.DeadlineExceeded)
		set := settings(t, p, "app")
		set.Schedule = every(t, "0 3 * * *")
		r, stop := newReplica(t, dir, set, syncer.Options{})
		time.Sleep(time.Second)
		synctest.Wait() // the next try may begin in this moment
		var st registry.Status
		r.Describe(&st)
		if st.Sync.SyncState != registry.SyncFailed || st.ConnectionState != registry.Offline {
			t.Errorf("status: %s %+v", st.ConnectionState, st.Sync)
		}
		time.Sleep(3*time.Hour - time.Minute) // the bubble began at midnight
		if n := p.count("probe"); n > 40 {
			t.Errorf("%d tries in three hours", n)
		}
		p.set(func(p *parent) { p.away = nil })
		time.Sleep(30 * time.Minute)
		mustHave(t, r.store, "app", "v1", img)
		stop()
	})
}

// TestMissOfBrokenPiece pulls what the parent cannot give, while it can give other things.
func TestMissOfBrokenPiece(t *testing.T) {
	for name, answer := range map[string]error{"broken": away, "credential refused": registry.ErrUnauthorized} {
		t.Run(name, func(t *testing.T) {
			p := newParent()
			img := registrytest.NewImage(1, 1000)
			push(t, p, "app", "a", img)
			push(t, p, "app", "b", img)
			p.broken = map[string]error{"manifest app a": answer}
			r := newServing(t, settings(t, p, "app"))
			for range 2 {
				_, err := r.served.GetManifest(t.Context(), "app", registry.TagReference("a"))
				if !errors.Is(err, registry.ErrUnavailable) {
					t.Errorf("a miss of a broken image: %v, want UNAVAILABLE", err)
				}
			}
			mustHave(t, r.served, "app", "b", img)
			var st registry.Status
			r.Describe(&st)
			if st.ConnectionState == registry.Offline {
				t.Errorf("status: %s %+v", st.ConnectionState, st.StatusDetails)
			}
		})
	}
}

// TestTagsThatAreListedOnly has a parent that lists tags and says of each that it is unknown: the status says so, what is
// here stays, and other repositories go on.
func TestTagsThatAreListedOnly(t *testing.T) {
	p := newParent()
	img := registrytest.NewImage(1, 100)
	push(t, p, "app", "v1", img)
	push(t, p, "other", "v1", img)
	set := settings(t, p, "app", "other")
	set.Schedule = every(t, "0 3 1 1 *")
	r, _ := newReplica(t, t.TempDir(), set, syncer.Options{})
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	push(t, p, "other", "v2", img)
	p.set(func(p *parent) { p.broken = map[string]error{"head app v1": registry.ErrManifestUnknown} })
	if err := r.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "lists 1 tags of app") {
		t.Errorf("%v", err)
	}
	mustHave(t, r.store, "app", "v1", img)
	mustHave(t, r.store, "other", "v2", img)
	var st registry.Status
	if r.Describe(&st); st.Sync.SyncState != registry.SyncFailed || len(st.Repositories) == 0 || len(st.Repositories[0].Behind) == 0 {
		t.Errorf("%s, %+v", st.Sync.SyncState, st.Repositories)
	}
	p.set(func(p *parent) { p.broken = nil })
	if err := r.Sync(t.Context()); err != nil {
		t.Error(err)
	}
}
