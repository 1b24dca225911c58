package registrytest

import (
	"slices"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
)

var deleteTests = []subtest{
	{"tag leaves its manifest", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 10)
		push(t, r, repo, "a", image)
		push(t, r, repo, "b", image)
		must(t, "DeleteTag", r.DeleteTag(t.Context(), repo, "a"))
		_, err := r.GetManifest(t.Context(), repo, registry.TagReference("a"))
		wantCode(t, "GetManifest by the deleted tag", err, registry.CodeManifestUnknown)
		wantManifest(t, r, repo, registry.TagReference("b"), image.Manifest)
		must(t, "DeleteTag", r.DeleteTag(t.Context(), repo, "b"))
		wantManifest(t, r, repo, registry.DigestReference(image.Digest), image.Manifest)
		wantCode(t, "DeleteTag again", r.DeleteTag(t.Context(), repo, "a"), registry.CodeManifestUnknown)
		push(t, r, repo, "a", image)
		wantManifest(t, r, repo, registry.TagReference("a"), image.Manifest)
	}},
	{"manifest takes its tags with it", func(t *testing.T, r registry.Registry) {
		one, two := NewImage(1, 10), NewImage(2, 10)
		push(t, r, repo, "a", one)
		push(t, r, repo, "b", one)
		push(t, r, repo, "c", two)
		must(t, "DeleteManifest", r.DeleteManifest(t.Context(), repo, one.Digest))
		for _, ref := range []registry.Reference{registry.TagReference("a"), registry.TagReference("b"), registry.DigestReference(one.Digest)} {
			_, err := r.GetManifest(t.Context(), repo, ref)
			wantCode(t, "GetManifest "+ref.String(), err, registry.CodeManifestUnknown)
		}
		tags, err := r.Tags(t.Context(), repo, "", 10)
		if err != nil || !slices.Equal(tags, []string{"c"}) {
			t.Fatalf("tags %v, %v, want c", tags, err)
		}
		wantCode(t, "DeleteManifest again", r.DeleteManifest(t.Context(), repo, one.Digest), registry.CodeManifestUnknown)
		wantManifest(t, r, repo, registry.TagReference("c"), two.Manifest)
	}},
	{"manifest of one repository only", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 10)
		push(t, r, repo, "a", image)
		push(t, r, other, "a", image)
		must(t, "DeleteManifest", r.DeleteManifest(t.Context(), repo, image.Digest))
		wantManifest(t, r, other, registry.TagReference("a"), image.Manifest)
		for _, b := range image.Blobs {
			wantBlob(t, r, other, b)
		}
	}},
	{"what is pushed again is there again", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 10)
		push(t, r, repo, "a", image)
		must(t, "DeleteManifest", r.DeleteManifest(t.Context(), repo, image.Digest))
		push(t, r, repo, "a", image)
		wantManifest(t, r, repo, registry.TagReference("a"), image.Manifest)
		for _, b := range image.Blobs {
			wantBlob(t, r, repo, b)
		}
	}},
	{"blob of one repository only", func(t *testing.T, r registry.Registry) {
		b := NewBlob(1, 100)
		must(t, "push", PushBlob(t.Context(), r, repo, b))
		must(t, "push", PushBlob(t.Context(), r, other, b))
		must(t, "DeleteBlob", r.DeleteBlob(t.Context(), repo, b.Digest))
		_, err := r.ResolveBlob(t.Context(), repo, b.Digest)
		wantCode(t, "ResolveBlob", err, registry.CodeBlobUnknown, registry.CodeNameUnknown)
		wantCode(t, "DeleteBlob again", r.DeleteBlob(t.Context(), repo, b.Digest), registry.CodeBlobUnknown)
		wantBlob(t, r, other, b)
	}},
	{"what is not there", func(t *testing.T, r registry.Registry) {
		push(t, r, repo, "a", NewImage(1, 10))
		for _, name := range []string{repo, "not/there"} {
			wantCode(t, "DeleteManifest", r.DeleteManifest(t.Context(), name, absent), registry.CodeManifestUnknown, registry.CodeNameUnknown)
			wantCode(t, "DeleteTag", r.DeleteTag(t.Context(), name, "not-there"), registry.CodeManifestUnknown, registry.CodeNameUnknown)
			wantCode(t, "DeleteBlob", r.DeleteBlob(t.Context(), name, absent), registry.CodeBlobUnknown, registry.CodeNameUnknown)
		}
	}},
}
