package registrytest

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// start opens an upload session with content.
func start(t *testing.T, r registry.Writer, content []byte) registry.Upload {
	t.Helper()
	u, err := r.StartUpload(t.Context(), repo)
	must(t, "StartUpload", err)
	write(t, u, content)
	return u
}

func write(t *testing.T, u registry.Upload, content []byte) {
	t.Helper()
	n, err := u.Write(content)
	if err != nil || n != len(content) {
		t.Fatalf("Write: %d, %v, want %d", n, err, len(content))
	}
}

var uploadTests = []subtest{
	{"grows by each write", func(t *testing.T, r registry.Registry) {
		b := NewBlob(1, 100_000)
		u := start(t, r, nil)
		for at := 0; at < len(b.Bytes); at += 10_000 {
			if u.Size() != int64(at) {
				t.Fatalf("size %d, want %d", u.Size(), at)
			}
			write(t, u, b.Bytes[at:at+10_000])
		}
		d, err := u.Commit(t.Context(), b.Digest)
		must(t, "Commit", err)
		if d.Digest != b.Digest || d.Size != b.Size {
			t.Fatalf("Commit: %s %d, want %s %d", d.Digest, d.Size, b.Digest, b.Size)
		}
		wantBlob(t, r, repo, b)
	}},
	{"is resumed where it ended", func(t *testing.T, r registry.Registry) {
		b := NewBlob(1, 3000)
		u := start(t, r, b.Bytes[:1000])
		id := u.ID()
		must(t, "Close", u.Close())
		for _, at := range []int{1000, 2000} {
			u, err := r.ResumeUpload(t.Context(), repo, id)
			must(t, "ResumeUpload", err)
			if u.ID() != id || u.Size() != int64(at) {
				t.Fatalf("resumed %s at %d, want %s at %d", u.ID(), u.Size(), id, at)
			}
			write(t, u, b.Bytes[at:at+1000])
			must(t, "Close", u.Close())
		}
		u, err := r.ResumeUpload(t.Context(), repo, id)
		must(t, "ResumeUpload", err)
		_, err = u.Commit(t.Context(), b.Digest)
		must(t, "Commit", err)
		wantBlob(t, r, repo, b)
		_, err = r.ResumeUpload(t.Context(), repo, id)
		wantCode(t, "ResumeUpload after Commit", err, registry.CodeBlobUploadUnknown)
	}},
	{"is used by one at a time", func(t *testing.T, r registry.Registry) {
		u := start(t, r, []byte("x"))
		_, err := r.ResumeUpload(t.Context(), repo, u.ID())
		wantCode(t, "ResumeUpload while it is open", err, registry.CodeBlobUploadInvalid)
		must(t, "Close", u.Close())
		again, err := r.ResumeUpload(t.Context(), repo, u.ID())
		must(t, "ResumeUpload", err)
		if _, err := u.Write([]byte("y")); err == nil {
			t.Error("Write after Close: no error")
		}
		must(t, "Cancel", again.Cancel(t.Context()))
	}},
	{"is not a blob before it is committed", func(t *testing.T, r registry.Registry) {
		b := NewBlob(1, 1000)
		must(t, "push", PushBlob(t.Context(), r, repo, NewBlob(2, 10)))
		u := start(t, r, b.Bytes)
		_, err := r.ResolveBlob(t.Context(), repo, b.Digest)
		wantCode(t, "ResolveBlob", err, registry.CodeBlobUnknown)
		must(t, "Cancel", u.Cancel(t.Context()))
	}},
	{"with another digest is refused and gone", func(t *testing.T, r registry.Registry) {
		must(t, "push", PushBlob(t.Context(), r, repo, NewBlob(2, 10)))
		for _, d := range []registry.Digest{absent, absent512} {
			u := start(t, r, []byte("content"))
			_, err := u.Commit(t.Context(), d)
			wantCode(t, "Commit", err, registry.CodeDigestInvalid)
			must(t, "Close", u.Close())
			_, err = r.ResumeUpload(t.Context(), repo, u.ID())
			wantCode(t, "ResumeUpload after a wrong digest", err, registry.CodeBlobUploadUnknown)
			for _, not := range []registry.Digest{d, digest.FromString("content")} {
				_, err = r.ResolveBlob(t.Context(), repo, not)
				wantCode(t, "ResolveBlob", err, registry.CodeBlobUnknown)
			}
		}
	}},
	{"is cancelled", func(t *testing.T, r registry.Registry) {
		u := start(t, r, []byte("content"))
		must(t, "Cancel", u.Cancel(t.Context()))
		_, err := r.ResumeUpload(t.Context(), repo, u.ID())
		wantCode(t, "ResumeUpload after Cancel", err, registry.CodeBlobUploadUnknown)
	}},
	{"belongs to its repository", func(t *testing.T, r registry.Registry) {
		u := start(t, r, []byte("content"))
		must(t, "Close", u.Close())
		_, err := r.ResumeUpload(t.Context(), other, u.ID())
		wantCode(t, "ResumeUpload through another repository", err, registry.CodeBlobUploadUnknown)
	}},
	{"belongs to its principal", func(t *testing.T, r registry.Registry) {
		u, err := r.StartUpload(as(t, "line-a"), repo)
		must(t, "StartUpload", err)
		must(t, "Close", u.Close())
		_, err = r.ResumeUpload(as(t, "line-b"), repo, u.ID())
		wantCode(t, "ResumeUpload by another principal", err, registry.CodeBlobUploadUnknown)
		_, err = r.ResumeUpload(t.Context(), repo, u.ID())
		wantCode(t, "ResumeUpload by an anonymous client", err, registry.CodeBlobUploadUnknown)
		again, err := r.ResumeUpload(as(t, "line-a"), repo, u.ID())
		must(t, "ResumeUpload by its principal", err)
		must(t, "Cancel", again.Cancel(as(t, "line-a")))
	}},
	{"has an id that tells nothing", func(t *testing.T, r registry.Registry) {
		seen := map[string]bool{}
		for range 20 {
			u := start(t, r, nil)
			id := u.ID()
			if len(id) < 16 || seen[id] || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_") != "" {
				t.Fatalf("id %q: want 16 or more URL-safe characters, never twice", id)
			}
			seen[id] = true
			must(t, "Cancel", u.Cancel(t.Context()))
		}
		for _, id := range []string{"not-there", "", ".", "..", "../../etc/passwd", "a/b", "\x00", strings.Repeat("a", 5000)} {
			_, err := r.ResumeUpload(t.Context(), repo, id)
			wantCode(t, "ResumeUpload of an unknown id", err, registry.CodeBlobUploadUnknown)
		}
	}},
	{"sessions do not mix", func(t *testing.T, r registry.Registry) {
		a, b := NewBlob(1, 2000), NewBlob(2, 2000)
		ua, ub := start(t, r, a.Bytes[:1000]), start(t, r, b.Bytes[:1000])
		write(t, ua, a.Bytes[1000:])
		write(t, ub, b.Bytes[1000:])
		_, err := ub.Commit(t.Context(), b.Digest)
		must(t, "Commit", err)
		_, err = ua.Commit(t.Context(), a.Digest)
		must(t, "Commit", err)
		wantBlob(t, r, repo, a)
		wantBlob(t, r, repo, b)
	}},
}
