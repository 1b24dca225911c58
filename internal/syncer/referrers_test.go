package syncer_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/store"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// TestLateReferrers signs what is here already, at parents that do not tell of it. The signature, and the one of it, come
// with the next iteration of the hour; an image that nobody signs is asked of less and less.
func TestLateReferrers(t *testing.T) {
	for _, kind := range []registry.ParentKind{registry.KindOCI, registry.KindACR} {
		dir := t.TempDir()
		t.Run(string(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newParent()
				p.kind = kind
				img := registrytest.NewImage(1, 100)
				push(t, p, "app", "v1", img)
				set := settings(t, p, "app")
				set.Schedule = every(t, "0 * * * *")
				set.Schedule.Window = time.Minute
				r, stop := newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
				defer stop()
				time.Sleep(90 * time.Minute)
				mustHave(t, r.store, "app", "v1", img)
				signature := registrytest.NewReferrer(2, img.Descriptor, "application/vnd.example.signature")
				push(t, p, "app", "", registrytest.NewReferrer(3, signature.Descriptor, "application/vnd.example.timestamp"))
				push(t, p, "app", "", signature)
				time.Sleep(2 * time.Hour)
				for _, subject := range []registry.Digest{img.Digest, signature.Digest} {
					list, err := r.store.Referrers(t.Context(), "app", subject, "")
					if err != nil || len(list) != 1 {
						t.Errorf("%d referrers of %s, %v", len(list), subject, err)
					}
				}
				time.Sleep(10 * 24 * time.Hour)
				before := p.count("referrers app")
				time.Sleep(10 * 24 * time.Hour)
				if n := p.count("referrers app") - before; n < 27 || n > 33 {
					t.Errorf("%d questions for referrers in ten days, want one a day for the image, its signature and that one's", n)
				}
			})
		})
	}
}

// TestLateReferrersThatFail: a parent that cannot list the referrers of one image keeps nothing else from coming, says so
// in the state, and is asked again.
func TestLateReferrersThatFail(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		img := registrytest.NewImage(1, 100)
		push(t, p, "app", "v1", img)
		set := settings(t, p, "app")
		set.Schedule = every(t, "0 * * * *")
		set.Schedule.Window = time.Minute
		r, stop := newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
		defer stop()
		time.Sleep(90 * time.Minute)
		push(t, p, "app", "", registrytest.NewReferrer(2, img.Descriptor, "application/vnd.example.signature"))
		p.set(func(p *parent) { p.broken = map[string]error{"referrers app": registry.ErrDenied} })
		time.Sleep(2 * time.Hour)
		var st registry.Status
		if r.Describe(&st); st.Sync.SyncState != registry.SyncFailed {
			t.Errorf("the state is %s: %s", st.Sync.SyncState, st.Sync.Error)
		}
		p.set(func(p *parent) { p.broken = nil })
		time.Sleep(6 * time.Hour)
		list, err := r.store.Referrers(t.Context(), "app", img.Digest, "")
		if err != nil || len(list) != 1 {
			t.Errorf("%d referrers, %v", len(list), err)
		}
	})
}

// TestReferrersBelowAnIndex signs one platform of an index that is here already, and the signature.
func TestReferrersBelowAnIndex(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		amd, arm := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)
		index := registrytest.NewIndex(amd, arm)
		push(t, p, "app", "v1", index)
		set := settings(t, p, "app")
		set.Schedule = every(t, "0 * * * *")
		set.Schedule.Window = time.Minute
		r, stop := newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
		defer stop()
		time.Sleep(90 * time.Minute)
		mustHave(t, r.store, "app", "v1", index)
		signature := registrytest.NewReferrer(3, arm.Descriptor, "application/vnd.example.signature")
		push(t, p, "app", "", signature)
		time.Sleep(2 * time.Hour)
		mustHaveReferrers(t, r.store, "app", arm.Digest, 1)
		push(t, p, "app", "", registrytest.NewReferrer(4, signature.Descriptor, "application/vnd.example.timestamp"))
		time.Sleep(3 * time.Hour)
		mustHaveReferrers(t, r.store, "app", signature.Digest, 1)
	})
}

// TestReferrersThatWent deletes a signature at the parent: it goes here with the next iteration that somebody asks for,
// and by itself within a day. What the parent has and does not list stays, and so does everything in a ReadWrite
// registry.
func TestReferrersThatWent(t *testing.T) {
	for _, mode := range []registry.Mode{registry.ReadOnly, registry.ReadWrite} {
		dir := t.TempDir()
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newParent()
				img := registrytest.NewImage(1, 100)
				push(t, p, "app", "v1", img)
				signature := registrytest.NewReferrer(2, img.Descriptor, "application/vnd.example.signature")
				timestamp := registrytest.NewReferrer(3, signature.Descriptor, "application/vnd.example.timestamp")
				bill := registrytest.NewReferrer(4, img.Descriptor, "application/vnd.example.sbom")
				for _, referrer := range []registrytest.Image{signature, timestamp, bill} {
					push(t, p, "app", "", referrer)
				}
				set := settings(t, p, "app")
				set.Mode = mode
				set.Schedule = every(t, "0 * * * *")
				set.Schedule.Window = time.Minute
				r, stop := newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
				defer stop()
				time.Sleep(90 * time.Minute)
				mustHaveReferrers(t, r.store, "app", img.Digest, 2)
				want := func(n int) int {
					if mode == registry.ReadWrite {
						return 2
					}
					return n
				}
				remove := func(d registry.Digest) {
					t.Helper()
					if err := p.Registry.DeleteManifest(t.Context(), "app", d); err != nil {
						t.Fatal(err)
					}
				}
				p.set(func(p *parent) { p.unlisted = map[registry.Digest]bool{bill.Digest: true} })
				if err := r.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				mustHaveReferrers(t, r.store, "app", img.Digest, 2)
				remove(signature.Digest)
				if err := r.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				mustHaveReferrers(t, r.store, "app", img.Digest, want(1))
				if mode == registry.ReadOnly {
					mustHaveReferrers(t, r.store, "app", signature.Digest, 0)
				}
				remove(bill.Digest)
				time.Sleep(25 * time.Hour)
				mustHaveReferrers(t, r.store, "app", img.Digest, want(0))
			})
		})
	}
}

// TestReferrerOfOneThatGoes deletes a signature at a parent that still lists what refers to it, and answers for it last:
// the signature has gone here by then, and nothing of it comes again.
func TestReferrerOfOneThatGoes(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		img := registrytest.NewImage(1, 100)
		push(t, p, "app", "v1", img)
		signature := registrytest.NewReferrer(2, img.Descriptor, "application/vnd.example.signature")
		timestamp := registrytest.NewReferrer(3, signature.Descriptor, "application/vnd.example.timestamp")
		push(t, p, "app", "", signature)
		push(t, p, "app", "", timestamp)
		set := settings(t, p, "app")
		set.Schedule = every(t, "0 * * * *")
		r, stop := newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
		defer stop()
		time.Sleep(90 * time.Minute)
		mustHaveReferrers(t, r.store, "app", signature.Digest, 1)
		p.set(func(p *parent) {
			p.slow = map[registry.Digest]time.Duration{img.Digest: time.Second, signature.Digest: 2 * time.Second}
		})
		if err := p.Registry.DeleteManifest(t.Context(), "app", signature.Digest); err != nil {
			t.Fatal(err)
		}
		if err := r.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustHaveReferrers(t, r.store, "app", img.Digest, 0)
		mustHaveReferrers(t, r.store, "app", signature.Digest, 0)
	})
}

func mustHaveReferrers(t *testing.T, s *store.Store, repo string, subject registry.Digest, want int) {
	t.Helper()
	list, err := s.Referrers(t.Context(), repo, subject, "")
	if err != nil || len(list) != want {
		t.Errorf("%d referrers of %s, %v, want %d", len(list), subject, err, want)
	}
}
