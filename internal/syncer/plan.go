package syncer

import (
	"cmp"
	"slices"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// listing is what the parent has, as far as it was asked.
type listing struct {
	tags       map[string]map[string]registry.Digest // repository -> tag -> digest
	complete   map[string]bool                       // repositories whose every tag is in tags
	all        bool                                  // a repository that is not in tags does not exist
	gone       map[string][]string                   // repository -> tags that the parent says were removed
	referrers  []registry.Change                     // manifests that came to refer to another
	unreferred map[string][]registry.Digest          // repository -> manifests that referred to another and were deleted
	broken     []brokenTag                           // tags that the parent has and cannot tell of
	heads      int                                   // questions for single tags that it took
	mark       uint64                                // of before the parent was asked, see tags.mark
	drops      uint64                                // of before that, see climber.dropCursor
	failed     error                                 // why a part of the list is not here; nil when it is whole
}

// brokenTag is a tag that could not be resolved, while the parent answers other questions.
type brokenTag struct {
	repo, tag string
	err       error
}

func newListing() listing {
	return listing{
		tags: map[string]map[string]registry.Digest{}, complete: map[string]bool{}, gone: map[string][]string{},
		unreferred: map[string][]registry.Digest{},
	}
}

func (l listing) add(repo, tag string, d registry.Digest) {
	if l.tags[repo] == nil {
		l.tags[repo] = map[string]registry.Digest{}
	}
	l.tags[repo][tag] = d
}

// nothing reports whether the parent had nothing to tell.
func (l listing) nothing() bool {
	return !l.all && l.failed == nil && len(l.tags)+len(l.complete)+len(l.gone)+len(l.referrers)+len(l.unreferred) == 0
}

// want is one image to bring here: the tags that move to it once it is complete.
type want struct {
	repo   string
	digest registry.Digest
	tags   []string
	first  bool

	bytes int64                 // that are not here, once it is measured
	lacks []registry.Descriptor // the blobs that they are of
	err   error                 // why it did not come
	done  bool
	index int
	mark  uint64 // of the listing
}

// plan is what an iteration does.
type plan struct {
	fetch []want
	untag map[string][]string // repository -> tags to remove here
}

func (p plan) empty() bool { return len(p.fetch) == 0 && len(p.untag) == 0 }

// makePlan compares what the parent has with what is here. It is pure: no I/O, no clock, the same answer for the same
// question.
//
// A tag in scope whose digest differs is fetched, unless it was pushed here, which is acknowledged content, or is locked
// here: the parent's does not replace it. What left the scope or the parent is removed in ReadOnly mode and kept in ReadWrite.
func makePlan(set Settings, l listing, local map[string][]registry.LocalTag) plan {
	p := plan{untag: map[string][]string{}}
	wants := map[string]map[registry.Digest]*want{}
	for repo, tags := range l.tags {
		here := byTag(local[repo])
		for tag, d := range tags {
			if !set.Scope.MatchTag(repo, tag) {
				continue
			}
			if d == "" {
				continue // it is there; where it stands was not asked this time
			}
			if have, ok := here[tag]; ok && have.Digest == d && !have.Pushed {
				continue
			} else if ok && (have.Pushed || have.Locked) && have.Digest != d {
				continue
			}
			if wants[repo] == nil {
				wants[repo] = map[registry.Digest]*want{}
			}
			w := wants[repo][d]
			if w == nil {
				w = &want{repo: repo, digest: d}
				wants[repo][d] = w
			}
			w.tags = append(w.tags, tag)
			w.first = w.first || set.First.MatchTag(repo, tag)
		}
	}
	for _, byDigest := range wants {
		for _, w := range byDigest {
			slices.Sort(w.tags)
			p.fetch = append(p.fetch, *w)
		}
	}
	slices.SortFunc(p.fetch, func(a, b want) int {
		if a.first != b.first {
			if a.first {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.repo, b.repo), cmp.Compare(a.tags[0], b.tags[0]))
	})
	if set.Mode == registry.ReadOnly {
		p.untag = removals(set.Scope, l, local)
	}
	return p
}

func byTag(list []registry.LocalTag) map[string]registry.LocalTag {
	m := make(map[string]registry.LocalTag, len(list))
	for _, t := range list {
		m[t.Tag] = t
	}
	return m
}

// removals lists the tags here, not pushed here, that are out of scope or that the parent no longer has. An empty
// scope removes nothing: a configuration that lost its repositories must not empty the store.
func removals(scope registry.Scope, l listing, local map[string][]registry.LocalTag) map[string][]string {
	out := map[string][]string{}
	if len(scope) == 0 {
		return out
	}
	for repo, tags := range local {
		remote, listed := l.tags[repo]
		absent := l.complete[repo] || (l.all && !listed)
		for _, t := range tags {
			_, there := remote[t.Tag]
			gone := (absent && !there) || slices.Contains(l.gone[repo], t.Tag)
			if !t.Pushed && !t.Locked && (gone || !scope.MatchTag(repo, t.Tag)) {
				out[repo] = append(out[repo], t.Tag)
			}
		}
		slices.Sort(out[repo])
	}
	return out
}
