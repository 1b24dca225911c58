package syncer_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// lateCase is a request that arrives at the parent after it was given up, and what clients did meanwhile.
type lateCase struct {
	before []step // the tag is at base, and the parent has all of it
	late   step   // its request is late
	after  []step // delivered before it arrives
	want   registry.Digest
}

// step is what somebody does.
type step func(f *floor, p *parent)

// TestLatePut has a request arrive at the parent after the connection was given up: after the next attempt, and after
// newer changes went through. Both sides end with what clients wanted last, nobody is said to have moved the tag, and the
// queue is empty half an hour later. Another process may have to know of it.
func TestLatePut(t *testing.T) {
	base, first, second, third := registrytest.NewImage(1, 10), registrytest.NewImage(2, 20), registrytest.NewImage(3, 30), registrytest.NewImage(4, 40)
	does := func(do func(f *floor) error) step {
		return func(f *floor, _ *parent) {
			if err := do(f); err != nil {
				t.Error(err)
			}
		}
	}
	push := func(img registrytest.Image) step { return func(f *floor, _ *parent) { f.push("v", img) } }
	untag := does(func(f *floor) error { return f.store.DeleteTag(t.Context(), "app", "v") })
	remove := func(img registrytest.Image) step {
		return does(func(f *floor) error { return f.store.DeleteManifest(t.Context(), "app", img.Digest) })
	}
	wait := func(d time.Duration) step { return func(*floor, *parent) { time.Sleep(d) } }
	others := func(img registrytest.Image) step {
		return func(_ *floor, p *parent) {
			if err := registrytest.Push(t.Context(), p.Registry, "app", "v", img); err != nil {
				t.Error(err)
			}
		}
	}
	for name, tt := range map[string]lateCase{
		"the same push":                 {nil, push(first), nil, first.Digest},
		"a newer push":                  {nil, push(first), []step{push(second)}, second.Digest},
		"the same push and a newer one": {nil, push(first), []step{wait(10 * time.Minute), push(second)}, second.Digest},
		"two newer pushes":              {nil, push(first), []step{push(second), wait(5 * time.Minute), push(third)}, third.Digest},
		"a push back to the base":       {nil, push(first), []step{wait(10 * time.Minute), push(base)}, base.Digest},
		"untag":                         {nil, push(first), []step{untag}, ""},
		"delete":                        {nil, push(first), []step{remove(first)}, ""},
		"a late untag, and a push":      {nil, untag, []step{push(second)}, second.Digest},
		"a late delete, and a push":     {[]step{push(first)}, remove(first), []step{push(first)}, first.Digest},
		"somebody else afterwards":      {nil, push(first), []step{push(second), wait(35 * time.Minute), others(third), wait(2 * time.Minute)}, first.Digest},
		"somebody else moves it back":   {nil, push(first), []step{push(second), wait(35 * time.Minute), func(f *floor, p *parent) { p.arrive = nil }, others(first)}, first.Digest},
		"somebody else moves it on":     {nil, push(first), []step{push(second), wait(5 * time.Minute), func(f *floor, p *parent) { p.arrive = nil }, others(third)}, third.Digest},
	} {
		for i, confirm := range []time.Duration{0, -1} { // a parent that may lose what it answered for, and one that does not
			for j, restart := range []bool{false, true} {
				if i != j && !many {
					continue
				}
				conflict := []registry.Conflict{registry.NewestWins, registry.ParentWins}[j]
				t.Run(fmt.Sprintf("%s, confirmed %v, restart %v", name, confirm >= 0, restart), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) { tt.run(t, base, conflict, confirm, restart) })
				})
			}
		}
	}
}

func (tt lateCase) run(t *testing.T, base registrytest.Image, conflict registry.Conflict, confirm time.Duration, restart bool) {
	p := newParent()
	push(t, p, "app", "v", base)
	set, o := climbing(t, p, "app"), syncer.Options{ConfirmAfter: confirm, Rand: func() float64 { return 0 }}
	set.Conflict = conflict
	f := newFloor(t, set, o, true)
	for _, do := range tt.before {
		time.Sleep(time.Minute)
		do(f, p)
	}
	time.Sleep(10 * time.Minute)
	p.set(func(p *parent) { p.late = 1 })
	tt.late(f, p)
	synctest.Wait()
	if len(p.arrive) != 1 {
		t.Fatalf("%d requests are late; the outbox: %+v", len(p.arrive), f.entries())
	}
	if restart {
		f.stop() // the next process knows of it from what is on the disk
	}
	for i, do := range tt.after {
		if do(f, p); i == 0 && restart {
			f.start(set, o)
		}
	}
	if restart && len(tt.after) == 0 {
		f.start(set, o)
	}
	time.Sleep(3 * time.Minute)
	p.arrives()
	for range 2 {
		time.Sleep(5 * time.Minute)
		if err := f.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if here, there := stands(t, f.store, "v"), stands(t, p.Registry, "v"); here != tt.want || there != tt.want {
			t.Errorf("the tag is %q here and %q there, want %q; the outbox: %+v", here, there, tt.want, f.entries())
		}
		time.Sleep(35 * time.Minute)
	}
	if list := f.entries(); len(list) != 0 {
		t.Errorf("the outbox: %+v", list)
	}
	var s registry.Status
	if f.Describe(&s); len(s.Outbox.Conflicts) != 0 {
		t.Errorf("conflicts %+v", s.Outbox.Conflicts)
	}
}

// TestParentHears pushes what the parent has already. A parent of our own kind may have it from above, where it was deleted a
// moment ago: it is told of the push, so that it climbs from there. Any other is the one above all, and is asked alone.
func TestParentHears(t *testing.T) {
	img := registrytest.NewImage(1, 10)
	for name, tt := range map[string]struct {
		kind   registry.ParentKind
		tag    string
		answer error // to the first attempt
		puts   int
	}{
		"ours":                   {registry.KindConnected, "v", nil, 1},
		"ours, by digest":        {registry.KindConnected, "", nil, 1},
		"ours, no answer came":   {registry.KindConnected, "v", away, 2},
		"ours, and it is locked": {registry.KindConnected, "v", registry.ErrLocked, 1},
		"any other":              {registry.KindOCI, "v", nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newParent()
				p.kind, p.info = tt.kind, registry.LayerInfo{Name: "upper", Mode: registry.ReadWrite, InstanceID: "x"}
				push(t, p, "app", "v", img)
				what := "put app v"
				if tt.tag == "" {
					what = "put app " + img.Digest.String()
				}
				p.broken = map[string]error{what: tt.answer}
				f := newFloor(t, climbing(t, p), syncer.Options{}, false)
				f.push(tt.tag, img)
				time.Sleep(time.Second)
				p.set(func(p *parent) { p.broken = nil })
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if n := p.count(what); n != tt.puts || len(f.entries()) != 0 {
					t.Errorf("it was put %d times, want %d; the outbox: %+v", n, tt.puts, f.entries())
				}
			})
		})
	}
}
