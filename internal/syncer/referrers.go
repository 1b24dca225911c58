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
	// maxAsked bounds the subjects of which one iteration asks for referrers that came late or went.
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
type followed struct {
	since, asked time.Time
	below        []registry.Digest // children and referrers of it that are here: subjects, too
}

// due reports whether it is time to ask again. A clock that was set back makes it so.
func (f followed) due(now time.Time) bool {
	if f.asked.IsZero() || now.Before(f.asked) {
		return true
	}
	return now.Sub(f.asked) >= min(max(f.asked.Sub(f.since), askAgainFirst), askAgainLast)
}

// follow notes that the referrers of a subject were asked for just now; whole says that those of all below it were.
func (s *Syncer) follow(ctx context.Context, sub subject, whole bool) {
	now := s.o.Clock.Now()
	seen := map[registry.Digest]bool{}
	for queue := []registry.Digest{sub.digest}; len(queue) > 0; queue = queue[1:] {
		at := subject{sub.repo, queue[0]}
		if seen[at.digest] {
			continue
		}
		seen[at.digest] = true
		below := s.below(ctx, at)
		s.mu.Lock()
		f, known := s.subjects[at]
		if !known {
			f.since = now
		}
		f.asked, f.below = now, below
		s.subjects[at] = f
		s.mu.Unlock()
		if whole {
			queue = append(queue, below...)
		}
	}
}

// below lists what is here of the children of an index, and what refers to a manifest here.
func (s *Syncer) below(ctx context.Context, sub subject) []registry.Digest {
	var list []registry.Digest
	if m, err := s.store.GetManifest(ctx, sub.repo, registry.DigestReference(sub.digest)); err == nil {
		refs, _ := registry.ParseManifest(m.MediaType, m.Bytes)
		for _, c := range refs.Manifests {
			if s.has(ctx, sub.repo, c.Digest) {
				list = append(list, c.Digest)
			}
		}
	}
	here, _ := s.store.Referrers(ctx, sub.repo, sub.digest, "")
	for _, r := range here {
		list = append(list, r.Digest)
	}
	return list
}

// has reports whether a repository has a manifest here.
func (s *Syncer) has(ctx context.Context, repo string, d registry.Digest) bool {
	_, err := s.store.ResolveManifest(ctx, repo, registry.DigestReference(d))
	return err == nil
}

// dueSubjects lists what is due to be asked of: what stands under a tag here as it does at the parent, and what is below
// it. The longest waiting come first; what is not here any more is forgotten. What was brought by a process before this
// one is due at once, and then once a day; all of a repository are when Azure Container Registry counts other manifests
// there and no other tags. Of what is not due, so many as there is room for are asked of as well.
func (s *Syncer) dueSubjects(set Settings, l listing, local map[string][]registry.LocalTag, room int) []subject {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Clock.Now()
	before := s.subjects
	s.subjects = make(map[subject]followed, len(before))
	isDue := func(sub subject, f followed) bool { return f.due(now) || f.asked.Before(s.recent[sub.repo].stirred) }
	var list []subject
	due := 0
	visited := map[subject]bool{}
	visit := func(sub subject, there bool) {
		for queue := []registry.Digest{sub.digest}; len(queue) > 0; queue = queue[1:] {
			at := subject{sub.repo, queue[0]}
			if visited[at] {
				continue
			}
			visited[at] = true
			f, known := before[at]
			if known || there {
				s.subjects[at] = f
			}
			if there {
				list = append(list, at)
			}
			if there && isDue(at, f) {
				due++
			}
			queue = append(queue, f.below...)
		}
	}
	for _, there := range []bool{true, false} {
		for repo, tags := range local {
			for _, t := range tags {
				at, listed := l.tags[repo][t.Tag]
				moves := listed && at != "" && at != t.Digest
				if !t.Pushed && !moves && there == listed && set.Scope.MatchTag(repo, t.Tag) {
					visit(subject{repo, t.Digest}, there)
				}
			}
		}
	}
	rank := func(sub subject) int {
		if isDue(sub, s.subjects[sub]) {
			return 0
		}
		return 1
	}
	slices.SortFunc(list, func(a, b subject) int {
		return cmp.Or(rank(a)-rank(b), s.subjects[a].asked.Compare(s.subjects[b].asked), cmp.Compare(a.repo, b.repo), cmp.Compare(a.digest, b.digest))
	})
	return list[:min(len(list), maxAsked, max(due, room))]
}

// askReferrers asks a parent that does not tell of referrers for those of what is here already, brings them, and removes
// those that were deleted. One that fails does not keep the others; whole is whether the error concerns them all.
func (s *Syncer) askReferrers(ctx context.Context, set Settings, l listing, due []subject) (whole bool, failed error) {
	ofReferrers := s.referrers(set, registry.KindOCI, l)
	var mu sync.Mutex // guards failed
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(max(set.Parallel, 4))
	for _, sub := range due {
		group.Go(func() error {
			err := s.askOf(gctx, set, ofReferrers, sub)
			if err != nil && !s.alone(gctx, set, err) {
				return err
			}
			s.follow(gctx, sub, false)
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

// askOf asks for the referrers of one subject.
func (s *Syncer) askOf(ctx context.Context, set Settings, of referrersOf, sub subject) error {
	if !s.has(ctx, sub.repo, sub.digest) {
		return nil // it went here
	}
	listed, err := of(ctx, sub.repo, sub.digest)
	if err != nil {
		return err
	}
	once := func(ctx context.Context, repo string, d registry.Digest) ([]registry.Descriptor, error) {
		if d == sub.digest {
			return listed, nil
		}
		return of(ctx, repo, d)
	}
	at := registry.Manifest{Descriptor: registry.Descriptor{Digest: sub.digest}}
	err = s.bringReferrers(ctx, image{repo: sub.repo, referrers: once}, []registry.Manifest{at})
	if err != nil && !errors.Is(err, registry.ErrManifestUnknown) { // unknown: it went again
		return err
	}
	if set.Mode == registry.ReadOnly && !s.has(ctx, sub.repo, sub.digest) {
		return s.dropOrphans(ctx, sub)
	}
	return s.dropReferrers(ctx, set, sub, listed)
}

// dropReferrers removes the referrers of a subject that are here and that the parent neither lists nor has: one without
// the referrers API may have what it does not list.
func (s *Syncer) dropReferrers(ctx context.Context, set Settings, sub subject, listed []registry.Descriptor) error {
	if set.Mode != registry.ReadOnly {
		return nil
	}
	here, err := s.store.Referrers(ctx, sub.repo, sub.digest, "")
	if err != nil {
		return err
	}
	var gone []registry.Digest
	for _, d := range unlistedOf(here, func(d registry.Digest) bool {
		return slices.ContainsFunc(listed, func(l registry.Descriptor) bool { return l.Digest == d })
	}) {
		_, err := set.Parent.ResolveManifest(ctx, sub.repo, registry.DigestReference(d))
		s.contact(err)
		if errors.Is(err, registry.ErrManifestUnknown) {
			gone = append(gone, d)
		} else if err != nil {
			return err
		}
	}
	if len(gone) == 0 {
		return nil
	}
	_, err = s.store.Unrefer(ctx, sub.repo, gone)
	return err
}

// dropOrphans removes the referrers of a subject that went here while they came: it refers to another one, which was
// asked of at the same time.
func (s *Syncer) dropOrphans(ctx context.Context, sub subject) error {
	here, err := s.store.Referrers(ctx, sub.repo, sub.digest, "")
	if err != nil || len(here) == 0 {
		return err
	}
	_, err = s.store.Unrefer(ctx, sub.repo, unlistedOf(here, func(registry.Digest) bool { return false }))
	return err
}

// unlistedOf returns those of the referrers that are not listed.
func unlistedOf(here []registry.Descriptor, listed func(registry.Digest) bool) []registry.Digest {
	var list []registry.Digest
	for _, d := range here {
		if !listed(d.Digest) {
			list = append(list, d.Digest)
		}
	}
	return list
}

// unlisted adds to a whole list of changes the referrers that are here, of what stands under a tag, and not in it.
func (s *Syncer) unlisted(ctx context.Context, set Settings, l *listing, local map[string][]registry.LocalTag) {
	if set.Mode != registry.ReadOnly {
		return
	}
	listed := map[subject]bool{}
	for _, c := range l.referrers {
		listed[subject{c.Repository, c.Digest}] = true
	}
	for repo, tags := range local {
		seen := map[registry.Digest]bool{}
		var queue []registry.Digest
		for _, t := range tags {
			if !t.Pushed && !t.Locked {
				queue = append(queue, t.Digest)
			}
		}
		for ; len(queue) > 0 && ctx.Err() == nil; queue = queue[1:] {
			if seen[queue[0]] {
				continue
			}
			seen[queue[0]] = true
			queue = append(queue, s.below(ctx, subject{repo, queue[0]})...)
			here, _ := s.store.Referrers(ctx, repo, queue[0], "")
			if gone := unlistedOf(here, func(d registry.Digest) bool { return listed[subject{repo, d}] }); len(gone) > 0 {
				l.unreferred[repo] = append(l.unreferred[repo], gone...)
			}
		}
	}
}
