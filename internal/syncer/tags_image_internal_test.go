package syncer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// TestSettledEntryIsForgotten: the store settles an entry that is tried no more where the parent has it all the same, and
// tells nobody. What the parent says of the tag after that counts.
func TestSettledEntryIsForgotten(t *testing.T) {
	s := newTwoSides(t)
	s.add(registry.OutboxEntry{Action: registry.OutboxPush, Tag: "a", Digest: "d1", State: registry.OutboxExpired})
	s.here["a"] = "d1"
	s.put("a", "d1")
	for s.next(t.Context()); len(s.lists) > 0; {
		s.next(t.Context())
	}
	if len(s.entries) > 0 {
		t.Fatal("the entry is not settled")
	}
	s.put("a", "d2")
	s.ends(t.Context(), []string{"a"})
}

// TestLateAnswerSettlesNothing: what a client was given before a push came from here says nothing of where the push stands
// at the parent, though it is of the same image.
func TestLateAnswerSettlesNothing(t *testing.T) {
	s, ctx := newTwoSides(t), t.Context()
	s.put("a", "d1")
	s.pull(ctx, "a")
	s.pull(ctx, "a")
	s.put("a", "")
	s.add(registry.OutboxEntry{Action: registry.OutboxPush, Tag: "a", Digest: "d1", State: registry.OutboxExpired})
	s.here["a"] = "d1"
	s.pull(ctx, "a")
	if len(s.entries) == 0 {
		t.Error("the push was settled")
	}
	s.ends(ctx, []string{"a"})
}

// TestTagsOfOneImage: of the tags of an image each moves or stays by what is known of it, and the image is kept by its
// digest where one stays because a newer image is on its way. Where the parent's word is old for all of them it is not taken.
func TestTagsOfOneImage(t *testing.T) {
	for _, tt := range []struct {
		tags  []string
		moved []string // nil: nothing is committed
		loose bool
		kept  []string // what stays, and the parent is asked anew
	}{
		{tags: []string{"free"}, moved: []string{"free"}},
		{tags: []string{"given"}, moved: []string{}, loose: true},
		{tags: []string{"given", "free"}, moved: []string{"free"}, loose: true},
		{tags: []string{"old"}, kept: []string{"old"}},
		{tags: []string{"free", "old"}, moved: []string{"free"}, kept: []string{"old"}},
		{tags: []string{"given", "free", "old"}, moved: []string{"free"}, loose: true, kept: []string{"old"}},
	} {
		asked := 0
		tags := newTags(newTwoSides(t), func(context.Context) error { asked++; return nil })
		w := word{mark: tags.mark()}
		tags.mu.Lock()
		tags.supersede(keys("r", "old", ""))
		tags.mu.Unlock()
		tags.give("r", "given", givenTag{digest: "newer"})
		var moved []string
		loose := false
		image := registry.Image{Repository: "r", Manifests: []registry.Manifest{{Descriptor: registry.Descriptor{Digest: "d"}}}, Tags: tt.tags}
		kept, err := tags.carryOut(t.Context(), image, w, func(_ context.Context, image registry.Image) ([]string, error) {
			moved, loose = append([]string{}, image.Tags...), image.Loose
			return nil, nil
		})
		if err != nil || !slices.Equal(kept, tt.kept) || !slices.Equal(moved, tt.moved) || (moved == nil) != (tt.moved == nil) ||
			loose != tt.loose || asked != len(tt.kept) {
			t.Errorf("%v: moved %v, loose %v, kept %v, asked anew %d times, %v", tt.tags, moved, loose, kept, asked, err)
		}
	}
}

// TestListWaitsForTheAnswer: while the parent is asked of a tag for a client, a list's word of it waits, and the client's
// does not; who waits goes when its time is over.
func TestListWaitsForTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tags := newTags(newTwoSides(t), func(context.Context) error { return nil })
		carry := func(ctx context.Context, w word) (moved []string, err error) {
			image := registry.Image{Repository: "r", Manifests: []registry.Manifest{{Descriptor: registry.Descriptor{Digest: "d"}}}, Tags: []string{"a"}}
			_, err = tags.carryOut(ctx, image, w, func(_ context.Context, image registry.Image) ([]string, error) {
				moved = image.Tags
				return nil, nil
			})
			return moved, err
		}
		answered := tags.asking("r", "a")
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if moved, err := carry(short, word{}); !errors.Is(err, context.DeadlineExceeded) || moved != nil {
			t.Errorf("beside the question: %v, %v", moved, err)
		}
		done := make(chan string)
		go func() {
			moved, err := carry(t.Context(), word{})
			done <- fmt.Sprint(moved, err)
		}()
		synctest.Wait()
		select {
		case got := <-done:
			t.Fatalf("a list did not wait: %s", got)
		default:
		}
		tags.give("r", "a", givenTag{digest: "d"})
		if moved, err := carry(t.Context(), word{mark: tags.mark(), client: true}); err != nil || !slices.Equal(moved, []string{"a"}) {
			t.Errorf("for the client: %v, %v", moved, err)
		}
		answered()
		if got := <-done; got != "[] <nil>" { // it is of before the client's
			t.Errorf("the list, then: %s", got)
		}
		if moved, err := carry(t.Context(), word{mark: tags.mark()}); err != nil || !slices.Equal(moved, []string{"a"}) {
			t.Errorf("the next list: %v, %v", moved, err)
		}
	})
}

// TestForgottenIsOld: of what is not remembered any more nobody knows whether it went before the parent said something.
func TestForgottenIsOld(t *testing.T) {
	asked := 0
	tags := newTags(newTwoSides(t), func(context.Context) error { asked++; return nil })
	w := word{mark: tags.mark()}
	tags.mu.Lock()
	tags.supersede(keys("r", "a", ""))
	for i := range maxKnown {
		tags.supersede(keys("r", fmt.Sprint(i), ""))
	}
	if len(tags.last) > maxKnown {
		t.Errorf("%d are remembered", len(tags.last))
	}
	tags.mu.Unlock()
	untag := func(w word) (gone []string) {
		if err := tags.takeAway(t.Context(), "r", []string{"a"}, w, func(may []string) error { gone = may; return nil }); err != nil {
			t.Fatal(err)
		}
		return gone
	}
	if gone := untag(w); gone != nil || asked != 1 {
		t.Errorf("by an old word %v goes, asked anew %d times", gone, asked)
	}
	if gone := untag(word{mark: tags.mark()}); !slices.Equal(gone, []string{"a"}) || asked != 1 {
		t.Errorf("by a new word %v goes, asked anew %d times", gone, asked)
	}
}

// TestQueueStandsBeforeTheList: what entries will change at the parent is taken out of its list, but for what stands here as
// it does there, and the parent is asked anew when they leave.
func TestQueueStandsBeforeTheList(t *testing.T) {
	for _, e := range []registry.OutboxEntry{
		{Action: registry.OutboxDelete, Digest: "deleted", Tags: []string{"tagged"}},
		{Action: registry.OutboxPush, Tag: "pushed", Digest: "d1"},
		{Action: registry.OutboxUntag, Tag: "untagged"},
	} {
		s, ctx := newTwoSides(t), t.Context()
		s.add(e)
		list := func(here registry.Digest) (taken []string) {
			l := newListing()
			l.mark = s.mark()
			for tag, d := range map[string]registry.Digest{"tagged": "d2", "other": "deleted", "pushed": "d2", "untagged": "d2", "free": "d2"} {
				l.add("r", tag, d)
			}
			l.referrers = []registry.Change{{Repository: "r", Subject: "d2", Digest: "deleted"}, {Repository: "r", Subject: "d2", Digest: "free"}}
			l.gone["r"] = []string{"free", "pushed"}
			local := map[string][]registry.LocalTag{}
			for tag := range l.tags["r"] {
				local["r"] = append(local["r"], registry.LocalTag{Tag: tag, Digest: here})
			}
			if err := s.hear(ctx, &l, local); err != nil {
				t.Fatal(err)
			}
			for _, tag := range []string{"tagged", "other", "pushed", "untagged", "free"} {
				if _, ok := l.tags["r"][tag]; !ok {
					taken = append(taken, tag)
				}
			}
			for _, c := range []registry.Digest{"deleted", "free"} {
				if !slices.ContainsFunc(l.referrers, func(r registry.Change) bool { return r.Digest == c }) {
					taken = append(taken, "referrer "+string(c))
				}
			}
			for _, tag := range []string{"free", "pushed"} {
				if !slices.Contains(l.gone["r"], tag) {
					taken = append(taken, "gone "+tag)
				}
			}
			return taken
		}
		want := map[registry.OutboxAction][]string{
			registry.OutboxDelete: {"tagged", "other", "referrer deleted"}, registry.OutboxPush: {"pushed", "gone pushed"}, registry.OutboxUntag: {"untagged"},
		}[e.Action]
		if got := list("d1"); !slices.Equal(got, want) {
			t.Errorf("%s: %v are taken out, want %v", e.Action, got, want)
		}
		if got := list("d2"); slices.Contains(got, "pushed") || slices.Contains(got, "tagged") || slices.Contains(got, "untagged") {
			t.Errorf("%s: %v are taken out where they stand here as there", e.Action, got)
		}
		passed, err := s.leave(ctx, s.entries[0], func(context.Context, uint64) error { s.entries = nil; return nil })
		if err != nil || !passed {
			t.Errorf("%s: the parent is not asked anew when it leaves: %v", e.Action, err)
		}
		if got := list("d1"); got != nil {
			t.Errorf("%s: %v are taken out after it left", e.Action, got)
		}
	}
}

// TestListAndClientDisagree: where a list says otherwise of a tag than a client was given, the parent is asked once more, and
// its answer counts.
func TestListAndClientDisagree(t *testing.T) {
	lists := func(d registry.Digest) listing {
		l := newListing()
		l.add("r", "other", "d9")
		if d != "" {
			l.add("r", "a", d)
		}
		return l
	}
	for _, tt := range []struct {
		said, now registry.Digest
		dispute   bool
		gave      registry.Digest // afterwards
		later     registry.Digest // where the tag stands by the list, afterwards
	}{
		{said: "given", gave: "given", later: "given"},
		{said: "", gave: "given", later: "given"},
		{said: "listed", dispute: true, now: "given", gave: "given", later: ""},
		{said: "listed", dispute: true, now: "listed", later: "listed"},
		{said: "listed", dispute: true, now: "", later: "listed"},
		{said: "listed", dispute: true, now: "third", later: "asked anew"},
		{said: "listed", dispute: true, now: saysGone, later: "asked anew"},
	} {
		var later registry.Digest
		tags := newTags(newTwoSides(t), func(context.Context) error { later = "asked anew"; return nil })
		tags.give("r", "a", givenTag{digest: "given", until: time.Unix(1, 0)})
		w := word{mark: tags.mark()}
		found := tags.disputes(lists(tt.said))
		if len(found) > 0 != tt.dispute {
			t.Errorf("%+v: %v", tt, found)
			continue
		}
		for _, x := range found {
			tags.settle(x, tt.now)
		}
		if got := tags.gave("r", "a", time.Unix(0, 0)); got != tt.gave || tags.gave("r", "a", time.Unix(2, 0)) != "" {
			t.Errorf("%+v: clients are given %q", tt, got)
		}
		image := registry.Image{Repository: "r", Tags: []string{"a"}, Manifests: []registry.Manifest{{Descriptor: registry.Descriptor{Digest: cmp.Or(tt.said, "given")}}}}
		_, err := tags.carryOut(t.Context(), image, w, func(_ context.Context, image registry.Image) ([]string, error) {
			if len(image.Tags) > 0 {
				later = image.Root().Digest
			}
			return nil, nil
		})
		if err != nil || later != tt.later {
			t.Errorf("%+v: by the list %q, %v", tt, later, err)
		}
	}

	tags := newTags(newTwoSides(t), nil)
	defer tags.asking("r", "a")()
	for _, tt := range []struct {
		said registry.Digest
		want bool
	}{{"", true}, {"d1", true}, {"d2", false}, {"", true}} {
		tags.disputes(lists(tt.said))
		if got := tags.agrees("r", "a", "d1"); got != tt.want {
			t.Errorf("while it is asked, a list says %q: agrees %v", tt.said, got)
		}
	}
}
