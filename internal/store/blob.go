package store

import (
	"context"
	"io"
	"os"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// mediaTypeBlob is the media type of a blob, whatever a manifest calls it.
const mediaTypeBlob = "application/octet-stream"

// Blob is an open blob. It stays readable when the blob is removed meanwhile.
type Blob struct {
	*io.SectionReader
	file File
	desc registry.Descriptor
}

// Descriptor returns digest and size.
func (b *Blob) Descriptor() registry.Descriptor { return b.desc }

// File returns the operating system's file, nil when the store's FS is another, for sendfile. Its own offset is at the
// start of the content and is not moved by Read and Seek.
func (b *Blob) File() *os.File {
	f, _ := b.file.(*os.File)
	return f
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

func (s *Store) openBlob(d registry.Digest, size int64) (registry.BlobReader, error) {
	f, err := s.open(d, size)
	if err != nil {
		return nil, err
	}
	return &Blob{SectionReader: io.NewSectionReader(f, 0, size), file: f,
		desc: registry.Descriptor{MediaType: mediaTypeBlob, Digest: d, Size: size}}, nil
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
