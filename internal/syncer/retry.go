package syncer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// retryFirst and retryLast bound the pause before a tag that failed is tried again by itself, before jitter.
	retryFirst = 30 * time.Second
	retryLast  = 15 * time.Minute
	// maxFailed bounds the failed tags that are remembered beside the cursor; with more, the parent is asked for all
	// changes again.
	maxFailed = 1000
)

// retry is one tag, or one referrer, that failed while the parent answers other questions.
type retry struct {
	change   registry.Change
	attempts int
	next     time.Time
	err      error
}

func retryKey(c registry.Change) string {
	if c.Subject != "" {
		return c.Repository + "@" + c.Digest.String()
	}
	return c.Repository + ":" + c.Tag
}

// noteWant notes for each tag of an image whether it failed.
func (s *Syncer) noteWant(w want) {
	for _, tag := range w.tags {
		s.note(registry.Change{Repository: w.repo, Tag: tag, Digest: w.digest}, w.err)
	}
}

// note remembers that a tag or referrer failed, to try it again by itself, or forgets it.
func (s *Syncer) note(c registry.Change, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := retryKey(c)
	if err == nil {
		delete(s.retries, key)
		return
	}
	r := s.retries[key]
	if r.change.Digest != c.Digest {
		r.attempts = 0
	}
	r.change, r.err = c, err
	pause := min(retryFirst<<min(r.attempts, 10), retryLast)
	pause = max(time.Duration((0.5+s.o.Rand()/2)*float64(pause)), registry.AsError(err).RetryAfter)
	r.attempts++
	r.next = s.o.Clock.Now().Add(pause)
	s.retries[key] = r
}

// resting reports whether an image failed a moment ago and is tried again later.
func (s *Syncer) resting(w want) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Clock.Now()
	for _, tag := range w.tags {
		r, ok := s.retries[w.repo+":"+tag]
		if !ok || r.change.Digest != w.digest || !r.next.After(now) {
			return false
		}
	}
	return true
}

// nextRetry is how long it is until a failed tag is tried again; ok is whether there is one.
func (s *Syncer) nextRetry(now time.Time) (pause time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.retries {
		if p := r.next.Sub(now); !ok || p < pause {
			pause, ok = p, true
		}
	}
	return pause, ok
}

// failedTags is why an iteration that went well leaves something behind; nil when it does not.
func (s *Syncer) failedTags() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.retries) == 0 {
		return nil
	}
	var first retry
	for _, r := range s.retries {
		if first.err == nil || retryKey(r.change) < retryKey(first.change) {
			first = r
		}
	}
	return registry.AsError(first.err).WithMessage("%d tags or referrers failed, the first is %s: %s", len(s.retries), retryKey(first.change), message(first.err))
}

// settled forgets the tags of a listing that failed before and of which nothing is to be brought any more: another
// digest took the place of the one that failed, it is here, or what was pushed here stands before it.
func (s *Syncer) settled(listed map[string]map[string]registry.Digest, p plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.retries) == 0 {
		return
	}
	wanted := map[string]bool{}
	for _, w := range p.fetch {
		for _, tag := range w.tags {
			wanted[w.repo+":"+tag] = true
		}
	}
	for key, r := range s.retries {
		if listed[r.change.Repository][r.change.Tag] != "" && !wanted[key] { // empty: it is there, wherever it stands
			delete(s.retries, key)
		}
	}
}

// again adds to a listing what failed before and is due, or all of it, and forgets what the listing says is gone or
// out of scope. Where a tag stands is asked anew: what it was when it failed may be of before a push of ours.
func (s *Syncer) again(ctx context.Context, set Settings, l *listing, all bool) error {
	s.mu.Lock()
	now := s.o.Clock.Now()
	var due []registry.Change
	for key, r := range s.retries {
		c := r.change
		_, listed := l.tags[c.Repository][c.Tag]
		gone := (l.complete[c.Repository] || l.all) && !listed || slices.Contains(l.gone[c.Repository], c.Tag)
		switch {
		case c.Subject != "" && set.Scope.MatchRepository(c.Repository):
			if all || !r.next.After(now) {
				due = append(due, c)
			}
		case c.Subject != "", gone, !set.Scope.MatchTag(c.Repository, c.Tag):
			delete(s.retries, key)
		case !listed && (all || !r.next.After(now)):
			due = append(due, c)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(due, func(a, b registry.Change) int { return cmp.Compare(retryKey(a), retryKey(b)) })
	for _, c := range due {
		if c.Subject != "" {
			l.referrers = append(l.referrers, c)
			continue
		}
		d, err := set.Parent.ResolveManifest(ctx, c.Repository, registry.TagReference(c.Tag))
		if err != nil && !errors.Is(err, registry.ErrManifestUnknown) {
			if !s.alone(ctx, set, err) {
				return err
			}
			s.note(c, err)
			continue
		}
		if err != nil {
			s.note(c, nil)
			l.gone[c.Repository] = append(l.gone[c.Repository], c.Tag)
			continue
		}
		l.add(c.Repository, c.Tag, d.Digest)
	}
	return nil
}

// failures lists what failed, for the cursor's document.
func (s *Syncer) failures() []registry.Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]registry.Change, 0, len(s.retries))
	for _, r := range s.retries {
		list = append(list, r.change)
	}
	slices.SortFunc(list, func(a, b registry.Change) int { return cmp.Compare(retryKey(a), retryKey(b)) })
	return list
}

// remember takes over what failed before a restart: it is tried again at once.
func (s *Syncer) remember(list []registry.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range list {
		key := retryKey(c)
		if _, ok := s.retries[key]; !ok {
			s.retries[key] = retry{change: c, err: fmt.Errorf("it failed before the restart")}
		}
	}
}
