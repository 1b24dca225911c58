package syncer

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// batch bounds the images whose manifests are read before the first of them is fetched.
const batch = 512

// outcome is what an iteration did.
type outcome struct {
	moved, removed, failed int
	err                    error
	whole                  bool // err is of the iteration as a whole; otherwise what failed is tried again by itself
}

// apply carries a listing out: images in parallel, each visible as soon as it is complete; one that fails does not
// keep the others, unless the parent is away or a budget used up. One that does not fit on the disk is one that fails:
// smaller ones may fit.
func (s *Syncer) apply(ctx context.Context, set Settings, kind registry.ParentKind, l listing, it iteration) outcome {
	s.pulls.yield(ctx, set, l)
	p, local, err := s.prepare(ctx, set, &l, it)
	if err != nil {
		return outcome{err: err, whole: true}
	}
	s.recordRepositories(l, p, local)
	var signed []subject // perhaps, since they were asked of last
	switch {
	case kind == registry.KindConnected && l.all:
		s.unlisted(ctx, set, &l, local)
	case kind != registry.KindConnected && !it.retry:
		room := 0
		if it.asked {
			room = maxAsked - l.heads
		}
		signed = s.dueSubjects(set, l, local, room)
	}
	out := s.fetchAll(ctx, set, kind, l, p.fetch)
	if !out.whole {
		whole, late := s.lateReferrers(ctx, set, l)
		if !whole {
			var failed error
			whole, failed = s.askReferrers(ctx, set, l, signed)
			late = cmp.Or(late, failed)
		}
		out.err, out.whole = cmp.Or(out.err, l.failed, late), l.failed != nil || whole
	}
	if ctx.Err() != nil {
		out.err, out.whole = window(ctx, ctx.Err()), true
	}
	if err := s.remove(ctx, set, l, p, &out); err != nil {
		out.err, out.whole = errors.Join(out.err, err), true
	}
	return out
}

// remove takes away what went at the parent, or left the scope.
func (s *Syncer) remove(ctx context.Context, set Settings, l listing, p plan, out *outcome) (failed error) {
	for repo, tags := range p.untag {
		err := s.tags.takeAway(ctx, repo, tags, word{mark: l.mark}, func(may []string) error {
			n, err := s.store.Untag(ctx, repo, may)
			out.removed += n
			return err
		})
		failed = errors.Join(failed, err)
	}
	for repo, referrers := range l.unreferred {
		if set.Mode == registry.ReadOnly && set.Scope.MatchRepository(repo) {
			_, err := s.store.Unrefer(ctx, repo, referrers)
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// prepare plans against what is here, and leaves out what failed a moment ago and, of the listing too, what the outbox
// will change at the parent.
func (s *Syncer) prepare(ctx context.Context, set Settings, l *listing, it iteration) (plan, map[string][]registry.LocalTag, error) {
	local, err := s.local(ctx)
	if err != nil {
		return plan{}, nil, err
	}
	listed := make(map[string]map[string]registry.Digest, len(l.tags))
	for repo, tags := range l.tags {
		listed[repo] = maps.Clone(tags)
	}
	if err := s.tags.hear(ctx, l, local); err != nil {
		return plan{}, nil, err
	}
	p := makePlan(set, *l, local)
	if it.verify {
		p.fetch = append(p.fetch, s.incomplete(ctx, set, *l, local, p)...)
	}
	s.settled(listed, p)
	for i := range p.fetch {
		p.fetch[i].mark = l.mark
	}
	if !it.asked {
		p.fetch = slices.DeleteFunc(p.fetch, s.resting)
	}
	return p, local, nil
}

// fetchAll brings images in the order of their urgency and size, a batch at a time.
func (s *Syncer) fetchAll(ctx context.Context, set Settings, kind registry.ParentKind, l listing, wants []want) outcome {
	var out outcome
	first := slices.IndexFunc(wants, func(w want) bool { return !w.first })
	if first < 0 {
		first = len(wants)
	}
	ofReferrers := s.referrers(set, kind, l)
	seen := map[registry.Digest]bool{}
	for _, group := range [][]want{wants[:first], wants[first:]} {
		for part := range slices.Chunk(group, batch) {
			stopped := s.measure(ctx, set, part, seen)
			if stopped == nil {
				s.recordSizes(part)
				stopped = s.fetchBatch(ctx, set, part, ofReferrers)
			}
			for _, w := range part {
				switch {
				case w.done:
					out.moved += len(w.tags)
				case w.err != nil:
					out.failed += len(w.tags)
					out.err = cmp.Or(out.err, w.err)
				}
			}
			if stopped != nil {
				out.err, out.whole = stopped, true
				return out
			}
		}
	}
	return out
}

// fetchBatch brings measured images, so many at once as are configured. It returns an error that concerns them all.
func (s *Syncer) fetchBatch(ctx context.Context, set Settings, wants []want, ofReferrers referrersOf) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(set.Parallel)
	for i := range wants {
		w := &wants[i]
		group.Go(func() error {
			bctx := gctx
			if w.first {
				bctx = transport.WithClass(gctx, transport.First)
			}
			if w.err == nil {
				w.err = s.bring(bctx, image{
					repo: w.repo, tags: w.tags, platforms: platformsOf(set.Scope, *w), referrers: ofReferrers,
					root: registry.Manifest{Descriptor: registry.Descriptor{Digest: w.digest}}, word: word{mark: w.mark},
				})
			}
			w.done = w.err == nil
			if w.err != nil && !s.alone(gctx, set, w.err) {
				s.recordTags(*w)
				return w.err
			}
			if w.done {
				s.follow(gctx, subject{w.repo, w.digest}, true)
			}
			s.noteWant(*w)
			s.recordTags(*w)
			return nil
		})
	}
	return group.Wait()
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
	case ctx.Err() != nil, errors.Is(err, registry.ErrBudget):
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
// not keep the others; whole is whether the error concerns them all.
func (s *Syncer) lateReferrers(ctx context.Context, set Settings, l listing) (whole bool, failed error) {
	for _, c := range l.referrers {
		if !set.Scope.MatchRepository(c.Repository) {
			continue
		}
		if _, err := s.store.ResolveManifest(ctx, c.Repository, registry.DigestReference(c.Digest)); err == nil {
			s.note(c, nil)
			continue
		}
		if _, err := s.store.ResolveManifest(ctx, c.Repository, registry.DigestReference(c.Subject)); err != nil {
			s.note(c, nil) // its subject is not in scope; it comes with it
			continue
		}
		img := image{repo: c.Repository, root: registry.Manifest{Descriptor: registry.Descriptor{Digest: c.Digest}}}
		err := s.bring(ctx, img)
		if errors.Is(err, registry.ErrManifestUnknown) {
			err = nil // it went again
		}
		if err != nil && !s.alone(ctx, set, err) {
			return true, err
		}
		s.note(c, err)
		failed = cmp.Or(failed, err)
	}
	return false, failed
}
