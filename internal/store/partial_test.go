package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

var partialBlob = registrytest.NewBlob(1, 100_000)

func openPartial(t *testing.T, s *Store, size int64) registry.Partial {
	t.Helper()
	p, err := s.Partial(t.Context(), partialBlob.Digest, size)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func writePartial(t *testing.T, p registry.Partial, content []byte) {
	t.Helper()
	if n, err := p.Write(content); err != nil || n != len(content) {
		t.Fatalf("Write: %d, %v", n, err)
	}
}

// TestPartialContinues stops the process without a Close, four times.
func TestPartialContinues(t *testing.T) {
	b := partialBlob
	dir := t.TempDir()
	for at := 0; at < len(b.Bytes); at += 25_000 {
		s := openStore(t, dir, Options{})
		p := openPartial(t, s, b.Size)
		if p.Size() != int64(at) {
			t.Fatalf("size %d, want %d", p.Size(), at)
		}
		writePartial(t, p, b.Bytes[at:at+10_000])
		writePartial(t, p, b.Bytes[at+10_000:at+25_000])
		if at == 75_000 {
			if err := p.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if size, ok := s.StatContent(t.Context(), b.Digest); !ok || size != b.Size {
				t.Errorf("StatContent: %d, %v", size, ok)
			}
			if _, err := s.GetBlob(t.Context(), testRepo, b.Digest); err == nil {
				t.Error("content of no repository is served")
			}
		} // otherwise the process is killed: no Close
		closeChecked(t, s)
	}
}

func TestPartialIsExclusive(t *testing.T) {
	b := partialBlob
	s := openStore(t, t.TempDir(), Options{})
	p := openPartial(t, s, b.Size)
	if _, err := s.Partial(t.Context(), b.Digest, b.Size); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("second: %v, want CONFLICT", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := openPartial(t, s, b.Size).Discard(); err != nil {
		t.Fatal(err)
	}
	if p := openPartial(t, s, 0); p.Size() != 0 {
		t.Errorf("%d bytes after Discard", p.Size())
	}
}

func TestPartialRefuses(t *testing.T) {
	b := partialBlob
	s := openStore(t, t.TempDir(), Options{})
	p := openPartial(t, s, b.Size)
	writePartial(t, p, make([]byte, b.Size))
	if _, err := p.Write([]byte("x")); !errors.Is(err, registry.ErrSizeInvalid) {
		t.Errorf("too long: %v, want SIZE_INVALID", err)
	}
	if err := p.Commit(t.Context()); !errors.Is(err, registry.ErrDigestInvalid) {
		t.Errorf("Commit: %v, want DIGEST_INVALID", err)
	}
	p = openPartial(t, s, b.Size)
	if p.Size() != 0 {
		t.Errorf("%d wrong bytes are kept", p.Size())
	}
	writePartial(t, p, b.Bytes[:10])
	if err := p.Commit(t.Context()); !errors.Is(err, registry.ErrSizeInvalid) {
		t.Errorf("too short: %v, want SIZE_INVALID", err)
	}
	if err := p.Commit(t.Context()); err == nil {
		t.Error("Commit twice: no error")
	}
	if _, ok := s.StatContent(t.Context(), b.Digest); ok {
		t.Error("wrong content is here")
	}
}

func TestPartialOnFullDisk(t *testing.T) {
	b := partialBlob
	dir := t.TempDir()
	x := &testFS{dir: dir}
	s := openStore(t, dir, Options{FS: x})
	p := openPartial(t, s, b.Size)
	writePartial(t, p, b.Bytes[:1000])
	x.arm(1, true, syscall.ENOSPC)
	n, err := p.Write(b.Bytes[1000:3000])
	if !errors.Is(err, registry.ErrDisk) {
		t.Errorf("Write: %v, want DiskError", err)
	}
	x.arm(0, false, nil)
	if p.Size() != int64(1000+n) {
		t.Errorf("size %d after 1000 and %d bytes", p.Size(), n)
	}
	writePartial(t, p, b.Bytes[p.Size():])
	if err := p.Commit(t.Context()); err != nil {
		t.Errorf("Commit after room came back: %v", err)
	}
}

func TestPartialReaders(t *testing.T) {
	b := partialBlob
	s := openStore(t, t.TempDir(), Options{})
	p := openPartial(t, s, b.Size)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var got []byte
			for len(got) < len(b.Bytes) {
				buf := make([]byte, 7000)
				n, err := p.ReadAt(buf[:min(int64(len(buf)), p.Size()-int64(len(got)))], int64(len(got)))
				if err != nil && !errors.Is(err, io.EOF) {
					t.Errorf("ReadAt: %v", err)
					return
				}
				got = append(got, buf[:n]...)
			}
			if !bytes.Equal(got, b.Bytes) {
				t.Error("other bytes")
			}
		})
	}
	for at := 0; at < len(b.Bytes); at += 5000 {
		writePartial(t, p, b.Bytes[at:at+5000])
	}
	wg.Wait()
	if err := p.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestPartialSHA512(t *testing.T) {
	b := partialBlob
	s := openStore(t, t.TempDir(), Options{})
	d := digest.SHA512.FromBytes(b.Bytes)
	p, err := s.Partial(t.Context(), d, 0)
	if err != nil {
		t.Fatal(err)
	}
	writePartial(t, p, b.Bytes)
	if err := p.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := s.OpenContent(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b.Bytes) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestAdopt finds the file of a process that was killed between the rename and the transaction.
func TestAdopt(t *testing.T) {
	dir := t.TempDir()
	s := withShards(t, openStore(t, dir, Options{}))
	good, bad := registrytest.NewBlob(1, 1000), registrytest.NewBlob(2, 1000)
	if err := os.WriteFile(s.contentPath(good.Digest), good.Bytes, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.contentPath(bad.Digest), good.Bytes, 0o600); err != nil {
		t.Fatal(err)
	}
	if size, ok := s.StatContent(t.Context(), good.Digest); !ok || size != good.Size {
		t.Errorf("StatContent: %d, %v, want the content of the file", size, ok)
	}
	if _, ok := s.StatContent(t.Context(), bad.Digest); ok {
		t.Error("StatContent: a file with other bytes is said to be the content")
	}
	if err := fetchBlob(bad).do(t.Context(), s, newOracle()); err != nil {
		t.Errorf("fetching over a file with other bytes: %v", err)
	}
}

func TestUploadAfterRestart(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	b := registrytest.NewBlob(1, 9000)
	ctx := registry.WithPrincipal(t.Context(), registry.Principal{Name: "line-a"})
	u, err := s.StartUpload(ctx, testRepo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write(b.Bytes[:4000]); err != nil {
		t.Fatal(err)
	}
	closeChecked(t, s)
	s = openStore(t, dir, Options{})
	if _, err := s.ResumeUpload(t.Context(), testRepo, u.ID()); !errors.Is(err, registry.ErrBlobUploadUnknown) {
		t.Errorf("another principal after the restart: %v", err)
	}
	if _, err := s.ResumeUpload(ctx, otherRepo, u.ID()); !errors.Is(err, registry.ErrBlobUploadUnknown) {
		t.Errorf("another repository after the restart: %v", err)
	}
	again, err := s.ResumeUpload(ctx, testRepo, u.ID())
	if err != nil || again.Size() != 4000 {
		t.Fatalf("ResumeUpload: %v", err)
	}
	if _, err := again.Write(b.Bytes[4000:]); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Commit(ctx, b.Digest); err != nil {
		t.Fatal(err)
	}
	if list, err := os.ReadDir(s.path(dirUploads)); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}
