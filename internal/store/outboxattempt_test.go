package store

import (
	"testing"

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
