package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// TestModel does the same to the store and to the plain registry in memory and compares all that can be seen. The store
// is also closed and opened, and collects, which the model knows nothing of.
func TestModel(t *testing.T) {
	images := []registrytest.Image{registrytest.NewImage(1, 100), registrytest.NewImage(2, 100, 50), registrytest.NewImage(3)}
	index := registrytest.NewIndex(images[0], images[1])
	images = append(images, index, registrytest.NewReferrer(4, images[0].Descriptor, "application/vnd.example.a"),
		registrytest.NewReferrer(5, index.Descriptor, "application/vnd.example.b"))
	repos, tags := []string{"a", "a/b"}, []string{"latest", "v1"}
	rapid.Check(t, func(rt *rapid.T) {
		ctx := context.Background()
		dir := t.TempDir()
		s, err := Open(ctx, dir, Options{})
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { closeChecked(t, s) }()
		model := registrytest.NewMemory()
		both := func(what string, do func(r registry.Registry) error) {
			got, want := do(s), do(model)
			if (got == nil) != (want == nil) || got != nil && registry.AsError(got).Code != registry.AsError(want).Code {
				rt.Fatalf("%s: %v, want %v", what, got, want)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"push": func(rt *rapid.T) {
				repo, tag, image := rapid.SampledFrom(repos).Draw(rt, "repo"), rapid.SampledFrom(tags).Draw(rt, "tag"), images[rapid.IntRange(0, len(images)-1).Draw(rt, "image")]
				both("push", func(r registry.Registry) error { return registrytest.Push(ctx, r, repo, tag, image) })
			},
			"manifest alone": func(rt *rapid.T) {
				repo, image := rapid.SampledFrom(repos).Draw(rt, "repo"), images[rapid.IntRange(0, len(images)-1).Draw(rt, "image")]
				both("manifest", func(r registry.Registry) error {
					_, err := r.PutManifest(ctx, repo, registry.DigestReference(image.Digest), image.Manifest)
					return err
				})
			},
			"mount": func(rt *rapid.T) {
				image := images[rapid.IntRange(0, 2).Draw(rt, "image")]
				from, to := rapid.SampledFrom(repos).Draw(rt, "from"), rapid.SampledFrom(repos).Draw(rt, "to")
				both("mount", func(r registry.Registry) error {
					_, err := r.MountBlob(ctx, to, from, image.Blobs[0].Digest)
					return err
				})
			},
			"delete manifest": func(rt *rapid.T) {
				repo, image := rapid.SampledFrom(repos).Draw(rt, "repo"), images[rapid.IntRange(0, len(images)-1).Draw(rt, "image")]
				both("delete manifest", func(r registry.Registry) error { return r.DeleteManifest(ctx, repo, image.Digest) })
			},
			"delete tag": func(rt *rapid.T) {
				repo, tag := rapid.SampledFrom(repos).Draw(rt, "repo"), rapid.SampledFrom(tags).Draw(rt, "tag")
				both("delete tag", func(r registry.Registry) error { return r.DeleteTag(ctx, repo, tag) })
			},
			"delete blob": func(rt *rapid.T) {
				repo, image := rapid.SampledFrom(repos).Draw(rt, "repo"), images[rapid.IntRange(0, 2).Draw(rt, "image")]
				both("delete blob", func(r registry.Registry) error { return r.DeleteBlob(ctx, repo, image.Blobs[0].Digest) })
			},
			"collect": func(rt *rapid.T) {
				if _, err := s.GC(ctx, GCOptions{}); err != nil {
					rt.Fatal(err)
				}
			},
			"restart": func(rt *rapid.T) {
				closeChecked(t, s)
				if s, err = Open(ctx, dir, Options{}); err != nil {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) {
				for _, repo := range repos {
					compare(rt, ctx, s, model, repo, tags, images)
				}
			},
		})
	})
}

// compare looks at everything that a client can see.
func compare(rt *rapid.T, ctx context.Context, s, model registry.Registry, repo string, tags []string, images []registrytest.Image) {
	look := func(r registry.Registry) []string {
		var seen []string
		see := func(what string, v any, err error) {
			code := ""
			switch { // a repository that a collection found empty is as one that never was
			case errors.Is(err, registry.ErrNameUnknown), errors.Is(err, registry.ErrManifestUnknown), errors.Is(err, registry.ErrBlobUnknown):
				v = "none"
			case err != nil:
				code = err.Error()
			case fmt.Sprint(v) == "[]":
				v = "none"
			}
			seen = append(seen, fmt.Sprintf("%s: %v %s", what, v, code))
		}
		all, err := r.Tags(ctx, repo, "", 100)
		see("tags", all, err)
		for _, tag := range tags {
			m, err := r.GetManifest(ctx, repo, registry.TagReference(tag))
			see("tag "+tag, m.Digest, err)
		}
		for i, image := range images {
			m, err := r.GetManifest(ctx, repo, registry.DigestReference(image.Digest))
			see(fmt.Sprint("manifest ", i), fmt.Sprint(m.MediaType, m.Size, len(m.Bytes)), err)
			list, err := r.Referrers(ctx, repo, image.Digest, "")
			see(fmt.Sprint("referrers ", i), fmt.Sprint(list), err)
			for _, b := range image.Blobs {
				d, err := r.ResolveBlob(ctx, repo, b.Digest)
				see(fmt.Sprint("blob of ", i), d, err)
			}
		}
		return seen
	}
	if got, want := look(s), look(model); !slices.Equal(got, want) {
		for i := range want {
			if got[i] != want[i] {
				rt.Fatalf("%s: %s, want %s", repo, got[i], want[i])
			}
		}
	}
}
