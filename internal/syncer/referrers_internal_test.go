package syncer

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// noManifests is a store that has none.
type noManifests struct{ Store }

func (noManifests) GetManifest(context.Context, string, registry.Reference) (registry.Manifest, error) {
	return registry.Manifest{}, registry.ErrManifestUnknown
}

func (noManifests) Referrers(context.Context, string, registry.Digest, string) ([]registry.Descriptor, error) {
	return nil, nil
}

// TestSubjectsInTurns has more subjects than one iteration asks of: each has its turn before any has a second one, and
// what is not here any more is forgotten.
func TestSubjectsInTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Syncer{store: noManifests{}, o: Options{Clock: clock.System()}, subjects: map[subject]followed{}}
		set := Settings{Scope: registry.Scope{{Repository: "app"}}}
		l := newListing()
		local := map[string][]registry.LocalTag{}
		const images = 2500
		for i := range images {
			d := registry.Digest(fmt.Sprintf("sha256:%064d", i))
			l.add("app", fmt.Sprint(i), d)
			local["app"] = append(local["app"], registry.LocalTag{Tag: fmt.Sprint(i), Digest: d})
		}
		l.add("app", "moves", "sha256:new")
		local["app"] = append(local["app"],
			registry.LocalTag{Tag: "same", Digest: local["app"][0].Digest},
			registry.LocalTag{Tag: "moves", Digest: "sha256:old"},
			registry.LocalTag{Tag: "pushed", Digest: "sha256:own", Pushed: true})
		asked := map[subject]int{}
		for i, want := range []int{1000, 1000, 500, 0} {
			list := s.dueSubjects(set, l, local, 0)
			if len(list) != want {
				t.Fatalf("iteration %d asks of %d, want %d", i, len(list), want)
			}
			for _, sub := range list {
				asked[sub]++
				s.follow(t.Context(), sub, false)
			}
			time.Sleep(time.Minute)
		}
		if len(asked) != images {
			t.Errorf("%d of %d were asked of", len(asked), images)
		}
		time.Sleep(askAgainLast)
		if n := len(s.dueSubjects(set, l, local, 0)); n != maxAsked {
			t.Errorf("%d are due after a day, want %d", n, maxAsked)
		}
		if s.dueSubjects(set, l, nil, 0); len(s.subjects) != 0 {
			t.Errorf("%d that are not here are kept", len(s.subjects))
		}
	})
}
