package syncer

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// maxAsked bounds the subjects of which one iteration asks for referrers that came late.
	maxAsked = 1000
	// askAgainFirst and askAgainLast bound how long it is until a subject is asked of again. Between them it is as long as
	// the subject was here when it was asked of last: signatures come soon after an image or much later. The last is less
	// than a day, so that a schedule of every night asks each time.
	askAgainFirst = 10 * time.Minute
	askAgainLast  = 23 * time.Hour
)

// subject is a manifest that signatures and the like may refer to.
type subject struct {
	repo   string
	digest registry.Digest
}

// followed is when the referrers of a subject were asked for last, and since when it is here; zero is not known.
type followed struct{ since, asked time.Time }

// due reports whether it is time to ask again. A clock that was set back makes it so.
func (f followed) due(now time.Time) bool {
	if f.asked.IsZero() || now.Before(f.asked) {
		return true
	}
	return now.Sub(f.asked) >= min(max(f.asked.Sub(f.since), askAgainFirst), askAgainLast)
}

// follow notes that the referrers of a subject were asked for just now.
func (s *Syncer) follow(sub subject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Clock.Now()
	f, known := s.subjects[sub]
	if !known {
		f.since = now
	}
	f.asked = now
	s.subjects[sub] = f
}

// dueSubjects lists what stands under a tag here as it does at the parent and is due to be asked of, the longest waiting
// first, and forgets what is not here any more. What was brought by a process before this one is due at once,
// and then once a day.
func (s *Syncer) dueSubjects(set Settings, l listing, local map[string][]registry.LocalTag) []subject {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Clock.Now()
	before := s.subjects
	s.subjects = make(map[subject]followed, len(before))
	var list []subject
	for repo, tags := range local {
		for _, t := range tags {
			sub := subject{repo, t.Digest}
			if _, seen := s.subjects[sub]; seen || t.Pushed || !set.Scope.MatchTag(repo, t.Tag) {
				continue
			}
			at, there := l.tags[repo][t.Tag]
			if there && at != "" && at != t.Digest {
				continue // it moves
			}
			f, known := before[sub]
			if known {
				s.subjects[sub] = f
			}
			if there && f.due(now) {
				s.subjects[sub] = f
				list = append(list, sub)
			}
		}
	}
	slices.SortFunc(list, func(a, b subject) int {
		return cmp.Or(s.subjects[a].asked.Compare(s.subjects[b].asked), cmp.Compare(a.repo, b.repo), cmp.Compare(a.digest, b.digest))
	})
	return list[:min(len(list), maxAsked)]
}

// askReferrers asks a parent that does not tell of referrers for those of what is here already, and brings them. One that
// fails does not keep the others; whole is whether the error concerns them all.
func (s *Syncer) askReferrers(ctx context.Context, set Settings, l listing, due []subject) (whole bool, failed error) {
	ofReferrers := s.referrers(set, registry.KindOCI, l)
	var mu sync.Mutex // guards failed
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(max(set.Parallel, 4))
	for _, sub := range due {
		group.Go(func() error {
			at := registry.Manifest{Descriptor: registry.Descriptor{Digest: sub.digest}}
			err := s.bringReferrers(gctx, image{repo: sub.repo, referrers: ofReferrers}, []registry.Manifest{at})
			if errors.Is(err, registry.ErrManifestUnknown) {
				err = nil // it went again
			}
			if err != nil && !s.alone(gctx, set, err) {
				return err
			}
			s.follow(sub)
			mu.Lock()
			defer mu.Unlock()
			failed = cmp.Or(failed, err)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return true, err
	}
	return false, failed
}
