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

// TestLostAnswer loses the answer of each request that changes something: what was done is not done again, and a newer
// push over an unanswered one is no conflict.
func TestLostAnswer(t *testing.T) {
	p := newParent()
	f := newFloor(t, climbing(t, p), syncer.Options{ConfirmAfter: -1, LateAfter: -1, Rand: func() float64 { return 0 }}, false)
	a, b := registrytest.NewImage(1, 10), registrytest.NewImage(2, 20)
	lost := make(chan struct{})
	p.set(func(p *parent) {
		p.after = func(what string) error {
			if what == "put app v" {
				p.after = nil
				close(lost)
				return away
			}
			return nil
		}
	})
	f.push("v", a)
	<-lost
	f.push("v", b)
	f.retry()
	f.until("the newer one is there", func() bool { return stands(t, p.Registry, "v") == b.Digest })
	f.empty()
	var s registry.Status
	if f.Describe(&s); len(s.Outbox.Conflicts) != 0 {
		t.Errorf("conflicts %+v", s.Outbox.Conflicts)
	}
}

// TestListedInTheEnd loses the answer of a manifest that refers to another: the next attempt finds it at the parent, and
// has it listed among what refers to its subject.
func TestListedInTheEnd(t *testing.T) {
	p := newParent()
	f := newFloor(t, climbing(t, p), syncer.Options{ConfirmAfter: -1, Rand: func() float64 { return 0 }}, false)
	img := registrytest.NewImage(1, 10)
	signature := registrytest.NewReferrer(2, img.Descriptor, "application/vnd.example.signature")
	refer := "refer app " + signature.Digest.String()
	lost := make(chan struct{})
	p.set(func(p *parent) {
		p.after = func(what string) error {
			if what != "put app "+signature.Digest.String() {
				return nil
			}
			p.after, p.broken = nil, map[string]error{refer: away}
			close(lost)
			return away
		}
	})
	f.push("v", img)
	f.push("", signature)
	<-lost
	f.retry()
	f.until("it is looked for on the list", func() bool { return p.count(refer) > 0 })
	if n := len(f.entries()); n != 1 {
		t.Errorf("%d entries while the list cannot be written", n)
	}
	p.set(func(p *parent) { p.broken = nil })
	f.retry()
	f.empty()
	if n := p.count("put app " + signature.Digest.String()); n != 1 {
		t.Errorf("it was put %d times", n)
	}
}

// TestParentLosesPower has a parent that answers 201 and then has lost what it answered for: all of it, or the tag alone
// of a manifest that it had for long. It is the same when the answer did not arrive and the parent is asked again.
func TestParentLosesPower(t *testing.T) {
	old, img := registrytest.NewImage(2, 10), registrytest.NewImage(1, 10)
	for name, had := range map[string]map[string]registrytest.Image{"all of it": {}, "the tag": {"w": img}, "its move": {"v": old, "w": img}} {
		for _, answered := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, answered %v", name, answered), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { parentLosesPower(t, had, img, answered) })
			})
		}
	}
}

func parentLosesPower(t *testing.T, had map[string]registrytest.Image, img registrytest.Image, answered bool) {
	p := newParent()
	before := func(p *parent) {
		p.Registry = registrytest.NewMemory()
		for tag, img := range had {
			if err := registrytest.Push(t.Context(), p.Registry, "app", tag, img); err != nil {
				t.Fatal(err)
			}
		}
		p.after = nil
	}
	p.set(before)
	if !answered {
		p.set(func(p *parent) {
			p.after = func(string) error { p.after = nil; return away }
		})
	}
	f := newFloor(t, climbing(t, p, "app"), syncer.Options{}, true)
	f.push("v", img)
	time.Sleep(20 * time.Second)
	if err := f.Sync(t.Context()); err != nil { // it sees the tag where it is to be, and knows no more than that
		t.Fatal(err)
	}
	synctest.Wait()
	if stands(t, p.Registry, "v") != img.Digest || len(f.entries()) != 1 || f.entries()[0].State != registry.OutboxDelivered {
		t.Fatalf("the outbox after the first answer: %+v", f.entries())
	}
	p.set(before)
	for range 2 {
		time.Sleep(2 * time.Minute)
		synctest.Wait()
	}
	if stands(t, p.Registry, "v") != img.Digest || len(f.entries()) != 0 {
		t.Errorf("%s at the parent; the outbox: %+v", stands(t, p.Registry, "v"), f.entries())
	}
}

// TestParentForgetsWhatLost has a parent keep its tag, and lose with its power what was put there by its digest.
func TestParentForgetsWhatLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		theirs, ours := registrytest.NewImage(1, 10), registrytest.NewImage(2, 10)
		set := climbing(t, p, "app")
		set.Conflict = registry.ParentWins
		f := newFloor(t, set, syncer.Options{}, true)
		before := func() {
			synctest.Wait() // nobody is reading from the one before
			p.set(func(p *parent) { p.Registry = registrytest.NewMemory() })
			push(t, p, "app", "v", theirs)
		}
		for range 3 {
			before()
			f.push("v", ours) // before it has heard of theirs
			time.Sleep(time.Minute - time.Second)
			synctest.Wait()
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if here, there := stands(t, f.store, "v"), stands(t, p.Registry, "v"); here != theirs.Digest || there != theirs.Digest || len(f.entries()) != 0 {
			t.Errorf("the tag is %q here and %q there, want %q; the outbox: %+v", here, there, theirs.Digest, f.entries())
		}
		if _, err := p.Registry.ResolveManifest(t.Context(), "app", registry.DigestReference(ours.Digest)); err != nil {
			t.Errorf("what lost: %v", err)
		}
		var s registry.Status
		if f.Describe(&s); len(s.Outbox.Conflicts) != 1 || !s.Outbox.Conflicts[0].ParentWins {
			t.Errorf("conflicts %+v", s.Outbox.Conflicts)
		}
	})
}

// TestPushedAgain has somebody else move a tag at the parent after it took ours, and a client push ours again before the
// parent is asked once more: that is the newer push.
func TestPushedAgain(t *testing.T) {
	ours, theirs := registrytest.NewImage(1, 10), registrytest.NewImage(2, 10)
	for conflict, want := range map[registry.Conflict]registry.Digest{registry.NewestWins: ours.Digest, registry.ParentWins: theirs.Digest} {
		t.Run(string(conflict), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newParent()
				set := climbing(t, p, "app")
				set.Conflict = conflict
				f := newFloor(t, set, syncer.Options{}, true)
				f.push("v", ours)
				time.Sleep(20 * time.Second)
				push(t, p, "app", "v", theirs)
				time.Sleep(20 * time.Second)
				f.push("v", ours)
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				if here, there := stands(t, f.store, "v"), stands(t, p.Registry, "v"); here != want || there != want || len(f.entries()) != 0 {
					t.Errorf("the tag is %q here and %q there, want %q; the outbox: %+v", here, there, want, f.entries())
				}
				var s registry.Status
				if f.Describe(&s); len(s.Outbox.Conflicts) != 1 {
					t.Errorf("conflicts %+v", s.Outbox.Conflicts)
				}
			})
		})
	}
}

// TestOtherParent gives another parent before the first was asked once more for what it answered for: the other one is told
// of it, and that the tag stands elsewhere there.
func TestOtherParent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := registrytest.NewImage(1, 10), registrytest.NewImage(2, 10)
		p, other := newParent(), newParent()
		push(t, other, "app", "v", theirs)
		push(t, other, "app", "w", ours)
		set := climbing(t, p, "app")
		f := newFloor(t, set, syncer.Options{}, true)
		f.push("v", ours)
		time.Sleep(20 * time.Second)
		set.Parent, set.ParentName = other, "other"
		f.Update(set)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if at := stands(t, other.Registry, "v"); at != ours.Digest || len(f.entries()) != 0 {
			t.Errorf("the tag is %q there, want %q; the outbox: %+v", at, ours.Digest, f.entries())
		}
		var s registry.Status
		if f.Describe(&s); len(s.Outbox.Conflicts) != 1 {
			t.Errorf("conflicts %+v", s.Outbox.Conflicts)
		}
	})
}

// TestParentForgets has a parent answer for a move of a tag and lose it with its power, and a client change the tag again
// before the parent is asked once more. Nothing that the client took away comes back, nobody else is said to have moved the
// tag, and both sides end with what the client wanted.
func TestParentForgets(t *testing.T) {
	base, first := registrytest.NewImage(1, 10), registrytest.NewImage(2, 10)
	second, third := registrytest.NewImage(3, 10), registrytest.NewImage(4, 10)
	for name, tt := range map[string]struct {
		change func(f *floor) error
		want   registry.Digest
	}{
		"nothing":      {func(*floor) error { return nil }, first.Digest},
		"another push": {func(f *floor) error { f.push("v", second); return nil }, second.Digest},
		"two pushes": {func(f *floor) error {
			f.push("v", second)
			time.Sleep(10 * time.Second)
			f.push("v", third)
			return nil
		}, third.Digest},
		"and back": {func(f *floor) error {
			f.push("v", second)
			time.Sleep(10 * time.Second)
			f.push("v", base)
			return nil
		}, base.Digest},
		"push and untag": {func(f *floor) error {
			f.push("v", second)
			time.Sleep(10 * time.Second)
			return f.store.DeleteTag(t.Context(), "app", "v")
		}, ""},
		"push and delete": {func(f *floor) error {
			f.push("v", second)
			time.Sleep(10 * time.Second)
			return f.store.DeleteManifest(t.Context(), "app", second.Digest)
		}, ""},
		"the same push": {func(f *floor) error { f.push("v", first); return nil }, first.Digest},
		"untag":         {func(f *floor) error { return f.store.DeleteTag(t.Context(), "app", "v") }, ""},
		"delete":        {func(f *floor) error { return f.store.DeleteManifest(t.Context(), "app", first.Digest) }, ""},
		"untag and push": {func(f *floor) error {
			err := f.store.DeleteTag(t.Context(), "app", "v")
			time.Sleep(10 * time.Second) // the parent takes the tag away, and forgets that too
			f.push("v", second)
			return err
		}, second.Digest},
	} {
		for _, conflict := range []registry.Conflict{registry.NewestWins, registry.ParentWins} {
			t.Run(name+" "+string(conflict), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					p := newParent()
					push(t, p, "app", "v", base)
					set := climbing(t, p, "app")
					set.Conflict = conflict
					f := newFloor(t, set, syncer.Options{}, true)
					synctest.Wait()
					f.push("v", first)
					synctest.Wait()
					if stands(t, p.Registry, "v") != first.Digest || len(f.entries()) != 1 || f.entries()[0].State != registry.OutboxDelivered {
						t.Fatalf("the outbox after the first answer: %+v", f.entries())
					}
					forget := func() {
						p.set(func(p *parent) { p.Registry = registrytest.NewMemory() })
						push(t, p, "app", "v", base)
					}
					forget()
					if err := tt.change(f); err != nil {
						t.Fatal(err)
					}
					time.Sleep(10 * time.Second)
					synctest.Wait() // nobody asks the parent while another takes its place
					forget()
					time.Sleep(10 * time.Minute)
					synctest.Wait()
					if here, there := stands(t, f.store, "v"), stands(t, p.Registry, "v"); here != tt.want || there != tt.want || len(f.entries()) != 0 {
						t.Errorf("the tag is %q here and %q there, want %q; the outbox: %+v", here, there, tt.want, f.entries())
					}
					var s registry.Status
					if f.Describe(&s); len(s.Outbox.Conflicts) != 0 {
						t.Errorf("conflicts %+v", s.Outbox.Conflicts)
					}
				})
			})
		}
	}
}
