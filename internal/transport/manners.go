package transport

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// breath is how long a transfer that nobody waits for stands still when a client has come, and how long it waits at most
	// for another's turn. One small piece goes between two breaths: clients that never stop slow a transfer down to 32 MiB/s,
	// and do not stop it.
	breath     = 2 * time.Millisecond
	smallPiece = 64 << 10
	// stint is how many bytes one works on before the next, where several have some.
	stint = maxPiece
	// poll is how long the only processor is left after each piece, so that the runtime looks for clients.
	poll = 100 * time.Microsecond
	// busyFor is how long after the last piece LinkOptions.Busy is told that none moves: what was read is synced.
	busyFor = 2 * time.Second
)

// manners keep transfers that nobody waits for out of the way of the clients of this registry. Where the parent is as fast
// as the disk there are two things in a client's way:
//
//   - The runtime looks for what came over the network when a processor has nothing to do, and else every 10 ms. So one
//     processor is left to those who serve: of the others, each has one transfer that hashes and writes. But it is the
//     thread that looks that goes on with what came, and a thread that hashes, or waits for the disk, looks no more while
//     the processor that is left sleeps. So each piece begins with a goroutine that does nothing: the runtime wakes a thread
//     for it, which has nothing to do then, and looks.
//   - The system lets a thread that wakes wait for milliseconds where others are busy: until the tick of its clock, 4 ms
//     apart where it has 250 Hz. So transfers stand still for a moment whenever a client asks, and offer their processor
//     around at each piece: without that, who comes while they hash waits for the tick, this registry and all else on the
//     machine.
type manners struct {
	asked atomic.Int64 // how often a client began to ask, or had its answer

	offer func() // the processor, to who waits for it
	look  func() // has the runtime look for clients beside

	max   int // transfers at work
	alone bool
	mu    sync.Mutex
	turns int64         // that there were
	busy  []*worker     // who has one, the one that has had it longest first
	freed chan struct{} // closed when one was given back

	tell  func(busy bool)
	moves *time.Timer // not nil while pieces move
}

func newManners(processors int, tell func(bool)) *manners {
	if tell == nil {
		tell = func(bool) {}
	}
	return &manners{offer: schedYield, look: func() { go func() {}() }, max: max(1, processors-1), alone: processors == 1, freed: make(chan struct{}), tell: tell}
}

// touch notes that a piece moves.
func (m *manners) touch() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.moves != nil && m.moves.Reset(busyFor) {
		return
	}
	if m.moves == nil {
		m.tell(true)
	}
	var timer *time.Timer
	timer = time.AfterFunc(busyFor, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.moves == timer {
			m.moves = nil
			m.tell(false)
		}
	})
	m.moves = timer
}

// Ahead returns h with its requests ahead of transfers that nobody waits for. A request counts when it begins and when it
// ends: one that stands for hours, as a long poll does, holds nothing up meanwhile.
func (l *Link) Ahead(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.manners.asked.Add(1)
		defer l.manners.asked.Add(1)
		h.ServeHTTP(w, r)
	})
}

// worker is one transfer, as far as it uses the processor: between two pieces that it reads it hashes and writes. It is
// used by one goroutine.
type worker struct {
	m    *manners
	seen int64 // of asked
	run  int   // bytes of this turn
	most int   // bytes of the next piece

	turn    int64 // which one it had last; under m.mu, as the next
	reading bool  // it may wait for the link, so its turn is anybody's
}

func (m *manners) worker() *worker { return &worker{m: m, seen: m.asked.Load()} }

// rest is before a piece is read: the turn is over or at least up for grabs, and if a client came since the last breath it
// is time for one.
func (w *worker) rest(ctx context.Context, c Class) error {
	if c < Waiting {
		w.m.offer()
	}
	now := w.m.asked.Load()
	d := time.Duration(0)
	w.most = maxPiece
	switch {
	case c >= Waiting:
	case now != w.seen:
		d, w.most = breath, smallPiece
	case w.m.alone && w.run > 0:
		d = poll
	}
	w.seen = now
	if d == 0 && w.run < stint {
		w.m.mu.Lock()
		w.reading = true
		w.m.mu.Unlock()
		return nil
	}
	w.leave()
	if d == 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// work is after n bytes were read: it waits for a turn. Who has had one all that time waits for the disk, and loses it.
func (w *worker) work(ctx context.Context, c Class, n int) {
	w.m.touch()
	if c >= Waiting {
		return
	}
	w.m.offer()
	w.m.look()
	w.run += n
	came, freed := w.take(0)
	if freed == nil {
		return
	}
	timer := time.NewTimer(breath)
	defer timer.Stop()
	for before := int64(0); freed != nil; {
		select {
		case <-freed:
			_, freed = w.take(before)
		case <-timer.C:
			before = came
			came, freed = w.take(before)
			timer.Reset(breath)
		case <-ctx.Done():
			return
		}
	}
}

// take takes a turn that is free, or up for grabs, or among the first so many that there ever were. Otherwise it returns
// how many there were until now, and what is closed when one becomes free.
func (w *worker) take(before int64) (turns int64, freed <-chan struct{}) {
	m := w.m
	m.mu.Lock()
	defer m.mu.Unlock()
	w.reading = false
	if slices.Contains(m.busy, w) {
		return 0, nil
	}
	if len(m.busy) == m.max {
		from := slices.IndexFunc(m.busy, func(other *worker) bool { return other.reading || other.turn <= before })
		if from < 0 {
			return m.turns, m.freed
		}
		m.busy = slices.Delete(m.busy, from, from+1)
	}
	m.turns++
	w.turn = m.turns
	m.busy = append(m.busy, w)
	return 0, nil
}

// leave gives the turn back.
func (w *worker) leave() {
	w.run = 0
	m := w.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if at := slices.Index(m.busy, w); at >= 0 {
		m.busy = slices.Delete(m.busy, at, at+1)
		close(m.freed)
		m.freed = make(chan struct{})
	}
}
