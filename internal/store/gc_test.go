package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// testTime is a wall clock and a monotonic one that a test moves.
type testTime struct{ wall, up atomic.Int64 }

func (x *testTime) options() Options {
	return Options{
		Clock:  clock.Func(func() time.Time { return time.Now().Add(time.Duration(x.wall.Load())) }),
		uptime: func() time.Duration { return time.Duration(x.up.Load()) },
	}
}

// pass moves both clocks.
func (x *testTime) pass(d time.Duration) {
	x.wall.Add(int64(d))
	x.up.Add(int64(d))
}

func collect(t *testing.T, s *Store, o GCOptions) GCResult {
	t.Helper()
	res, err := s.GC(t.Context(), o)
	if err != nil {
		t.Fatalf("GC: %v", err)
	}
	return res
}

func wantContent(t *testing.T, s *Store, there bool, list ...registrytest.Blob) {
	t.Helper()
	for _, b := range list {
		if _, err := os.Lstat(s.contentPath(b.Digest)); (err == nil) != there {
			t.Errorf("the file of %s is there: %v, want %v", b.Digest, err == nil, there)
		}
		known := false
		_ = s.view(func(t *tx) error { _, known = t.blob(b.Digest); return nil })
		if known != there {
			t.Errorf("the row of %s is there: %v, want %v", b.Digest, known, there)
		}
	}
}

func TestCollectAfterGrace(t *testing.T) {
	var x testTime
	s := openStore(t, t.TempDir(), x.options())
	pushed, lonely, fetched := registrytest.NewImage(1, 100, 200), registrytest.NewBlob(7, 300), registrytest.NewBlob(8, 400)
	if err := registrytest.Push(t.Context(), s, testRepo, "latest", pushed); err != nil {
		t.Fatal(err)
	}
	if err := registrytest.PushBlob(t.Context(), s, otherRepo, lonely); err != nil {
		t.Fatal(err)
	}
	if err := fetchBlob(fetched).do(t.Context(), s, newOracle()); err != nil {
		t.Fatal(err)
	}
	nothing := GCResult{}
	if res := collect(t, s, GCOptions{}); res != nothing {
		t.Errorf("fresh content: %+v", res)
	}
	x.pass(25 * time.Hour)
	if res := collect(t, s, GCOptions{DryRun: true}); res.Blobs != 1 || res.Bytes != lonely.Size {
		t.Errorf("dry run: %+v, want the blob without a manifest", res)
	}
	wantContent(t, s, true, lonely)
	if res := collect(t, s, GCOptions{}); res.Blobs != 1 || res.Bytes != lonely.Size {
		t.Errorf("after the grace: %+v, want the blob without a manifest", res)
	}
	wantContent(t, s, false, lonely)
	wantContent(t, s, true, append(pushed.Blobs, fetched)...)
	if list, err := s.Repositories(t.Context(), "", 10); err != nil || !slices.Equal(list, []string{testRepo}) {
		t.Errorf("repositories %v, %v: want the empty one gone", list, err)
	}
	if err := s.DeleteManifest(t.Context(), testRepo, pushed.Digest); err != nil {
		t.Fatal(err)
	}
	if res := collect(t, s, GCOptions{}); res.Blobs != 4 {
		t.Errorf("after the deletion: %+v, want the manifest, the config and two layers", res)
	}
	wantContent(t, s, false, pushed.Blobs...)
	wantContent(t, s, true, fetched)
	x.pass(partialTTL)
	if res := collect(t, s, GCOptions{}); res.Blobs != 1 {
		t.Errorf("fetched and never used: %+v", res)
	}
	if list, err := s.Repositories(t.Context(), "", 10); err != nil || len(list) != 0 {
		t.Errorf("repositories %v, %v: want none", list, err)
	}
}

// TestCollectKeeps has what only looks unused.
func TestCollectKeeps(t *testing.T) {
	var x testTime
	dir := t.TempDir()
	s := openStore(t, dir, x.options())
	subject := registrytest.NewImage(1, 100)
	referrer := registrytest.NewReferrer(2, subject.Descriptor, "application/vnd.example.sbom")
	untagged := registrytest.NewImage(3, 100)
	byDigest := registrytest.NewImage(4, 100)
	for tag, image := range map[string]registrytest.Image{"latest": subject, "": referrer, "gone": untagged} {
		if err := registrytest.Push(t.Context(), s, testRepo, tag, image); err != nil {
			t.Fatal(err)
		}
	}
	bring(t, s, otherRepo, byDigest)
	if err := s.DeleteTag(t.Context(), testRepo, "gone"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteBlob(t.Context(), testRepo, subject.Blobs[1].Digest); err != nil {
		t.Fatal(err)
	}
	half := registrytest.NewBlob(9, 1000)
	p, err := s.Partial(t.Context(), half.Digest, half.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	u, err := s.StartUpload(t.Context(), testRepo)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Cancel(t.Context())
	x.pass(400 * 24 * time.Hour)
	if res := collect(t, s, GCOptions{}); res.Blobs != 0 || res.Manifests != 0 || res.Partials != 0 {
		t.Errorf("collected %+v", res)
	}
	for _, image := range []registrytest.Image{subject, referrer, untagged, byDigest} {
		wantContent(t, s, true, image.Blobs...)
	}
	if _, err := p.Write(half.Bytes); err != nil {
		t.Errorf("the open partial: %v", err)
	}
	if err := p.Commit(t.Context()); err != nil {
		t.Errorf("the open partial: %v", err)
	}
	if _, err := u.Write([]byte("x")); err != nil {
		t.Errorf("the open upload: %v", err)
	}
}

func TestCollectLooseManifests(t *testing.T) {
	var x testTime
	s := openStore(t, t.TempDir(), x.options())
	old, child, replaced := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100), registrytest.NewImage(3, 100)
	index := registrytest.NewIndex(old, child)
	signature := registrytest.NewReferrer(5, index.Descriptor, "application/vnd.example.signature")
	bring(t, s, testRepo, index, "latest")
	bring(t, s, testRepo, signature)
	bring(t, s, testRepo, child, "child")
	x.pass(48 * time.Hour)
	bring(t, s, testRepo, replaced, "latest")
	if collect(t, s, GCOptions{}); !has(t, s, testRepo, index.Digest) {
		t.Error("the digest that a tag left is gone before the grace")
	}
	x.pass(23 * time.Hour)
	collect(t, s, GCOptions{})
	if !has(t, s, testRepo, index.Digest) || !has(t, s, testRepo, old.Digest) {
		t.Error("the digest that a tag left is gone before the grace")
	}
	x.pass(2 * time.Hour)
	if res := collect(t, s, GCOptions{DryRun: true}); res.Manifests != 3 || !has(t, s, testRepo, index.Digest) {
		t.Errorf("dry run: %+v, want index, one child and the signature", res)
	}
	if res := collect(t, s, GCOptions{}); res.Manifests != 3 || res.Blobs == 0 {
		t.Errorf("after the grace: %+v, want index, one child and the signature", res)
	}
	for d, want := range map[registry.Digest]bool{index.Digest: false, old.Digest: false, signature.Digest: false, child.Digest: true, replaced.Digest: true} {
		if got := has(t, s, testRepo, d); got != want {
			t.Errorf("%s is here: %v, want %v", d, got, want)
		}
	}
	wantContent(t, s, false, old.Blobs...)
	wantContent(t, s, true, append(child.Blobs, replaced.Blobs...)...)
	bring(t, s, testRepo, index, "latest") // the parent rolls back
	x.pass(48 * time.Hour)
	collect(t, s, GCOptions{})
	if !has(t, s, testRepo, index.Digest) || has(t, s, testRepo, replaced.Digest) {
		t.Error("after the tag came back, the other digest had to go")
	}
}

// TestCollectWithAWrongClock sets the clock of a device that booted without one.
func TestCollectWithAWrongClock(t *testing.T) {
	var x testTime
	s := openStore(t, t.TempDir(), x.options())
	a, b := registrytest.NewBlob(1, 100), registrytest.NewBlob(2, 100)
	x.wall.Store(int64(-50 * 365 * 24 * time.Hour))
	if err := registrytest.PushBlob(t.Context(), s, testRepo, a); err != nil {
		t.Fatal(err)
	}
	x.wall.Store(0)
	collect(t, s, GCOptions{})
	wantContent(t, s, true, a)
	x.pass(25 * time.Hour)
	collect(t, s, GCOptions{})
	wantContent(t, s, false, a)
	x.wall.Store(int64(10 * 365 * 24 * time.Hour))
	if err := registrytest.PushBlob(t.Context(), s, testRepo, b); err != nil {
		t.Fatal(err)
	}
	x.wall.Store(0)
	collect(t, s, GCOptions{})
	wantContent(t, s, true, b)
	x.pass(25 * time.Hour)
	collect(t, s, GCOptions{})
	wantContent(t, s, false, b)
}

// TestResolvedIsLeased: a client that was told that a blob is here does not push it.
func TestResolvedIsLeased(t *testing.T) {
	var x testTime
	s := openStore(t, t.TempDir(), x.options())
	image := registrytest.NewImage(1, 100)
	for _, b := range image.Blobs {
		if err := registrytest.PushBlob(t.Context(), s, testRepo, b); err != nil {
			t.Fatal(err)
		}
	}
	x.pass(100 * time.Hour)
	for _, b := range image.Blobs {
		if _, err := s.ResolveBlob(t.Context(), testRepo, b.Digest); err != nil {
			t.Fatal(err)
		}
	}
	collect(t, s, GCOptions{})
	if _, err := s.PutManifest(t.Context(), testRepo, registry.TagReference("latest"), image.Manifest); err != nil {
		t.Errorf("PutManifest: %v", err)
	}
}

func TestCollectFiles(t *testing.T) {
	var x testTime
	dir := t.TempDir()
	s := openStore(t, dir, x.options())
	fill(t, s, 1)
	orphan := registrytest.NewBlob(1, 100)
	if err := os.WriteFile(s.contentPath(orphan.Digest), orphan.Bytes, 0o600); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(dir, dirBlobs, "sha256", "ab", "README")
	if err := os.WriteFile(foreign, []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	half := registrytest.NewBlob(2, 1000)
	p, err := s.Partial(t.Context(), half.Digest, half.Size)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Write(half.Bytes[:10])
	if err := errors.Join(err, p.Close()); err != nil {
		t.Fatal(err)
	}
	u, err := s.StartUpload(t.Context(), testRepo)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	nothing := GCResult{}
	if res := collect(t, s, GCOptions{}); res != nothing {
		t.Errorf("fresh files: %+v", res)
	}
	x.pass(6 * 24 * time.Hour)
	if res := collect(t, s, GCOptions{}); res != (GCResult{Files: 1, Bytes: 100}) {
		t.Errorf("after 6 days: %+v, want the file without a row", res)
	}
	x.pass(2 * 24 * time.Hour)
	if res := collect(t, s, GCOptions{DryRun: true}); res.Partials != 1 || res.Uploads == 0 {
		t.Errorf("dry run after 8 days: %+v, want partial and upload", res)
	}
	if res := collect(t, s, GCOptions{}); res.Partials != 1 || res.Uploads == 0 {
		t.Errorf("after 8 days: %+v, want partial and upload", res)
	}
	if _, err := s.ResumeUpload(t.Context(), testRepo, u.ID()); !errors.Is(err, registry.ErrBlobUploadUnknown) {
		t.Errorf("ResumeUpload of an expired session: %v", err)
	}
	if _, err := os.Lstat(foreign); err != nil {
		t.Errorf("a file that is not the store's was removed: %v", err)
	}
}

// TestDamagedRowStopsCollection: what a row refers to that cannot be read is unknown.
func TestDamagedRowStopsCollection(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	o := fill(t, s, 3)
	var image registrytest.Image
	for _, i := range o.tags {
		image = i
	}
	var good []byte
	damage := func(value []byte) {
		t.Helper()
		err := s.update(t.Context(), func(t *tx) error {
			for _, repo := range []string{"fill/0", "fill/1", "fill/2"} {
				r, err := t.repo(repo)
				if err != nil {
					return err
				}
				if old := r.manifests.Get(digestKey(image.Digest)); old != nil {
					good = slices.Clone(old)
					return t.put(r.manifests, digestKey(image.Digest), value)
				}
			}
			return errors.New("not found")
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	damage([]byte{7})
	if _, err := s.GC(t.Context(), GCOptions{Grace: -1}); err == nil {
		t.Error("a collection over a damaged row: no error")
	}
	wantContent(t, s, true, image.Blobs...)
	damage(good)
	if res := collect(t, s, GCOptions{Grace: -1}); res.Blobs != 0 {
		t.Errorf("collected %+v", res)
	}
}

// TestCollectBesidePushes is the soak: nothing that was acknowledged is ever refused or lost.
func TestCollectBesidePushes(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	ctx, stop := context.WithCancel(t.Context())
	var collector sync.WaitGroup
	runs := 0
	collector.Go(func() {
		for ctx.Err() == nil {
			if _, err := s.GC(ctx, GCOptions{Grace: time.Nanosecond}); err != nil && ctx.Err() == nil {
				t.Errorf("GC: %v", err)
				return
			}
			runs++
		}
	})
	// A grace of a nanosecond leaves blobs without a manifest to the collector, so a manifest may be refused; a pusher
	// then does what a client does and pushes again. Images that were acknowledged must stay whole.
	var pushers sync.WaitGroup
	const workers, rounds = 6, 25
	var fetching sync.Map
	for w := range workers {
		pushers.Go(func() {
			for i := range rounds {
				image := registrytest.NewImage(uint64(1+(w+i)%5), 500, 700) // pushers share content
				repo := fmt.Sprintf("soak/%d", w%3)
				tag := fmt.Sprintf("w%d", w)
				if err := soakPush(t.Context(), s, &fetching, repo, tag, image, w%2 == 0); err != nil {
					t.Errorf("push: %v", err)
					return
				}
				if err := readImage(t.Context(), s, repo, image); err != nil {
					t.Errorf("worker %d, round %d: an acknowledged image: %v", w, i, err)
					return
				}
				if i%4 == 3 {
					if err := s.DeleteTag(t.Context(), repo, tag); err != nil {
						t.Errorf("DeleteTag: %v", err)
					}
				}
			}
		})
	}
	pushers.Wait()
	stop()
	collector.Wait()
	if runs < 3 {
		t.Errorf("only %d collections ran", runs)
	}
}

// soakPush pushes, or fetches and commits, until it is acknowledged. As whoever fetches has to, it fetches a blob once at
// a time; fetching holds a *sync.Mutex for each digest.
func soakPush(ctx context.Context, s *Store, fetching *sync.Map, repo, tag string, image registrytest.Image, fetch bool) error {
	for try := 0; ; try++ {
		var err error
		if fetch {
			o := newOracle()
			for _, b := range image.Blobs {
				lock, _ := fetching.LoadOrStore(b.Digest, new(sync.Mutex))
				lock.(*sync.Mutex).Lock()
				err = fetchBlob(b).do(ctx, s, o)
				lock.(*sync.Mutex).Unlock()
				if err != nil {
					break
				}
			}
			if err == nil {
				err = commitImage(repo, tag, image).do(ctx, s, o)
			}
		} else {
			err = registrytest.Push(ctx, s, repo, tag, image)
		}
		again := errors.Is(err, registry.ErrManifestBlobUnknown) || errors.Is(err, registry.ErrBlobUnknown)
		if err == nil || !again || try > 2000 {
			return err
		}
	}
}

func readImage(ctx context.Context, s *Store, repo string, image registrytest.Image) error {
	m, err := s.GetManifest(ctx, repo, registry.DigestReference(image.Digest))
	if err != nil {
		return err
	}
	if digest.FromBytes(m.Bytes) != image.Digest {
		return errors.New("other bytes")
	}
	for _, b := range image.Blobs {
		r, err := s.GetBlob(ctx, repo, b.Digest)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
		if digest.FromBytes(body) != b.Digest {
			return errors.New("other bytes")
		}
	}
	return nil
}

// TestPublishBesideSweep stops a collection between the row and the file.
func TestPublishBesideSweep(t *testing.T) {
	var x testTime
	o := x.options()
	var during func()
	o.hook = func(step string) error {
		if step == "swept" && during != nil {
			during()
		}
		return nil
	}
	s := openStore(t, t.TempDir(), o)
	b := registrytest.NewBlob(1, 1000)
	if err := registrytest.PushBlob(t.Context(), s, testRepo, b); err != nil {
		t.Fatal(err)
	}
	x.pass(48 * time.Hour)
	pushed := 0
	during = func() {
		pushed++
		if err := registrytest.PushBlob(t.Context(), s, otherRepo, b); err != nil {
			t.Errorf("a push between: %v", err)
		}
	}
	collect(t, s, GCOptions{})
	if pushed != 1 {
		t.Fatalf("%d pushes between, want 1", pushed)
	}
	wantContent(t, s, true, b)
}
