package store

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// fullFS takes no new file while it is full.
type fullFS struct {
	OSFS
	full atomic.Bool
}

func (x *fullFS) Create(path string) (File, error) {
	if x.full.Load() && strings.Contains(path, dirUploads) {
		return nil, &os.PathError{Op: "create", Path: path, Err: syscall.ENOSPC}
	}
	return x.OSFS.Create(path)
}

// TestSmallContentOnAFullDisk starts after a power cut that took the files of small content, on a disk that does not take
// them back: what was acknowledged is served all the same, and gets its files when there is room.
func TestSmallContentOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	img := registrytest.NewImageOf(1, registrytest.NewBlob(2, 1000), registrytest.NewBlob(3, 0))
	if err := registrytest.Push(t.Context(), s, "app", "v1", img); err != nil {
		t.Fatal(err)
	}
	if len(s.kept.list()) == 0 {
		t.Fatal("no content is in the log")
	}
	cut := copyOf(t, dir)
	for d := range s.kept.list() {
		if err := os.Remove(filepath.Join(cut, strings.TrimPrefix(s.contentPath(d), dir))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	disk := &fullFS{}
	disk.full.Store(true)
	if s, err = Open(t.Context(), cut, Options{FS: disk}); err != nil {
		t.Fatal(err)
	}
	whole := func() {
		t.Helper()
		m, err := s.GetManifest(t.Context(), "app", registry.TagReference("v1"))
		if err != nil || m.Digest != img.Digest {
			t.Errorf("the manifest: %s, %v", m.Digest, err)
		}
		for _, b := range img.Blobs {
			if _, err := s.ResolveBlob(t.Context(), "app", b.Digest); err != nil {
				t.Errorf("%s: %v", b.Digest, err)
			}
			r, err := s.GetBlob(t.Context(), "app", b.Digest)
			if err != nil {
				t.Errorf("%s: %v", b.Digest, err)
				continue
			}
			if got, err := io.ReadAll(r); err != nil || b.Digest.Algorithm().FromBytes(got) != b.Digest {
				t.Errorf("%s: %d bytes, %v", b.Digest, len(got), err)
			}
			_ = r.Close()
		}
	}
	if s.kept.held.Load() == 0 {
		t.Error("nothing is in memory")
	}
	whole()
	disk.full.Store(false)
	if err := s.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := s.kept.held.Load(); n != 0 {
		t.Errorf("%d are in memory still", n)
	}
	whole()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(t.Context(), cut, Options{}); err != nil {
		t.Fatal(err)
	}
	whole()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
