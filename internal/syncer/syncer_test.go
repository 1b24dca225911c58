package syncer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// mustHave checks that the tag stands here with all below it, byte for byte.
func mustHave(t *testing.T, r registry.Reader, repo, tag string, img registrytest.Image) {
	t.Helper()
	if tag != "" {
		m, err := r.GetManifest(t.Context(), repo, registry.TagReference(tag))
		if err != nil {
			t.Fatalf("%s:%s: %v", repo, tag, err)
		}
		if m.Digest != img.Digest || !bytes.Equal(m.Bytes, img.Bytes) {
			t.Fatalf("%s:%s is %s, want %s", repo, tag, m.Digest, img.Digest)
		}
	} else if _, err := r.GetManifest(t.Context(), repo, registry.DigestReference(img.Digest)); err != nil {
		t.Fatalf("%s@%s: %v", repo, img.Digest, err)
	}
	for _, b := range img.Blobs {
		body, err := readAll(t.Context(), r, repo, b.Digest)
		if err != nil || !bytes.Equal(body, b.Bytes) {
			t.Fatalf("%s blob %s: %d bytes of %d, %v", repo, b.Digest, len(body), len(b.Bytes), err)
		}
	}
	for _, c := range img.Children {
		mustHave(t, r, repo, "", c)
	}
}

func mustNotHave(t *testing.T, r registry.Reader, repo, tag string) {
	t.Helper()
	if d, err := r.ResolveManifest(t.Context(), repo, registry.TagReference(tag)); err == nil {
		t.Fatalf("%s:%s is visible as %s", repo, tag, d.Digest)
	}
}

func TestSyncBringsImages(t *testing.T) {
	p := newParent()
	base := registrytest.NewBlob(1, 50_000)
	v1, v2 := registrytest.NewImageOf(1, base, registrytest.NewBlob(2, 1000)), registrytest.NewImageOf(2, base, registrytest.NewBlob(3, 0))
	index := registrytest.NewIndex(registrytest.NewImage(4, 10), registrytest.NewImage(5, 20_000), registrytest.NewImage(6, 30))
	docker := registrytest.NewDockerList(registrytest.NewDockerImage(7, 100), registrytest.NewDockerImage(8, 200))
	push(t, p, "app", "v1", v1)
	push(t, p, "app", "v2", v2)
	push(t, p, "other/app", "v1", registrytest.NewImageOf(9, base))
	push(t, p, "multi", "latest", index)
	push(t, p, "multi", "docker", docker)
	push(t, p, "unwanted", "v1", registrytest.NewImage(10, 10))
	signature := registrytest.NewReferrer(11, index.Descriptor, "application/vnd.example.signature")
	push(t, p, "multi", "", signature)

	r, _ := newReplica(t, t.TempDir(), settings(t, p, "app", "other/*", "multi"), syncer.Options{})
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustHave(t, r.store, "app", "v1", v1)
	mustHave(t, r.store, "app", "v2", v2)
	mustHave(t, r.store, "multi", "latest", index)
	mustHave(t, r.store, "multi", "docker", docker)
	mustHave(t, r.store, "multi", "", signature)
	mustNotHave(t, r.store, "unwanted", "v1")
	if list, err := r.store.Referrers(t.Context(), "multi", index.Digest, ""); err != nil || len(list) != 1 || list[0].Digest != signature.Digest {
		t.Errorf("referrers of the index: %v, %v", list, err)
	}
	if n := p.bytes(base.Digest); n != int64(len(base.Bytes)) {
		t.Errorf("the layer that three images share crossed the link with %d bytes, its size is %d", n, len(base.Bytes))
	}

	var after registry.Status
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Describe(&after)
	if got, want := after.Sync.Requests, int64(1+3+5+10); got > want {
		t.Errorf("an iteration with nothing new made %d requests, want at most %d (a catalog, three lists, five HEADs, ten manifests that may be signed)", got, want)
	}
	if after.Sync.TagsMoved != 0 {
		t.Errorf("an iteration with nothing new moved %d tags", after.Sync.TagsMoved)
	}
}

func TestSyncTakesWantedPlatforms(t *testing.T) {
	p := newParent()
	amd, arm64, arm := registrytest.NewImage(1, 1000), registrytest.NewImage(2, 1000), registrytest.NewImage(3, 1000)
	index := registrytest.NewIndex(amd, arm64, arm)
	push(t, p, "multi", "1", index)
	set := settings(t, p)
	set.PullThrough = false
	set.Scope = registry.Scope{{Repository: "multi", Platform: "linux/arm64"}}
	r, _ := newReplica(t, t.TempDir(), set, syncer.Options{})
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d, err := r.store.ResolveManifest(t.Context(), "multi", registry.TagReference("1")); err != nil || d.Digest != index.Digest {
		t.Fatalf("the index has digest %s, %v; want %s", d.Digest, err, index.Digest)
	}
	mustHave(t, r.store, "multi", "", arm64)
	if n := p.bytes(amd.Blobs[1].Digest); n != 0 {
		t.Errorf("%d bytes of an unwanted platform crossed the link", n)
	}

	set.Scope = registry.Scope{{Repository: "multi"}}
	r.Update(set)
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustHave(t, r.store, "multi", "1", index)
	if n, want := p.bytes(arm64.Blobs[1].Digest), int64(1000); n != want {
		t.Errorf("the layer that was here crossed the link again: %d bytes of %d", n, want)
	}
}

// TestCutsCostNothing cuts the link every few bytes, in each way that a reader can end.
func TestCutsCostNothing(t *testing.T) {
	for name, end := range map[string]error{"reset": errors.New("connection reset by peer"), "end of body": io.ErrUnexpectedEOF} {
		t.Run(name, func(t *testing.T) {
			p := newParent()
			img := registrytest.NewImage(1, 2<<20)
			push(t, p, "app", "v1", img)
			const each = 10_007
			var left, cuts atomic.Int64
			p.read = func(_ registry.Digest, _ int64, b []byte) error {
				if left.Add(-int64(len(b))) < 0 {
					left.Store(each + int64(len(b)))
					cuts.Add(1)
					return end
				}
				return nil
			}
			r, _ := newReplica(t, t.TempDir(), settings(t, p, "app"), syncer.Options{Rand: func() float64 { return 0 }})
			if err := r.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustHave(t, r.store, "app", "v1", img)
			if n := p.bytes(img.Blobs[1].Digest); n != 2<<20 || cuts.Load() < 8 {
				t.Errorf("%d cuts: %d bytes crossed the link, want exactly %d", cuts.Load(), n, 2<<20)
			}
		})
	}
}

// TestRestartGoesOn stops the process in the middle of a layer.
func TestRestartGoesOn(t *testing.T) {
	p, dir := newParent(), t.TempDir()
	img := registrytest.NewImage(1, 1<<20)
	push(t, p, "app", "v1", img)
	layer := img.Blobs[1].Digest
	stopped := make(chan struct{})
	p.read = func(d registry.Digest, off int64, _ []byte) error {
		if d == layer && off >= 600_000 {
			select {
			case <-stopped:
			default:
				close(stopped)
			}
			return away
		}
		return nil
	}
	r, stop := newReplica(t, dir, settings(t, p, "app"), syncer.Options{})
	<-stopped
	mustNotHave(t, r.store, "app", "v1")
	stop()

	other := newParent() // a change of parent changes nothing: the digest is the same
	push(t, other, "app", "v1", img)
	r, _ = newReplica(t, dir, settings(t, other, "app"), syncer.Options{})
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustHave(t, r.store, "app", "v1", img)
	if n := p.bytes(layer) + other.bytes(layer); n != 1<<20 {
		t.Errorf("%d bytes crossed the links, want exactly %d", n, 1<<20)
	}
}

func TestTagMovesLast(t *testing.T) {
	p := newParent()
	good, bad := registrytest.NewImage(1, 1000, 2000), registrytest.NewImage(2, 1000, 3000)
	push(t, p, "app", "good", good)
	push(t, p, "app", "bad", bad)
	p.corrupt[bad.Blobs[2].Digest] = true
	r, _ := newReplica(t, t.TempDir(), settings(t, p, "app"), syncer.Options{})
	err := r.Sync(t.Context())
	if !errors.Is(err, registry.ErrDigestInvalid) {
		t.Errorf("sync from a parent that lies: %v, want DIGEST_INVALID", err)
	}
	mustHave(t, r.store, "app", "good", good)
	mustNotHave(t, r.store, "app", "bad")
	if _, ok := r.store.StatContent(t.Context(), bad.Blobs[2].Digest); ok {
		t.Error("wrong content was committed")
	}
	var st registry.Status
	r.Describe(&st)
	if len(st.Repositories) != 1 || len(st.Repositories[0].Behind) != 1 || st.Repositories[0].Behind[0].Tag != "bad" || st.Repositories[0].Behind[0].Error == "" {
		t.Errorf("the status does not say which tag is behind and why: %+v", st.Repositories)
	}
	p.set(func(p *parent) { p.corrupt = map[registry.Digest]bool{} })
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustHave(t, r.store, "app", "bad", bad)
}

func TestPullThroughFetchesOnce(t *testing.T) {
	p := newParent()
	img := registrytest.NewImage(1, 300_000, 1000)
	push(t, p, "app", "v1", img)
	r := newServing(t, settings(t, p, "app"))
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			m, err := r.served.GetManifest(t.Context(), "app", registry.TagReference("v1"))
			if err != nil || m.Digest != img.Digest {
				t.Errorf("manifest: %v", err)
			}
			for _, b := range img.Blobs {
				body, err := readAll(t.Context(), r.served, "app", b.Digest)
				if err != nil || !bytes.Equal(body, b.Bytes) {
					t.Errorf("blob: %d bytes of %d, %v", len(body), len(b.Bytes), err)
				}
			}
		})
	}
	group.Wait()
	if n := p.count("manifest app v1"); n != 1 {
		t.Errorf("the manifest was asked for %d times", n)
	}
	for _, b := range img.Blobs {
		if n := p.bytes(b.Digest); n != b.Size {
			t.Errorf("%s crossed the link with %d bytes, its size is %d", b.Digest, n, b.Size)
		}
	}
}

// TestPullThroughStreams checks that a client has the first bytes before the parent has sent the last, that a second
// client that goes away stops nothing, and that the last byte waits for the verification.
func TestPullThroughStreams(t *testing.T) {
	p := newParent()
	img := registrytest.NewImage(1, 500_000)
	layer := img.Blobs[1]
	push(t, p, "app", "v1", img)
	hold := make(chan struct{})
	p.read = func(d registry.Digest, off int64, _ []byte) error {
		if d == layer.Digest && off > 200_000 {
			<-hold
		}
		return nil
	}
	r := newServing(t, settings(t, p, "app"))
	if _, err := r.served.GetManifest(t.Context(), "app", registry.TagReference("v1")); err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	dead, err := r.served.GetBlob(ctx, "app", layer.Digest)
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.served.GetBlob(t.Context(), "app", layer.Digest)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 150_000)
	if _, err := io.ReadFull(b, first); err != nil || !bytes.Equal(first, layer.Bytes[:len(first)]) {
		t.Fatalf("first bytes: %v", err)
	}
	leave()
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	close(hold)
	rest, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(rest, layer.Bytes[len(first):]) {
		t.Fatalf("rest: %d bytes, %v", len(rest), err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPullThroughNeverGivesWrongContentAsComplete(t *testing.T) {
	p := newParent()
	img := registrytest.NewImage(1, 100_000)
	push(t, p, "app", "v1", img)
	p.corrupt[img.Blobs[1].Digest] = true
	r := newServing(t, settings(t, p, "app"))
	if _, err := r.served.GetManifest(t.Context(), "app", registry.TagReference("v1")); err != nil {
		t.Fatal(err)
	}
	body, err := readAll(t.Context(), r.served, "app", img.Blobs[1].Digest)
	if err == nil || len(body) >= 100_000 {
		t.Errorf("a client got %d bytes of wrong content and error %v", len(body), err)
	}
}

func TestParentAway(t *testing.T) {
	p := newParent()
	img, later := registrytest.NewImage(1, 1000), registrytest.NewImage(2, 1000)
	push(t, p, "app", "v1", img)
	r, _ := newReplica(t, t.TempDir(), settings(t, p, "app"), syncer.Options{})
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	push(t, p, "app", "v2", later)
	p.set(func(p *parent) { p.away = away })
	_, err := r.served.GetManifest(t.Context(), "app", registry.TagReference("v2"))
	var e *registry.Error
	if !errors.As(err, &e) || e.Code != registry.CodeUnavailable || e.RetryAfter <= 0 {
		t.Errorf("a miss with the parent away: %v, want UNAVAILABLE with a time to try again", err)
	}
	asked := p.count("probe") + p.count("manifest app v2")
	if _, err := r.served.GetManifest(t.Context(), "app", registry.TagReference("v2")); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("a second miss: %v", err)
	}
	if again := p.count("probe") + p.count("manifest app v2"); again != asked {
		t.Error("the second miss asked the parent again, at once")
	}
	mustHave(t, r.served, "app", "v1", img)
	if _, err := r.served.GetManifest(t.Context(), "else", registry.TagReference("v1")); !errors.Is(err, registry.ErrNameUnknown) {
		t.Errorf("a miss out of scope: %v, want NAME_UNKNOWN", err)
	}
	var st registry.Status
	r.Describe(&st)
	if st.ConnectionState != registry.Offline || len(st.StatusDetails) == 0 {
		t.Errorf("status with the parent away: %s %+v", st.ConnectionState, st.StatusDetails)
	}
}

func TestReadOnlyFollowsRemovals(t *testing.T) {
	p := newParent()
	push(t, p, "app", "v1", registrytest.NewImage(1, 10))
	push(t, p, "app", "v2", registrytest.NewImage(2, 10))
	push(t, p, "gone", "v1", registrytest.NewImage(3, 10))
	set := settings(t, p, "app", "gone")
	set.PullThrough = false
	r, _ := newReplica(t, t.TempDir(), set, syncer.Options{})
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.DeleteTag(t.Context(), "app", "v1"); err != nil {
		t.Fatal(err)
	}
	set.Scope = registry.Scope{{Repository: "app"}}
	r.Update(set)
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustNotHave(t, r.store, "app", "v1")
	mustNotHave(t, r.store, "gone", "v1")
	mustHave(t, r.store, "app", "v2", registrytest.NewImage(2, 10))
}

func TestModesThatDoNotFit(t *testing.T) {
	p := newParent()
	push(t, p, "app", "v1", registrytest.NewImage(1, 10))
	p.kind, p.info = registry.KindConnected, registry.LayerInfo{Name: "upper", Mode: registry.ReadOnly, InstanceID: "x"}
	set := settings(t, p, "app")
	set.Mode = registry.ReadWrite
	r, _ := newReplica(t, t.TempDir(), set, syncer.Options{Name: "lower"})
	err := r.Sync(t.Context())
	if !errors.Is(err, registry.ErrConflict) {
		t.Errorf("a ReadWrite child of a ReadOnly parent: %v, want CONFLICT", err)
	}
	mustNotHave(t, r.store, "app", "v1")
	var st registry.Status
	r.Describe(&st)
	if st.ConnectionState != registry.Unhealthy || len(st.StatusDetails) != 1 || st.StatusDetails[0].Code != "ParentRefused" {
		t.Errorf("status: %s %+v", st.ConnectionState, st.StatusDetails)
	}
}

// TestCatchesUp runs hours in a bubble whose clock is false: the parent goes away and comes back, and nobody asks for
// anything.
func TestCatchesUp(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		push(t, p, "app", "v1", registrytest.NewImage(1, 1000))
		r, stop := newReplica(t, dir, settings(t, p, "app"), syncer.Options{})
		time.Sleep(time.Minute)
		mustHave(t, r.store, "app", "v1", registrytest.NewImage(1, 1000))
		p.set(func(p *parent) { p.away = away })
		push(t, p, "app", "v2", registrytest.NewImage(2, 1000))
		before := p.count("probe") + p.count("tags app")
		time.Sleep(6 * time.Hour)
		if n := p.count("probe") + p.count("tags app") - before; n < 300 || n > 6*60*2+20 {
			t.Errorf("%d tries in six hours of absence, want about one a minute", n)
		}
		p.set(func(p *parent) { p.away = nil })
		time.Sleep(2 * time.Minute)
		mustHave(t, r.store, "app", "v2", registrytest.NewImage(2, 1000))
		stop()
	})
}

// TestWindowEnds stops an iteration at the end of its window and goes on in the next, from where it was.
func TestWindowEnds(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		img := registrytest.NewImage(1, 10<<20)
		push(t, p, "app", "v1", img)
		p.read = func(registry.Digest, int64, []byte) error { time.Sleep(4 * time.Minute); return nil } // 256 KiB each
		set := settings(t, p, "app")
		set.Schedule = every(t, "0 3 * * *") // the bubble begins at midnight
		r, stop := newReplica(t, dir, set, syncer.Options{})
		time.Sleep(90 * time.Minute) // the first iteration is made up for at once, for an hour
		var st registry.Status
		r.Describe(&st)
		at := p.bytes(img.Blobs[1].Digest)
		if st.Sync.SyncState != registry.SyncTimedOut || at == 0 {
			t.Fatalf("after the window: %s, %d bytes", st.Sync.SyncState, at)
		}
		time.Sleep(time.Hour)
		if now := p.bytes(img.Blobs[1].Digest); now != at {
			t.Errorf("%d bytes crossed the link outside the window", now-at)
		}
		time.Sleep(3 * 24 * time.Hour)
		mustHave(t, r.store, "app", "v1", img)
		if n := p.bytes(img.Blobs[1].Digest); n > 10<<20+4*64<<10 {
			t.Errorf("%d bytes crossed the link for a layer of %d", n, 10<<20)
		}
		stop()
	})
}

func TestNothingConfigured(t *testing.T) {
	r, _ := newReplica(t, t.TempDir(), settings(t, nil, "app"), syncer.Options{})
	if err := r.Sync(t.Context()); err == nil {
		t.Error("sync without a parent succeeded")
	}
	r.Update(settings(t, newParent()))
	if err := r.Sync(t.Context()); err == nil {
		t.Error("sync without repositories succeeded")
	}
}

// TestPatternUnderAParentWithoutCatalog: what is named outright is synced, and the status says why the pattern is not.
func TestPatternUnderAParentWithoutCatalog(t *testing.T) {
	p := newParent()
	push(t, p, "acme/vision", "1", registrytest.NewImage(1, 10))
	p.noCatalog = true
	r, _ := newReplica(t, t.TempDir(), settings(t, p, "acme/*", "acme/vision"), syncer.Options{})
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustHave(t, r.store, "acme/vision", "1", registrytest.NewImage(1, 10))
	var st registry.Status
	r.Describe(&st)
	if len(st.Repositories) == 0 || st.Repositories[0].Repository != "acme/*" || len(st.Repositories[0].Behind) == 0 {
		t.Errorf("the status does not name the pattern: %+v", st.Repositories)
	}
}

// TestSettingsChangeInMidTransfer: the new scope is in force at once, whoever asked for an iteration gets its result,
// and what had come of the transfer is not fetched again.
func TestSettingsChangeInMidTransfer(t *testing.T) {
	p := newParent()
	big, small := registrytest.NewImage(1, 2<<20), registrytest.NewImage(2, 1000)
	push(t, p, "big", "1", big)
	push(t, p, "small", "1", small)
	layer := big.Blobs[1].Digest
	halfway, hold := make(chan struct{}), make(chan struct{})
	p.read = func(d registry.Digest, off int64, _ []byte) error {
		if d == layer && off > 1<<20 {
			select {
			case <-halfway:
			default:
				close(halfway)
			}
			<-hold
		}
		return nil
	}
	r, _ := newReplica(t, t.TempDir(), settings(t, p, "big"), syncer.Options{})
	asked := make(chan error, 1)
	go func() { asked <- r.Sync(context.WithoutCancel(t.Context())) }()
	<-halfway
	r.Update(settings(t, p, "big", "small"))
	r.Update(settings(t, p, "big", "small")) // nothing changed: nothing begins again
	close(hold)
	if err := <-asked; err != nil {
		t.Errorf("the iteration that was asked for: %v", err)
	}
	mustHave(t, r.store, "small", "1", small)
	mustHave(t, r.store, "big", "1", big)
	if n := p.bytes(layer); n > 2<<20+4*64<<10 {
		t.Errorf("%d bytes crossed the link for a layer of %d", n, 2<<20)
	}
}
