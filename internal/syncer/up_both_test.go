package syncer_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// TestBothDirections moves tags here and at the parent at random, with the parent away now and then, while both directions
// run. What is put over a connection that was given up arrives late, after later attempts, and after all that was queued is
// through. In the end both sides are equal, whoever wins, and they stay so.
func TestBothDirections(t *testing.T) {
	rounds := 2
	if many {
		rounds = 40
	}
	images := make([]registrytest.Image, 6)
	for i := range images {
		images[i] = registrytest.NewImage(uint64(i+1), 20)
	}
	tags := []string{"a", "b", "c"}
	for round := range rounds {
		for _, conflict := range []registry.Conflict{registry.NewestWins, registry.ParentWins} {
			t.Run(fmt.Sprint(conflict, " ", round), func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(uint64(round), 1))
				p := newParent()
				for _, tag := range tags {
					push(t, p, "app", tag, images[0])
				}
				set := climbing(t, p, "app")
				set.Conflict = conflict
				f := newFloor(t, set, syncer.Options{ConfirmAfter: -1, LateAfter: -1, Rand: func() float64 { return 0 }}, true)
				var did []string
				defer func() {
					if t.Failed() {
						t.Log(did)
					}
				}()
				for range 60 {
					tag, img := tags[rnd.IntN(len(tags))], images[rnd.IntN(len(images))]
					what := rnd.IntN(11)
					did = append(did, fmt.Sprintf("%d %s %.12s", what, tag, img.Digest[7:]))
					switch what {
					case 0, 1, 2:
						f.push(tag, img)
					case 3:
						_ = f.store.DeleteTag(t.Context(), "app", tag) // it may not be there
					case 4, 5:
						push(t, p, "app", tag, img)
					case 6:
						p.set(func(p *parent) { p.away = away })
					case 7:
						p.set(func(p *parent) { p.away = nil })
						f.retry()
					case 8:
						_ = f.Sync(t.Context()) // the parent may be away
					case 9:
						p.set(func(p *parent) { p.late++ })
					case 10:
						p.arrives()
					}
				}
				p.set(func(p *parent) { p.away, p.late = nil, 0 })
				settle := func() {
					f.retry()
					f.empty()
					if err := f.Sync(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				differ := func() (list []string) {
					for _, tag := range tags {
						here, there := stands(t, f.store, tag), stands(t, p.Registry, tag)
						if here != there {
							list = append(list, fmt.Sprintf("%s is %s here and %s there", tag, here, there))
						}
					}
					return list
				}
				settle()
				p.arrives()
				settle()
				defer func() {
					if t.Failed() {
						t.Log(differ())
					}
				}()
				f.until("both sides are equal", func() bool { return len(differ()) == 0 })
				before := map[string]registry.Digest{}
				for _, tag := range tags {
					before[tag] = stands(t, p.Registry, tag)
				}
				for range 3 {
					settle()
					time.Sleep(10 * time.Millisecond)
				}
				for _, tag := range tags {
					if got := stands(t, p.Registry, tag); got != before[tag] || len(differ()) != 0 {
						t.Errorf("%s moved from %s to %s: %v", tag, before[tag], got, differ())
					}
				}
			})
		}
	}
}

// TestPassedOverIsAskedAgain delivers a push while the parent holds its answer. What the parent then tells of the tag may be
// of before that and is passed over; it is asked for everything, and not only for what comes after.
func TestPassedOverIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := registrytest.NewImage(1, 10), registrytest.NewImage(2, 10)
		p, moved := newParent(), make(chan struct{})
		p.kind, p.info = registry.KindConnected, registry.LayerInfo{Name: "upper", Mode: registry.ReadWrite, InstanceID: "x"}
		push(t, p, "app", "v", a)
		p.changes = func() (registry.Changes, error) {
			is := func(cursor string, d registry.Digest) (registry.Changes, error) {
				return registry.Changes{Cursor: cursor, Full: p.since == "", Entries: []registry.Change{{Repository: "app", Tag: "v", Digest: d}}}, nil
			}
			held := time.After(50 * time.Second)
			select {
			case <-moved:
				if p.since != "2" {
					return is("2", b.Digest)
				}
			default:
				if p.since == "" {
					return is("1", a.Digest)
				}
				select {
				case <-moved:
					return is("2", b.Digest)
				case <-held:
				}
			}
			<-held
			return registry.Changes{Cursor: p.since}, nil
		}
		f := newFloor(t, climbing(t, p, "app"), syncer.Options{}, true)
		time.Sleep(time.Second)
		f.push("v", a)
		time.Sleep(time.Second)
		push(t, p, "app", "v", b)
		close(moved)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if at := stands(t, f.store, "v"); at != b.Digest || len(f.entries()) != 0 {
			t.Errorf("%s here, %s at the parent; the outbox: %+v", at, b.Digest, f.entries())
		}
	})
}

// TestOursIsNoConflict stops the process after the parent took a push and before its answer came; then the tag is pushed
// again. The tag stands at the parent where we put it: nobody else moved it, and neither policy says so.
func TestOursIsNoConflict(t *testing.T) {
	for _, conflict := range []registry.Conflict{registry.NewestWins, registry.ParentWins} {
		t.Run(string(conflict), func(t *testing.T) {
			p := newParent()
			base, first, second := registrytest.NewImage(1, 10), registrytest.NewImage(2, 20), registrytest.NewImage(3, 30)
			push(t, p, "app", "v", base)
			set := climbing(t, p, "app")
			set.Conflict = conflict
			o := syncer.Options{ConfirmAfter: -1, LateAfter: -1}
			f := newFloor(t, set, o, true)
			f.until("it is synced", func() bool { return stands(t, f.store, "v") == base.Digest })
			p.set(func(p *parent) {
				p.after = func(string) error {
					p.away = away // and so is every later question: the answer is lost for good
					return away
				}
			})
			f.push("v", first)
			f.until("the parent took it", func() bool { return stands(t, p.Registry, "v") == first.Digest })
			f.stop()
			p.set(func(p *parent) { p.away, p.after = nil, nil })
			f.push("v", second)
			f.start(set, o)
			f.empty()
			f.until("both sides are equal", func() bool {
				return stands(t, f.store, "v") == second.Digest && stands(t, p.Registry, "v") == second.Digest
			})
			var s registry.Status
			f.Describe(&s)
			if len(s.Outbox.Conflicts) != 0 {
				t.Errorf("conflicts %+v", s.Outbox.Conflicts)
			}
		})
	}
}

// TestRightWithdrawn: a right that fresh tokens do not carry is a no after a few of them, with the reason, and what has the
// right climbs meanwhile; a credential that is refused as such is waited for.
func TestRightWithdrawn(t *testing.T) {
	for name, tt := range map[string]struct {
		answer error
		state  registry.OutboxState
		most   int
	}{
		"not granted": {registry.ErrUnauthorized.WithMessage("the scope is gone").Wrap(registry.ErrNotGranted), registry.OutboxRefused, 3},
		"refused":     {registry.ErrUnauthorized.WithMessage("the credential is refused"), registry.OutboxWaiting, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newParent()
				p.broken = map[string]error{"put app v": tt.answer}
				f := newFloor(t, climbing(t, p), syncer.Options{ConfirmAfter: -1}, false)
				f.push("v", registrytest.NewImage(1, 10))
				f.push("other", registrytest.NewImage(2, 10))
				time.Sleep(24 * time.Hour)
				list := f.entries()
				if len(list) != 1 || list[0].State != tt.state || list[0].Error != registry.AsError(tt.answer).Message {
					t.Fatalf("the outbox is %+v", list)
				}
				if n := p.count("put app v"); n < 3 || n > tt.most {
					t.Errorf("%d attempts", n)
				}
				p.set(func(p *parent) { p.broken = nil })
				f.retry()
				f.empty()
			})
		})
	}
}
