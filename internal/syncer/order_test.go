package syncer_test

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// TestOrder brings the bootstrap group first and then small images before large ones, whatever their names; a preview
// says the same beforehand, costs no blob, and what it has read of manifests is not read again.
func TestOrder(t *testing.T) {
	p := newParent()
	shared := registrytest.NewBlob(50, 2000)
	images := map[string]registrytest.Image{
		"a-large": registrytest.NewImage(1, 90_000), "b-small": registrytest.NewImage(2, 100), "c-middle": registrytest.NewImageOf(3, shared, registrytest.NewBlob(4, 500)),
		"d-shares": registrytest.NewImageOf(5, shared, registrytest.NewBlob(6, 9000)), "z-boot": registrytest.NewImage(7, 200_000),
	}
	for repo, img := range images {
		push(t, p, repo, "1", img)
	}
	want := []string{"z-boot", "b-small", "c-middle", "d-shares", "a-large"}
	var mu sync.Mutex
	var got []string
	p.read = func(d registry.Digest, off int64, _ []byte) error {
		mu.Lock()
		defer mu.Unlock()
		for repo, img := range images {
			if last := img.Blobs[len(img.Blobs)-1]; last.Digest == d && off == 0 {
				got = append(got, repo)
			}
		}
		return nil
	}
	set := settings(t, p, "*")
	set.First = registry.Scope{{Repository: "z-boot"}}
	set.Parallel, set.Schedule = 1, every(t, "0 3 1 1 *")
	r := newServing(t, set)
	preview, err := r.Preview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, i := range preview.Images {
		order = append(order, i.Repository)
		for _, b := range images[i.Repository].Blobs {
			if p.bytes(b.Digest) > 0 {
				t.Error("a preview has fetched a blob")
			}
		}
	}
	unique := map[registry.Digest]int64{}
	for _, img := range images {
		for _, b := range img.Blobs {
			unique[b.Digest] = b.Size
		}
	}
	total := int64(0)
	for _, size := range unique {
		total += size
	}
	if !slices.Equal(order, want) || preview.Bytes != total || preview.SpeedSource != registry.SpeedUnknown {
		t.Errorf("preview: %v with %d bytes (%s), want %v with %d", order, preview.Bytes, preview.SpeedSource, want, total)
	}
	go r.Run(t.Context())
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if i := slices.Index(got, "z-boot"); i != 0 || !slices.Equal(slices.Compact(got), want) {
		t.Errorf("they came as %v, want %v", got, want)
	}
	for repo, img := range images {
		if n := p.count("manifest " + repo + " " + img.Digest.String()); n != 1 {
			t.Errorf("the manifest of %s crossed the link %d times", repo, n)
		}
	}
	if preview, err = r.Preview(t.Context()); err != nil || len(preview.Images) != 0 || preview.Bytes != 0 {
		t.Errorf("after it: %+v, %v", preview, err)
	}
}

// TestPreviewCountsWhatIsLeft previews an image of which a part is here.
func TestPreviewCountsWhatIsLeft(t *testing.T) {
	p := newParent()
	img := registrytest.NewImage(1, 1<<20)
	push(t, p, "app", "v1", img)
	p.read = func(d registry.Digest, off int64, _ []byte) error {
		if d == img.Blobs[1].Digest && off >= 1<<19 {
			return registry.ErrDenied
		}
		return nil
	}
	set := settings(t, p, "app")
	r, _ := newReplica(t, t.TempDir(), set, syncer.Options{})
	if err := r.Sync(t.Context()); err == nil {
		t.Fatal("it came")
	}
	preview, err := r.Preview(t.Context())
	if left := preview.Bytes - 1<<19; err != nil || left < 0 || left > img.Blobs[0].Size { // the config may have come
		t.Errorf("%d bytes to fetch, want %d: %v", preview.Bytes, 1<<19, err)
	}
}

// TestRestartIsNoReason starts again at noon after the iteration of the night: nothing is due. A schedule that missed its
// time while the process was away is made up for.
func TestRestartIsNoReason(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { // from midnight on
		p := newParent()
		push(t, p, "app", "v1", registrytest.NewImage(1, 100))
		set := settings(t, p, "app")
		set.Schedule = every(t, "0 3 * * *")
		run := func(d time.Duration) registry.Status {
			r, stop := newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
			time.Sleep(d)
			var st registry.Status
			r.Describe(&st)
			stop()
			return st
		}
		run(5 * time.Hour) // one at the start, one at three
		if n := p.count("tags app"); n != 2 {
			t.Fatalf("%d iterations before the restart, want 2", n)
		}
		time.Sleep(7 * time.Hour)
		if st := run(time.Hour); p.count("tags app") != 2 || st.Sync.LastSuccessfulSyncEndTime.IsZero() || len(st.History) != 1 {
			t.Errorf("a restart at noon made %d iterations; %+v, history %+v", p.count("tags app")-2, st.Sync, st.History)
		}
		time.Sleep(20 * time.Hour) // three o'clock goes by
		run(time.Minute)
		if n := p.count("tags app"); n != 3 {
			t.Errorf("the iteration that was missed was made up for %d times", n-2)
		}
	})
}

// TestWhatIsLeftShrinks looks at the status while the second layer of an image waits in its middle: what came of it and
// what came before it is not to come any more, for the tag, the repository and the registry alike. While nothing moves,
// nobody is told when it will be here, and what failed is not to come from its beginning.
func TestWhatIsLeftShrinks(t *testing.T) {
	const layer, half = 1 << 20, 1 << 19
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		img := registrytest.NewImage(1, layer, layer)
		push(t, p, "app", "v1", img)
		last := img.Blobs[2].Digest
		p.read = func(d registry.Digest, off int64, _ []byte) error {
			if d == last && off >= half {
				return away
			}
			return nil
		}
		r, stop := newReplica(t, dir, settings(t, p, "app"), syncer.Options{Clock: clock.System()})
		defer stop()
		left := func(when string) registry.Status {
			t.Helper()
			var st registry.Status
			r.Describe(&st)
			if len(st.Repositories) != 1 || len(st.Repositories[0].Behind) != 1 {
				t.Fatalf("%s: %+v", when, st.Repositories)
			}
			repo := st.Repositories[0]
			for _, n := range []int64{st.Sync.BytesBehind, repo.BytesBehind, repo.Behind[0].Bytes} {
				if n != layer-half {
					t.Errorf("%s: %d bytes to come, want %d", when, n, layer-half)
				}
			}
			return st
		}
		failed := make(chan error, 1)
		go func() { failed <- r.Sync(t.Context()) }()
		time.Sleep(10 * time.Second)
		if st := left("on its way"); st.Sync.SyncState != registry.SyncSyncing || !st.Sync.EstimatedEndTime.IsZero() {
			t.Errorf("it waits for the link: %s, done at %v", st.Sync.SyncState, st.Sync.EstimatedEndTime)
		}
		if err := <-failed; err == nil {
			t.Fatal("it came")
		}
		left("after it failed")
	})
}
