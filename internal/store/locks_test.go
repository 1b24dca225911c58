package store

import (
	"errors"
	"slices"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

var yes, no = true, false

// lockedStore has app:v1 and app:v2 with images of their own, app:multi with an index of two, and app:old like v1.
func lockedStore(t *testing.T) (s *Store, images map[string]registrytest.Image) {
	t.Helper()
	s = openStore(t, t.TempDir(), Options{})
	v1 := registrytest.NewImage(1, 10)
	images = map[string]registrytest.Image{
		"v1": v1, "old": v1, "v2": registrytest.NewImage(2, 10), "new": registrytest.NewImage(3, 10),
		"multi": registrytest.NewIndex(registrytest.NewImage(4, 10), registrytest.NewImage(5, 10)),
	}
	for tag, image := range images {
		if tag == "new" {
			tag = "" // here, and under no tag
		}
		if err := registrytest.Push(t.Context(), s, "app", tag, image); err != nil {
			t.Fatal(err)
		}
	}
	return s, images
}

func lock(t *testing.T, s *Store, ref registry.Reference, c registry.AttributeChange) {
	t.Helper()
	if err := s.SetAttributes(t.Context(), "app", ref, c); err != nil {
		t.Fatal(err)
	}
}

// TestLocks: for each lock, what nobody may do any more, and what is as before.
func TestLocks(t *testing.T) {
	_, images := lockedStore(t)
	v1, multi := images["v1"].Digest, images["multi"].Digest
	child := images["multi"].Children[0]
	for name, tt := range map[string]struct {
		ref     registry.Reference
		change  registry.AttributeChange
		refused []string
	}{
		"nothing":            {registry.TagReference("v1"), registry.AttributeChange{}, nil},
		"a tag from writing": {registry.TagReference("v1"), registry.AttributeChange{NoWrite: &yes}, []string{"move v1", "untag v1", "delete v1", "delete blob of v1", "delete repository"}},
		"a tag from deletion": {
			registry.TagReference("v1"), registry.AttributeChange{NoDelete: &yes}, []string{"untag v1", "delete blob of v1", "delete repository"}, // it may be moved
		},
		"a manifest": {registry.DigestReference(v1), registry.AttributeChange{NoWrite: &yes}, []string{"delete v1", "delete blob of v1", "delete repository"}},
		"an index":   {registry.DigestReference(multi), registry.AttributeChange{NoDelete: &yes}, []string{"delete child", "delete repository"}},
		"the tag of an index": {
			registry.TagReference("multi"), registry.AttributeChange{NoWrite: &yes, NoDelete: &yes}, []string{"delete child", "delete repository"},
		},
		"the repository from writing": {registry.Reference{}, registry.AttributeChange{NoWrite: &yes}, []string{
			"move v1", "untag v1", "delete v1", "delete blob of v1", "delete repository", "move v2", "untag old", "delete child", "new tag", "new manifest",
		}},
		"the repository from deletion": {registry.Reference{}, registry.AttributeChange{NoDelete: &yes}, []string{
			"untag v1", "delete v1", "delete blob of v1", "delete repository", "untag old", "delete child",
		}},
		"reading and listing": {registry.TagReference("v1"), registry.AttributeChange{NoRead: &yes, NoList: &yes}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, images := lockedStore(t)
			lock(t, s, tt.ref, tt.change)
			ctx := t.Context()
			put := func(tag, image string) error {
				m := images[image].Manifest
				ref := registry.TagReference(tag)
				if tag == "" {
					ref = registry.DigestReference(m.Digest)
				}
				_, err := s.PutManifest(ctx, "app", ref, m)
				return err
			}
			artifact := registrytest.NewReferrer(9, images["v1"].Descriptor, "x/y")
			for _, b := range artifact.Blobs {
				if err := registrytest.PushBlob(ctx, s, "app", b); err != nil {
					t.Fatal(err)
				}
			}
			steps := []struct {
				what string
				do   func() error
			}{
				{"put v1 again", func() error { return put("v1", "v1") }}, // changes nothing
				{"new manifest", func() error {
					_, err := s.PutManifest(ctx, "app", registry.DigestReference(artifact.Digest), artifact.Manifest)
					return err
				}},
				{"new tag", func() error { return put("fresh", "v1") }},
				{"move v2", func() error { return put("v2", "new") }},
				{"untag old", func() error { return s.DeleteTag(ctx, "app", "old") }},
				{"delete blob of v1", func() error { return s.DeleteBlob(ctx, "app", images["v1"].Blobs[1].Digest) }},
				{"delete child", func() error { return s.DeleteManifest(ctx, "app", child.Digest) }},
				{"move v1", func() error { return put("v1", "new") }},
				{"untag v1", func() error { return s.DeleteTag(ctx, "app", "v1") }},
				{"delete v1", func() error { return s.DeleteManifest(ctx, "app", v1) }},
				{"delete repository", func() error { _, _, err := s.DeleteRepository(ctx, "app"); return err }},
			}
			for _, step := range steps {
				want := error(nil)
				if slices.Contains(tt.refused, step.what) {
					want = registry.ErrLocked
				}
				if err := step.do(); !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", step.what, err, want)
				}
			}
			if slices.Contains(tt.refused, "untag v1") {
				if d, err := s.ResolveManifest(ctx, "app", registry.TagReference("v1")); err != nil || (slices.Contains(tt.refused, "move v1") && d.Digest != v1) {
					t.Errorf("v1 is %v, %v", d.Digest, err)
				}
			}
			wantNoStaleLocks(t, s)
		})
	}
}

// wantNoStaleLocks finds no lock of what is gone.
func wantNoStaleLocks(t *testing.T, s *Store) {
	t.Helper()
	err := s.view(func(x *tx) error {
		return x.Bucket(bucketLocks).ForEach(func(k, _ []byte) error {
			if _, err := x.repo("app"); err != nil {
				t.Errorf("a lock of a repository that is gone: %q", k)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLockedFromSynchronisation: the parent's tag does not move a locked one, and does not take it away.
func TestLockedFromSynchronisation(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	commit := func(image registrytest.Image, tags ...string) []string {
		t.Helper()
		for _, b := range image.Blobs {
			if err := registrytest.PushBlob(t.Context(), s, "other", b); err != nil {
				t.Fatal(err)
			}
		}
		kept, err := s.CommitImage(t.Context(), registry.Image{Repository: "app", Manifests: []registry.Manifest{image.Manifest}, Tags: tags})
		if err != nil {
			t.Fatal(err)
		}
		return kept
	}
	one, two := registrytest.NewImage(1, 10), registrytest.NewImage(2, 10)
	commit(one, "locked", "free")
	lock(t, s, registry.TagReference("locked"), registry.AttributeChange{NoWrite: &yes})
	if kept := commit(two, "locked", "free"); !slices.Equal(kept, []string{"locked"}) {
		t.Errorf("kept %v, want the locked tag", kept)
	}
	states, err := s.TagStates(t.Context(), "app")
	if err != nil || len(states) != 2 || states[0].Tag != "free" || states[0].Locked || states[0].Digest != two.Digest ||
		!states[1].Locked || states[1].Digest != one.Digest {
		t.Errorf("tags %+v, %v", states, err)
	}
	if n, err := s.Untag(t.Context(), "app", []string{"locked", "free"}); n != 1 || err != nil {
		t.Errorf("%d tags removed, %v, want 1", n, err)
	}
	if _, err := s.GetManifest(t.Context(), "app", registry.TagReference("locked")); err != nil {
		t.Errorf("the locked tag is gone: %v", err)
	}
	lock(t, s, registry.Reference{}, registry.AttributeChange{NoWrite: &yes})
	_, err = s.CommitImage(t.Context(), registry.Image{Repository: "app", Manifests: []registry.Manifest{two.Manifest}, Tags: []string{"free"}})
	if !errors.Is(err, registry.ErrLocked) {
		t.Errorf("an image for a locked repository: %v", err)
	}
}

// TestLockedFromCollection: a locked manifest that nothing else needs stays, with its blobs, in a collection of garbage
// and when room is made for synchronisation.
func TestLockedFromCollection(t *testing.T) {
	for name, collect := range map[string]func(s *Store){
		"collection": func(s *Store) {
			if _, err := s.GC(t.Context(), GCOptions{Grace: -1}); err != nil {
				t.Error(err)
			}
		},
		"eviction": func(s *Store) { s.evict(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) { testLockedFrom(t, collect) })
	}
}

func testLockedFrom(t *testing.T, collect func(s *Store)) {
	t.Helper()
	for _, locked := range []bool{false, true} {
		var now testTime
		s := openStore(t, t.TempDir(), now.options())
		one, two := registrytest.NewImage(1, 10), registrytest.NewImage(2, 10)
		for _, image := range []registrytest.Image{one, two} {
			for _, b := range image.Blobs {
				if err := registrytest.PushBlob(t.Context(), s, "app", b); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.CommitImage(t.Context(), registry.Image{Repository: "app", Manifests: []registry.Manifest{image.Manifest}, Tags: []string{"v1"}}); err != nil {
				t.Fatal(err)
			}
			if image.Digest == one.Digest && locked {
				lock(t, s, registry.DigestReference(one.Digest), registry.AttributeChange{NoDelete: &yes})
			}
		}
		now.pass(48 * time.Hour) // longer than anybody is thought to need what was replaced
		collect(s)
		_, err := s.GetManifest(t.Context(), "app", registry.DigestReference(one.Digest))
		_, blobErr := s.ResolveBlob(t.Context(), "app", one.Blobs[1].Digest)
		if locked != (err == nil) || locked != (blobErr == nil) {
			t.Errorf("locked %v: manifest %v, blob %v", locked, err, blobErr)
		}
	}
}

// TestLocksSurvive a restart, are taken back, go with what they are of, and come to an index of before.
func TestLocksSurvive(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	image := registrytest.NewImage(1, 10)
	if err := registrytest.Push(t.Context(), s, "app", "v1", image); err != nil {
		t.Fatal(err)
	}
	err := s.bolt().Update(func(tx *bbolt.Tx) error { return errors.Join(tx.DeleteBucket(bucketLocks), reseal(tx)) }) // as an older index is
	if err != nil {
		t.Fatal(err)
	}
	if s.Locks("app") != nil {
		t.Error("locks before there are any")
	}
	lock(t, s, registry.TagReference("v1"), registry.AttributeChange{NoDelete: &yes, NoList: &yes})
	lock(t, s, registry.DigestReference(image.Digest), registry.AttributeChange{NoRead: &yes})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, Options{})
	l := s.Locks("app")
	if want := (registry.Attributes{NoDelete: true, NoList: true}); l.Tag("v1") != want || !l.Manifest(image.Digest).NoRead || l.Of() != (registry.Attributes{}) {
		t.Errorf("after a restart: %+v", l)
	}
	lock(t, s, registry.TagReference("v1"), registry.AttributeChange{NoDelete: &no})
	if err := s.DeleteManifest(t.Context(), "app", image.Digest); err != nil {
		t.Fatal(err)
	}
	if l := s.Locks("app"); l != nil {
		t.Errorf("locks of what is gone: %+v", l)
	}
	for what, err := range map[string]error{
		"a tag that is gone":      s.SetAttributes(t.Context(), "app", registry.TagReference("v1"), registry.AttributeChange{NoRead: &yes}),
		"a manifest that is gone": s.SetAttributes(t.Context(), "app", registry.DigestReference(image.Digest), registry.AttributeChange{NoRead: &yes}),
	} {
		if !errors.Is(err, registry.ErrManifestUnknown) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.SetAttributes(t.Context(), "nowhere", registry.Reference{}, registry.AttributeChange{NoRead: &yes}); !errors.Is(err, registry.ErrNameUnknown) {
		t.Errorf("an unknown repository: %v", err)
	}
}

// TestDamagedLock: a lock that cannot be read locks.
func TestDamagedLock(t *testing.T) {
	s, _ := lockedStore(t)
	lock(t, s, registry.TagReference("v1"), registry.AttributeChange{NoRead: &yes})
	err := s.update(t.Context(), func(t *tx) error {
		return t.put(t.Bucket(bucketLocks), lockKey("app", registry.TagReference("v1")), []byte{0xff})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteTag(t.Context(), "app", "v1"); !errors.Is(err, registry.ErrLocked) {
		t.Errorf("untag under a damaged lock: %v", err)
	}
}

// TestLockedRepositoryOutlivesItsContent: attributes are of the name, and collection of an empty repository keeps them.
func TestLockedRepositoryOutlivesItsContent(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	image := registrytest.NewImage(1, 10)
	if err := registrytest.Push(t.Context(), s, "app", "v1", image); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteManifest(t.Context(), "app", image.Digest); err != nil {
		t.Fatal(err)
	}
	lock(t, s, registry.Reference{}, registry.AttributeChange{NoWrite: &yes})
	if _, err := s.GC(t.Context(), GCOptions{Grace: -1}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(t.Context(), GCOptions{Grace: -1}); err != nil {
		t.Fatal(err)
	}
	if !s.Locks("app").Of().NoWrite {
		t.Error("the lock is gone with the content")
	}
}
