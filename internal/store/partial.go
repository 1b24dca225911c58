package store

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// syncInterval is how many bytes of a partial may be lost to a power cut. The bytes have to reach the disk anyway; in
// steps, the last sync is short.
const syncInterval = 32 << 20

// partial is unfinished content. Nothing of it is in the index: the size of its file is its progress.
type partial struct {
	s    *Store
	d    registry.Digest
	want int64 // 0: unknown
	path string

	mu      sync.RWMutex
	file    File // nil after Commit, Close or Discard
	size    int64
	synced  int64
	checked int64 // bytes up to which there was room
	hash    *running
}

var errPartialClosed = errors.New("store: use of a partial after its end")

func (s *Store) partialPath(d registry.Digest) string {
	return s.path(dirPartial, strings.Replace(d.String(), ":", "-", 1))
}

// Partial implements registry.Replica.
func (s *Store) Partial(ctx context.Context, d registry.Digest, size int64) (registry.Partial, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := registry.ParseDigest(d.String()); err != nil || size < 0 {
		return nil, registry.ErrDigestInvalid.WithMessage("partial content of %d bytes needs a digest and a size", size).Wrap(err)
	}
	p := &partial{s: s, d: d, want: size, path: s.partialPath(d), hash: newRunning(d.Algorithm().String())}
	s.partialsMu.Lock()
	_, open := s.partials[d]
	if !open {
		s.partials[d] = p
	}
	s.partialsMu.Unlock()
	if open {
		return nil, registry.ErrConflict.WithMessage("the content is being fetched already").WithDetail(map[string]string{"digest": d.String()})
	}
	err := diskError(p.open())
	if errors.Is(err, registry.ErrDisk) && s.evict(ctx) {
		err = diskError(p.open())
	}
	if err != nil {
		p.forget()
		return nil, err
	}
	return p, nil
}

// PartialSize returns how many bytes of unfinished content are here; 0 for none, and for what cannot be looked at.
func (s *Store) PartialSize(d registry.Digest) int64 {
	if _, err := registry.ParseDigest(d.String()); err != nil {
		return 0
	}
	info, err := s.fs.Lstat(s.partialPath(d))
	if err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return info.Size()
}

// open opens or creates the file. What does not fit the size is dropped.
func (p *partial) open() error {
	f, err := p.s.fs.Open(p.path, true)
	created := isAbsent(err)
	if created {
		f, err = p.s.fs.Create(p.path)
	}
	if err != nil {
		return err
	}
	fail := func(err error) error {
		err = errors.Join(err, f.Close())
		if created {
			_ = p.s.fs.Remove(p.path)
		}
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	if !info.Mode().IsRegular() {
		return fail(errors.New("a partial is not a regular file"))
	}
	p.size = info.Size()
	if p.want > 0 && p.size > p.want {
		if err := f.Truncate(0); err != nil {
			return fail(err)
		}
		p.size = 0
	}
	if left := p.want - p.size; left > 0 {
		if err := p.s.room(left); err != nil {
			return fail(err)
		}
		if err := p.s.fs.Reserve(f, p.want); err != nil {
			return fail(err)
		}
		p.checked = p.want
	}
	p.file, p.synced = f, p.size
	return nil
}

// forget lets the digest be opened again.
func (p *partial) forget() {
	p.s.partialsMu.Lock()
	defer p.s.partialsMu.Unlock()
	if p.s.partials[p.d] == p {
		delete(p.s.partials, p.d)
	}
}

func (p *partial) Size() int64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.size
}

// Write appends; bytes beyond the announced size are SIZE_INVALID, so that a parent that never ends fills no disk.
func (p *partial) Write(b []byte) (int, error) {
	p.mu.RLock()
	f, at := p.file, p.size
	p.mu.RUnlock()
	if f == nil {
		return 0, errPartialClosed
	}
	end := at + int64(len(b))
	if p.want > 0 && end > p.want {
		return 0, registry.ErrSizeInvalid.WithMessage("the content is larger than the %d bytes that were announced", p.want)
	}
	if end > p.checked {
		if err := p.s.room(int64(len(b))); err != nil {
			return 0, err
		}
		p.checked = end + roomInterval
	}
	n, err := writeFull(f, b, at) // outside the lock: who reads what is here already does not wait for the disk
	p.hash.wrote(b[:n], at)
	p.mu.Lock()
	p.size += int64(n)
	at = p.size
	p.mu.Unlock()
	if err != nil {
		return n, diskError(err)
	}
	if at-p.synced >= syncInterval {
		if err := f.Sync(); err != nil {
			return n, diskError(errors.Join(err, p.Discard())) // what the disk has of it is unknown from now on
		}
		p.synced = at
	}
	return n, nil
}

func (p *partial) ReadAt(b []byte, off int64) (int, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.file == nil {
		return 0, os.ErrClosed
	}
	return p.file.ReadAt(b, off)
}

// end takes the file for the last step; nil when there was one already.
func (p *partial) end() File {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.file
	p.file = nil
	return f
}

func (p *partial) Close() error {
	f := p.end()
	if f == nil {
		return nil
	}
	defer p.forget()
	return diskError(f.Close())
}

func (p *partial) Discard() error {
	f := p.end()
	if f == nil {
		return nil
	}
	defer p.forget()
	_ = f.Close()
	if err := p.s.fs.Remove(p.path); err != nil && !isAbsent(err) {
		return diskError(err)
	}
	return nil
}

func (p *partial) Commit(ctx context.Context) error {
	p.mu.RLock()
	f, size := p.file, p.size
	p.mu.RUnlock()
	if f == nil {
		return errPartialClosed
	}
	if p.want > 0 && size != p.want {
		return errors.Join(registry.ErrSizeInvalid.WithMessage("the content has %d bytes, not the %d that were announced", size, p.want), p.Discard())
	}
	got, err := p.hash.sum(ctx, f, p.d.Algorithm().String(), size)
	if err != nil {
		return errors.Join(err, p.Close())
	}
	if got != p.d {
		return errors.Join(registry.ErrDigestInvalid.WithMessage("the content has the digest %s, not %s", got, p.d), p.Discard())
	}
	if p.end() == nil {
		return errPartialClosed
	}
	defer p.forget()
	_, err = p.s.publish(ctx, f, p.path, p.d, blobRow{size: size, fetched: true}, func(*tx) error { return nil })
	return err
}
