package syncer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

const (
	// readSize is how much of a blob is read, written and announced at a time.
	readSize = 256 << 10
	// patience is Options.Patience where that is not set.
	patience = 20 * time.Second
	// maxUrgent is how many blobs of images that clients wait for are fetched at once, besides those that they read.
	maxUrgent = 8
	// retryFloor and retryCap bound the pause between two attempts of one transfer, before jitter.
	retryFloor = 50 * time.Millisecond
	retryCap   = 4 * time.Second
)

// fetcher owns the transfers under way: each digest crosses the link once, however many want it.
type fetcher struct {
	s      *Syncer
	mu     sync.Mutex
	active map[registry.Digest]*transfer
	slots  *semaphore.Weighted // background transfers at once
	urgent *semaphore.Weighted // those of images that clients wait for, which wait for none in the background
}

func newFetcher(s *Syncer) *fetcher {
	return &fetcher{s: s, active: map[registry.Digest]*transfer{}, slots: semaphore.NewWeighted(1), urgent: semaphore.NewWeighted(maxUrgent)}
}

// resize changes how many background transfers run at once, for those that start from now on.
func (f *fetcher) resize(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slots = semaphore.NewWeighted(int64(n))
}

// transfer is one blob on its way. Everybody who wants it holds the same one; when the last lets go, it stops.
type transfer struct {
	f       *fetcher
	repo    string
	want    registry.Descriptor
	cancel  context.CancelFunc
	urgency transport.Urgency // that of the most urgent who ever wanted it

	mu       sync.Mutex
	holders  int
	received int64
	before   int64 // what was here when it began
	waiting  bool
	partial  registry.Partial // nil before it is open and after it ended
	moved    chan struct{}    // closed at each step
	ended    bool
	err      error
}

// blob makes a blob present here, within the number of transfers that may run at once and as urgent as its context.
func (f *fetcher) blob(ctx context.Context, repo string, d registry.Descriptor) error {
	if size, ok := f.s.store.StatContent(ctx, d.Digest); ok && size == d.Size {
		return nil
	}
	class := transport.ClassOf(ctx)
	f.mu.Lock()
	slots := f.slots
	f.mu.Unlock()
	if class == transport.Waiting {
		slots = f.urgent
	}
	if err := slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer slots.Release(1)
	t := f.join(repo, d, class)
	defer t.leave()
	return t.wait(ctx)
}

// join returns the transfer of the digest, at least as urgent as told, starting it if there is none. The caller must
// leave it.
func (f *fetcher) join(repo string, d registry.Descriptor, class transport.Class) *transfer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.active[d.Digest]; t != nil && t.hold() {
		t.urgency.Raise(class)
		return t
	}
	ctx, cancel := context.WithCancel(f.s.base)
	t := &transfer{f: f, repo: repo, want: d, cancel: cancel, holders: 1, moved: make(chan struct{})}
	t.urgency.Raise(class)
	f.active[d.Digest] = t
	f.s.tasks.Go(func() {
		defer cancel()
		err := t.run(transport.WithUrgency(ctx, &t.urgency))
		f.mu.Lock()
		if f.active[d.Digest] == t {
			delete(f.active, d.Digest)
		}
		f.mu.Unlock()
		t.end(err)
	})
	return t
}

// hold adds a holder; false when the transfer has ended or is being stopped.
func (t *transfer) hold() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended || t.holders == 0 {
		return false
	}
	t.holders++
	return true
}

func (t *transfer) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.holders--; t.holders == 0 {
		t.cancel()
	}
}

func (t *transfer) end(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended, t.err, t.partial = true, err, nil
	close(t.moved)
}

// step announces progress.
func (t *transfer) step(received int64, waiting bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.received, t.waiting = received, waiting
	close(t.moved)
	t.moved = make(chan struct{})
}

// wait returns when the blob is here or the transfer has failed.
func (t *transfer) wait(ctx context.Context) error {
	for {
		t.mu.Lock()
		ended, err, moved := t.ended, t.err, t.moved
		t.mu.Unlock()
		if ended {
			return err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run fetches until the blob is committed, the parent denies it, or no byte came for as long as Options.Patience.
func (t *transfer) run(ctx context.Context) error {
	for lied := false; ; lied = true {
		p, err := t.open(ctx)
		if err != nil {
			return err
		}
		if size, ok := t.f.s.store.StatContent(ctx, t.want.Digest); ok && size == t.want.Size {
			return p.Discard() // another transfer ended between the question and this one's start
		}
		if err := t.fill(ctx, p); err != nil {
			return errors.Join(err, p.Close())
		}
		err = p.Commit(ctx)
		if err == nil {
			return nil
		}
		if !isLie(err) {
			return err
		}
		t.f.s.o.Logger.Warn("the parent sent other content than the digest names; discarded", "repository", t.repo, "digest", t.want.Digest, "error", err)
		if lied {
			return registry.ErrDigestInvalid.WithMessage("the parent sends other content for %s in %s, twice", t.want.Digest, t.repo).Wrap(err)
		}
	}
}

func isLie(err error) bool {
	return errors.Is(err, registry.ErrDigestInvalid) || errors.Is(err, registry.ErrSizeInvalid)
}

// open opens the partial file. A transfer of the same digest that is being stopped still holds it for a moment.
func (t *transfer) open(ctx context.Context) (registry.Partial, error) {
	for wait := retryFloor; ; wait = min(2*wait, retryCap) {
		p, err := t.f.s.store.Partial(ctx, t.want.Digest, t.want.Size)
		if err == nil {
			t.mu.Lock()
			t.partial, t.before = p, p.Size()
			t.mu.Unlock()
			t.step(p.Size(), false)
			return p, nil
		}
		if !errors.Is(err, registry.ErrConflict) {
			return nil, err
		}
		if err := clock.Wait(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// fill reads from the parent until all bytes are in the partial file.
func (t *transfer) fill(ctx context.Context, p registry.Partial) error {
	s := t.f.s
	began := s.o.Clock.Now()
	pause := retryFloor
	for p.Size() < t.want.Size {
		before := p.Size()
		err := t.attempt(ctx, p)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !passing(err) {
			return err
		}
		if p.Size() > before {
			began, pause = s.o.Clock.Now(), retryFloor
		} else if pause = min(2*pause, retryCap); s.o.Clock.Now().Sub(began) > s.o.Patience {
			return registry.ErrUnavailable.WithMessage("%s stands at %d of %d bytes: %s", t.want.Digest, p.Size(), t.want.Size, message(err)).Wrap(err)
		}
		s.o.Logger.Debug("transfer interrupted; it goes on where it stopped", "digest", t.want.Digest, "received", p.Size(), "size", t.want.Size, "error", err)
		t.step(p.Size(), true)
		if err := clock.Wait(ctx, time.Duration((0.5+s.o.Rand()/2)*float64(pause))); err != nil {
			return err
		}
	}
	return nil
}

// passing reports whether trying again may help: a cut or silent link does, a parent that says no does not.
func passing(err error) bool {
	var e *registry.Error
	if !errors.As(err, &e) {
		return true
	}
	if errors.Is(err, registry.ErrBudget) {
		return false
	}
	switch e.Code {
	case registry.CodeUnavailable, registry.CodeTooManyRequests, registry.CodeInternal, registry.CodeRangeInvalid:
		return true
	}
	return false
}

// attempt makes one request and takes what it gives.
func (t *transfer) attempt(ctx context.Context, p registry.Partial) error {
	set, _ := t.f.s.snapshot()
	if set.Parent == nil {
		return registry.ErrUnavailable.WithMessage("no parent is configured")
	}
	r, err := set.Parent.GetBlob(ctx, t.repo, t.want.Digest)
	if err != nil {
		t.f.s.contact(err)
		return err
	}
	defer r.Close()
	if off := p.Size(); off > 0 {
		if _, err := r.Seek(off, io.SeekStart); err != nil {
			return err
		}
	}
	buf := make([]byte, readSize)
	for began := p.Size(); ; {
		n, err := r.Read(buf)
		if over := p.Size() + int64(n) - t.want.Size; over > 0 {
			return registry.ErrSizeInvalid.WithMessage("the parent sends more than the %d bytes of %s", t.want.Size, t.want.Digest)
		}
		if n > 0 {
			if _, err := p.Write(buf[:n]); err != nil {
				return err
			}
			t.step(p.Size(), false)
		}
		if errors.Is(err, io.EOF) {
			return t.short(p)
		}
		if err != nil && p.Size() > began {
			t.f.s.contact(nil) // a cut, and not a parent that is away
			return err
		}
		if err != nil {
			t.f.s.contact(err)
			return err
		}
	}
}

// short tells an end of the body that came too early.
func (t *transfer) short(p registry.Partial) error {
	if p.Size() < t.want.Size {
		return fmt.Errorf("the body ended at %d of %d bytes: %w", p.Size(), t.want.Size, io.ErrUnexpectedEOF)
	}
	t.f.s.contact(nil)
	return nil
}

// snapshot lists the transfers under way.
func (f *fetcher) snapshot() []registry.TransferStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []registry.TransferStatus
	for _, t := range f.active {
		t.mu.Lock()
		list = append(list, registry.TransferStatus{
			Repository: t.repo, Digest: t.want.Digest, Size: t.want.Size, Received: t.received, Before: min(t.before, t.received), Waiting: t.waiting,
		})
		t.mu.Unlock()
	}
	return list
}
