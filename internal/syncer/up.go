package syncer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// confirmAfter is when a parent that may answer before its disk has what it answers for is asked once more. It is
	// longer than the systems that such registries run on keep written pages in memory (30 s, and 5 s of a journal).
	confirmAfter = time.Minute
	// reload bounds how often the queue is read again while entries of it are on their way.
	reload = time.Second
	// expireEvery is how often it is looked for what is too old; messageTtl is a day at least.
	expireEvery = time.Hour
	// rowFloor is the pause after the first failure of an entry, before jitter; it doubles up to backoffCap.
	rowFloor = 5 * time.Second
	// grantTries is how often in a row a token that was just made has to lack the right before that counts as a no: a
	// token server with several replicas, or one that was just told of a scope map, may be behind.
	grantTries = 3
)

// Pusher is a parent that takes changes.
type Pusher interface {
	PushBlob(ctx context.Context, b registry.BlobPush) error
	PutManifest(ctx context.Context, repo string, ref registry.Reference, m registry.Manifest) (registry.Descriptor, error)
	DeleteManifest(ctx context.Context, repo string, d registry.Digest) error
	DeleteTag(ctx context.Context, repo, tag string) error
	// Refer makes sure that a manifest that is there is listed among what refers to its subject.
	Refer(ctx context.Context, repo string, m registry.Manifest) error
}

// climber carries the outbox to the parent.
type climber struct {
	s      *Syncer
	outbox registry.Outbox
	blobs  locks // one push of a blob at a time, however many images it is in

	mu       sync.Mutex
	flights  map[uint64]*flight
	kick     chan struct{} // closed when somebody wants a pass now
	failures int           // passes in a row that the parent ended
	retryAt  time.Time
	err      error                // why the last pass ended early; nil when it did not
	since    map[string]time.Time // when each kind of trouble was seen first, by its code
	until    time.Time
	lastOpen time.Time                  // when the window was opened last
	asked    bool                       // somebody wants what waits to be sent outside a window too
	expired  time.Time                  // when it was looked for what is too old; of Climb alone
	lacking  map[uint64]int             // entries, and how often in a row a fresh token did not carry the right
	had      map[registry.Digest]string // where the parent has a blob, as far as seen
	sessions sessions
	own      owns
	parent   string // that entries were sent to by this process; of Climb alone
	told     []registry.OutboxConflict

	cursor sync.Mutex // held while the document is written
	drops  uint64     // times that it was forgotten
}

// flight is an entry on its way.
type flight struct {
	entry  registry.OutboxEntry
	cancel context.CancelFunc
	blob   registry.Descriptor
	moved  int64
}

func newClimber(s *Syncer) *climber {
	c := &climber{
		s: s, outbox: s.o.Outbox, flights: map[uint64]*flight{}, lacking: map[uint64]int{}, since: map[string]time.Time{}, kick: make(chan struct{}),
		had: map[registry.Digest]string{}, blobs: locks{held: map[registry.Digest]chan struct{}{}},
	}
	return c
}

// Climb carries what was pushed here to the parent until ctx ends: at once with a continuous schedule, in its windows
// with another one, and when Sync asks. It keeps no pull and no iteration of Run waiting. Without Options.Outbox it
// returns at once.
func (s *Syncer) Climb(ctx context.Context) {
	c := s.up
	if c.outbox == nil {
		return
	}
	c.load(ctx)
	for ctx.Err() == nil {
		kicked := c.kicks()
		changed := c.outbox.OutboxChanged()
		set, resettled := s.snapshot()
		pause := c.pass(ctx, set, kicked, resettled)
		timer := time.NewTimer(min(max(pause, 0), lookAgain))
		select {
		case <-ctx.Done():
		case <-resettled:
			c.forgive(false)
		case <-kicked:
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// kicks returns a channel that is closed when somebody wants a pass now.
func (c *climber) kicks() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kick
}

// nudge makes the climber look at the queue now, also where a parent that was away had it wait.
func (c *climber) nudge() {
	c.forgive(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.kick)
	c.kick = make(chan struct{})
}

// forgive lets the next pass begin without the pause after a failure, and when somebody asked for it outside a window too.
func (c *climber) forgive(asked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures, c.retryAt, c.until, c.asked = 0, time.Time{}, time.Time{}, c.asked || asked
}

// pass sends what is due and returns how long there is nothing to do.
func (c *climber) pass(ctx context.Context, set Settings, kicked, resettled <-chan struct{}) time.Duration {
	now := c.s.o.Clock.Now()
	c.expire(ctx, set, now)
	status, err := c.outbox.OutboxStatus(ctx)
	if err == nil && set.ParentName != "" && c.parent != set.ParentName {
		err = c.meets(ctx, set.ParentName)
	}
	p, ok := set.Parent.(Pusher)
	if err != nil || !ok || status.Pending == 0 {
		return lookAgain
	}
	c.mu.Lock()
	pause := max(c.retryAt.Sub(now), c.s.spentFor(now))
	c.mu.Unlock()
	until, open, next := c.window(ctx, set, now)
	if !open || pause > 0 {
		return max(pause, next)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go interruptOn(ctx, cancel, resettled)
	if !until.IsZero() {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, until.Sub(now))
		defer stop()
	}
	q := c.newQueue(ctx)
	kind, err := c.s.probe(ctx, set)
	if err == nil {
		err = c.read(ctx, q)
	}
	if err == nil && q.due(now) {
		err = c.send(ctx, set, p, kind, q, kicked)
	}
	if ctx.Err() != nil {
		return 0
	}
	return c.ended(set, err, q)
}

// expire marks what has waited for longer than messageTtl, now and then.
func (c *climber) expire(ctx context.Context, set Settings, now time.Time) {
	if age := now.Sub(c.expired); set.MessageTTL <= 0 || (age >= 0 && age < expireEvery) {
		return
	}
	n, err := c.outbox.OutboxExpire(ctx, now.Add(-set.MessageTTL))
	if err != nil {
		c.s.o.Logger.Error("the outbox cannot be read", "error", err)
		return
	}
	c.expired = now
	if n > 0 {
		c.s.o.Logger.Warn("changes were not delivered within messageTtl; they are kept, and sent again with: outbox retry --expired",
			"entries", n, "messageTtl", set.MessageTTL)
	}
}

// window says whether entries may be sent now, until when (zero: no end), and how long it is until they may. A window that
// was missed is made up for where something waited for it already.
func (c *climber) window(ctx context.Context, set Settings, now time.Time) (until time.Time, open bool, next time.Duration) {
	plan := set.Schedule
	if plan.Schedule.Continuous() {
		return time.Time{}, true, 0
	}
	missed := plan.Window > 0 && !plan.Schedule.Latest(now).Add(plan.Window).After(now)
	since := time.Time{}
	if missed {
		since = c.oldest(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Before(c.until) && !now.Before(c.lastOpen) {
		return c.until, true, 0
	}
	due := plan.At(now, c.lastOpen)
	switch {
	case c.asked:
		due = plan.At(now, time.Time{})
	case !due.Open, missed && !plan.At(now, since).Open:
		return time.Time{}, false, due.Next.Sub(now)
	}
	c.lastOpen, c.until, c.asked = now, due.Until, false
	return due.Until, true, 0
}

// oldest is since when the first entry that is under way waits; zero when that cannot be read.
func (c *climber) oldest(ctx context.Context) time.Time {
	for after := uint64(0); ; {
		list, err := c.outbox.OutboxEntries(ctx, after, 100)
		if i := slices.IndexFunc(list, isUnderWay); i >= 0 {
			return list[i].Time
		}
		if err != nil || len(list) < 100 {
			return time.Time{}
		}
		after = list[len(list)-1].Seq
	}
}

// ended keeps the result of a pass and returns the pause after it.
func (c *climber) ended(set Settings, err error, q *queue) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.err
	c.err = err
	now := c.s.o.Clock.Now()
	if err == nil {
		c.failures, c.retryAt = 0, time.Time{}
		return q.pause(now)
	}
	pause := c.s.spentFor(now)
	if !errors.Is(err, registry.ErrBudget) {
		c.failures++
		pause = c.s.backoff(c.failures, set)
	}
	c.retryAt = now.Add(pause)
	if before == nil {
		c.s.o.Logger.Warn("what was pushed here waits for the parent", "parent", set.ParentName, "error", err)
	}
	return pause
}

// result is how the delivery of an entry ended.
type result struct {
	entry registry.OutboxEntry
	gone  bool // it is not in the queue any more
	err   error
	away  bool // the parent, and not the entry, is the reason
}

// send delivers what is due, in parallel as far as the order lets it, until nothing is or the parent is away.
func (c *climber) send(ctx context.Context, set Settings, p Pusher, kind registry.ParentKind, q *queue, kicked <-chan struct{}) error {
	results := make(chan result)
	var away error
	running := 0
	start := func(e registry.OutboxEntry) {
		running++
		f := c.depart(ctx, e)
		go func() {
			defer f.cancel()
			results <- c.deliver(f.ctx, set, p, kind, f.flight)
		}()
	}
	stopped := func() bool { return away != nil || ctx.Err() != nil }
	tick := time.NewTicker(reload)
	defer tick.Stop()
	changed, stale := c.outbox.OutboxChanged(), false
	done := ctx.Done()
	for {
		for running < set.Parallel && !stopped() {
			e, ok := q.next(c.s.o.Clock.Now())
			if !ok {
				break
			}
			if c.still(ctx, e) {
				start(e)
			} else {
				q.finished(e, true)
			}
		}
		if running == 0 {
			if !stale || stopped() {
				return errors.Join(away, ctx.Err())
			}
			changed, stale = c.refresh(ctx, q), false
			continue
		}
		select {
		case r := <-results:
			running--
			c.arrive(r.entry.Seq)
			q.finished(r.entry, r.gone)
			if r.away && away == nil {
				away = r.err
			}
		case <-changed:
			changed, stale = nil, true
		case <-kicked:
			kicked, stale = nil, true
		case <-tick.C:
			if stale && !stopped() {
				changed, stale = c.refresh(ctx, q), false
			}
		case <-done:
			done = nil // what is on its way ends with ctx
		}
	}
}

// refresh reads the queue again, while entries of it are on their way, and returns what tells of the next change.
func (c *climber) refresh(ctx context.Context, q *queue) <-chan struct{} {
	changed := c.outbox.OutboxChanged()
	fresh := c.newQueue(ctx)
	if c.read(ctx, fresh) == nil {
		q.replace(fresh)
	}
	return changed
}

// departing is a flight with its context.
type departing struct {
	*flight
	ctx context.Context
}

func (c *climber) depart(ctx context.Context, e registry.OutboxEntry) departing {
	ctx, cancel := context.WithCancel(ctx)
	f := &flight{entry: e, cancel: cancel}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flights[e.Seq] = f
	return departing{f, ctx}
}

func (c *climber) arrive(seq uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.flights, seq)
}

// still reports whether an entry is in the queue as it was read: it may have been superseded or dropped since.
func (c *climber) still(ctx context.Context, e registry.OutboxEntry) bool {
	now, ok := c.entry(ctx, e.Seq)
	return ok && now.State == e.State && now.Digest == e.Digest && now.Tag == e.Tag
}

// entry reads one entry.
func (c *climber) entry(ctx context.Context, seq uint64) (registry.OutboxEntry, bool) {
	list, err := c.outbox.OutboxEntries(ctx, max(seq, 1)-1, 1)
	if err != nil || len(list) == 0 || list[0].Seq != seq {
		return registry.OutboxEntry{}, false
	}
	return list[0], true
}

func (c *climber) newQueue(ctx context.Context) *queue {
	return newQueue(func(e registry.OutboxEntry) []registry.Digest { return c.uses(ctx, e) })
}

// read adds what may climb, in order.
func (c *climber) read(ctx context.Context, q *queue) error {
	err := c.each(ctx, func(e registry.OutboxEntry) {
		if isUnderWay(e) {
			q.add(e)
		}
	})
	if err != nil {
		return local(err)
	}
	return nil
}

// isUnderWay reports whether an entry is tried.
func isUnderWay(e registry.OutboxEntry) bool {
	return e.State == registry.OutboxWaiting || e.State == registry.OutboxDelivered
}

// changes returns a channel that is closed when entries come; nil without an outbox.
func (c *climber) changes() <-chan struct{} {
	if c.outbox == nil {
		return nil
	}
	return c.outbox.OutboxChanged()
}

// each calls f for all entries, in order.
func (c *climber) each(ctx context.Context, f func(registry.OutboxEntry)) error {
	for after := uint64(0); ; {
		list, err := c.outbox.OutboxEntries(ctx, after, registry.MaxPage)
		if err != nil {
			return err
		}
		for _, e := range list {
			f(e)
		}
		if len(list) < registry.MaxPage {
			return nil
		}
		after = list[len(list)-1].Seq
	}
}

// uses lists what the manifest of an entry refers to that has to be at the parent before it, or goes after it.
func (c *climber) uses(ctx context.Context, e registry.OutboxEntry) []registry.Digest {
	if e.Action != registry.OutboxPush {
		return nil
	}
	m, err := c.s.store.GetManifest(ctx, e.Repository, registry.DigestReference(e.Digest))
	if err != nil {
		return nil
	}
	refs, err := registry.ParseManifest(m.MediaType, m.Bytes)
	if err != nil {
		return nil
	}
	var list []registry.Digest
	for _, child := range refs.Manifests {
		list = append(list, child.Digest)
	}
	if refs.Subject != nil {
		list = append(list, refs.Subject.Digest)
	}
	return list
}
