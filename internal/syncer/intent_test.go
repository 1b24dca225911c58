package syncer_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// TestAskedIterationOutlivesItsProcess ends the process in the middle of an iteration that a person asked for, months
// before the schedule has one. The next process finishes it, although the parent is not back yet when it starts, and the
// one after that has nothing to do.
func TestAskedIterationOutlivesItsProcess(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		first, second := registrytest.NewImage(1, 100), registrytest.NewImage(2, 1000)
		push(t, p, "app", "v1", first)
		set := settings(t, p, "app")
		set.Schedule = every(t, "0 3 1 6 *")
		begin := func() (*replica, func()) { return newReplica(t, dir, set, syncer.Options{Clock: clock.System()}) }
		r, stop := begin()
		if err := r.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		push(t, p, "app", "v1", second)
		reading := make(chan struct{}, 10)
		release := make(chan struct{})
		p.set(func(p *parent) {
			p.read = func(registry.Digest, int64, []byte) error {
				reading <- struct{}{}
				<-release
				return away
			}
		})
		go func() { _ = r.Sync(t.Context()) }()
		<-reading
		ended := make(chan struct{})
		go func() { defer close(ended); stop() }()
		synctest.Wait()
		close(release)
		<-ended
		p.set(func(p *parent) { p.read, p.away = nil, away })
		r, stop = begin()
		time.Sleep(20 * time.Second)
		mustHave(t, r.store, "app", "v1", first)
		p.set(func(p *parent) { p.away = nil })
		time.Sleep(2 * time.Minute)
		mustHave(t, r.store, "app", "v1", second)
		stop()
		before := p.count("tags app")
		_, stop = begin()
		time.Sleep(time.Hour)
		stop()
		if n := p.count("tags app") - before; n != 0 {
			t.Errorf("after it was complete, a restart made %d iterations", n)
		}
	})
}

// TestAnsweredIterationIsNotRepeated: whoever asked was told that it failed; a restart does not try it again.
func TestAnsweredIterationIsNotRepeated(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		push(t, p, "app", "v1", registrytest.NewImage(1, 100))
		set := settings(t, p, "app")
		set.Schedule = every(t, "0 3 1 6 *")
		r, stop := newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
		if err := r.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.set(func(p *parent) { p.away = away })
		if err := r.Sync(t.Context()); err == nil {
			t.Fatal("the parent is away")
		}
		p.set(func(p *parent) { p.away = nil })
		stop()
		before := p.count("tags app")
		_, stop = newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
		time.Sleep(time.Hour)
		stop()
		if n := p.count("tags app") - before; n != 0 {
			t.Errorf("a restart made %d iterations", n)
		}
	})
}
