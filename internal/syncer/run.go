package syncer

import (
	"cmp"
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/connected-registry/connected-registry/internal/registry"
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
	var lastDone, lastRun, retryAt time.Time
	failures := 0
	verify := true // the first iteration looks whether all that should be here still is
	for ctx.Err() == nil {
		set, changed := s.snapshot()
		asked, wake := s.triggered()
		now := s.o.Clock.Now()
		due := set.Schedule.At(now, lastDone)
		pause := max(s.pause(set, due.Open, due.Next.Sub(now), retryAt.Sub(now), failures), lastRun.Add(pollGap).Sub(now))
		if !asked {
			pause = max(pause, s.spentFor(now))
		}
		if set.Parent == nil || len(set.Scope) == 0 {
			pause = lookAgain
			s.answer(s.takeTriggers(), errNothingToSync(set))
		} else if asked || pause <= 0 {
			triggers := s.takeTriggers()
			lastRun = now
			err := s.iterate(ctx, set, changed, wake, iteration{
				until: due.Until, verify: verify || len(triggers) > 0, poll: len(triggers) == 0 && !verify && failures == 0 && set.Schedule.Schedule.Continuous(),
			})
			if errors.Is(err, errInterrupted) {
				s.putBack(triggers)
				failures, lastDone, verify = 0, time.Time{}, true
				continue
			}
			s.answer(triggers, err)
			switch {
			case err == nil:
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
				retryAt = s.o.Clock.Now().Add(s.backoff(failures, set))
			}
			continue
		}
		s.setNext(now.Add(pause))
		timer := time.NewTimer(min(pause, lookAgain))
		select {
		case <-ctx.Done():
		case <-changed:
			failures, retryAt, verify = 0, time.Time{}, true
			lastDone = time.Time{}
		case <-wake:
		case <-timer.C:
		}
		timer.Stop()
	}
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

// iteration is one run.
type iteration struct {
	until  time.Time // its window's end; zero for none
	verify bool      // also look for content that was here and is not any more
	poll   bool      // let the parent hold its answer until something changes
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
	if err != nil {
		return s.finish(set, registry.Traffic{}, outcome{err: window(ctx, err)})
	}
	before := set.Parent.Traffic()
	damaged := s.damaged(ctx)
	poll := time.Duration(0)
	if it.poll && kind == registry.KindConnected && len(damaged) == 0 {
		poll = pollWait
	}
	if poll == 0 {
		s.begin()
	} else {
		s.setNext(time.Time{}) // when the parent changes
	}
	l, cursor, err := s.discover(ctx, set, kind, poll, wake)
	if errors.Is(err, errInterrupted) || ctx.Err() == context.Canceled {
		return errInterrupted
	}
	if errors.Is(err, registry.ErrConflict) {
		err = s.meet(ctx, set, err)
	}
	if err != nil {
		return s.finish(set, before, outcome{err: window(ctx, err)})
	}
	if err := s.heal(ctx, set, damaged); err != nil {
		return s.finish(set, before, outcome{err: window(ctx, err)})
	}
	if l.nothing() && !it.verify {
		return s.finish(set, before, outcome{})
	}
	if poll > 0 {
		s.begin()
	}
	out := s.apply(ctx, set, kind, l, it.verify)
	if out.err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		return errInterrupted // what is not complete goes on under the new settings
	}
	if out.err == nil && cursor != "" {
		out.err = s.saveCursor(ctx, set, cursor)
	}
	return s.finish(set, before, out)
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
func (s *Syncer) discover(ctx context.Context, set Settings, kind registry.ParentKind, poll time.Duration, wake <-chan struct{}) (listing, string, error) {
	if kind != registry.KindConnected {
		l, err := s.discoverTags(ctx, set)
		return l, "", err
	}
	if poll == 0 {
		return s.discoverChanges(ctx, set, 0)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go interruptOn(ctx, cancel, wake)
	l, cursor, err := s.discoverChanges(ctx, set, poll)
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		return l, "", errInterrupted
	}
	return l, cursor, err
}

// outcome is what an iteration did.
type outcome struct {
	moved, removed int
	err            error
}

// apply carries a listing out: images in parallel, each visible as soon as it is complete; one that fails does not
// keep the others, unless the parent is away or the disk is full.
func (s *Syncer) apply(ctx context.Context, set Settings, kind registry.ParentKind, l listing, verify bool) outcome {
	local, err := s.local(ctx)
	if err != nil {
		return outcome{err: err}
	}
	p := makePlan(set, l, local)
	if verify {
		p.fetch = append(p.fetch, s.incomplete(ctx, set, l, local, p)...)
	}
	s.recordRepositories(l, p, local)
	var out outcome
	failed := make([]error, len(p.fetch))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(set.Parallel)
	for i, w := range p.fetch {
		group.Go(func() error {
			failed[i] = s.bring(gctx, image{
				repo: w.repo, tags: w.tags, platforms: platformsOf(set.Scope, w), referrers: s.referrers(set, kind, l),
				root: registry.Manifest{Descriptor: registry.Descriptor{Digest: w.digest}},
			})
			s.recordTags(w, failed[i])
			if failed[i] != nil && !s.alone(gctx, set, failed[i]) {
				return failed[i]
			}
			return nil
		})
	}
	stopped := group.Wait()
	for i, err := range failed {
		if err == nil {
			out.moved += len(p.fetch[i].tags)
		} else if out.err == nil {
			out.err = err
		}
	}
	if stopped != nil {
		out.err = stopped
	}
	if out.err == nil {
		out.err = l.failed
	}
	if stopped == nil {
		out.err = cmp.Or(out.err, s.lateReferrers(ctx, set, l))
	}
	if ctx.Err() != nil {
		out.err = window(ctx, ctx.Err())
	}
	for repo, tags := range p.untag {
		n, err := s.store.Untag(ctx, repo, tags)
		out.removed += n
		out.err = errors.Join(out.err, err)
	}
	return out
}

// platformsOf returns the platforms wanted by any of the tags; nil is all.
func platformsOf(scope registry.Scope, w want) []string {
	var all []string
	for _, tag := range w.tags {
		p := scope.Platforms(w.repo, tag)
		if p == nil {
			return nil
		}
		all = append(all, p...)
	}
	return all
}

// alone reports whether an error is of the one thing that was asked for, so that going on makes sense. A parent that
// does not answer one question may be away, or be unable to read one file of its disk: it is asked who it is.
func (s *Syncer) alone(ctx context.Context, set Settings, err error) bool {
	switch {
	case ctx.Err() != nil, errors.Is(err, registry.ErrDisk), errors.Is(err, registry.ErrBudget):
		return false
	case errors.Is(err, registry.ErrUnavailable), errors.Is(err, registry.ErrUnauthorized):
		_, _, err = set.Parent.Probe(ctx)
		s.contact(err)
		return err == nil
	}
	return true
}

// local lists the tags of every repository here.
func (s *Syncer) local(ctx context.Context) (map[string][]registry.LocalTag, error) {
	repos, err := allPages(func(after string) ([]string, error) {
		return s.store.Repositories(ctx, after, registry.MaxPage)
	})
	local := make(map[string][]registry.LocalTag, len(repos))
	for _, repo := range repos {
		tags, terr := s.store.TagStates(ctx, repo)
		if terr != nil {
			return nil, terr
		}
		local[repo] = tags
	}
	return local, err
}

// incomplete lists images that stand here as they do at the parent but lack content: it was lost, or the scope takes
// more platforms than before.
func (s *Syncer) incomplete(ctx context.Context, set Settings, l listing, local map[string][]registry.LocalTag, p plan) []want {
	planned := map[string]bool{}
	for _, w := range p.fetch {
		for _, t := range w.tags {
			planned[w.repo+":"+t] = true
		}
	}
	var list []want
	for repo, tags := range local {
		for _, t := range tags {
			if t.Pushed || planned[repo+":"+t.Tag] || !set.Scope.MatchTag(repo, t.Tag) {
				continue
			}
			w := want{repo: repo, digest: t.Digest, tags: []string{t.Tag}}
			missing, err := s.store.Missing(ctx, repo, t.Digest, wantPlatforms(platformsOf(set.Scope, w)))
			if err == nil && len(missing) == 0 {
				continue
			}
			if l.complete[repo] && l.tags[repo][t.Tag] != t.Digest {
				continue // it went at the parent
			}
			s.o.Logger.Info("an image is not complete here; it is fetched again", "repository", repo, "tag", t.Tag, "missing", len(missing))
			list = append(list, w)
		}
	}
	return list
}

// referrers returns how to find what refers to a manifest: in the list of changes when the parent gave one, by asking
// otherwise.
func (s *Syncer) referrers(set Settings, kind registry.ParentKind, l listing) referrersOf {
	if kind != registry.KindConnected || !l.all {
		return func(ctx context.Context, repo string, subject registry.Digest) ([]registry.Descriptor, error) {
			list, err := set.Parent.Referrers(ctx, repo, subject, "")
			s.contact(err)
			return list, err
		}
	}
	known := map[string][]registry.Descriptor{}
	for _, c := range l.referrers {
		key := c.Repository + "@" + c.Subject.String()
		known[key] = append(known[key], registry.Descriptor{Digest: c.Digest})
	}
	return func(_ context.Context, repo string, subject registry.Digest) ([]registry.Descriptor, error) {
		return known[repo+"@"+subject.String()], nil
	}
}

// lateReferrers brings referrers that came to the parent after what they refer to was brought here. One that fails does
// not keep the others; its error is returned.
func (s *Syncer) lateReferrers(ctx context.Context, set Settings, l listing) error {
	var failed error
	for _, c := range l.referrers {
		if !set.Scope.MatchRepository(c.Repository) {
			continue
		}
		if _, err := s.store.ResolveManifest(ctx, c.Repository, registry.DigestReference(c.Digest)); err == nil {
			continue
		}
		if _, err := s.store.ResolveManifest(ctx, c.Repository, registry.DigestReference(c.Subject)); err != nil {
			continue // its subject is not in scope
		}
		img := image{repo: c.Repository, root: registry.Manifest{Descriptor: registry.Descriptor{Digest: c.Digest}}}
		err := s.bring(ctx, img)
		if err == nil || errors.Is(err, registry.ErrManifestUnknown) {
			continue
		}
		if !s.alone(ctx, set, err) {
			return err
		}
		failed = cmp.Or(failed, err)
	}
	return failed
}
