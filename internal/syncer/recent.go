package syncer

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxRechecks bounds the tags here of which a parent that is asked with one HEAD for each is asked in one iteration.
// Those that are left come first in the next one. Tags that are not here are always asked for.
const maxRechecks = 1000

// recent is what is known of the tags of a repository in Azure Container Registry.
type recent struct {
	newest    time.Time
	tags      map[string]registry.Digest
	manifests int
	stirred   time.Time // when the number of manifests changed last while no tag did: something was signed, or deleted
}

// recentTags lists the tags of a repository by their time of change: what changed since the last time is added to what
// was known, and where the number of tags then differs, because some were removed, the whole list is read again.
//
// Errors: UNSUPPORTED where the parent has no such list.
func (s *Syncer) recentTags(ctx context.Context, set Settings, repo string) (map[string]registry.Digest, error) {
	s.mu.Lock()
	old := s.recent[repo]
	s.mu.Unlock()
	for _, since := range []time.Time{old.newest, {}} {
		list, about, err := set.Parent.RecentTags(ctx, repo, since)
		s.contact(err)
		if err != nil {
			return nil, err
		}
		now := recent{newest: since, tags: map[string]registry.Digest{}, manifests: about.Manifests, stirred: old.stirred}
		if !since.IsZero() {
			for tag, d := range old.tags {
				now.tags[tag] = d
			}
		}
		for _, t := range list {
			now.tags[t.Name] = t.Digest
			if t.Updated.After(now.newest) {
				now.newest = t.Updated
			}
		}
		if !since.IsZero() && len(now.tags) != about.Tags {
			continue
		}
		if !old.newest.IsZero() && now.manifests != old.manifests && maps.Equal(now.tags, old.tags) {
			now.stirred = s.o.Clock.Now()
		}
		s.mu.Lock()
		s.recent[repo] = now
		s.mu.Unlock()
		return now.tags, nil
	}
	return nil, registry.ErrUnsupported // not reached: the second round has no since
}

// listByTime fills in a repository of Azure Container Registry; false when it has to be listed in another way.
func (s *Syncer) listByTime(ctx context.Context, set Settings, kind registry.ParentKind, repo string) (map[string]registry.Digest, bool, error) {
	if kind != registry.KindACR {
		return nil, false, nil
	}
	tags, err := s.recentTags(ctx, set, repo)
	if errors.Is(err, registry.ErrUnsupported) {
		return nil, false, nil
	}
	if err != nil {
		return nil, true, err
	}
	here := map[string]registry.Digest{}
	for tag, d := range tags {
		if set.Scope.MatchTag(repo, tag) {
			here[tag] = d
		}
	}
	return here, true, nil
}

// tagName is one tag of one repository.
type tagName struct{ repo, tag string }

func (a tagName) compare(b tagName) int {
	return cmp.Or(cmp.Compare(a.repo, b.repo), cmp.Compare(a.tag, b.tag))
}

// rechecks chooses which of the tags that are here are asked for: the ones after those of the last iteration.
func (s *Syncer) rechecks(ctx context.Context, names listing, all bool) (skip map[tagName]bool, err error) {
	local, err := s.local(ctx)
	if err != nil {
		return nil, err
	}
	var here []tagName
	for repo, tags := range local {
		for _, t := range tags {
			if d, ok := names.tags[repo][t.Tag]; ok && d == "" {
				here = append(here, tagName{repo, t.Tag})
			}
		}
	}
	if all || len(here) <= maxRechecks {
		return nil, nil
	}
	slices.SortFunc(here, tagName.compare)
	s.mu.Lock()
	defer s.mu.Unlock()
	from, _ := slices.BinarySearchFunc(here, s.rechecked, tagName.compare)
	if from < len(here) && here[from] == s.rechecked {
		from++
	}
	skip = map[tagName]bool{}
	for i := maxRechecks; i < len(here); i++ {
		skip[here[(from+i)%len(here)]] = true
	}
	s.rechecked = here[(from+maxRechecks-1)%len(here)]
	return skip, nil
}

// gone reports whether a repository that the parent does not know any more was removed there: its catalog has others
// and not this one. A parent without a catalog, or with an empty one, may be the wrong one; nothing is removed then.
func (s *Syncer) gone(ctx context.Context, set Settings, repo string) bool {
	tags, err := s.store.TagStates(ctx, repo)
	if err != nil || len(tags) == 0 {
		return false
	}
	all, err := allPages(func(after string) ([]string, error) {
		return set.Parent.Repositories(ctx, after, registry.MaxPage)
	})
	return err == nil && len(all) > 0 && !slices.Contains(all, repo)
}
