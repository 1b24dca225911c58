package transport

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// minBurst is how many bytes the rate limit hands out at once.
	minBurst = 16 << 10
	// maxPiece bounds what is read at once: with more it costs less, and clients wait for longer.
	maxPiece = 256 << 10
	// budgetPiece is that where a budget is configured, which is not exceeded by more.
	budgetPiece = 64 << 10
	// minPiece is the least that is read at once under a rate limit, in bytes.
	minPiece = 512
	// defaultChunk is how much a transfer takes before it gives way where nothing is configured.
	defaultChunk = 512 << 10
	// quietAfter is how long after its last byte a class is no longer in the way of less urgent ones.
	quietAfter = 2 * time.Second
	// measureFor is over how long the speed of the link is measured; a pause as long begins a new measurement.
	measureFor = 5 * time.Second
)

// Class is how urgent the bytes of a request are.
type Class int32

// The classes, from the least urgent on. The zero value is Background.
const (
	Background Class = iota // what the schedule brings
	First                   // what the layers below start from, and what was lost here
	Waiting                 // somebody waits for it now
	classes
)

// Urgency is the class of a transfer. It may rise while the transfer runs: a client comes for what was background.
type Urgency struct{ class atomic.Int32 }

// Raise makes it at least c.
func (u *Urgency) Raise(c Class) {
	for now := u.class.Load(); now < int32(c); now = u.class.Load() {
		if u.class.CompareAndSwap(now, int32(c)) {
			return
		}
	}
}

// Class returns what it is now.
func (u *Urgency) Class() Class { return Class(u.class.Load()) }

type urgencyKey struct{}

// WithUrgency marks requests with what they belong to. Without it they are Background.
func WithUrgency(ctx context.Context, u *Urgency) context.Context {
	return context.WithValue(ctx, urgencyKey{}, u)
}

// WithClass is WithUrgency for what stays as urgent as it is.
func WithClass(ctx context.Context, c Class) context.Context {
	u := &Urgency{}
	u.Raise(c)
	return WithUrgency(ctx, u)
}

// ClassOf returns how urgent the requests of a context are.
func ClassOf(ctx context.Context) Class {
	if u, ok := ctx.Value(urgencyKey{}).(*Urgency); ok {
		return u.Class()
	}
	return Background
}

// LinkOptions are the parts of a Link; the zero value has neither limits nor memory.
type LinkOptions struct {
	Now func() time.Time // wall clock, for times of the day and periods of a budget; nil: no such times
	// Kept is what Keep was last called with, and Keep is to make its argument durable. It is called with more than was
	// used, so that it need not be called often and a killed process has not forgotten any byte.
	Kept   []byte
	Keep   func(used []byte) error
	Logger *slog.Logger

	// Busy is called with true when content begins to move, and with false two seconds after the last of it. It calls no Link.
	Busy       func(bool)
	Processors int // of which all but one work for transfers that nobody waits for; 0: those that the process has
}

// Link is the one gate of all bytes to and from the parent: rate, budget and order. Clients that are given the same
// Link share it, one after the other too. It is safe for concurrent use.
type Link struct {
	o       LinkOptions
	limiter *rate.Limiter
	budget  *budget
	manners *manners

	mu     sync.Mutex
	config registry.TransferConfig
	busy   [classes]*time.Timer // not nil while bytes of the class move
	quiet  chan struct{}        // closed when a class became quiet

	since time.Time // when the measurement began
	last  time.Time // of its last byte
	moved int64
	speed float64 // bytes per second; 0 is not known
}

// NewLink returns a Link without limits.
func NewLink(o LinkOptions) *Link {
	if o.Now == nil {
		o.Now = func() time.Time { return time.Time{} }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Processors <= 0 {
		o.Processors = runtime.GOMAXPROCS(0)
	}
	l := &Link{o: o, limiter: rate.NewLimiter(rate.Inf, minBurst), quiet: make(chan struct{}), manners: newManners(o.Processors, o.Busy)}
	l.budget = newBudget(o)
	return l
}

// Configure puts limits in force at once, for transfers under way too.
func (l *Link) Configure(c registry.TransferConfig) {
	l.mu.Lock()
	l.config = c
	l.mu.Unlock()
	l.budget.configure(c.Budget)
	l.adjust()
}

// adjust sets the rate of this time of the day and returns it in bytes per second; 0 is no limit.
func (l *Link) adjust() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	bytes := l.config.KiBpsAt(l.o.Now()) << 10
	limit := rate.Inf
	if bytes > 0 {
		limit = rate.Limit(bytes)
	}
	if l.limiter.Limit() != limit {
		l.limiter.SetLimit(limit)
	}
	return bytes
}

// piece is how many of n bytes to move at once: under a limit about a quarter of a second's worth, so that a change of
// the limit is felt at once.
func (l *Link) piece(n int) int {
	bytes := l.adjust()
	l.mu.Lock()
	budgeted := l.config.Budget != registry.BudgetConfig{}
	l.mu.Unlock()
	switch {
	case bytes == 0 && budgeted:
		return min(n, budgetPiece)
	case bytes == 0:
		return min(n, maxPiece)
	}
	return min(n, max(minPiece, min(bytes/4, minBurst)))
}

// take waits until the rate lets n bytes pass. There may have been another rate when piece was asked how many, or none.
func (l *Link) take(ctx context.Context, n int) error {
	for n > 0 && l.limiter.Limit() != rate.Inf {
		part := min(n, minBurst)
		if err := l.limiter.WaitN(ctx, part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// granule is after how many bytes a transfer looks whether something more urgent waits: the configured chunk, and no
// more than about a second of the link.
func (l *Link) granule() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	chunk := int64(l.config.ChunkKiB) << 10
	if chunk <= 0 {
		chunk = defaultChunk
	}
	if l.speed > 0 {
		chunk = min(chunk, max(int64(l.speed), minBurst))
	}
	return chunk
}

// touch notes that bytes of a class move.
func (l *Link) touch(c Class) {
	if c <= Background || c >= classes {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.busy[c]; t != nil && t.Reset(quietAfter) {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(quietAfter, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.busy[c] == timer {
			l.busy[c] = nil
			close(l.quiet)
			l.quiet = make(chan struct{})
		}
	})
	l.busy[c] = timer
}

// Yield returns when nothing more urgent than the class has moved for two seconds. What stands still, or waits between
// two attempts, is in nobody's way.
func (l *Link) Yield(ctx context.Context, c Class) error {
	for {
		l.mu.Lock()
		quiet, wait := l.quiet, false
		for other := c + 1; other < classes; other++ {
			wait = wait || l.busy[other] != nil
		}
		l.mu.Unlock()
		if !wait {
			return nil
		}
		select {
		case <-quiet:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Spent returns nil while there are bytes left in every budget.
//
// Errors: UNAVAILABLE with registry.ErrBudget as its cause, which budget it is, and Retry-After.
func (l *Link) Spent() error { return l.budget.spent(l.o.Now()) }

// Budgets returns what is left of each budget that is configured.
func (l *Link) Budgets() []registry.BudgetStatus { return l.budget.status(l.o.Now()) }

// Speed returns how fast bytes moved when they last did, in bytes per second, and the rate that is in force now; 0 is
// not known, and no limit.
func (l *Link) Speed() (measured, limit int64) {
	bytes := l.adjust()
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(l.speed), int64(bytes)
}

// Close makes what was used durable to the byte. The Link goes on.
func (l *Link) Close() { l.budget.flush(l.o.Now()) }

// count notes n bytes on the wire, in either direction.
func (l *Link) count(n int) {
	if n <= 0 {
		return
	}
	now := l.o.Now()
	l.budget.count(int64(n), now)
	l.mu.Lock()
	defer l.mu.Unlock()
	if gap := now.Sub(l.last); gap < 0 || gap > measureFor {
		l.since, l.moved = now, 0 // a pause, or a clock that was set
	}
	l.last = now
	l.moved += int64(n)
	took := now.Sub(l.since)
	if took < measureFor/5 || (took < measureFor && l.speed > 0) || l.moved < minBurst {
		return
	}
	fresh := float64(l.moved) / took.Seconds()
	if l.speed == 0 || fresh > 2*l.speed || 2*fresh < l.speed { // another link, or as good as
		l.speed = fresh
	}
	l.speed += (fresh - l.speed) / 2
	l.since, l.moved = now, 0
}
