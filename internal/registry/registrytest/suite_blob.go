package registrytest

import (
	"io"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/registry"
)

var blobTests = []subtest{
	{"by one upload", func(t *testing.T, r registry.Registry) {
		for _, size := range []int{1, 1000, 3 << 20} {
			b := NewBlob(uint64(size), size)
			must(t, "push", PushBlob(t.Context(), r, repo, b))
			wantBlob(t, r, repo, b)
		}
	}},
	{"of no bytes", func(t *testing.T, r registry.Registry) {
		b := BlobOf("", nil)
		must(t, "push", PushBlob(t.Context(), r, repo, b))
		wantBlob(t, r, repo, b)
	}},
	{"by sha512", func(t *testing.T, r registry.Registry) {
		b := NewBlob(1, 1000)
		b.Digest = digest.SHA512.FromBytes(b.Bytes)
		must(t, "push", PushBlob(t.Context(), r, repo, b))
		wantBlob(t, r, repo, b)
	}},
	{"twice", func(t *testing.T, r registry.Registry) {
		b := NewBlob(1, 1000)
		must(t, "push", PushBlob(t.Context(), r, repo, b))
		must(t, "push again", PushBlob(t.Context(), r, repo, b))
		wantBlob(t, r, repo, b)
	}},
	{"belongs to its repository", func(t *testing.T, r registry.Registry) {
		b := NewBlob(1, 1000)
		must(t, "push", PushBlob(t.Context(), r, repo, b))
		must(t, "push", PushBlob(t.Context(), r, other, NewBlob(2, 10)))
		_, err := r.ResolveBlob(t.Context(), other, b.Digest)
		wantCode(t, "ResolveBlob through another repository", err, registry.CodeBlobUnknown)
		wantCode(t, "GetBlob through another repository", getBlob(t, r, other, b.Digest), registry.CodeBlobUnknown)
		must(t, "push to the other", PushBlob(t.Context(), r, other, b))
		wantBlob(t, r, other, b)
	}},
	{"mounted", func(t *testing.T, r registry.Registry) {
		b := NewBlob(1, 1000)
		must(t, "push", PushBlob(t.Context(), r, repo, b))
		d, err := r.MountBlob(t.Context(), other, repo, b.Digest)
		must(t, "MountBlob", err)
		if d.Digest != b.Digest || d.Size != b.Size {
			t.Fatalf("MountBlob: %s %d, want %s %d", d.Digest, d.Size, b.Digest, b.Size)
		}
		wantBlob(t, r, other, b)
		_, err = r.MountBlob(t.Context(), other, repo, b.Digest)
		must(t, "MountBlob again", err)
	}},
	{"mounted only from where it is", func(t *testing.T, r registry.Registry) {
		b := NewBlob(1, 1000)
		must(t, "push", PushBlob(t.Context(), r, repo, b))
		must(t, "push", PushBlob(t.Context(), r, other, NewBlob(2, 10)))
		_, err := r.MountBlob(t.Context(), "suite/third", other, b.Digest)
		wantCode(t, "MountBlob of a blob of elsewhere", err, registry.CodeBlobUnknown)
		_, err = r.MountBlob(t.Context(), "suite/third", "not/there", b.Digest)
		wantCode(t, "MountBlob from an unknown repository", err, registry.CodeBlobUnknown)
		_, err = r.MountBlob(t.Context(), "suite/third", repo, absent)
		wantCode(t, "MountBlob of nothing", err, registry.CodeBlobUnknown)
	}},
	{"read by two at once", func(t *testing.T, r registry.Registry) {
		b := NewBlob(1, 1000)
		must(t, "push", PushBlob(t.Context(), r, repo, b))
		one, err := r.GetBlob(t.Context(), repo, b.Digest)
		must(t, "GetBlob", err)
		two, err := r.GetBlob(t.Context(), repo, b.Digest)
		must(t, "GetBlob", err)
		if _, err := one.Seek(500, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4)
		if _, err := io.ReadFull(two, buf); err != nil || string(buf) != string(b.Bytes[:4]) {
			t.Fatalf("the second reader is at %x (%v), want the start", buf, err)
		}
		must(t, "Close", one.Close())
		must(t, "Close", two.Close())
	}},
}
