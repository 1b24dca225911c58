package registrytest

import (
	"bytes"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/registry"
)

var manifestTests = []subtest{
	{"by tag and by digest", func(t *testing.T, r registry.Registry) {
		for tag, image := range map[string]Image{"oci": NewImage(1, 100), "docker": NewDockerImage(2, 100), "none": NewImage(3)} {
			push(t, r, repo, tag, image)
			wantManifest(t, r, repo, registry.TagReference(tag), image.Manifest)
			wantManifest(t, r, repo, registry.DigestReference(image.Digest), image.Manifest)
		}
	}},
	{"by digest without a tag", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 100)
		push(t, r, repo, "", image)
		wantManifest(t, r, repo, registry.DigestReference(image.Digest), image.Manifest)
		tags, err := r.Tags(t.Context(), repo, "", 10)
		if err != nil || len(tags) != 0 {
			t.Fatalf("tags %v, %v, want none", tags, err)
		}
	}},
	{"by sha512", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 100)
		image.Digest = digest.SHA512.FromBytes(image.Bytes)
		push(t, r, repo, "", image)
		wantManifest(t, r, repo, registry.DigestReference(image.Digest), image.Manifest)
	}},
	{"indexes with their children", func(t *testing.T, r registry.Registry) {
		for tag, image := range map[string]Image{
			"oci":    NewIndex(NewImage(1, 100), NewImage(2, 100)),
			"docker": NewDockerList(NewDockerImage(3, 100), NewDockerImage(4, 100)),
			"nested": NewIndex(NewIndex(NewImage(5, 100))),
			"empty":  NewIndex(),
		} {
			if tag == "empty" {
				image = encode(registry.MediaTypeImageIndex, map[string]any{"schemaVersion": 2, "manifests": []any{}}, nil, nil)
			}
			push(t, r, repo, tag, image)
			wantManifest(t, r, repo, registry.TagReference(tag), image.Manifest)
			for _, c := range image.Children {
				wantManifest(t, r, repo, registry.DigestReference(c.Digest), c.Manifest)
			}
		}
	}},
	{"tag moves", func(t *testing.T, r registry.Registry) {
		one, two := NewImage(1, 100), NewImage(2, 100)
		push(t, r, repo, "latest", one)
		push(t, r, repo, "latest", two)
		wantManifest(t, r, repo, registry.TagReference("latest"), two.Manifest)
		wantManifest(t, r, repo, registry.DigestReference(one.Digest), one.Manifest)
		push(t, r, repo, "latest", one)
		wantManifest(t, r, repo, registry.TagReference("latest"), one.Manifest)
	}},
	{"tag moves where the precondition holds", func(t *testing.T, r registry.Registry) {
		one, two, three := NewImage(1, 100), NewImage(2, 100), NewImage(3, 100)
		for _, image := range []Image{one, two, three} {
			push(t, r, repo, "", image)
		}
		put := func(image Image, at registry.Digest) error {
			ctx := registry.WithPrecondition(t.Context(), registry.StandsAt(at))
			_, err := r.PutManifest(ctx, repo, registry.TagReference("latest"), image.Manifest)
			return err
		}
		untag := func(at registry.Digest) error {
			return r.DeleteTag(registry.WithPrecondition(t.Context(), registry.StandsAt(at)), repo, "latest")
		}
		wantCode(t, "no tag, and one is wanted", put(one, two.Digest), registry.CodePrecondition)
		must(t, "no tag, and none is wanted", put(one, ""))
		wantCode(t, "a tag, and none is wanted", put(two, ""), registry.CodePrecondition)
		must(t, "it is there already", put(one, ""))
		must(t, "as wanted", put(two, one.Digest))
		wantCode(t, "elsewhere", put(three, one.Digest), registry.CodePrecondition)
		wantManifest(t, r, repo, registry.TagReference("latest"), two.Manifest)
		wantCode(t, "untag elsewhere", untag(one.Digest), registry.CodePrecondition)
		wantManifest(t, r, repo, registry.TagReference("latest"), two.Manifest)
		must(t, "untag", untag(two.Digest))
		wantCode(t, "untag again", untag(two.Digest), registry.CodeManifestUnknown)
		must(t, "by digest it says nothing", func() error {
			ctx := registry.WithPrecondition(t.Context(), registry.StandsAt(three.Digest))
			_, err := r.PutManifest(ctx, repo, registry.DigestReference(one.Digest), one.Manifest)
			return err
		}())
	}},
	{"repositories do not mix", func(t *testing.T, r registry.Registry) {
		one, two := NewImage(1, 100), NewImage(2, 100)
		push(t, r, repo, "latest", one)
		push(t, r, other, "latest", two)
		wantManifest(t, r, repo, registry.TagReference("latest"), one.Manifest)
		_, err := r.GetManifest(t.Context(), other, registry.DigestReference(one.Digest))
		wantCode(t, "GetManifest through another repository", err, registry.CodeManifestUnknown)
	}},
	{"without its blobs is refused", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 100, 200)
		push(t, r, other, "latest", image) // what another repository has does not count
		for missing := range image.Blobs {
			part := image
			part.Blobs = append(append([]Blob{}, image.Blobs[:missing]...), image.Blobs[missing+1:]...)
			name := repo + "/" + string(rune('a'+missing))
			wantCode(t, "PutManifest", Push(t.Context(), r, name, "latest", part), registry.CodeManifestBlobUnknown)
			_, err := r.GetManifest(t.Context(), name, registry.TagReference("latest"))
			wantCode(t, "GetManifest of what was refused", err, registry.CodeManifestUnknown, registry.CodeNameUnknown)
		}
	}},
	{"index without its children is refused", func(t *testing.T, r registry.Registry) {
		index := NewIndex(NewImage(1, 100), NewImage(2, 100))
		part := index
		part.Children = index.Children[:1]
		wantCode(t, "PutManifest", Push(t.Context(), r, repo, "latest", part), registry.CodeManifestBlobUnknown)
	}},
	{"with foreign layers", func(t *testing.T, r registry.Registry) {
		config := BlobOf(mediaTypeDockerConfig, []byte("{}"))
		image := encode(registry.MediaTypeDockerManifest, map[string]any{
			"schemaVersion": 2, "mediaType": registry.MediaTypeDockerManifest, "config": config.Descriptor,
			"layers": []any{map[string]any{
				"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": absent, "size": 5,
				"urls": []string{"https://127.0.0.1/never-fetched"},
			}},
		}, []Blob{config}, nil)
		push(t, r, repo, "windows", image)
		wantManifest(t, r, repo, registry.TagReference("windows"), image.Manifest)
	}},
	{"bytes stay as they came", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 100)
		image.Bytes = append([]byte(" \n\t"), append(bytes.Clone(image.Bytes), "\r\n "...)...)
		image.Digest, image.Size = digest.FromBytes(image.Bytes), int64(len(image.Bytes))
		push(t, r, repo, "odd", image)
		wantManifest(t, r, repo, registry.TagReference("odd"), image.Manifest)
	}},
	{"by another digest is refused", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 100)
		push(t, r, repo, "latest", image)
		for _, d := range []registry.Digest{absent, absent512} {
			_, err := r.PutManifest(t.Context(), repo, registry.DigestReference(d), image.Manifest)
			wantCode(t, "PutManifest", err, registry.CodeDigestInvalid)
			_, err = r.ResolveManifest(t.Context(), repo, registry.DigestReference(d))
			wantCode(t, "ResolveManifest", err, registry.CodeManifestUnknown)
		}
	}},
	{"the caller's descriptor is not believed", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 100)
		push(t, r, repo, "", image)
		lie := image.Manifest
		lie.Digest, lie.Size = absent, 1
		d, err := r.PutManifest(t.Context(), repo, registry.TagReference("latest"), lie)
		must(t, "PutManifest", err)
		wantDescriptor(t, "PutManifest", d, image.Descriptor)
		wantManifest(t, r, repo, registry.TagReference("latest"), image.Manifest)
	}},
	{"that is none is refused", func(t *testing.T, r registry.Registry) {
		for _, m := range []registry.Manifest{
			{Descriptor: registry.Descriptor{MediaType: registry.MediaTypeImageManifest}, Bytes: []byte("not json")},
			{Descriptor: registry.Descriptor{MediaType: "text/plain"}, Bytes: NewImage(1).Bytes},
			{Descriptor: registry.Descriptor{MediaType: registry.MediaTypeImageIndex}, Bytes: NewImage(1).Bytes},
			{Descriptor: registry.Descriptor{MediaType: registry.MediaTypeImageManifest}, Bytes: nil},
		} {
			_, err := r.PutManifest(t.Context(), repo, registry.TagReference("bad"), m)
			wantCode(t, "PutManifest", err, registry.CodeManifestInvalid)
		}
	}},
	{"a blob is not a manifest", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 100)
		must(t, "push", PushBlob(t.Context(), r, repo, BlobOf("", image.Bytes)))
		_, err := r.GetManifest(t.Context(), repo, registry.DigestReference(image.Digest))
		wantCode(t, "GetManifest of a blob", err, registry.CodeManifestUnknown)
	}},
}
