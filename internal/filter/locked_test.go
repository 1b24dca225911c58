package filter_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/connected-registry/connected-registry/internal/filter"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// locks is a source of locks.
type locks map[string]*registry.Locks

func (l locks) Locks(repo string) *registry.Locks { return l[repo] }

func TestLockedConformance(t *testing.T) {
	for name, l := range map[string]locks{
		"nothing is locked": nil,
		"something else is locked": {
			"other": {Repository: registry.Attributes{NoRead: true, NoWrite: true, NoList: true}},
			"a":     {Tags: map[string]registry.Attributes{"never": {NoRead: true, NoList: true}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			registrytest.Test(t, func(*testing.T) registry.Registry { return filter.Locked(registrytest.NewMemory(), l) })
		})
	}
}

func TestLocked(t *testing.T) {
	inner := registrytest.NewMemory()
	images := map[string]registrytest.Image{"v1": registrytest.NewImage(1, 10), "v2": registrytest.NewImage(2, 10)}
	for _, repo := range []string{"a", "b"} {
		for tag, image := range images {
			if err := registrytest.Push(t.Context(), inner, repo, tag, image); err != nil {
				t.Fatal(err)
			}
		}
	}
	d1, blob := images["v1"].Digest, images["v1"].Blobs[0].Digest
	none := registry.Attributes{}
	for _, tt := range []struct {
		name  string
		locks *registry.Locks
		fails []string // what is refused on a; v1 everywhere
		repos []string // what is listed
		tags  []string
	}{
		{name: "nothing", repos: []string{"a", "b"}, tags: []string{"v1", "v2"}},
		{
			name: "read of the repository", locks: &registry.Locks{Repository: registry.Attributes{NoRead: true}},
			fails: []string{"get tag", "get digest", "head tag", "head digest", "get blob", "head blob", "mount from"}, repos: []string{"a", "b"}, tags: []string{"v1", "v2"},
		},
		{
			name: "read of the tag", locks: &registry.Locks{Tags: map[string]registry.Attributes{"v1": {NoRead: true}}},
			fails: []string{"get tag", "head tag"}, repos: []string{"a", "b"}, tags: []string{"v1", "v2"},
		},
		{
			name: "read of the manifest", locks: &registry.Locks{Manifests: map[registry.Digest]registry.Attributes{d1: {NoRead: true}}},
			fails: []string{"get tag", "get digest", "head tag", "head digest"}, repos: []string{"a", "b"}, tags: []string{"v1", "v2"},
		},
		{
			name: "write of the repository", locks: &registry.Locks{Repository: registry.Attributes{NoWrite: true}},
			fails: []string{"upload", "mount to"}, repos: []string{"a", "b"}, tags: []string{"v1", "v2"},
		},
		{name: "list of the repository", locks: &registry.Locks{Repository: registry.Attributes{NoList: true}}, repos: []string{"b"}, tags: []string{"v1", "v2"}},
		{name: "list of a tag", locks: &registry.Locks{Tags: map[string]registry.Attributes{"v1": {NoList: true}, "v2": none}}, repos: []string{"a", "b"}, tags: []string{"v2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			r := filter.Locked(inner, locks{"a": tt.locks})
			for what, do := range map[string]func() error{
				"get tag":     func() error { _, err := r.GetManifest(ctx, "a", registry.TagReference("v1")); return err },
				"get digest":  func() error { _, err := r.GetManifest(ctx, "a", registry.DigestReference(d1)); return err },
				"head tag":    func() error { _, err := r.ResolveManifest(ctx, "a", registry.TagReference("v1")); return err },
				"head digest": func() error { _, err := r.ResolveManifest(ctx, "a", registry.DigestReference(d1)); return err },
				"get other":   func() error { _, err := r.GetManifest(ctx, "b", registry.TagReference("v1")); return err },
				"head blob":   func() error { _, err := r.ResolveBlob(ctx, "a", blob); return err },
				"get blob": func() error {
					b, err := r.GetBlob(ctx, "a", blob)
					if err == nil {
						err = b.Close()
					}
					return err
				},
				"mount from": func() error { _, err := r.MountBlob(ctx, "b", "a", blob); return err },
				"mount to":   func() error { _, err := r.MountBlob(ctx, "a", "b", blob); return err },
				"upload": func() error {
					u, err := r.StartUpload(ctx, "a")
					if err == nil {
						err = u.Cancel(ctx)
					}
					return err
				},
			} {
				want := error(nil)
				if slices.Contains(tt.fails, what) {
					if want = registry.ErrLocked; what == "mount from" {
						want = registry.ErrBlobUnknown // the client pushes the blob then, and learns nothing
					}
				}
				if err := do(); !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", what, err, want)
				}
			}
			if got, err := r.Repositories(ctx, "", 10); err != nil || !slices.Equal(got, tt.repos) {
				t.Errorf("repositories %v, %v, want %v", got, err, tt.repos)
			}
			if got, err := r.Tags(ctx, "a", "", 10); err != nil || !slices.Equal(got, tt.tags) {
				t.Errorf("tags %v, %v, want %v", got, err, tt.tags)
			}
		})
	}
}

// TestLockedReferrers hides a referrer, and leaves the list of the registry below alone.
func TestLockedReferrers(t *testing.T) {
	inner := registrytest.NewMemory()
	image := registrytest.NewImage(1, 10)
	one, two := registrytest.NewReferrer(2, image.Descriptor, "x/y"), registrytest.NewReferrer(3, image.Descriptor, "x/y")
	for tag, i := range map[string]registrytest.Image{"v1": image} {
		if err := errors.Join(registrytest.Push(t.Context(), inner, "a", tag, i), registrytest.Push(t.Context(), inner, "a", "", one),
			registrytest.Push(t.Context(), inner, "a", "", two)); err != nil {
			t.Fatal(err)
		}
	}
	r := filter.Locked(inner, locks{"a": {Manifests: map[registry.Digest]registry.Attributes{one.Digest: {NoList: true}}}})
	if got, err := r.Referrers(t.Context(), "a", image.Digest, ""); err != nil || len(got) != 1 || got[0].Digest != two.Digest {
		t.Errorf("%v, %v", got, err)
	}
	if got, _ := inner.Referrers(t.Context(), "a", image.Digest, ""); len(got) != 2 {
		t.Errorf("below: %v", got)
	}
}
