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
	// reserveLeast and reserveMost bound what is reserved at once of a body whose length is known, in bytes: blocks that
	// are taken in one go cost less than those that are taken page by page, and what is small is not worth the call.
	reserveLeast = 4 << 20
	reserveMost  = 64 << 20
)

var pieces = sync.Pool{New: func() any { return new([pieceSize]byte) }}

// ReadFrom appends what r has, up to its end. What was read is written at once, so that a kill takes none of it, and a
// piece that is full is hashed beside that: of the work that a large body is, the hash is half.
func (u *upload) ReadFrom(r io.Reader) (total int64, err error) {
	piece, filled, offset := pieces.Get().(*[pieceSize]byte), 0, u.Size()
	if l, ok := r.(*io.LimitedReader); ok {
		u.expect(offset + l.N)
		defer u.trim()
	}
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

// expect says what size the upload has when the body that begins is all here.
func (u *upload) expect(size int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.expected = size
}

// reserve takes blocks for what comes next, and changes no size. It takes no more than came already, so that nobody
// gets room for a promise, and nothing where room is about to end. Where that fails, the write that follows tells why.
func (u *upload) reserve() {
	step := min(u.expected-u.size, u.size, reserveMost)
	if u.size < u.reserved || step < reserveLeast || u.s.free(step+roomInterval) != nil {
		return
	}
	u.reserved = u.size + step
	if u.s.fs.Reserve(u.file, u.reserved) != nil {
		u.expected = 0
	}
}

// trim gives back what was reserved for the rest of a body that did not come.
func (u *upload) trim() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.file != nil && u.size < u.reserved {
		if err := u.file.Truncate(u.size); err != nil {
			u.s.log.Warn("blocks of an upload are not given back before it ends", "error", err)
		}
	}
	u.expected, u.reserved = 0, 0
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
