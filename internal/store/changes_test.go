package store

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// child is what somebody knows who follows the changes.
type child struct {
	cursor    string
	tags      map[string]registry.Digest
	referrers map[string]bool
}

// follow asks until there is no more, and reports the entries and whether the answer was of everything.
func (c *child) follow(t *testing.T, s *Store, limit int, match func(string) bool) (entries int, full bool) {
	t.Helper()
	if c.tags == nil {
		c.tags, c.referrers = map[string]registry.Digest{}, map[string]bool{}
	}
	for pages := 0; ; pages++ {
		if pages > 1000 {
			t.Fatal("the answers have no end")
		}
		out, err := s.Changes(t.Context(), c.cursor, limit, match)
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Entries) > limit {
			t.Fatalf("%d entries, at most %d were asked for", len(out.Entries), limit)
		}
		if out.Full && !full {
			clear(c.tags)
			clear(c.referrers)
		}
		full = full || out.Full
		for _, e := range out.Entries {
			entries++
			switch key := e.Repository + ":" + e.Tag; {
			case e.Gone:
				delete(c.referrers, e.Repository+"@"+e.Subject.String()+"<"+e.Digest.String())
			case e.Subject != "":
				c.referrers[e.Repository+"@"+e.Subject.String()+"<"+e.Digest.String()] = true
			case e.Digest == "":
				delete(c.tags, key)
			default:
				c.tags[key] = e.Digest
			}
		}
		c.cursor = out.Cursor
		if !out.More {
			return entries, full
		}
	}
}

// truth reads all tags.
func truth(t *testing.T, s *Store) map[string]registry.Digest {
	t.Helper()
	all := map[string]registry.Digest{}
	repos, err := s.Repositories(t.Context(), "", registry.MaxPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, repo := range repos {
		for tag, state := range states(t, s, repo) {
			all[repo+":"+tag] = state.Digest
		}
	}
	return all
}

func TestChanges(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	one, two := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)
	var c child
	check := func(what string, wantEntries int, wantFull bool) {
		t.Helper()
		entries, full := c.follow(t, s, 2, nil)
		if entries != wantEntries || full != wantFull {
			t.Errorf("%s: %d entries, full %v; want %d, %v", what, entries, full, wantEntries, wantFull)
		}
		if want := truth(t, s); !maps.Equal(c.tags, want) {
			t.Errorf("%s: %v, want %v", what, c.tags, want)
		}
	}
	push := func(tag string, image registrytest.Image) {
		t.Helper()
		if err := registrytest.Push(t.Context(), s, testRepo, tag, image); err != nil {
			t.Fatal(err)
		}
	}
	check("of nothing", 0, true)
	for i := range 5 {
		push(fmt.Sprintf("t%d", i), one)
	}
	check("new tags", 5, false)
	before := c.cursor
	check("nothing", 0, false)
	if c.cursor != before {
		t.Errorf("the cursor moved from %s to %s without a change", before, c.cursor)
	}
	push("t1", two)
	push("t1", two)
	push("t2", two)
	push("t2", one)
	check("moved twice is told once", 2, false)
	if err := s.DeleteTag(t.Context(), testRepo, "t3"); err != nil {
		t.Fatal(err)
	}
	check("a tag went", 1, false)
	if err := s.DeleteTag(t.Context(), testRepo, "t4"); err != nil {
		t.Fatal(err)
	}
	push("t4", two)
	check("a tag went and came", 1, false)
	signature := registrytest.NewReferrer(9, one.Descriptor, "application/vnd.example")
	remove := func(d registry.Digest) {
		t.Helper()
		if err := s.DeleteManifest(t.Context(), testRepo, d); err != nil {
			t.Fatal(err)
		}
	}
	referrers := func(what string, entries, want int) {
		t.Helper()
		if check(what, entries, false); len(c.referrers) != want {
			t.Errorf("%s: referrers %v, want %d", what, c.referrers, want)
		}
	}
	push("", signature)
	referrers("a referrer came", 1, 1)
	remove(signature.Digest)
	referrers("a referrer went", 1, 0)
	push("", signature)
	remove(signature.Digest)
	push("", signature)
	referrers("a referrer came, went and came", 1, 1)
	if err := s.DeleteManifest(t.Context(), testRepo, two.Digest); err != nil {
		t.Fatal(err)
	}
	check("a manifest took its tags with it", 2, false)

	var late child
	if n, full := late.follow(t, s, 2, nil); !full || n != len(truth(t, s))+1 {
		t.Errorf("from the start: %d entries, full %v; want no tombstones", n, full)
	}
	for name, cursor := range map[string]string{
		"another instance": strings.Repeat("0", 32) + ".3", "nonsense": "x", "no number": s.InstanceID() + ".x",
		"the future": s.InstanceID() + ".999999", "negative": s.InstanceID() + ".-1", "three": s.InstanceID() + ".1.2.3",
	} {
		c := child{cursor: cursor}
		if _, full := c.follow(t, s, 100, nil); !full || !maps.Equal(c.tags, truth(t, s)) {
			t.Errorf("cursor of %s: full %v, %v", name, full, c.tags)
		}
	}
}

func TestChangesMatch(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	image := registrytest.NewImage(1, 100)
	for i := range 20 {
		if err := registrytest.Push(t.Context(), s, fmt.Sprintf("r%d", i%4), fmt.Sprintf("t%d", i), image); err != nil {
			t.Fatal(err)
		}
	}
	var c child
	if n, _ := c.follow(t, s, 3, func(repo string) bool { return repo == "r1" }); n != 5 {
		t.Errorf("%d entries, want 5", n)
	}
	for key := range c.tags {
		if !strings.HasPrefix(key, "r1:") {
			t.Errorf("told of %s", key)
		}
	}
}

// TestChangesDuringFull moves and removes tags between the pages of an answer of everything.
func TestChangesDuringFull(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	one, two := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)
	for i := range 10 {
		if err := registrytest.Push(t.Context(), s, testRepo, fmt.Sprintf("t%d", i), one); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]registry.Digest{}
	cursor := ""
	for page := 0; ; page++ {
		out, err := s.Changes(t.Context(), cursor, 3, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !out.Full {
			t.Errorf("page %d is not marked as part of everything", page)
		}
		for _, e := range out.Entries {
			got[e.Repository+":"+e.Tag] = e.Digest
			if e.Digest == "" {
				delete(got, e.Repository+":"+e.Tag)
			}
		}
		if cursor = out.Cursor; !out.More {
			break
		}
		if page == 0 {
			if err := s.DeleteTag(t.Context(), testRepo, "t0"); err != nil {
				t.Fatal(err)
			}
			if err := registrytest.Push(t.Context(), s, testRepo, "t1", two); err != nil {
				t.Fatal(err)
			}
		}
	}
	if want := truth(t, s); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestTombstonesAreDropped(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	image := registrytest.NewImage(1, 100)
	if err := registrytest.Push(t.Context(), s, testRepo, "kept", image); err != nil {
		t.Fatal(err)
	}
	var before child
	before.follow(t, s, 10, nil)
	for i := range 6 {
		if err := registrytest.Push(t.Context(), s, testRepo, fmt.Sprint(i), image); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteTag(t.Context(), testRepo, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	var after child
	after.follow(t, s, 10, nil)
	if err := s.update(t.Context(), func(t *tx) error { return t.dropTombstones(2) }); err != nil {
		t.Fatal(err)
	}
	if _, full := before.follow(t, s, 10, nil); !full {
		t.Error("a cursor below the floor was answered with a part")
	}
	if n, full := after.follow(t, s, 10, nil); full || n != 0 {
		t.Errorf("a cursor above the floor: %d entries, full %v", n, full)
	}
}

func TestChanged(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	closed := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	image := registrytest.NewImage(1, 100)
	ch := s.Changed()
	for _, b := range image.Blobs {
		if err := registrytest.PushBlob(t.Context(), s, testRepo, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutDocument(t.Context(), "x", []byte("y")); err != nil || closed(ch) {
		t.Errorf("closed without a change of content, %v", err)
	}
	for i := range 3 {
		ch := s.Changed()
		if _, err := s.PutManifest(t.Context(), testRepo, registry.TagReference("latest"), image.Manifest); err != nil {
			t.Fatal(err)
		}
		if closed(ch) != (i == 0) {
			t.Errorf("put %d: closed %v", i, closed(ch))
		}
	}
}
