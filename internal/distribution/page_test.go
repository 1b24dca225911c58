package distribution_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/filter"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// TestPagesAreStable walks the catalog and a list of tags in pages of any size, while others push and delete between
// any two of them: what was there all the time and may be seen comes exactly once, in order, and nothing else but what
// came and went meanwhile; no page is longer than was asked for.
func TestPagesAreStable(t *testing.T) {
	name := rapid.StringMatching(`[ab](x|y|z|0)?`)
	image := registrytest.NewImage(1, 10)
	rapid.Check(t, func(rt *rapid.T) {
		reg := registrytest.NewMemory()
		visible := func(name string) bool { return !strings.HasPrefix(name, "b") }
		access := newAccess(auth.Options{AnonymousPull: true})
		h := distribution.New(filter.Scoped(reg, func(_ context.Context, repo string) bool { return visible(repo) }), access, distribution.Options{})
		push := func(name string) {
			if err := registrytest.Push(context.Background(), reg, name, "v1", image); err != nil {
				rt.Fatal(err)
			}
			if err := registrytest.Push(context.Background(), reg, "zz", mixed(name), image); err != nil {
				rt.Fatal(err)
			}
		}
		push("zz")
		fixed := rapid.SliceOfNDistinct(name, 0, 8, rapid.ID).Draw(rt, "fixed")
		for _, f := range fixed {
			push(f)
		}
		others := 0
		between := func() {
			for range rapid.IntRange(0, 3).Draw(rt, "changes") {
				other := rapid.SampledFrom([]string{"a", "ax", "az", "b", "by", "zy"}).Draw(rt, "other") + fmt.Sprint(others%5) + "q"
				if others++; rapid.Bool().Draw(rt, "push") {
					push(other)
				} else {
					_ = reg.DeleteTag(context.Background(), "zz", mixed(other)) // it may not be there
				}
			}
		}
		n := rapid.IntRange(1, 4).Draw(rt, "n")
		repositories := walk(rt, h, "/v2/_catalog", n, between)
		tags := walk(rt, h, "/v2/zz/tags/list", n, between)
		for _, f := range fixed {
			if slices.Contains(repositories, f) != visible(f) || !slices.Contains(tags, mixed(f)) {
				rt.Fatalf("%s: not as it should be in %v and %v", f, repositories, tags)
			}
		}
		lower := func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) }
		if !slices.IsSorted(repositories) || !slices.IsSortedFunc(tags, lower) || slices.ContainsFunc(repositories, func(s string) bool { return !visible(s) }) {
			rt.Fatalf("%v and %v", repositories, tags)
		}
		for _, all := range [][]string{repositories, tags} {
			if slices.Sort(all); len(slices.Compact(slices.Clone(all))) != len(all) {
				rt.Fatalf("twice: %v", all)
			}
		}
	})
}

// mixed makes a tag with capital letters of a name.
func mixed(name string) string { return strings.NewReplacer("x", "X", "b", "B").Replace(name) }

// walk follows the Links of a list.
func walk(t *rapid.T, h http.Handler, path string, n int, between func()) (all []string) {
	for next := fmt.Sprintf("%s?n=%d", path, n); next != ""; between() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, next, nil))
		var doc struct{ Repositories, Tags []string }
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%s: %d %s", next, w.Code, w.Body)
		}
		page := append(doc.Repositories, doc.Tags...)
		if len(page) > n || len(all) > 500 {
			t.Fatalf("%s: a page of %d, or no end", next, len(page))
		}
		all = append(all, page...)
		next, _, _ = strings.Cut(strings.TrimPrefix(w.Header().Get("Link"), "<"), ">")
	}
	return all
}

// TestPagesAreCapped: nobody gets more than a thousand tags at once, in whatever order the registry below has them.
func TestPagesAreCapped(t *testing.T) {
	s := newServer(t, manyTags{}, distribution.Options{})
	var all []string
	for next := "/v2/a/tags/list?n=100000"; next != ""; {
		a := s.do("all", "GET", next, nil)
		var doc struct{ Tags []string }
		if err := json.Unmarshal(a.body, &doc); err != nil || len(doc.Tags) > registry.MaxPage {
			t.Fatalf("%d tags, %v", len(doc.Tags), err)
		}
		all = append(all, doc.Tags...)
		next, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
	}
	if want := (manyTags{}).all(); len(all) != len(want) || !slices.IsSortedFunc(all, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) }) {
		t.Errorf("%d tags, want %d in order", len(all), len(want))
	}
}

// manyTags has 3,000 tags with capital letters and without, which are far apart below and neighbours in the list.
type manyTags struct{ registry.Unsupported }

func (manyTags) all() (tags []string) {
	for i := range 1500 {
		tags = append(tags, fmt.Sprintf("V%04d", i), fmt.Sprintf("v%04d", i))
	}
	slices.Sort(tags)
	return tags
}

func (m manyTags) Tags(_ contextType, _, after string, limit int) ([]string, error) {
	all := m.all()
	from, _ := slices.BinarySearch(all, after+"\x00")
	return all[from:min(len(all), from+limit)], nil
}
