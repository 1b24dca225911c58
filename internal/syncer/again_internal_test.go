package syncer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// answers is a parent that knows where tags stand and which repositories there are.
type answers struct {
	Parent
	tags    map[string]any // repo:tag -> digest, or an error
	catalog []string
	err     error // of the catalog, and of who it is
	asked   []string
}

func (a *answers) ResolveManifest(_ context.Context, repo string, ref registry.Reference) (registry.Descriptor, error) {
	a.asked = append(a.asked, repo+":"+ref.Tag)
	switch x := a.tags[repo+":"+ref.Tag].(type) {
	case string:
		return registry.Descriptor{Digest: registry.Digest(x)}, nil
	case error:
		return registry.Descriptor{}, x
	}
	return registry.Descriptor{}, registry.ErrManifestUnknown
}

func (a *answers) Repositories(context.Context, string, int) ([]string, error) {
	return a.catalog, a.err
}

func (a *answers) Probe(context.Context) (registry.ParentStatus, registry.LayerInfo, error) {
	return registry.ParentStatus{}, registry.LayerInfo{}, a.err
}

// oneTag is a store with the repository app.
type oneTag struct{ Store }

func (oneTag) TagStates(_ context.Context, repo string) ([]registry.LocalTag, error) {
	if repo != "app" {
		return nil, nil
	}
	return []registry.LocalTag{{Tag: "v1"}}, nil
}

// TestFailedIsTriedAgain: what failed is asked for again when it is due, or when somebody asks for all, unless the list has it
// or it is gone or out of scope, which ends it. A question that fails for the tag alone keeps no other.
func TestFailedIsTriedAgain(t *testing.T) {
	for _, all := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := New(t.Context(), nil, Options{Rand: func() float64 { return 1 }})
			fail := func(repo, tag string) {
				s.note(registry.Change{Repository: repo, Tag: tag, Digest: "old"}, registry.ErrManifestInvalid)
			}
			refer := func(repo string, d registry.Digest) {
				s.note(registry.Change{Repository: repo, Digest: d, Subject: "image"}, registry.ErrManifestInvalid)
			}
			for _, tag := range []string{"moved", "went", "fails", "listed", "untagged"} {
				fail("app", tag)
			}
			fail("other", "v1")
			fail("whole", "v1")
			fail("whole", "v2")
			refer("app", "signature")
			refer("other", "signature")
			time.Sleep(retryFirst)
			fail("app", "rests")
			refer("app", "rests")
			parent := &answers{tags: map[string]any{
				"app:moved": "new", "app:rests": "old", "app:fails": registry.ErrManifestInvalid, "app:untagged": "old", "whole:v1": "old",
			}}
			set := Settings{Parent: parent, Scope: registry.Scope{{Repository: "app"}, {Repository: "whole"}}}
			l := newListing()
			l.add("app", "listed", "new")
			l.gone["app"] = []string{"untagged"}
			l.complete["whole"] = true
			l.add("whole", "v2", "new")
			if err := s.again(t.Context(), set, &l, all); err != nil {
				t.Fatal(err)
			}
			asked, refers := []string{"app:fails", "app:moved", "app:went"}, []string{"app@signature"}
			tags := map[string]registry.Digest{"listed": "new", "moved": "new"}
			if all {
				asked, refers = []string{"app:fails", "app:moved", "app:rests", "app:went"}, []string{"app@rests", "app@signature"}
				tags["rests"] = "old"
			}
			var got []string
			for _, c := range l.referrers {
				got = append(got, retryKey(c))
			}
			if !slices.Equal(parent.asked, asked) || !slices.Equal(got, refers) || !maps.Equal(l.tags["app"], tags) ||
				!slices.Equal(l.gone["app"], []string{"untagged", "went"}) {
				t.Errorf("all %v: asked for %v, referrers %v, tags %v, gone %v", all, parent.asked, got, l.tags, l.gone)
			}
			left := []string{"app:fails", "app:listed", "app:moved", "app:rests", "app@rests", "app@signature", "whole:v2"}
			if got := slices.Sorted(maps.Keys(s.retries)); !slices.Equal(got, left) {
				t.Errorf("all %v: %v are still to be tried, want %v", all, got, left)
			}
			if n := s.retries["app:fails"].attempts; n != 2 {
				t.Errorf("all %v: the one that failed again counts %d attempts", all, n)
			}
			parent.err, parent.tags["app:moved"] = registry.ErrUnavailable, registry.ErrUnavailable
			l = newListing()
			if err := s.again(t.Context(), set, &l, true); !errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("all %v: with the parent away: %v", all, err)
			}
		})
	}
}

// TestPauseBeforeTheNextTry: it doubles from half a minute to a quarter of an hour, begins anew with another image, and is as
// long as the parent asks for at least; the next try of all is the earliest.
func TestPauseBeforeTheNextTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(t.Context(), nil, Options{Rand: func() float64 { return 1 }})
		next := func(want time.Duration, when string) {
			t.Helper()
			if got, ok := s.nextRetry(time.Now()); !ok || got != want {
				t.Errorf("%s: in %v, want %v", when, got, want)
			}
		}
		if _, ok := s.nextRetry(time.Now()); ok {
			t.Error("nothing failed, and it is tried again")
		}
		v1 := registry.Change{Repository: "app", Tag: "v1", Digest: "d1"}
		for _, want := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 15 * time.Minute, 15 * time.Minute} {
			s.note(v1, registry.ErrManifestInvalid)
			next(want, "v1")
		}
		v1.Digest = "d2"
		s.note(v1, registry.ErrUnavailable.WithRetryAfter(time.Hour))
		next(time.Hour, "another image, and an hour asked for")
		v1.Digest = "d3"
		s.note(v1, registry.ErrManifestInvalid)
		next(retryFirst, "one more image")
		for i := range 20 {
			s.note(registry.Change{Repository: "app", Tag: fmt.Sprint("w", i), Digest: "d"}, registry.ErrManifestInvalid)
			next(30*time.Second, "the earliest")
		}
		if err := s.failedTags(); err == nil || !strings.Contains(err.Error(), "21 tags or referrers failed, the first is app:v1") {
			t.Errorf("it is said: %v", err)
		}
		w := want{repo: "app", digest: "d3", tags: []string{"v1"}}
		other := w
		other.digest = "d2"
		both := w
		both.tags = []string{"v1", "v2"}
		if !s.resting(w) || s.resting(other) || s.resting(both) {
			t.Error("what failed a moment ago does not rest, or what did not fail does")
		}
		s.o.Rand = func() float64 { return 0 }
		s.note(registry.Change{Repository: "app", Tag: "x", Digest: "d"}, registry.ErrManifestInvalid)
		next(15*time.Second, "with jitter")
	})
}

// TestRepositoryIsGone: only a catalog that has others and not this one says so.
func TestRepositoryIsGone(t *testing.T) {
	for _, tt := range []struct {
		repo    string
		catalog []string
		err     error
		want    bool
	}{
		{"app", []string{"other"}, nil, true},
		{"app", []string{"app", "other"}, nil, false},
		{"app", nil, nil, false},
		{"app", []string{"other"}, errors.New("half of it"), false},
		{"not-here", []string{"other"}, nil, false},
	} {
		a := &answers{catalog: tt.catalog, err: tt.err}
		if got := New(t.Context(), oneTag{}, Options{}).gone(t.Context(), Settings{Parent: a}, tt.repo); got != tt.want {
			t.Errorf("%s beside %v, %v: %v", tt.repo, tt.catalog, tt.err, got)
		}
	}
}

// TestWantedPlatforms: a rule without a variant takes all of them, attestations come along, and a child of an unknown platform too.
func TestWantedPlatforms(t *testing.T) {
	for _, tt := range []struct {
		os, arch, variant string
		want              bool
	}{
		{"linux", "arm64", "", true},
		{"linux", "arm64", "v8", true},
		{"linux", "arm", "v7", true},
		{"linux", "arm", "v6", false},
		{"linux", "arm", "", false},
		{"linux", "amd64", "", false},
		{"windows", "arm64", "", false},
		{"plan9", "386", "", false},
		{"unknown", "unknown", "", true},
	} {
		d := registry.Descriptor{Platform: &registry.Platform{OS: tt.os, Architecture: tt.arch, Variant: tt.variant}}
		if got := wantPlatforms([]string{"linux/arm64", "linux/arm/v7", "plan9"})(d); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
		if !wantPlatforms(nil)(d) {
			t.Errorf("%+v is left out where all are taken", tt)
		}
	}
	if !wantPlatforms([]string{"linux/arm64"})(registry.Descriptor{}) {
		t.Error("a child without a platform is left out")
	}
}
