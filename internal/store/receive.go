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

// ReadFrom appends what r has, up to its end. What was read is written at once, so that a kill takes none of it, and
// hashed beside that: of the work that a large body is, the hash is half.
func (u *upload) ReadFrom(r io.Reader) (total int64, err error) {
	piece := pieces.Get().(*[pieceSize]byte)
	var side *hashing
	filled, start := 0, u.Size()
	for err == nil {
		var n int
		n, err = r.Read(piece[filled:])
		n, _, werr := u.append(piece[filled : filled+n])
		filled += n
		total += int64(n)
		if werr != nil {
			err = werr
		}
		if filled == pieceSize && side == nil {
			side = u.ses.hash.beside()
		}
		if side != nil && side.take(piece, filled, start, filled == pieceSize || err != nil) {
			start += int64(filled)
			piece, filled = side.other(), 0
		}
	}
	if side != nil {
		side.end()
	} else {
		u.ses.hash.wrote(piece[:filled], start)
	}
	pieces.Put(piece)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return total, err
}

// hashing is a goroutine that hashes pieces.
type hashing struct {
	work chan part
	free chan *[pieceSize]byte
}

// part is the beginning of a piece, with what is at offset.
type part struct {
	piece  *[pieceSize]byte
	n      int
	offset int64
}

// beside starts to hash beside the caller, who leaves r alone until end.
func (r *running) beside() *hashing {
	h := &hashing{work: make(chan part), free: make(chan *[pieceSize]byte, 2)}
	h.free <- pieces.Get().(*[pieceSize]byte)
	go func() {
		defer close(h.free)
		for f := range h.work {
			r.wrote(f.piece[:f.n], f.offset)
			h.free <- f.piece
		}
	}()
	return h
}

// take hands a piece over, at once or, where it must, when the one before is done; false: the caller goes on filling it.
func (h *hashing) take(p *[pieceSize]byte, n int, offset int64, must bool) bool {
	if must {
		h.work <- part{p, n, offset}
		return true
	}
	select {
	case h.work <- part{p, n, offset}:
		return true
	default:
		return false
	}
}

// other is a piece to go on with.
func (h *hashing) other() *[pieceSize]byte { return <-h.free }

// end waits until all is hashed.
func (h *hashing) end() {
	close(h.work)
	for p := range h.free {
		pieces.Put(p)
	}
}
