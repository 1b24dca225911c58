package registry

import (
	"path"
	"strings"
)

// RepositoryRule selects content of the parent: repository[:tag][@platform].
type RepositoryRule struct {
	Repository string // a name, or a pattern whose last part is * ("acme/*" takes every depth below acme)
	Tag        string // a glob as of path.Match, or a range of versions; empty takes every tag
	Platform   string // os/arch[/variant]; empty takes every platform
}

// String returns the rule as it is written in the configuration.
func (r RepositoryRule) String() string {
	s := r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Platform != "" {
		s += "@" + r.Platform
	}
	return s
}

// IsPattern reports whether the rule needs the parent's catalog to find its repositories.
func (r RepositoryRule) IsPattern() bool { return strings.HasSuffix(r.Repository, "*") }

// MatchRepository reports whether the rule speaks of the repository.
func (r RepositoryRule) MatchRepository(repo string) bool {
	if prefix, ok := strings.CutSuffix(r.Repository, "*"); ok {
		return strings.HasPrefix(repo, prefix)
	}
	return r.Repository == repo
}

// MatchTag reports whether the rule takes the tag, the repository being matched already.
func (r RepositoryRule) MatchTag(tag string) bool {
	if r.Tag == "" {
		return true
	}
	if IsTagRange(r.Tag) {
		return matchTagRange(r.Tag, tag)
	}
	ok, _ := path.Match(r.Tag, tag) // the pattern was checked when it was parsed
	return ok
}

// Scope is a list of rules; what any of them takes is in scope.
type Scope []RepositoryRule

// MatchRepository reports whether anything of the repository is in scope.
func (s Scope) MatchRepository(repo string) bool {
	for _, r := range s {
		if r.MatchRepository(repo) {
			return true
		}
	}
	return false
}

// MatchTag reports whether the tag is in scope.
func (s Scope) MatchTag(repo, tag string) bool {
	for _, r := range s {
		if r.MatchRepository(repo) && r.MatchTag(tag) {
			return true
		}
	}
	return false
}

// Platforms returns which platforms of an index under the tag are wanted; nil is all of them. An empty tag, for an
// index that is asked for by digest, takes what any tag of the repository would.
func (s Scope) Platforms(repo, tag string) []string {
	var platforms []string
	for _, r := range s {
		if !r.MatchRepository(repo) || (tag != "" && !r.MatchTag(tag)) {
			continue
		}
		if r.Platform == "" {
			return nil
		}
		platforms = append(platforms, r.Platform)
	}
	return platforms
}
