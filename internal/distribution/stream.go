package distribution

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// A body has no deadline as a whole, but it has to move: each time that so many bytes have passed, the time that the
// client has for the next ones starts anew. Who sends a byte a minute to hold a connection does not get far.
const (
	receiveStep = 64 << 10
	sendStep    = 128 << 10 // with twice the time, so the same speed
	fileStep    = 1 << 20   // one sendfile(2) moves this much when the client is fast; sendStep of it in time is enough
)

// buffers are for what cannot be sent by sendfile(2).
var buffers = sync.Pool{New: func() any { b := make([]byte, sendStep); return &b }}

// receiver reads a request body under a rolling deadline. At the end of the body net/http takes the deadline away.
type receiver struct {
	s       *server
	body    io.Reader
	control *http.ResponseController
	left    int   // until the deadline moves
	err     error // of the body, not io.EOF
}

func (s *server) receive(w http.ResponseWriter, body io.Reader) *receiver {
	return &receiver{s: s, body: body, control: http.NewResponseController(w)}
}

func (b *receiver) Read(p []byte) (int, error) {
	if b.left <= 0 {
		b.left = receiveStep
		_ = b.control.SetReadDeadline(b.s.clock.Now().Add(b.s.stall)) // a recorder has none
	}
	n, err := b.body.Read(p)
	b.left -= n
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

// failed says what went wrong while the body was copied: on the client's side, or here.
func (b *receiver) failed(err error) error {
	switch {
	case b.err == nil:
		return err
	case errors.Is(b.err, os.ErrDeadlineExceeded):
		e := registry.ErrBlobUploadInvalid.WithMessage("the body came too slowly: less than %d bytes in %s", receiveStep, b.s.stall).Wrap(b.err)
		e.Status = http.StatusRequestTimeout
		return e
	}
	return registry.ErrBlobUploadInvalid.WithMessage("the body ended early").Wrap(b.err)
}

// sender is the ResponseWriter for content. It keeps the way to sendfile(2) open, moves the write deadline as bytes
// flow, and remembers what went wrong, which http.ServeContent does not tell.
type sender struct {
	http.ResponseWriter
	s       *server
	control *http.ResponseController
	plain   bool // the connection is not TLS, so the kernel can copy
	refused int  // status of an answer of net/http that writeError is to give instead
	err     error
}

func (s *server) send(w http.ResponseWriter, r *http.Request) *sender {
	return &sender{ResponseWriter: w, s: s, control: http.NewResponseController(w), plain: r.TLS == nil}
}

// extend gives the client time for the next step.
func (w *sender) extend() {
	_ = w.control.SetWriteDeadline(w.s.clock.Now().Add(2 * w.s.stall)) // a recorder has none
}

// WriteHeader keeps back errors, which come with plain text; 412 has no body.
func (w *sender) WriteHeader(status int) {
	if status >= http.StatusBadRequest && status != http.StatusPreconditionFailed {
		w.refused = status
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write writes what is in memory already.
func (w *sender) Write(p []byte) (total int, err error) {
	if w.refused != 0 {
		return len(p), nil
	}
	for len(p) > 0 && err == nil {
		var n int
		w.extend()
		n, err = w.ResponseWriter.Write(p[:min(len(p), sendStep)])
		total += n
		p = p[n:]
	}
	w.err = errors.Join(w.err, err)
	return total, err
}

// ReadFrom copies what http.ServeContent gives: a LimitedReader of the content.
func (w *sender) ReadFrom(src io.Reader) (n int64, err error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: src, N: 1<<63 - 1}
	}
	want := limited.N
	if inner, canSend := w.ResponseWriter.(io.ReaderFrom); canSend && w.plain && isFile(limited.R) {
		n, err = w.sendFile(inner, limited)
	} else {
		n, err = w.copyBody(limited)
	}
	if err == nil && ok && n < want {
		err = io.ErrUnexpectedEOF
	}
	w.err = errors.Join(w.err, err)
	return n, err
}

func isFile(r io.Reader) bool {
	_, ok := r.(*os.File)
	return ok
}

// sendFile lets the kernel copy, one step for each deadline. A client that took sendStep when the time is over is slow,
// not stalled: what the kernel did not send yet is where it was, in the file, and the next step goes on from there.
func (w *sender) sendFile(inner io.ReaderFrom, src *io.LimitedReader) (total int64, err error) {
	for src.N > 0 {
		step := io.LimitedReader{R: src.R, N: min(src.N, fileStep)}
		w.extend()
		n, err := inner.ReadFrom(&step)
		total += n
		src.N -= n
		if n >= sendStep && errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil || n == 0 {
			return total, err
		}
	}
	return total, nil
}

// copyBody copies content that is still arriving: the time spent waiting for it is not the client's.
func (w *sender) copyBody(src io.Reader) (total int64, err error) {
	buf, _ := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			w.extend()
			written, werr := w.ResponseWriter.Write((*buf)[:n])
			total += int64(written)
			if werr != nil {
				return total, werr
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// finish gives the client time for what net/http still does with the connection: reading what is left of a body that
// nobody wanted, and sending what is buffered. Before the next request net/http takes both deadlines away.
func (s *server) finish(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	now := s.clock.Now()
	if r.Body != nil && r.Body != http.NoBody {
		_ = control.SetReadDeadline(now.Add(s.stall)) // a recorder has none
	}
	_ = control.SetWriteDeadline(now.Add(2 * s.stall))
}
