package transport

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"syscall"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// What a watchdog can find; each is the cause inside an UNAVAILABLE error.
var (
	ErrNoAnswer = errors.New("no answer in time")
	ErrStalled  = errors.New("no byte of the body in time")
	ErrTooSlow  = errors.New("the whole answer took too long")
)

// exchange is one request on the wire: counted, limited, watched.
func (c *Client) exchange(req *http.Request) (*http.Response, error) {
	class := ClassOf(req.Context())
	sends := req.Body != nil && req.Body != http.NoBody
	if isBlob(req.Context()) || sends && req.Method != http.MethodPost { // a POST asks for a token or opens a session
		if err := c.link.Spent(); err != nil {
			return nil, err
		}
		if err := c.link.Yield(req.Context(), class); err != nil {
			return nil, err
		}
	}
	c.link.touch(class)
	header, total, maxBody := c.limits(req.Context())
	dog := newWatchdog(req.Context(), total)
	ctx := httptrace.WithClientTrace(dog.ctx, &httptrace.ClientTrace{
		GotConn:      func(httptrace.GotConnInfo) { dog.arm(phaseHeader, header, ErrNoAnswer) },
		WroteRequest: func(httptrace.WroteRequestInfo) { dog.arm(phaseHeader, header, ErrNoAnswer) },
	})
	out := req.WithContext(ctx)
	if sends {
		out.Body = &sentBody{ReadCloser: req.Body, c: c, ctx: dog.ctx, advance: func() {
			dog.arm(phaseHeader, header, ErrNoAnswer)
			dog.again(total)
		}}
	}
	c.requests.Add(1)
	resp, err := c.base.RoundTrip(out)
	if err != nil {
		err = c.fail(req, dog, err)
		dog.stop()
		c.log.DebugContext(ctx, "request failed", slog.String("method", req.Method), slog.String("host", req.URL.Host), slog.String("path", req.URL.Path), slog.Any("error", err))
		return nil, err
	}
	dog.enter(phaseBody)
	c.log.DebugContext(ctx, "request", slog.String("method", req.Method), slog.String("host", req.URL.Host), slog.String("path", req.URL.Path), slog.Int("status", resp.StatusCode))
	resp.Request = req
	answer := &body{c: c, inner: resp.Body, req: req, dog: dog, left: maxBody, max: maxBody}
	if isBlob(req.Context()) {
		answer.content = c.link.manners.worker()
	}
	resp.Body = answer
	return resp, nil
}

// fail turns what went wrong into UNAVAILABLE, except for a refusal of this package and for the caller's own cancel.
func (c *Client) fail(req *http.Request, dog *watchdog, err error) error {
	host := req.URL.Host
	if cause := dog.bite(); cause != nil {
		return registry.ErrUnavailable.WithMessage("gave up on %s: %s", host, cause).Wrap(cause)
	}
	if ctxErr := req.Context().Err(); errors.Is(ctxErr, context.Canceled) {
		return context.Cause(req.Context())
	}
	var known *registry.Error
	if errors.As(err, &known) {
		return known
	}
	if errors.Is(err, context.DeadlineExceeded) && req.Context().Err() == nil {
		return registry.ErrUnavailable.WithMessage("no connection to %s in time", host).Wrap(ErrNoAnswer)
	}
	return registry.ErrUnavailable.WithMessage("the connection to %s failed%s", host, why(err)).Wrap(err)
}

// why is the cause of a failed connection in the words of the system, where they are fit for a client: no address of
// this machine, no path.
func why(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	var errno syscall.Errno
	switch {
	case errors.As(err, &dns):
		return ": its name cannot be resolved"
	case errors.As(err, &errno):
		return ": " + errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ": it was closed"
	case errors.As(err, &op) && op.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return ": no answer in time"
	}
	return ""
}

type phase int

const (
	phaseHeader phase = iota
	phaseBody
)

// watchdog cancels a request that does not advance. It is armed for one phase at a time; what arrives late for a
// phase that is over, as the trace of a request whose answer is already here, is ignored.
type watchdog struct {
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	phase phase
	timer *time.Timer
	total *time.Timer
	cause error
}

func newWatchdog(parent context.Context, total time.Duration) *watchdog {
	w := &watchdog{}
	w.ctx, w.cancel = context.WithCancelCause(parent)
	if total > 0 {
		w.total = time.AfterFunc(total, func() { w.fire(ErrTooSlow) })
	}
	return w
}

func (w *watchdog) fire(cause error) {
	w.mu.Lock()
	if w.cause == nil {
		w.cause = cause
	}
	w.mu.Unlock()
	w.cancel(cause)
}

// arm starts the time that the phase has for its next step.
func (w *watchdog) arm(p phase, d time.Duration, cause error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p != w.phase || w.cause != nil {
		return
	}
	if w.timer != nil {
		w.timer.Stop()
	}
	w.timer = time.AfterFunc(d, func() { w.fire(cause) })
}

// again gives the whole answer its time anew: the body of the request moves.
func (w *watchdog) again(total time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.total != nil && w.cause == nil && w.phase == phaseHeader {
		w.total.Reset(total)
	}
}

// enter goes to a phase and stops the time of the one before.
func (w *watchdog) enter(p phase) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.phase = p
	if w.timer != nil {
		w.timer.Stop()
	}
}

// bite returns why the watchdog ended the request; nil when it did not.
func (w *watchdog) bite() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cause
}

// stop frees the timers and the context.
func (w *watchdog) stop() {
	w.enter(phaseBody)
	if w.total != nil {
		w.total.Stop()
	}
	w.cancel(nil)
}

// body is a response body: counted, bounded, slowed to the rate, and never waited for longer than the idle time.
type body struct {
	c     *Client
	inner io.ReadCloser
	req   *http.Request
	dog   *watchdog
	left  int64
	max   int64
	err   error

	content *worker // of a blob: it gives way, and ends with the budget; nil for all else
	run     int64   // bytes since it last gave way
}

// Read implements io.Reader. Errors: io.EOF; SIZE_INVALID for more than the bound; UNAVAILABLE with the cause, which
// is io.ErrUnexpectedEOF where the connection ended too early; the context's.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.left < int64(len(p)) {
		p = p[:b.left+1] // one more tells "exactly full" from "too large"
	}
	if err := b.give(); err != nil {
		b.err = err
		b.dog.stop()
		return 0, err
	}
	p = p[:b.c.link.piece(len(p))]
	if b.content != nil {
		p = p[:min(len(p), b.content.most)]
	}
	b.dog.arm(phaseBody, b.c.o.Timeouts.Idle, ErrStalled)
	n, err := b.inner.Read(p)
	b.dog.enter(phaseBody)
	b.c.received.Add(int64(n))
	b.run += int64(n)
	if int64(n) > b.left {
		n = int(b.left)
		err = registry.ErrSizeInvalid.WithMessage("the answer of %s to %s %s is larger than %d bytes", b.req.URL.Host, b.req.Method, b.req.URL.Path, b.max)
	}
	b.left -= int64(n)
	switch {
	case err == nil && n > 0:
		b.c.link.touch(ClassOf(b.req.Context()))
		if werr := b.c.link.take(b.dog.ctx, n); werr != nil {
			err = b.c.fail(b.req, b.dog, werr)
		}
	case errors.Is(err, io.EOF) || errors.Is(err, registry.ErrSizeInvalid) || err == nil:
	default:
		err = b.c.fail(b.req, b.dog, err)
	}
	if err != nil {
		b.err = err
		b.dog.stop()
	}
	if b.content != nil && err != nil {
		b.content.leave()
	} else if b.content != nil {
		b.content.work(b.dog.ctx, ClassOf(b.req.Context()), n)
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error {
	if b.content != nil {
		b.content.leave()
	}
	if b.err == nil {
		b.err = http.ErrBodyReadAfterClose
	}
	err := b.inner.Close()
	b.dog.stop()
	return err
}

// give lets what is more urgent pass, once in a while, and ends content with the budget.
func (b *body) give() error {
	if b.content == nil {
		return nil
	}
	class := ClassOf(b.req.Context())
	if err := b.content.rest(b.dog.ctx, class); err != nil {
		return b.c.fail(b.req, b.dog, err)
	}
	if err := b.c.link.Spent(); err != nil {
		return err
	}
	if b.run < b.c.link.granule() {
		return nil
	}
	b.run = 0
	if err := b.c.link.Yield(b.dog.ctx, class); err != nil {
		return b.c.fail(b.req, b.dog, err)
	}
	return nil
}

// sentBody is a request body: counted and slowed to the rate. The answer's time begins anew with each piece.
type sentBody struct {
	io.ReadCloser
	c       *Client
	ctx     context.Context // of the exchange
	advance func()
}

func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:b.c.link.piece(len(p))])
	b.c.sent.Add(int64(n))
	if werr := b.c.link.take(b.ctx, n); werr != nil && err == nil {
		err = werr
	}
	b.advance()
	b.c.link.touch(ClassOf(b.ctx))
	return n, err
}
