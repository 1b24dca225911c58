package syncer

import (
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
