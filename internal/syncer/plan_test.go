package syncer

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
)

func rule(s ...string) registry.Scope {
	var scope registry.Scope
	for _, r := range s {
		scope = append(scope, registry.RepositoryRule{Repository: r})
	}
	return scope
}

func have(tag string, d registry.Digest) registry.LocalTag {
	return registry.LocalTag{Tag: tag, Digest: d}
}

func pushed(tag string, d registry.Digest) registry.LocalTag {
	return registry.LocalTag{Tag: tag, Digest: d, Pushed: true}
}

func complete(tags map[string]map[string]registry.Digest) listing {
	l := newListing()
	for repo, t := range tags {
		l.complete[repo] = true
		for tag, d := range t {
			l.add(repo, tag, d)
		}
	}
	return l
}

func TestMakePlan(t *testing.T) {
	type tags = map[string]map[string]registry.Digest
	type local = map[string][]registry.LocalTag
	everything := complete(tags{"a": {"1": "d1"}})
	everything.all = true
	gone := newListing()
	gone.gone["a"] = []string{"old"}

	for _, tc := range []struct {
		name  string
		mode  registry.Mode
		scope registry.Scope
		first registry.Scope
		l     listing
		local local
		fetch []string
		untag map[string][]string
	}{
		{
			name: "new, moved and unchanged tags", mode: registry.ReadOnly, scope: rule("a"),
			l:     complete(tags{"a": {"new": "d1", "moved": "d2", "same": "d3"}}),
			local: local{"a": {have("moved", "old"), have("same", "d3")}},
			fetch: []string{"a@d2 moved", "a@d1 new"},
		},
		{
			name: "tags of one image move together", mode: registry.ReadOnly, scope: rule("a"),
			l: complete(tags{"a": {"1": "d", "1.0": "d", "latest": "d"}}), fetch: []string{"a@d 1 1.0 latest"},
		},
		{
			name: "out of scope is not fetched", mode: registry.ReadOnly, scope: registry.Scope{{Repository: "a", Tag: "1.*"}},
			l: complete(tags{"a": {"1.0": "d1", "2.0": "d2"}, "b": {"1.0": "d3"}}), fetch: []string{"a@d1 1.0"},
		},
		{
			name: "what comes first", mode: registry.ReadOnly, scope: rule("*"), first: rule("z"),
			l: complete(tags{"a": {"1": "d1"}, "z": {"1": "d2"}}), fetch: []string{"z@d2 1", "a@d1 1"},
		},
		{
			name: "one of an image's tags comes first", mode: registry.ReadOnly, scope: rule("*"), first: registry.Scope{{Repository: "z", Tag: "1"}},
			l: complete(tags{"a": {"1": "d1"}, "z": {"0": "d2", "1": "d2", "2": "d2", "3": "d2"}}), fetch: []string{"z@d2 0 1 2 3", "a@d1 1"},
		},
		{
			name: "where a tag stands was not asked", mode: registry.ReadOnly, scope: rule("a"),
			l: complete(tags{"a": {"1": "", "2": ""}}), local: local{"a": {have("1", "d1")}},
		},
		{
			name: "untagged at the parent, ReadOnly", mode: registry.ReadOnly, scope: rule("a"),
			l: complete(tags{"a": {"1": "d1"}}), local: local{"a": {have("1", "d1"), have("2", "d2")}},
			untag: map[string][]string{"a": {"2"}},
		},
		{
			name: "untagged at the parent, ReadWrite", mode: registry.ReadWrite, scope: rule("a"),
			l: complete(tags{"a": {"1": "d1"}}), local: local{"a": {have("1", "d1"), have("2", "d2")}},
		},
		{
			name: "left the scope, ReadOnly", mode: registry.ReadOnly, scope: rule("a"),
			l: complete(tags{"a": {}}), local: local{"b": {have("1", "d1"), pushed("2", "d2")}},
			untag: map[string][]string{"b": {"1"}},
		},
		{
			name: "an empty scope removes nothing", mode: registry.ReadOnly,
			l: newListing(), local: local{"a": {have("1", "d1")}},
		},
		{
			name: "a repository that was not listed is left alone", mode: registry.ReadOnly, scope: rule("a", "b"),
			l: complete(tags{"a": {}}), local: local{"b": {have("1", "d1")}},
		},
		{
			name: "a full list removes repositories that are not in it", mode: registry.ReadOnly, scope: rule("*"),
			l: everything, local: local{"a": {have("1", "d1")}, "b": {have("1", "d1")}}, untag: map[string][]string{"b": {"1"}},
		},
		{
			name: "told that a tag is gone", mode: registry.ReadOnly, scope: rule("a"),
			l: gone, local: local{"a": {have("old", "d1"), have("1", "d2")}}, untag: map[string][]string{"a": {"old"}},
		},
		{
			name: "pushed here, differs: stays", mode: registry.ReadWrite, scope: rule("a"),
			l: complete(tags{"a": {"1": "d1"}}), local: local{"a": {pushed("1", "mine")}},
		},
		{
			name: "locked here: neither moved nor removed", mode: registry.ReadOnly, scope: rule("a"),
			l:     complete(tags{"a": {"1": "d1"}}),
			local: local{"a": {{Tag: "1", Digest: "old", Locked: true}, {Tag: "2", Digest: "d2", Locked: true}}},
		},
		{
			name: "pushed here, the same at the parent: becomes the parent's", mode: registry.ReadWrite, scope: rule("a"),
			l: complete(tags{"a": {"1": "d1"}}), local: local{"a": {pushed("1", "d1")}}, fetch: []string{"a@d1 1"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := makePlan(Settings{Mode: tc.mode, Scope: tc.scope, First: tc.first}, tc.l, tc.local)
			var fetch []string
			for _, w := range p.fetch {
				s := fmt.Sprintf("%s@%s", w.repo, w.digest)
				for _, tag := range w.tags {
					s += " " + tag
				}
				fetch = append(fetch, s)
			}
			if diff := cmp.Diff(tc.fetch, fetch); diff != "" {
				t.Errorf("fetch (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(nonNil(tc.untag), p.untag); diff != "" {
				t.Errorf("untag (-want +got):\n%s", diff)
			}
		})
	}
}

func nonNil(m map[string][]string) map[string][]string {
	if m == nil {
		return map[string][]string{}
	}
	return m
}

// TestPlanConverges carries plans out on a map: a second plan has nothing to do, what was pushed here is still here,
// and in ReadOnly mode the tags in scope are the parent's.
func TestPlanConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		repo := rapid.SampledFrom([]string{"a", "b", "c/d"})
		tag := rapid.SampledFrom([]string{"1", "2", "latest"})
		digest := rapid.SampledFrom([]registry.Digest{"d1", "d2", "d3"})
		remote := rapid.MapOf(repo, rapid.MapOf(tag, digest)).Draw(t, "remote")
		mine := rapid.MapOf(repo, rapid.MapOf(tag, rapid.Custom(func(t *rapid.T) registry.LocalTag {
			return registry.LocalTag{Digest: digest.Draw(t, "digest"), Pushed: rapid.Bool().Draw(t, "pushed")}
		}))).Draw(t, "local")
		set := Settings{
			Mode:  rapid.SampledFrom([]registry.Mode{registry.ReadOnly, registry.ReadWrite}).Draw(t, "mode"),
			Scope: rapid.SampledFrom([]registry.Scope{rule("a"), rule("*"), {{Repository: "a", Tag: "[12]"}, {Repository: "c/*"}}}).Draw(t, "scope"),
		}
		l := complete(remote)
		l.all = true
		before := snapshotOf(mine)
		carryOut(makePlan(set, l, before), mine)
		after := snapshotOf(mine)
		if again := makePlan(set, l, after); !again.empty() {
			t.Fatalf("a second plan is not empty: %+v", again)
		}
		for repo, tags := range before {
			for _, lt := range tags {
				if now := mine[repo][lt.Tag]; lt.Pushed && now.Digest != lt.Digest {
					t.Fatalf("%s:%s was pushed here as %s and is %q now", repo, lt.Tag, lt.Digest, now.Digest)
				}
			}
		}
		for repo, tags := range remote {
			for tag, d := range tags {
				if now := mine[repo][tag]; set.Scope.MatchTag(repo, tag) && !now.Pushed && now.Digest != d {
					t.Fatalf("%s:%s is %q, at the parent %q", repo, tag, now.Digest, d)
				}
			}
		}
	})
}

func snapshotOf(m map[string]map[string]registry.LocalTag) map[string][]registry.LocalTag {
	out := map[string][]registry.LocalTag{}
	for repo, tags := range m {
		for _, tag := range slices.Sorted(maps.Keys(tags)) {
			t := tags[tag]
			t.Tag = tag
			out[repo] = append(out[repo], t)
		}
	}
	return out
}

func carryOut(p plan, m map[string]map[string]registry.LocalTag) {
	for _, w := range p.fetch {
		for _, tag := range w.tags {
			if m[w.repo] == nil {
				m[w.repo] = map[string]registry.LocalTag{}
			}
			m[w.repo][tag] = registry.LocalTag{Digest: w.digest}
		}
	}
	for repo, tags := range p.untag {
		for _, tag := range tags {
			delete(m[repo], tag)
		}
	}
}
