package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// synced brings an image as synchronisation does.
func synced(ctx context.Context, s *Store, repo, tag string, image registrytest.Image) error {
	for _, b := range image.Blobs {
		if _, ok := s.StatContent(ctx, b.Digest); ok {
			continue
		}
		p, err := s.Partial(ctx, b.Digest, b.Size)
		if err != nil {
			return err
		}
		if _, err := p.Write(b.Bytes[p.Size():]); err != nil {
			return errors.Join(err, p.Close())
		}
		if err := p.Commit(ctx); err != nil {
			return err
		}
	}
	return commitImage(repo, tag, image).do(ctx, s, newOracle())
}

// TestQuota fills a registry to its bound: pushes are refused with the name of the setting, all else goes on, and what
// is deleted makes room.
func TestQuota(t *testing.T) {
	var now testTime
	s := openStore(t, t.TempDir(), now.options())
	s.SetLimits(1<<20, 0)
	o := newOracle()
	images := 0
	var err error
	for ; images < 10 && err == nil; images++ {
		image, tag := registrytest.NewImage(uint64(images), 300_000), fmt.Sprint("t", images)
		if err = registrytest.Push(t.Context(), s, testRepo, tag, image); err == nil {
			o.tags[testRepo+":"+tag] = image
		}
	}
	wantText(t, err, registry.ErrDisk, "storage.maxMiB", "1 MiB", "No space left")
	if images != 4 {
		t.Errorf("image %d was refused, want the fourth of 300 kB", images)
	}
	if used := s.counts.Load().bytes; used > 1<<20 {
		t.Errorf("%d bytes are used", used)
	}
	o.holds(t, s)
	if _, err := s.Partial(t.Context(), registrytest.NewBlob(99, 400_000).Digest, 400_000); !errors.Is(err, registry.ErrDisk) {
		t.Errorf("synchronisation over the bound: %v, want DiskError: everything was pushed here", err)
	}
	o.holds(t, s)
	if err := s.DeleteManifest(t.Context(), testRepo, o.tags[testRepo+":t0"].Digest); err != nil {
		t.Fatalf("a delete on a full registry: %v", err)
	}
	delete(o.tags, testRepo+":t0")
	now.pass(2 * DefaultGrace)
	if res := collect(t, s, GCOptions{}); res.Bytes < 300_000 {
		t.Errorf("GC: %+v", res)
	}
	image := registrytest.NewImage(50, 300_000)
	if err := registrytest.Push(t.Context(), s, testRepo, "again", image); err != nil {
		t.Errorf("a push after the delete: %v", err)
	}
	o.tags[testRepo+":again"] = image
	s.SetLimits(2<<20, 0) // while it runs
	for i := range uint64(3) {
		if err := registrytest.Push(t.Context(), s, testRepo, fmt.Sprint("more", i), registrytest.NewImage(60+i, 300_000)); err != nil {
			t.Errorf("a push after the bound was raised: %v", err)
		}
	}
	s.SetLimits(0, 1<<60)
	_, err = s.StartUpload(t.Context(), testRepo)
	wantText(t, err, registry.ErrDisk, "storage.reserveMiB")
	o.holds(t, s)
}

// TestEviction replays a year of new versions under a tight bound: synchronisation always finds room, and what is
// pinned is there after each step.
func TestEviction(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			var now testTime
			s := openStore(t, t.TempDir(), now.options())
			s.SetLimits(2<<20, 0)
			random := rand.New(rand.NewPCG(seed, 1))
			pushed, good := newOracle(), newOracle() // never to go; what the tags of the parent show
			refused := 0
			for i := range uint64(120) {
				now.pass(time.Duration(random.IntN(72)) * time.Hour)
				image := registrytest.NewImage(seed<<20|i, 40_000+random.IntN(100_000))
				tag := fmt.Sprint("v", random.IntN(6))
				if i%40 == 7 {
					err := registrytest.Push(t.Context(), s, "local/app", fmt.Sprint("p", i), image)
					if err == nil {
						pushed.tags[fmt.Sprint("local/app:p", i)] = image
					} else if !errors.Is(err, registry.ErrDisk) {
						t.Fatalf("step %d: push: %v", i, err)
					}
					continue
				}
				if i%40 == 9 { // a layer whose manifest will come
					if err := pushBlob("local/app", registrytest.NewBlob(seed<<20|i, 5000)).do(t.Context(), s, pushed); err != nil && !errors.Is(err, registry.ErrDisk) {
						t.Fatalf("step %d: push of a blob: %v", i, err)
					}
				}
				err := synced(t.Context(), s, "parent/app", tag, image)
				if err != nil && !errors.Is(err, registry.ErrDisk) {
					t.Fatalf("step %d: %v", i, err)
				}
				if err == nil {
					good.tags["parent/app:"+tag] = image
				} else {
					refused++ // what it would replace was fetched a moment ago, or everything is needed
				}
				pushed.holds(t, s)
				good.holds(t, s)
				pushed.blobs = map[string]registrytest.Blob{} // without a manifest only for the grace period
				if used := s.counts.Load().bytes; used > 2<<20+100_000 {
					t.Fatalf("step %d: %d bytes are used", i, used)
				}
			}
			if refused > 30 {
				t.Errorf("%d of 120 versions found no room", refused)
			}
		})
	}
}

// TestEvictionSparesWhatIsInUse: nothing that somebody asked for lately goes.
func TestEvictionSparesWhatIsInUse(t *testing.T) {
	var now testTime
	s := openStore(t, t.TempDir(), now.options())
	one, two := registrytest.NewImage(1, 400_000), registrytest.NewImage(2, 400_000)
	for _, image := range []registrytest.Image{one, two} {
		if err := synced(t.Context(), s, "parent/app", "v1", image); err != nil {
			t.Fatal(err)
		}
		now.pass(48 * time.Hour)
	}
	s.SetLimits(1<<20, 0)
	three := registrytest.NewBlob(3, 400_000)
	if _, err := s.ResolveBlob(t.Context(), "parent/app", one.Blobs[1].Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Partial(t.Context(), three.Digest, three.Size); !errors.Is(err, registry.ErrDisk) {
		t.Errorf("%v, want DiskError: a client asked for the layer a moment ago", err)
	}
	wantContent(t, s, true, one.Blobs[1])
	now.pass(48 * time.Hour)
	p, err := s.Partial(t.Context(), three.Digest, three.Size)
	if err != nil {
		t.Fatalf("nobody asked for it for two days: %v", err)
	}
	_ = p.Close()
	wantContent(t, s, false, one.Blobs...)
	wantContent(t, s, true, two.Blobs...)
}

// TestClockIsSetDuringPush: a device without a clock of its own boots years ago; what is under way when the time comes
// from the network is not stale.
func TestClockIsSetDuringPush(t *testing.T) {
	var now testTime
	s := openStore(t, t.TempDir(), now.options())
	s.worker.Wait()
	f, path, err := s.writeTemp([]byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	u, err := s.StartUpload(t.Context(), testRepo)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	now.wall.Add(int64(20 * 365 * 24 * time.Hour))
	if n, _, err := s.sweepUploads(uploadTTL, false); n != 0 || err != nil {
		t.Errorf("%d removed, %v", n, err)
	}
	if _, err := s.fs.Lstat(path); err != nil {
		t.Errorf("the manifest on its way: %v", err)
	}
	if u, err = s.ResumeUpload(t.Context(), testRepo, u.ID()); err != nil {
		t.Fatal(err)
	}
	_ = u.Close()
	now.pass(uploadTTL)
	if n, _, err := s.sweepUploads(uploadTTL, false); n != 1 || err != nil {
		t.Errorf("a week later: %d removed, %v, want the session", n, err)
	}
}

// TestEvictionDoesNotWait: what synchronisation replaced an hour ago makes room before its grace period ends.
func TestEvictionDoesNotWait(t *testing.T) {
	var now testTime
	s := openStore(t, t.TempDir(), now.options())
	one, two, three := registrytest.NewImage(1, 400_000), registrytest.NewImage(2, 400_000), registrytest.NewImage(3, 400_000)
	for _, image := range []registrytest.Image{one, two} {
		now.pass(48 * time.Hour)
		if err := synced(t.Context(), s, "parent/app", "v1", image); err != nil {
			t.Fatal(err)
		}
	}
	now.pass(time.Hour)
	if res := collect(t, s, GCOptions{}); res.Blobs != 0 {
		t.Fatalf("the collection took %+v", res)
	}
	s.SetLimits(1<<20, 0)
	if err := synced(t.Context(), s, "parent/app", "v1", three); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, false, one.Blobs...)
	wantContent(t, s, true, append(two.Blobs, three.Blobs...)...)
}

// TestUploadsGoForRoom fills the volume: sessions that nobody used for an hour go at once, younger ones stay, and a
// session that meets the limit of a file's size keeps nothing.
func TestUploadsGoForRoom(t *testing.T) {
	var now testTime
	dir := t.TempDir()
	x := &testFS{dir: dir, free: 1000}
	o := now.options()
	o.FS = x
	s := openStore(t, dir, o)
	start := func() registry.Upload {
		t.Helper()
		u, err := s.StartUpload(t.Context(), testRepo)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Write(make([]byte, 500)); err != nil {
			t.Fatal(err)
		}
		return u
	}
	idle := start()
	if err := idle.Close(); err != nil {
		t.Fatal(err)
	}
	now.pass(2 * time.Hour)
	young := start()
	defer young.Close()
	if _, err := young.Write(make([]byte, 5<<20)); !errors.Is(err, registry.ErrDisk) {
		t.Errorf("%v, want DiskError", err)
	}
	if _, err := s.ResumeUpload(t.Context(), testRepo, idle.ID()); !errors.Is(err, registry.ErrBlobUploadUnknown) {
		t.Errorf("a session that was idle for two hours: %v", err)
	}
	x.free = 0
	large := start()
	x.arm(1, false, syscall.EFBIG)
	if _, err := large.Write(make([]byte, 100)); !errors.Is(err, registry.ErrDisk) {
		t.Errorf("%v, want DiskError", err)
	}
	_ = large.Close()
	if list, err := os.ReadDir(filepath.Join(dir, dirUploads)); err != nil || len(list) > 0 {
		t.Errorf("left in uploads: %v, %v", list, err)
	}
}
