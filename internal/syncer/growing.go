package syncer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// growingReader reads a blob while it arrives. The last byte is given only after the content was verified, so that
// nobody ever holds a complete blob that is not the one of its digest.
type growingReader struct {
	ctx  context.Context
	t    *transfer
	off  int64
	rest registry.BlobReader // the committed content, once it is
}

func newGrowingReader(ctx context.Context, t *transfer) *growingReader {
	return &growingReader{ctx: ctx, t: t}
}

// Descriptor returns digest and size.
func (g *growingReader) Descriptor() registry.Descriptor { return g.t.want }

// Seek sets where Read goes on.
func (g *growingReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += g.off
	case io.SeekEnd:
		offset += g.t.want.Size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d: before the start", offset)
	}
	g.off = offset
	if g.rest != nil {
		return g.rest.Seek(offset, io.SeekStart)
	}
	return offset, nil
}

// Read waits for the next bytes.
func (g *growingReader) Read(p []byte) (int, error) {
	if g.rest != nil {
		return g.rest.Read(p)
	}
	for {
		t := g.t
		t.mu.Lock()
		ended, err, moved, partial := t.ended, t.err, t.moved, t.partial
		ready := min(t.received, t.want.Size-1) - g.off
		t.mu.Unlock()
		switch {
		case ended && err != nil:
			return 0, err
		case ended:
			return g.committed(p)
		case partial != nil && ready > 0:
			n, err := partial.ReadAt(p[:min(int64(len(p)), ready)], g.off)
			g.off += int64(n)
			if n > 0 || !errors.Is(err, os.ErrClosed) {
				return n, err
			}
			// It was committed between the two: wait for the end.
		}
		select {
		case <-moved:
		case <-g.ctx.Done():
			return 0, g.ctx.Err()
		}
	}
}

// committed goes on from the content in its place.
func (g *growingReader) committed(p []byte) (int, error) {
	r, err := g.t.f.s.store.OpenContent(g.ctx, g.t.want.Digest)
	if err != nil {
		return 0, err
	}
	if _, err := r.Seek(g.off, io.SeekStart); err != nil {
		return 0, errors.Join(err, r.Close())
	}
	g.rest = r
	return r.Read(p)
}

// Close lets go of the transfer; it stops when nobody else holds it.
func (g *growingReader) Close() error {
	g.t.leave()
	if g.rest != nil {
		return g.rest.Close()
	}
	return nil
}
