package store

import (
	"errors"
	"os"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// TestPreconditionIsAsTheAnswer has the manifest of a tag lost: whoever asks for the tag hears that there is none, and may
// put it where there is none. A registry below that does so must not be refused for ever. What is refused leaves no trace.
func TestPreconditionIsAsTheAnswer(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{CacheBytes: -1})
	if err := s.SetClimbing(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	lost, next := registrytest.NewImage(1, 10), registrytest.NewImage(2, 10)
	for _, img := range []registrytest.Image{next, lost} {
		if err := registrytest.Push(t.Context(), s, testRepo, "latest", img); err != nil {
			t.Fatal(err)
		}
	}
	tag := registry.TagReference("latest")
	put := func(p registry.Precondition) error {
		_, err := s.PutManifest(registry.WithPrecondition(t.Context(), p), testRepo, tag, next.Manifest)
		return err
	}
	before, _ := s.OutboxEntries(t.Context(), 0, 10)
	for _, p := range []registry.Precondition{registry.StandsAt(""), registry.StandsAt(next.Digest)} {
		if err := put(p); !errors.Is(err, registry.ErrPrecondition) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if _, err := s.PutManifest(registry.WithPrecondition(t.Context(), registry.StandsAt(next.Digest)), "other", tag, registrytest.NewIndex().Manifest); !errors.Is(err, registry.ErrPrecondition) {
		t.Errorf("in a repository that is not there: %v", err)
	}
	if _, err := s.Tags(t.Context(), "other", "", 1); !errors.Is(err, registry.ErrNameUnknown) {
		t.Errorf("the repository of what was refused: %v", err)
	}
	if now, _ := s.OutboxEntries(t.Context(), 0, 10); len(now) != len(before) || len(now) == 0 || now[len(now)-1].Digest != before[len(before)-1].Digest {
		t.Errorf("the outbox was %+v and is %+v", before, now)
	}
	if err := os.Remove(s.contentPath(lost.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ResolveManifest(t.Context(), testRepo, tag); !errors.Is(err, registry.ErrManifestUnknown) {
		t.Fatalf("a tag without its manifest: %v", err)
	}
	if err := put(registry.StandsAt(lost.Digest)); !errors.Is(err, registry.ErrPrecondition) {
		t.Errorf("the lost one is wanted: %v", err)
	}
	if err := put(registry.StandsAt("")); err != nil {
		t.Errorf("none is wanted: %v", err)
	}
}
