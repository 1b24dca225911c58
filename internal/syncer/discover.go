package syncer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// probeEvery is how often the parent is asked again what it is while nothing points to a change.
const probeEvery = time.Hour

// probe makes sure that the parent is known and that the two layers fit together.
func (s *Syncer) probe(ctx context.Context, set Settings) (registry.ParentKind, error) {
	s.mu.Lock()
	kind, probed, failed, refused := s.state.parent.Kind, s.state.probed, s.state.failure != nil, s.state.refused
	s.mu.Unlock()
	now := s.o.Clock.Now()
	if kind != registry.KindUnknown && !failed && refused == nil && now.Sub(probed) < probeEvery && !now.Before(probed) {
		return kind, nil
	}
	status, info, err := set.Parent.Probe(ctx)
	s.contact(err)
	if err == nil && status.Kind == registry.KindConnected {
		err = errors.Join(
			hierarchy.CheckAncestry(s.o.InstanceID, info),
			hierarchy.CheckModes(info.Name, info.Mode, s.o.Name, set.Mode),
		)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.state.refused
	s.state.refused = nil
	if err != nil {
		if !errors.Is(err, registry.ErrUnavailable) {
			s.state.refused = err
			if before == nil {
				s.state.since.refused = now
			}
		}
		return kind, err
	}
	s.state.parent, s.state.info, s.state.probed = status, info, now
	return status.Kind, nil
}

// meet probes again after a parent that was accepted has refused a question: its mode or what is above it has changed.
// It returns why the two do not fit together any more, or the refusal when they do.
func (s *Syncer) meet(ctx context.Context, set Settings, refusal error) error {
	s.mu.Lock()
	s.state.probed = time.Time{}
	s.mu.Unlock()
	if _, err := s.probe(ctx, set); err != nil {
		return err
	}
	return refusal
}

// Ancestors returns the instance ids above this registry, nearest first.
func (s *Syncer) Ancestors() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.info.InstanceID == "" {
		return nil
	}
	return append([]string{s.state.info.InstanceID}, s.state.info.Ancestors...)
}

// cursorDocument holds, after a complete iteration, what it was complete for and how far.
const cursorDocument = "sync/cursor"

// cursorKey is what a cursor is good for: a change of parent, mode or scope starts from the beginning.
func cursorKey(set Settings) string {
	rules := make([]string, 0, len(set.Scope))
	for _, r := range set.Scope {
		rules = append(rules, r.String())
	}
	slices.Sort(rules)
	sum := sha256.Sum256([]byte(set.ParentName + "\n" + string(set.Mode) + "\n" + strings.Join(rules, "\n")))
	return hex.EncodeToString(sum[:8])
}

// cursorState is the document of the cursor.
type cursorState struct {
	Key    string            `json:"key"`
	Cursor string            `json:"cursor"`
	Failed []registry.Change `json:"failed,omitempty"` // what the cursor is past although it is not here
}

// loadCursor returns the cursor, and remembers what failed before it.
func (s *Syncer) loadCursor(ctx context.Context, set Settings) (string, error) {
	s.mu.Lock()
	relist := s.relist
	s.relist = false
	s.mu.Unlock()
	if relist {
		return "", s.store.PutDocument(ctx, cursorDocument, nil)
	}
	doc, err := s.store.Document(ctx, cursorDocument)
	var c cursorState
	if err != nil || json.Unmarshal(doc, &c) != nil || c.Key != cursorKey(set) {
		return "", err
	}
	s.remember(c.Failed)
	return c.Cursor, nil
}

// saveCursor makes the cursor durable, with what failed: asking from here on does not bring it again. It is not kept
// when the cursor was dropped since the parent was asked: drops is of that time.
func (s *Syncer) saveCursor(ctx context.Context, set Settings, cursor string, drops uint64) error {
	failed := s.failures()
	if len(failed) > maxFailed {
		return nil
	}
	body, err := json.Marshal(cursorState{Key: cursorKey(set), Cursor: cursor, Failed: failed})
	if err != nil {
		return err
	}
	s.up.cursor.Lock()
	defer s.up.cursor.Unlock()
	if s.up.drops != drops {
		return nil
	}
	return s.store.PutDocument(ctx, cursorDocument, body)
}

// discoverChanges asks one of our own kind what changed since the last complete iteration: one request, and a few
// hundred bytes when the answer is nothing.
func (s *Syncer) discoverChanges(ctx context.Context, set Settings, wait time.Duration) (listing, string, error) {
	since, err := s.loadCursor(ctx, set)
	if err != nil {
		return listing{}, "", err
	}
	var scope []string
	for _, r := range set.Scope {
		if !slices.Contains(scope, r.Repository) {
			scope = append(scope, r.Repository)
		}
	}
	l := newListing()
	req := registry.ChangesRequest{Since: since, Wait: wait, Scope: scope}
	for {
		c, err := set.Parent.Changes(ctx, req)
		s.contact(err)
		if err != nil {
			return l, "", err
		}
		l.all = l.all || c.Full
		for _, e := range c.Entries {
			switch {
			case e.Subject != "" && e.Gone:
				l.unreferred[e.Repository] = append(l.unreferred[e.Repository], e.Digest)
			case e.Subject != "":
				l.referrers = append(l.referrers, e)
			case e.Digest == "":
				l.gone[e.Repository] = append(l.gone[e.Repository], e.Tag)
			default:
				l.add(e.Repository, e.Tag, e.Digest)
			}
		}
		if !c.More {
			for repo := range l.tags {
				l.complete[repo] = l.all
			}
			return l, c.Cursor, nil
		}
		if c.Cursor == req.Since {
			return l, "", registry.ErrUnavailable.WithMessage("the parent's list of changes does not end")
		}
		req.Since, req.Wait = c.Cursor, 0
	}
}

// discoverTags asks any registry: the catalog where a rule is a pattern, the tags of each repository, and a HEAD for
// each tag in scope, unless the list of tags has their digests, as Azure Container Registry's has.
func (s *Syncer) discoverTags(ctx context.Context, set Settings, kind registry.ParentKind, all bool) (listing, error) {
	l := newListing()
	repos, err := s.repositories(ctx, set)
	if err != nil {
		return l, err
	}
	var mu sync.Mutex // guards l
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(max(set.Parallel, 4))
	for _, repo := range repos {
		group.Go(func() error {
			here, err := s.listTags(gctx, set, kind, repo)
			if errors.Is(err, registry.ErrNameUnknown) && s.gone(gctx, set, repo) {
				here, err = map[string]registry.Digest{}, nil
			}
			if err != nil && s.alone(gctx, set, err) {
				s.repoFailed(repo, err)
				mu.Lock()
				defer mu.Unlock()
				if l.failed == nil && !errors.Is(err, registry.ErrNameUnknown) { // it may come later
					l.failed = err
				}
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			l.tags[repo], l.complete[repo] = here, true
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return l, err
	}
	return s.resolveTags(ctx, set, l, all)
}

// listTags lists the tags in scope of a repository, with their digests where the list has them.
func (s *Syncer) listTags(ctx context.Context, set Settings, kind registry.ParentKind, repo string) (map[string]registry.Digest, error) {
	if here, ok, err := s.listByTime(ctx, set, kind, repo); ok {
		return here, err
	}
	tags, err := allPages(func(after string) ([]string, error) {
		return set.Parent.Tags(ctx, repo, after, registry.MaxPage)
	})
	s.contact(err)
	here := map[string]registry.Digest{}
	for _, tag := range tags {
		if set.Scope.MatchTag(repo, tag) {
			here[tag] = ""
		}
	}
	return here, err
}

// resolveTags asks for the digest of each tag of the list. One that was removed since the list was made is left out.
// One that the parent has and cannot tell of stays here as it is, and does not keep the others.
func (s *Syncer) resolveTags(ctx context.Context, set Settings, names listing, all bool) (listing, error) {
	l := newListing()
	skip, err := s.rechecks(ctx, names, all)
	if err != nil {
		return l, err
	}
	l.complete, l.failed = names.complete, names.failed
	var mu sync.Mutex // guards l
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(max(set.Parallel, 4))
	for repo, tags := range names.tags {
		l.tags[repo] = map[string]registry.Digest{}
		here := l.tags[repo]
		for tag, known := range tags {
			if known != "" || skip[tagName{repo, tag}] {
				mu.Lock()
				here[tag] = known
				mu.Unlock()
				continue
			}
			l.heads++
			group.Go(func() error {
				d, err := set.Parent.ResolveManifest(gctx, repo, registry.TagReference(tag))
				if errors.Is(err, registry.ErrManifestUnknown) {
					return nil
				}
				alone := err != nil && s.alone(gctx, set, err)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					here[tag] = d.Digest
				case alone:
					l.broken = append(l.broken, brokenTag{repo, tag, err})
					here[tag] = "" // it is there
					s.note(registry.Change{Repository: repo, Tag: tag}, err)
					return nil
				}
				return err
			})
		}
	}
	err = group.Wait()
	s.contact(err)
	if err == nil {
		s.denied(names, &l)
	}
	return l, err
}

// denied finds repositories of which the parent lists tags and has none: that is no reason to remove them here.
func (s *Syncer) denied(names listing, l *listing) {
	for repo, tags := range names.tags {
		if len(tags) == 0 || len(l.tags[repo]) > 0 {
			continue
		}
		err := registry.ErrUnavailable.WithMessage("the parent lists %d tags of %s and says of each that it is unknown", len(tags), repo)
		s.repoFailed(repo, err)
		delete(l.tags, repo)
		delete(l.complete, repo)
		l.failed = cmp.Or[error](l.failed, err)
	}
}

// repositories returns the parent's repositories that a rule names or matches.
func (s *Syncer) repositories(ctx context.Context, set Settings) ([]string, error) {
	var repos []string
	pattern := false
	for _, r := range set.Scope {
		if pattern = pattern || r.IsPattern(); !r.IsPattern() {
			repos = append(repos, r.Repository)
		}
	}
	if pattern {
		all, err := allPages(func(after string) ([]string, error) {
			return set.Parent.Repositories(ctx, after, registry.MaxPage)
		})
		s.contact(err)
		if errors.Is(err, registry.ErrUnsupported) && len(repos) > 0 {
			s.patternsFailed(set, err) // what is named outright is synced all the same
		} else if err != nil {
			return nil, err
		}
		for _, repo := range all {
			if set.Scope.MatchRepository(repo) {
				repos = append(repos, repo)
			}
		}
	}
	slices.Sort(repos)
	return slices.Compact(repos), nil
}

// allPages reads a list to its end. A list that does not move on has ended.
func allPages(page func(after string) ([]string, error)) ([]string, error) {
	var all []string
	for after := ""; ; {
		list, err := page(after)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
		if len(list) < registry.MaxPage || list[len(list)-1] <= after {
			return all, nil
		}
		after = list[len(list)-1]
	}
}
