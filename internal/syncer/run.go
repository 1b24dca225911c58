package syncer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/schedule"
)

const (
	// pollWait is how long one of our own parents is asked to hold its answer until something changes, when the
	// schedule is continuous. It stays below the minute that proxies commonly allow for an answer.
	pollWait = 50 * time.Second
	// pollGap is the least time between two iterations, for a parent that does not hold its answer.
	pollGap = time.Second
	// lookAgain bounds every pause of the run loop, so that a jump of the wall clock is noticed.
	lookAgain = time.Minute
	// backoffFloor and backoffCap bound the pause after failed iterations, before jitter.
	backoffFloor = time.Second
	backoffCap   = 15 * time.Minute
)

// Run runs iterations until ctx ends: when the schedule says so, when Sync asks for one, again after a failure, and,
// with a continuous schedule under a parent of our own kind, whenever the parent changes.
func (s *Syncer) Run(ctx context.Context) {
	var lastRun, retryAt, until time.Time
	lastDone := s.recall(ctx)
	s.recallIntent(ctx)
	failures, verify := 0, true // the first iteration looks whether all that should be here still is
	_, before := s.snapshot()
	for ctx.Err() == nil {
		set, changed := s.snapshot()
		if changed != before { // maybe in the moment in which an iteration ended
			before, failures, retryAt, verify, lastDone = changed, 0, time.Time{}, true, time.Time{}
		}
		asked, wake := s.triggered()
		now := s.o.Clock.Now()
		due := s.due(set.Schedule, now, lastDone)
		pause := s.pause(set, due.Open, due.Next.Sub(now), retryAt.Sub(now), failures)
		if again, failed := s.nextRetry(now); failed && failures == 0 && (until.IsZero() || now.Add(again).Before(until)) {
			pause = min(pause, again)
		}
		if s.intent.resumed {
			pause = min(pause, max(retryAt.Sub(now), 0))
		}
		pause = max(pause, lastRun.Add(pollGap).Sub(now))
		if !asked {
			pause = max(pause, s.spentFor(now))
		}
		if set.Parent == nil || len(set.Scope) == 0 {
			pause = lookAgain
			triggers := s.takeTriggers()
			s.fulfil(ctx, len(triggers) > 0, false)
			s.answer(triggers, errNothingToSync(set))
			if set.Parent != nil && due.Open && s.greet(ctx, set, changed) {
				lastDone = now
			}
		} else if asked || pause <= 0 {
			triggers := s.takeTriggers()
			lastRun = now
			it := iteration{until: due.Until, asked: len(triggers) > 0 || s.intent.resumed}
			it.verify = verify || it.asked
			it.poll = !it.verify && failures == 0 && set.Schedule.Schedule.Continuous()
			if !due.Open && !it.asked && failures == 0 && (!it.poll || s.kind() != registry.KindConnected) {
				it.retry, it.until = true, until // only what failed by itself
			} else {
				until = due.Until
			}
			err := s.iterate(ctx, set, changed, wake, it)
			if errors.Is(err, errInterrupted) {
				s.putBack(triggers)
				failures, lastDone, verify = 0, time.Time{}, true
				continue
			}
			s.fulfil(ctx, len(triggers) > 0, err == nil || errors.As(err, new(partialError)))
			s.answer(triggers, err)
			switch {
			case it.retry && (err == nil || errors.As(err, new(partialError))):
			case err == nil, errors.As(err, new(partialError)):
				failures, lastDone, verify = 0, now, false
			case errors.Is(err, errWindow):
				lastDone = now
			case errors.Is(err, registry.ErrBudget):
				failures = 0
				if until := now.Add(s.spentFor(now)); !due.Until.IsZero() && until.After(due.Until) {
					lastDone = now // its window is over by then
				}
			default:
				failures++
				retryAt = s.o.Clock.Now().Add(max(s.backoff(failures, set), s.asked(err)))
			}
			continue
		}
		s.setNext(now.Add(pause))
		timer := time.NewTimer(min(pause, lookAgain))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// greet asks the parent of a registry that syncs nothing what it is, once each time the schedule opens: that is when it
// activates, takes the tokens that are relayed, and may tell of itself. It reports whether the parent was reached.
func (s *Syncer) greet(ctx context.Context, set Settings, changed <-chan struct{}) bool {
	ctx, interrupt := context.WithCancelCause(ctx)
	defer interrupt(nil)
	go interruptOn(ctx, interrupt, changed)
	s.mu.Lock()
	s.state.probed = time.Time{}
	s.mu.Unlock()
	_, err := s.probe(ctx, set)
	return err == nil
}

// spentFor is how long no content may be fetched because a byte budget is used up.
func (s *Syncer) spentFor(now time.Time) time.Duration {
	pause := time.Duration(0)
	for _, b := range s.o.Link.Budgets() {
		if b.Left == 0 {
			pause = max(pause, b.Until.Sub(now))
		}
	}
	return pause
}

// errNothingToSync says why an iteration that was asked for cannot be.
func errNothingToSync(set Settings) error {
	if set.Parent == nil {
		return registry.ErrUnavailable.WithMessage("no parent is configured: set parent.gatewayEndpoint")
	}
	return registry.ErrUnsupported.WithMessage("no repositories are configured: set repositories")
}

func (s *Syncer) answer(triggers []chan error, err error) {
	for _, t := range triggers {
		t <- err
	}
}

// pause is how long to wait before the next iteration; 0 or less is now.
func (s *Syncer) pause(set Settings, open bool, next, retry time.Duration, failures int) time.Duration {
	continuous := set.Schedule.Schedule.Continuous()
	switch {
	case failures > 0 && (open || continuous):
		return retry
	case failures > 0:
		return max(retry, next)
	case open:
		return 0
	case continuous && s.kind() == registry.KindConnected:
		return 0 // the parent holds its answer; that is the pause
	}
	return next
}

func (s *Syncer) kind() registry.ParentKind {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.parent.Kind
}

// backoff grows with each failure, with full jitter over its upper half; a continuous schedule tries every minute.
func (s *Syncer) backoff(failures int, set Settings) time.Duration {
	limit := backoffCap
	if set.Schedule.Schedule.Continuous() {
		limit = time.Minute
	}
	d := limit
	if failures < 16 {
		d = min(limit, backoffFloor<<(failures-1))
	}
	return time.Duration((0.5 + s.o.Rand()/2) * float64(d))
}

// asked is how long the parent wants to be left alone: never before that, nor all of its children at once, but no longer
// than the pause after any other failure.
func (s *Syncer) asked(err error) time.Duration {
	after := registry.AsError(err).RetryAfter
	if after >= backoffCap {
		return time.Duration((0.5 + s.o.Rand()/2) * float64(backoffCap))
	}
	return min(after+time.Duration(s.o.Rand()/2*float64(after)), backoffCap)
}

// due is what the schedule says, at a second of the minute that is this registry's own: a fleet with one schedule does
// not come at once.
func (s *Syncer) due(plan schedule.Plan, now, lastDone time.Time) schedule.State {
	sum := sha256.Sum256([]byte(s.o.InstanceID))
	shift := time.Duration(binary.BigEndian.Uint16(sum[:])) * time.Minute >> 16
	if !lastDone.IsZero() {
		lastDone = lastDone.Add(-shift)
	}
	state := plan.At(now.Add(-shift), lastDone)
	state.Next = state.Next.Add(shift)
	if !state.Until.IsZero() {
		state.Until = state.Until.Add(shift)
	}
	return state
}

// errInterrupted ends an iteration whose settings changed, or that only waited for the parent to change.
var errInterrupted = errors.New("interrupted: settings changed or an iteration was asked for")

// errWindow ends an iteration with its window. It is not context.DeadlineExceeded, which a parent that does not answer
// in time is as well: that one is tried again.
var errWindow = errors.New("the window ended; the next one goes on where this stopped")

// window returns errWindow in place of what an iteration stopped with when its time was over.
func window(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errWindow
	}
	return err
}

// partialError is of an iteration that went well but for some tags, which are tried again by themselves.
type partialError struct{ error }

// Unwrap returns what the first of them failed with.
func (e partialError) Unwrap() error { return e.error }

// iteration is one run.
type iteration struct {
	until  time.Time // its window's end; zero for none
	asked  bool      // by the operator
	verify bool      // also look for content that was here and is not any more
	poll   bool      // let the parent hold its answer until something changes
	retry  bool      // only what failed before
}

// iterate runs one iteration and records its result.
func (s *Syncer) iterate(ctx context.Context, set Settings, changed, wake <-chan struct{}, it iteration) error {
	ctx, interrupt := context.WithCancelCause(ctx)
	defer interrupt(nil)
	go interruptOn(ctx, interrupt, changed)
	if !it.until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, it.until.Sub(s.o.Clock.Now()))
		defer cancel()
	}
	kind, err := s.probe(ctx, set)
	if err != nil && ctx.Err() == context.Canceled {
		return errInterrupted
	}
	if err != nil {
		s.begin(it)
		return s.finish(set, registry.Traffic{}, outcome{err: window(ctx, err), whole: true})
	}
	before := set.Parent.Traffic()
	damaged := s.damaged(ctx)
	poll := time.Duration(0)
	if it.poll && kind == registry.KindConnected && len(damaged) == 0 {
		poll = s.pollFor()
	}
	if poll == 0 {
		s.begin(it)
	} else {
		s.setNext(time.Time{}) // when the parent changes
	}
	l, cursor := newListing(), ""
	if !it.retry {
		l, cursor, err = s.discover(ctx, set, kind, it.asked, poll, wake)
	}
	if err == nil {
		err = s.again(ctx, set, &l, it.asked)
	}
	if errors.Is(err, errInterrupted) || ctx.Err() == context.Canceled {
		return errInterrupted
	}
	if errors.Is(err, registry.ErrConflict) {
		err = s.meet(ctx, set, err)
	}
	if err != nil {
		return s.finish(set, before, outcome{err: window(ctx, err), whole: true})
	}
	if err := s.heal(ctx, set, damaged); err != nil {
		return s.finish(set, before, outcome{err: window(ctx, err), whole: true})
	}
	if l.nothing() && !it.verify {
		return s.finish(set, before, outcome{})
	}
	if poll > 0 {
		s.begin(it)
	}
	out := s.apply(ctx, set, kind, l, it)
	if out.err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		return errInterrupted // what is not complete goes on under the new settings
	}
	if cursor != "" && (out.err == nil || !out.whole) {
		if err := s.saveCursor(ctx, set, cursor, l.drops); err != nil {
			out.err, out.whole = err, true
		}
	}
	return s.finish(set, before, out)
}

// pollFor is how long the parent is asked to hold its answer: until a tag that failed is tried again.
func (s *Syncer) pollFor() time.Duration {
	if again, ok := s.nextRetry(s.o.Clock.Now()); ok {
		return max(min(pollWait, again), 0)
	}
	return pollWait
}

// interruptOn interrupts what runs under ctx when sign is given.
func interruptOn(ctx context.Context, interrupt context.CancelCauseFunc, sign <-chan struct{}) {
	select {
	case <-sign:
		interrupt(errInterrupted)
	case <-ctx.Done():
	}
}

// discover asks the parent what it has. While it waits for a change it can be interrupted.
func (s *Syncer) discover(ctx context.Context, set Settings, kind registry.ParentKind, all bool, poll time.Duration, wake <-chan struct{}) (listing, string, error) {
	mark, drops := s.tags.mark(), s.up.dropped()
	if kind != registry.KindConnected {
		l, err := s.discoverTags(ctx, set, kind, all)
		l.mark, l.drops = mark, drops
		return l, "", err
	}
	if poll == 0 {
		l, cursor, err := s.discoverChanges(ctx, set, 0)
		l.mark, l.drops = mark, drops
		return l, cursor, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go interruptOn(ctx, cancel, wake)
	l, cursor, err := s.discoverChanges(ctx, set, poll)
	l.mark, l.drops = mark, drops
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		return l, "", errInterrupted
	}
	return l, cursor, err
}
