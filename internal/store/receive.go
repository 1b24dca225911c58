package store

import (
	"errors"
	"io"
	"sync"
)

const (
	// pieceSize is what a body is read in, in bytes. A body that is larger has two pieces, which take turns.
	pieceSize = 256 << 10
	// writebackStep is how much is written before the disk begins with it, in bytes: what a sync waits for at the end is
	// not the whole of a layer.
	writebackStep = 8 << 20
)

var pieces = sync.Pool{New: func() any { return new([pieceSize]byte) }}

// ReadFrom appends what r has, up to its end. What was read is written at once, so that a kill takes none of it, and a
// piece that is full is hashed beside that: of the work that a large body is, the hash is half.
func (u *upload) ReadFrom(r io.Reader) (total int64, err error) {
	piece, filled, offset := pieces.Get().(*[pieceSize]byte), 0, u.Size()
	var side *hashing
	for err == nil {
		var n int
		n, err = r.Read(piece[filled:])
		n, _, werr := u.append(piece[filled : filled+n])
		if werr != nil {
			err = werr
		}
		total += int64(n)
		if filled += n; filled < pieceSize {
			continue
		}
		if side == nil {
			side = u.ses.hash.beside()
		}
		side.work <- full{piece, offset}
		offset += pieceSize
		piece, filled = <-side.free, 0
	}
	if side != nil {
		side.end()
	}
	u.ses.hash.wrote(piece[:filled], offset)
	pieces.Put(piece)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return total, err
}

// hashing is a goroutine that hashes pieces.
type hashing struct {
	work chan full
	free chan *[pieceSize]byte
}

// full is a piece with what is at offset.
type full struct {
	piece  *[pieceSize]byte
	offset int64
}

// beside starts to hash beside the caller, who leaves r alone until end.
func (r *running) beside() *hashing {
	h := &hashing{work: make(chan full), free: make(chan *[pieceSize]byte, 2)}
	h.free <- pieces.Get().(*[pieceSize]byte)
	go func() {
		defer close(h.free)
		for f := range h.work {
			r.wrote(f.piece[:], f.offset)
			h.free <- f.piece
		}
	}()
	return h
}

// end waits until all is hashed.
func (h *hashing) end() {
	close(h.work)
	for p := range h.free {
		pieces.Put(p)
	}
}
