package store

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// mediaTypeBlob is the media type of a blob, whatever a manifest calls it.
const mediaTypeBlob = "application/octet-stream"

// Blob is an open blob. It stays readable when the blob is removed meanwhile. The first time that a process gives a
// blob out, it hashes what is read: the last byte of damaged content is never sent.
type Blob struct {
	*io.SectionReader
	s     *Store
	file  File
	desc  registry.Descriptor
	check *running // nil when the content is known to be right
}

// Descriptor returns digest and size.
func (b *Blob) Descriptor() registry.Descriptor { return b.desc }

// File returns the operating system's file for sendfile; nil when the store's FS is another, or while the content is
// still to be hashed: neither size nor times of a file tell of a bit that flipped, and a hash runs at several times the
// rate of the links and disks that this is for. Its own offset is at the start of the content and is not moved by Read and Seek.
func (b *Blob) File() *os.File {
	if b.check != nil {
		return nil
	}
	f, _ := b.file.(*os.File)
	return f
}

// Read reads on. Errors: errDamaged instead of the last bytes when those that were read from the start are not the
// content.
func (b *Blob) Read(p []byte) (int, error) {
	if b.check == nil {
		return b.SectionReader.Read(p)
	}
	at, err := b.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	n, err := b.SectionReader.Read(p)
	b.check.wrote(p[:n], at)
	if n > 0 && b.check.n == b.desc.Size {
		if b.check.digest() != b.desc.Digest {
			b.s.quarantine(b.file, b.desc.Digest, errOtherBytes)
			return 0, errDamaged
		}
		b.s.sound.add(b.desc.Digest)
		b.check = nil
	}
	return n, err
}

// Close closes the file.
func (b *Blob) Close() error { return b.file.Close() }

// linkedBlob reads the row of a blob that belongs to the repository.
func (t *tx) linkedBlob(repo string, d registry.Digest) (blobRow, error) {
	r, err := t.repo(repo)
	if err != nil {
		return blobRow{}, err
	}
	if r.links.Get(digestKey(d)) != nil {
		if row, ok := t.blob(d); ok {
			return row, nil
		}
	}
	return blobRow{}, registry.ErrBlobUnknown.WithDetail(map[string]string{"digest": d.String()})
}

// GetBlob implements registry.Reader. The result is a *Blob.
func (s *Store) GetBlob(ctx context.Context, repo string, d registry.Digest) (registry.BlobReader, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var row blobRow
	err := s.view(func(t *tx) (err error) { row, err = t.linkedBlob(repo, d); return err })
	if err != nil {
		return nil, err
	}
	return s.openBlob(d, row.size)
}

// smallBlob is what is hashed before the first byte is given out, in bytes: configurations and artifacts.
const smallBlob = 64 << 10

func (s *Store) openBlob(d registry.Digest, size int64) (registry.BlobReader, error) {
	f, err := s.open(d, size)
	if err != nil {
		return nil, err
	}
	b := &Blob{
		SectionReader: io.NewSectionReader(f, 0, size), s: s, file: f,
		desc: registry.Descriptor{MediaType: mediaTypeBlob, Digest: d, Size: size},
	}
	if s.sound.has(d) {
		return b, nil
	}
	b.check = newRunning(d.Algorithm().String())
	if size > smallBlob {
		return b, nil
	}
	_, err = io.Copy(io.Discard, b)
	if err == nil {
		_, err = b.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, errDamaged) {
			return nil, registry.ErrBlobUnknown.WithDetail(map[string]string{"digest": d.String()})
		}
		return nil, diskError(err)
	}
	return b, nil
}

// ResolveBlob implements registry.Reader. The blob is safe from collection for a while, because a client that finds it
// does not push it again.
func (s *Store) ResolveBlob(ctx context.Context, repo string, d registry.Digest) (registry.Descriptor, error) {
	if err := ctx.Err(); err != nil {
		return registry.Descriptor{}, err
	}
	var row blobRow
	err := s.leased(d, func(t *tx) (err error) { row, err = t.linkedBlob(repo, d); return err })
	if err != nil {
		return registry.Descriptor{}, err
	}
	if !s.stat(d, row.size) {
		return registry.Descriptor{}, registry.ErrBlobUnknown.WithDetail(map[string]string{"digest": d.String()})
	}
	return registry.Descriptor{MediaType: mediaTypeBlob, Digest: d, Size: row.size}, nil
}

// leased reads the index and protects d from collection, in one step for a collection that is under way.
func (s *Store) leased(d registry.Digest, fn func(*tx) error) error {
	s.sweeping.RLock()
	defer s.sweeping.RUnlock()
	s.leases.add(d, s.uptime())
	s.touch(d)
	return s.view(fn)
}

// MountBlob implements registry.Writer.
func (s *Store) MountBlob(ctx context.Context, repo, from string, d registry.Digest) (registry.Descriptor, error) {
	unknown := registry.ErrBlobUnknown.WithDetail(map[string]string{"digest": d.String()})
	if _, err := s.ResolveBlob(ctx, from, d); err != nil {
		if registry.AsError(err).Code == registry.CodeNameUnknown {
			err = unknown
		}
		return registry.Descriptor{}, err
	}
	var row blobRow
	err := s.update(ctx, func(t *tx) (err error) {
		if row, err = t.linkedBlob(from, d); err != nil {
			return unknown
		}
		r, err := t.makeRepo(repo)
		if err != nil {
			return err
		}
		return r.link(d, true)
	})
	if err != nil {
		return registry.Descriptor{}, err
	}
	return registry.Descriptor{MediaType: mediaTypeBlob, Digest: d, Size: row.size}, nil
}

// DeleteBlob implements registry.Deleter. A manifest that refers to the blob keeps its bytes from collection.
func (s *Store) DeleteBlob(ctx context.Context, repo string, d registry.Digest) error {
	return s.update(ctx, func(t *tx) error {
		r, err := t.repo(repo)
		if err != nil || r.links.Get(digestKey(d)) == nil {
			return registry.ErrBlobUnknown.WithDetail(map[string]string{"digest": d.String()})
		}
		if err := r.mayUnlink(d); err != nil {
			return err
		}
		return t.remove(r.links, digestKey(d))
	})
}
