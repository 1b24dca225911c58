package syncer_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// ours makes a parent one of our own kind.
func (p *parent) ours() *parent {
	p.kind, p.info = registry.KindConnected, registry.LayerInfo{Name: "upper", Mode: registry.ReadWrite, InstanceID: "x"}
	p.changes = func() (registry.Changes, error) {
		time.Sleep(5 * time.Second)
		c := registry.Changes{Cursor: "1", Full: true}
		tags, err := p.Registry.Tags(context.Background(), "app", "", registry.MaxPage)
		for _, tag := range tags {
			d, rerr := p.Registry.ResolveManifest(context.Background(), "app", registry.TagReference(tag))
			c.Entries, err = append(c.Entries, registry.Change{Repository: "app", Tag: tag, Digest: d.Digest}), errors.Join(err, rerr)
		}
		return c, err
	}
	return p
}

// gives has somebody else give the tag an image at the parent; one without a manifest takes the tag away.
func (p *parent) gives(t *testing.T, img registrytest.Image) {
	t.Helper()
	if img.Digest != "" {
		push(t, p, "app", "v", img)
	} else if err := p.Registry.DeleteTag(t.Context(), "app", "v"); err != nil {
		t.Error(err)
	}
}

// TestLateAfterOthers has a request arrive at a parent of our own kind after it was given up, was sent again and answered
// for, and somebody else moved the tag: what that one did stays, on both sides, and is no conflict.
func TestLateAfterOthers(t *testing.T) {
	base, first, theirs := registrytest.NewImage(1, 10), registrytest.NewImage(2, 20), registrytest.NewImage(3, 30)
	pushes := func(f *floor) { f.push("v", first) }
	untags := func(f *floor) {
		if err := f.store.DeleteTag(t.Context(), "app", "v"); err != nil {
			t.Error(err)
		}
	}
	for name, tt := range map[string]struct {
		before registrytest.Image // where the tag is; none: nowhere
		late   func(*floor)
		then   registrytest.Image // where somebody else moves it; none: away
	}{
		"push":                            {base, pushes, theirs},
		"first push":                      {registrytest.Image{}, pushes, theirs},
		"push, and it is taken away":      {base, pushes, registrytest.Image{}},
		"untag, and it is put there anew": {base, untags, theirs},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newParent().ours()
				if tt.before.Digest != "" {
					p.gives(t, tt.before)
				}
				f := newFloor(t, climbing(t, p, "app"), syncer.Options{}, true)
				time.Sleep(2 * time.Minute)
				p.set(func(p *parent) { p.late = 1 })
				tt.late(f)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if len(p.arrive) != 1 || len(f.entries()) != 0 {
					t.Fatalf("%d requests are late; the outbox: %+v", len(p.arrive), f.entries())
				}
				p.gives(t, tt.then)
				time.Sleep(2 * time.Minute)
				p.arrives()
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				here, there := stands(t, f.store, "v"), stands(t, p.Registry, "v")
				if there != tt.then.Digest || here != there && there != "" { // a ReadWrite registry keeps what the parent has not
					t.Errorf("the tag is %q here and %q there, want %q; the outbox: %+v", here, there, tt.then.Digest, f.entries())
				}
				var s registry.Status
				if f.Describe(&s); len(s.Outbox.Conflicts) != 0 {
					t.Errorf("conflicts %+v", s.Outbox.Conflicts)
				}
			})
		})
	}
}

// TestMovedSinceTheLook has somebody else change the tag at a parent of our own kind after the look at it and before the
// request: that is decided as if the look had found it. Nothing is sent for ever, nothing is lost.
func TestMovedSinceTheLook(t *testing.T) {
	base, ours := registrytest.NewImage(1, 10), registrytest.NewImage(2, 20)
	others := []registrytest.Image{registrytest.NewImage(3, 30), registrytest.NewImage(4, 40), registrytest.NewImage(5, 50), registrytest.NewImage(6, 60), registrytest.NewImage(7, 70)}
	for name, tt := range map[string]struct {
		base      registrytest.Image
		conflict  registry.Conflict
		untag     bool
		times     int // that somebody is quicker
		want      registry.Digest
		conflicts int
		requests  int
	}{
		"the newest wins":                     {base, registry.NewestWins, false, 1, ours.Digest, 1, 2},
		"of a tag that was not there":         {registrytest.Image{}, registry.NewestWins, false, 1, ours.Digest, 1, 2},
		"three times":                         {base, registry.NewestWins, false, 3, ours.Digest, 3, 4},
		"more often than in one attempt":      {base, registry.NewestWins, false, 5, ours.Digest, 5, 6},
		"the parent wins":                     {base, registry.ParentWins, false, 1, others[0].Digest, 1, 1},
		"an untag, the newest wins":           {base, registry.NewestWins, true, 1, "", 1, 2},
		"an untag, the parent wins":           {base, registry.ParentWins, true, 1, others[0].Digest, 1, 1},
		"somebody else put the same there":    {base, registry.NewestWins, false, -1, ours.Digest, 0, 1},
		"somebody else, and the parent wins":  {base, registry.ParentWins, false, -1, ours.Digest, 0, 1},
		"nobody, and what climbs is an untag": {base, registry.ParentWins, true, 0, "", 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newParent().ours()
				if tt.base.Digest != "" {
					p.gives(t, tt.base)
				}
				set := climbing(t, p, "app")
				set.Conflict = tt.conflict
				f := newFloor(t, set, syncer.Options{}, true)
				time.Sleep(2 * time.Minute)
				done := 0
				p.set(func(p *parent) {
					p.quicker = func() {
						if tt.times < 0 {
							p.gives(t, ours)
						} else if done < tt.times {
							p.gives(t, others[done])
							done++
						}
					}
				})
				if !tt.untag {
					f.push("v", ours)
				} else if err := f.store.DeleteTag(t.Context(), "app", "v"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				if here, there := stands(t, f.store, "v"), stands(t, p.Registry, "v"); here != tt.want || there != tt.want {
					t.Errorf("the tag is %q here and %q there, want %q", here, there, tt.want)
				}
				var s registry.Status
				f.Describe(&s)
				if n, list := len(p.demands), f.entries(); n != tt.requests || len(s.Outbox.Conflicts) != tt.conflicts || len(list) != 0 {
					t.Errorf("%d requests, want %d; %d conflicts, want %d: %+v; the outbox: %+v", n, tt.requests, len(s.Outbox.Conflicts), tt.conflicts, s.Outbox.Conflicts, list)
				}
			})
		})
	}
}

// TestDemands has what a parent is asked to compare: where the tag stood at the look, at one of our own kind alone, and not
// for ever at one that refuses what it shows.
func TestDemands(t *testing.T) {
	base, next := registrytest.NewImage(1, 10), registrytest.NewImage(2, 20)
	at, none, nothing := registry.StandsAt(base.Digest), registry.StandsAt(""), registry.Precondition{}
	for name, tt := range map[string]struct {
		p    *parent
		base bool
		deaf bool // it refuses whatever it is asked to compare
		want []registry.Precondition
	}{
		"one of our own kind":              {newParent().ours(), true, false, []registry.Precondition{at}},
		"the tag is new":                   {newParent().ours(), false, false, []registry.Precondition{none}},
		"any other":                        {newParent(), true, false, []registry.Precondition{nothing}},
		"one that refuses what it shows":   {newParent().ours(), true, true, []registry.Precondition{at, nothing}},
		"one that refuses that it is none": {newParent().ours(), false, true, []registry.Precondition{none, nothing}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := tt.p
				if tt.base {
					p.gives(t, base)
				}
				p.quicker = func() {
					p.set(func(p *parent) {
						p.refused = nil
						if last := p.demands[len(p.demands)-1]; tt.deaf && last != nothing {
							p.refused = registry.ErrPrecondition
						}
					})
				}
				f := newFloor(t, climbing(t, p, "app"), syncer.Options{ConfirmAfter: -1}, true)
				time.Sleep(2 * time.Minute)
				f.push("v", next)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if got := p.demands; len(got) != len(tt.want) || len(f.entries()) != 0 || stands(t, p.Registry, "v") != next.Digest {
					t.Fatalf("it was asked for %v, want %v; the outbox: %+v", got, tt.want, f.entries())
				}
				for i := range tt.want {
					if p.demands[i] != tt.want[i] {
						t.Errorf("it was asked for %v, want %v", p.demands, tt.want)
					}
				}
			})
		})
	}
}
