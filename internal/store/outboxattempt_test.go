package store

import (
	"errors"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// TestOutboxAttemptPassesOn: what an attempt may have put under a tag is known to every row that replaces its row, through
// deletes and untags too, and to the next process.
func TestOutboxAttemptPassesOn(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s := climbing(t, dir, Options{})
	one, two := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)
	theirs := registrytest.NewImage(3, 100).Digest
	push := func(image registrytest.Image) registry.OutboxEntry {
		t.Helper()
		if err := registrytest.Push(ctx, s, testRepo, "v1", image); err != nil {
			t.Fatal(err)
		}
		list, err := s.OutboxEntries(ctx, 0, 100)
		for _, e := range list {
			if e.Tag == "v1" && e.Action == registry.OutboxPush {
				return e
			}
		}
		t.Fatal(list, err)
		return registry.OutboxEntry{}
	}
	e := push(one)
	e.Base, e.Put = theirs, one.Digest
	if ok, err := s.OutboxAttempt(ctx, e, false); !ok || err != nil {
		t.Fatal(ok, err)
	}
	check := func(e registry.OutboxEntry) {
		t.Helper()
		if e.Base != theirs || e.Put != one.Digest {
			t.Errorf("the tag is thought to be at %s or %s", short(e.Base), short(e.Put))
		}
		checkOutbox(t, s)
	}
	check(push(two))
	if err := s.DeleteTag(ctx, testRepo, "v1"); err != nil {
		t.Fatal(err)
	}
	check(push(one))
	if err := s.DeleteManifest(ctx, testRepo, one.Digest); err != nil {
		t.Fatal(err)
	}
	closeChecked(t, s)
	s = climbing(t, dir, Options{})
	check(push(two))
}

// TestOutboxDeleteOfMoved: a tag goes at the parent with the manifest that it points at here, also where it still points
// at another one there.
func TestOutboxDeleteOfMoved(t *testing.T) {
	a, b := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)
	for name, before := range map[string]func(t *testing.T, s *Store) error{
		"delivered": func(t *testing.T, s *Store) error {
			return errors.Join(registrytest.Push(t.Context(), s, testRepo, "v1", a), s.OutboxDone(t.Context(), 1))
		},
		"no answer came": func(t *testing.T, s *Store) error {
			err := registrytest.Push(t.Context(), s, testRepo, "v1", a)
			list, lerr := s.OutboxEntries(t.Context(), 0, 1)
			if err = errors.Join(err, lerr); err != nil {
				return err
			}
			list[0].Put = a.Digest
			_, err = s.OutboxAttempt(t.Context(), list[0], false)
			return err
		},
		"delivered and lost with the parent's power": func(t *testing.T, s *Store) error {
			err := errors.Join(synced(t.Context(), s, testRepo, "v1", a), registrytest.Push(t.Context(), s, testRepo, "v1", b))
			list, lerr := s.OutboxEntries(t.Context(), 0, 1)
			if err = errors.Join(err, lerr); err != nil {
				return err
			}
			list[0].State = registry.OutboxDelivered
			return s.OutboxNote(t.Context(), list[0])
		},
		"synchronised": func(t *testing.T, s *Store) error { return synced(t.Context(), s, testRepo, "v1", a) },
	} {
		t.Run(name, func(t *testing.T) {
			s, ctx, parent := climbing(t, t.TempDir(), Options{}), t.Context(), registrytest.NewMemory()
			err := errors.Join(registrytest.Push(ctx, parent, testRepo, "v1", a), before(t, s),
				registrytest.Push(ctx, s, testRepo, "v1", b), registrytest.Push(ctx, s, testRepo, "v2", b),
				s.DeleteManifest(ctx, testRepo, b.Digest))
			list, lerr := s.OutboxEntries(ctx, 0, registry.MaxPage)
			if err = errors.Join(err, lerr); err != nil {
				t.Fatal(err)
			}
			checkOutbox(t, s)
			untags := 0
			for _, e := range list {
				if e.Action == registry.OutboxUntag {
					untags++
				}
				if err := errors.Join(deliver(ctx, s, parent, e), s.OutboxDone(ctx, e.Seq)); err != nil {
					t.Fatal(err)
				}
			}
			if d, err := parent.ResolveManifest(ctx, testRepo, registry.TagReference("v1")); !errors.Is(err, registry.ErrManifestUnknown) {
				t.Errorf("v1 was deleted here and is at %s at the parent, %v", d.Digest, err)
			}
			if untags != 1 { // v2 was never there
				t.Errorf("%d untags, want one", untags)
			}
		})
	}
}

// TestOutboxDelivered: what was pushed by its digest stays once the parent has it; where it is given up it goes after the grace.
func TestOutboxDelivered(t *testing.T) {
	var now testTime
	s, ctx := climbing(t, t.TempDir(), now.options()), t.Context()
	delivered, lost := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)
	for _, image := range []registrytest.Image{delivered, lost} {
		if err := registrytest.Push(ctx, s, testRepo, "", image); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := s.OutboxEntries(ctx, 0, 100)
	if err != nil || len(entries) != 2 {
		t.Fatal(entries, err)
	}
	if err := errors.Join(s.OutboxDone(ctx, entries[0].Seq), s.OutboxLost(ctx, entries[1].Seq, "")); err != nil {
		t.Fatal(err)
	}
	now.pass(48 * time.Hour)
	collect(t, s, GCOptions{})
	if !has(t, s, testRepo, delivered.Digest) || has(t, s, testRepo, lost.Digest) {
		t.Errorf("after the grace: delivered %v, lost %v", has(t, s, testRepo, delivered.Digest), has(t, s, testRepo, lost.Digest))
	}
}

// TestOutboxTagMovesOn: the push that a tag leaves is queued by its digest, once. It is tried again where it was refused, as
// the tag may have been the reason, and not where it is expired.
func TestOutboxTagMovesOn(t *testing.T) {
	for state, want := range map[registry.OutboxState]registry.OutboxState{
		registry.OutboxWaiting: registry.OutboxWaiting, registry.OutboxRefused: registry.OutboxWaiting, registry.OutboxExpired: registry.OutboxExpired,
	} {
		s, ctx := climbing(t, t.TempDir(), Options{}), t.Context()
		one, two := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)
		push := func(tag string, image registrytest.Image) []registry.OutboxEntry {
			t.Helper()
			if err := registrytest.Push(ctx, s, testRepo, tag, image); err != nil {
				t.Fatal(err)
			}
			list, err := s.OutboxEntries(ctx, 0, 100)
			if err != nil {
				t.Fatal(err)
			}
			return list
		}
		e := push("v1", one)[0]
		e.State = state
		if err := s.OutboxNote(ctx, e); err != nil {
			t.Fatal(err)
		}
		list := push("v1", two)
		if len(list) != 2 || list[0].Tag != "" || list[0].Digest != one.Digest || list[0].State != want {
			t.Errorf("%s: %+v", state, list)
		}
		push("v2", one)
		if list = push("v2", two); len(list) != 3 {
			t.Errorf("%s: %v", state, queued(t, s))
		}
		checkOutbox(t, s)
	}
}
