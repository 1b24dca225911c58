package syncer_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// byTime makes p an Azure Container Registry whose tags were updated at the times given.
func byTime(p *parent, updated map[string]time.Time) {
	p.kind = registry.KindACR
	p.recent = func(repo string, since time.Time) ([]registry.TagInfo, registry.RepositoryInfo, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		var list []registry.TagInfo
		for tag, at := range updated {
			d, err := p.Registry.ResolveManifest(context.Background(), repo, registry.TagReference(tag))
			if err == nil && !at.Before(since) {
				list = append(list, registry.TagInfo{Name: tag, Digest: d.Digest, Updated: at})
			}
		}
		slices.SortFunc(list, func(a, b registry.TagInfo) int { return b.Updated.Compare(a.Updated) })
		return list, registry.RepositoryInfo{Tags: len(updated), Manifests: p.manifests}, nil
	}
}

// TestTagsByTime follows an Azure Container Registry by its list in order of time: one question for a repository in which
// nothing changed, and none of the tags.
func TestTagsByTime(t *testing.T) {
	p := newParent()
	img, moved := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)
	updated := map[string]time.Time{}
	epoch := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 20 {
		tag := fmt.Sprintf("t%02d", i)
		push(t, p, "app", tag, img)
		updated[tag] = epoch.Add(time.Duration(i) * time.Hour)
	}
	byTime(p, updated)
	set := settings(t, p, "app")
	set.Schedule = every(t, "0 3 1 1 *")
	r, _ := newReplica(t, t.TempDir(), set, syncer.Options{})
	step := func(name string, questions int, f func()) {
		p.set(func(*parent) { f() })
		before := p.count("recent app")
		if err := r.Sync(t.Context()); err != nil {
			t.Fatal(name, err)
		}
		if n := p.count("recent app") - before; questions > 0 && n != questions {
			t.Errorf("%s: %d lists, want %d", name, n, questions)
		}
	}
	step("first", 0 /* and perhaps one at the start */, func() {})
	step("nothing", 1, func() {})
	mustHave(t, r.store, "app", "t07", img)
	push(t, p, "app", "t07", moved)
	push(t, p, "app", "new", moved)
	step("one moved, one new", 1, func() { updated["t07"], updated["new"] = epoch.AddDate(0, 1, 0), epoch.AddDate(0, 1, 0) })
	mustHave(t, r.store, "app", "t07", moved)
	mustHave(t, r.store, "app", "new", moved)
	step("one went", 2, func() { delete(updated, "t03") })
	mustNotHave(t, r.store, "app", "t03")
	for what, n := range p.calls {
		if strings.HasPrefix(what, "head") || strings.HasPrefix(what, "tags") {
			t.Errorf("%s was asked %d times", what, n)
		}
	}
	p.set(func(p *parent) { p.recent = nil }) // the credential may not read metadata any more
	step("no metadata", 1, func() {})
	mustHave(t, r.store, "app", "t08", img)
}

// TestRechecksInTurns syncs more tags than are asked for in one iteration: every one of them is looked at in its turn,
// and new ones at once.
func TestRechecksInTurns(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		img, moved := registrytest.NewImage(1, 10), registrytest.NewImage(2, 10)
		const tags = 2100
		for i := range tags {
			push(t, p, "app", fmt.Sprintf("t%04d", i), img)
		}
		set := settings(t, p, "app")
		set.Schedule = every(t, "0 * * * *")
		time.Sleep(2 * time.Minute) // past the minute in which one is due
		r, stop := newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
		time.Sleep(30 * time.Minute)
		heads := func() (n int) {
			p.mu.Lock()
			defer p.mu.Unlock()
			for what, c := range p.calls {
				if strings.HasPrefix(what, "head") {
					n += c
				}
			}
			return n
		}
		if n := heads(); n != tags {
			t.Fatalf("%d HEADs in the first iteration, want one for each of %d new tags", n, tags)
		}
		for i := range tags {
			push(t, p, "app", fmt.Sprintf("t%04d", i), moved)
		}
		for hour := 1; hour <= 3; hour++ {
			before := heads()
			if hour == 2 {
				push(t, p, "app", "fresh", moved)
			}
			time.Sleep(time.Hour)
			if n := heads() - before; n < 1000 || n > 1001 {
				t.Errorf("hour %d: %d HEADs, want 1000 and the new ones", hour, n)
			}
			if hour == 2 {
				mustHave(t, r.store, "app", "fresh", moved)
			}
		}
		for i := range tags {
			if d, err := r.store.ResolveManifest(t.Context(), "app", registry.TagReference(fmt.Sprintf("t%04d", i))); err != nil || d.Digest != moved.Digest {
				t.Fatalf("t%04d has not followed in three iterations: %s, %v", i, d.Digest, err)
			}
		}
		stop()
	})
}

// TestRepositoryThatWent removes a repository at a parent that answers 404 for it: it goes here when the catalog confirms
// it, and stays when there is no catalog, or an empty one.
func TestRepositoryThatWent(t *testing.T) {
	for name, tc := range map[string]struct {
		others, noCatalog, stays bool
	}{"confirmed": {others: true}, "empty catalog": {stays: true}, "no catalog": {others: true, noCatalog: true, stays: true}} {
		t.Run(name, func(t *testing.T) {
			p := newParent()
			img := registrytest.NewImage(1, 100)
			push(t, p, "app", "v1", img)
			r, _ := newReplica(t, t.TempDir(), settings(t, p, "app"), syncer.Options{})
			if err := r.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.Registry = registrytest.NewMemory()
			if tc.others {
				push(t, p, "other", "v1", img)
			}
			p.set(func(p *parent) { p.noCatalog = tc.noCatalog })
			if err := r.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if tc.stays {
				mustHave(t, r.store, "app", "v1", img)
			} else {
				mustNotHave(t, r.store, "app", "v1")
			}
		})
	}
}

// TestStirredByManifests signs what was here for days below an Azure Container Registry, and deletes the signature again:
// the count of manifests says so in the next iteration, and costs no question of its own.
func TestStirredByManifests(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		img := registrytest.NewImage(1, 100)
		push(t, p, "app", "v1", img)
		byTime(p, map[string]time.Time{"v1": time.Now()})
		p.manifests = 1
		set := settings(t, p, "app")
		set.Schedule = every(t, "0 * * * *")
		set.Schedule.Window = time.Minute
		r, stop := newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
		defer stop()
		time.Sleep(5*24*time.Hour + 90*time.Minute)
		signature := registrytest.NewReferrer(2, img.Descriptor, "application/vnd.example.signature")
		before := p.count("referrers app")
		push(t, p, "app", "", signature)
		p.set(func(p *parent) { p.manifests++ })
		time.Sleep(time.Hour)
		mustHaveReferrers(t, r.store, "app", img.Digest, 1)
		if err := p.Registry.DeleteManifest(t.Context(), "app", signature.Digest); err != nil {
			t.Fatal(err)
		}
		p.set(func(p *parent) { p.manifests-- })
		time.Sleep(time.Hour)
		mustHaveReferrers(t, r.store, "app", img.Digest, 0)
		time.Sleep(3 * time.Hour)
		if n := p.count("referrers app") - before; n > 8 {
			t.Errorf("%d questions for referrers in five iterations of which two had a reason", n)
		}
	})
}
