package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// lazyFS syncs nothing: a soak looks at order and counts, not at a disk.
type lazyFS struct{ OSFS }

type lazyFile struct{ *os.File }

func (lazyFile) Sync() error { return nil }

func (lazyFS) SyncDir(string) error { return nil }

func (x lazyFS) Create(path string) (File, error) { return x.lazy(x.OSFS.Create(path)) }

func (x lazyFS) Open(path string, write bool) (File, error) { return x.lazy(x.OSFS.Open(path, write)) }

func (lazyFS) lazy(f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return lazyFile{f.(*os.File)}, nil
}

func (x lazyFS) Reserve(File, int64) error { return nil }

// soaker is one client with repositories of its own and a model of them. What it pushes others push too.
type soaker struct {
	s            *Store
	rng          *rand.Rand
	local, below string
	pushed       map[registry.Digest]registrytest.Image // manifests in local
	tags         map[string]registrytest.Image          // of local
	synced       map[string]registrytest.Image          // tags of below
}

// image is one of a few that all clients push.
func (c *soaker) image() registrytest.Image {
	n := uint64(c.rng.IntN(60))
	return registrytest.NewImageOf(n, registrytest.NewBlob(n%7, 300), registrytest.NewBlob(1000+n, 200))
}

func (c *soaker) tag() string { return fmt.Sprint("t", c.rng.IntN(5)) }

// step does one thing that has to succeed.
func (c *soaker) step(ctx context.Context) error {
	image, tag := c.image(), c.tag()
	switch c.rng.IntN(8) {
	case 0, 1:
		if err := registrytest.Push(ctx, c.s, c.local, tag, image); err != nil {
			return fmt.Errorf("push: %w", err)
		}
		c.pushed[image.Digest], c.tags[tag] = image, image
	case 2: // pushed by digest, its blobs mounted where they are
		from, ok := any1(c.rng, c.pushed)
		if !ok {
			return nil
		}
		for _, b := range from.Blobs {
			if _, err := c.s.MountBlob(ctx, c.local, c.local, b.Digest); err != nil {
				return fmt.Errorf("mount: %w", err)
			}
		}
		if _, err := c.s.PutManifest(ctx, c.local, registry.TagReference(tag), from.Manifest); err != nil {
			return fmt.Errorf("manifest of mounted blobs: %w", err)
		}
		c.tags[tag] = from
	case 3, 4:
		err := synced(ctx, c.s, c.below, tag, image)
		if errors.Is(err, registry.ErrConflict) {
			return nil // somebody fetches the same content at this moment
		}
		if err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		c.synced[tag] = image
	case 5:
		if _, err := c.s.Untag(ctx, c.below, []string{tag}); err != nil {
			return fmt.Errorf("untag: %w", err)
		}
		delete(c.synced, tag)
	case 6:
		if gone, ok := c.tags[tag]; ok {
			if err := c.s.DeleteManifest(ctx, c.local, gone.Digest); err != nil {
				return fmt.Errorf("delete: %w", err)
			}
			delete(c.pushed, gone.Digest)
			for t, i := range c.tags {
				if i.Digest == gone.Digest {
					delete(c.tags, t)
				}
			}
		}
	default:
		return c.read(ctx)
	}
	return nil
}

// climbSome takes the oldest of the outbox as a parent would: their content is here as long as they are queued.
func climbSome(ctx context.Context, s *Store) error {
	list, err := s.OutboxEntries(ctx, 0, 200)
	for _, e := range list {
		if err != nil {
			return err
		}
		if e.Action == registry.OutboxPush {
			if _, gone := s.GetManifest(ctx, e.Repository, registry.DigestReference(e.Digest)); gone != nil {
				if now, err := s.OutboxEntries(ctx, e.Seq-1, 1); err != nil || len(now) == 1 && now[0].Seq == e.Seq {
					return errors.Join(fmt.Errorf("queued and not here: %+v: %w", e, gone), err)
				}
			}
		}
		err = s.OutboxDone(ctx, e.Seq)
	}
	return err
}

func any1(rng *rand.Rand, m map[registry.Digest]registrytest.Image) (registrytest.Image, bool) {
	n := rng.IntN(len(m) + 1)
	for _, image := range m {
		if n--; n < 0 {
			return image, true
		}
	}
	return registrytest.Image{}, false
}

// read reads one image of each kind.
func (c *soaker) read(ctx context.Context) error {
	if image, ok := any1(c.rng, c.pushed); ok {
		if err := readImage(ctx, c.s, c.local, image); err != nil {
			return fmt.Errorf("read of a pushed image: %w", err)
		}
	}
	for tag, image := range c.synced {
		m, err := c.s.GetManifest(ctx, c.below, registry.TagReference(tag))
		if err != nil || m.Digest != image.Digest {
			return fmt.Errorf("read of a synced tag: %s, %w", m.Digest, err)
		}
		return readImage(ctx, c.s, c.below, image)
	}
	return nil
}

// TestSoak lets clients push, mount, synchronise, delete and read while collections, scrubs and snapshots run. Nothing
// is refused for want of content that was acknowledged, nothing that lives goes, and at the end nothing is left over.
// SOAK_SEED repeats a run; SOAK_EVENTS makes it longer or shorter.
func TestSoak(t *testing.T) {
	events, seed := int64(10_000), uint64(time.Now().UnixNano())&0xffff
	switch {
	case long:
		events = 1_000_000
	case testing.Short():
		events = 2000
	}
	if text := os.Getenv("SOAK_EVENTS"); text != "" {
		events, _ = strconv.ParseInt(text, 10, 64)
	}
	if text := os.Getenv("SOAK_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 32)
	}
	t.Logf("to run this again: SOAK_SEED=%d", seed)
	var now testTime
	o := now.options()
	o.FS = lazyFS{}
	s := climbing(t, t.TempDir(), o)
	s.bolt().NoSync = true
	var done, collections atomic.Int64
	var clients, keeper sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	keeper.Go(func() {
		for ctx.Err() == nil {
			if _, err := s.GC(ctx, GCOptions{}); err != nil && ctx.Err() == nil {
				t.Errorf("GC: %v", err)
			}
			if err := climbSome(ctx, s); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			if collections.Add(1)%20 == 0 {
				if err := s.Snapshot(ctx); err != nil && ctx.Err() == nil {
					t.Errorf("Snapshot: %v", err)
				}
				if res, err := s.Scrub(ctx, ScrubOptions{Every: time.Hour, BytesPerSecond: fast}); (err != nil || res.Damaged > 0) && ctx.Err() == nil {
					t.Errorf("Scrub: %+v, %v", res, err)
				}
			}
		}
	})
	var all []*soaker
	for w := range 8 {
		c := &soaker{
			s: s, rng: rand.New(rand.NewPCG(seed, uint64(w))), local: fmt.Sprint("local/app", w), below: fmt.Sprint("parent/app", w),
			pushed: map[registry.Digest]registrytest.Image{}, tags: map[string]registrytest.Image{}, synced: map[string]registrytest.Image{},
		}
		all = append(all, c)
		clients.Go(func() {
			for done.Add(1) <= events && !t.Failed() {
				now.pass(2 * time.Minute) // no step of a client takes the day that content is leased for
				if err := c.step(ctx); err != nil {
					t.Errorf("client %d: %v", w, err)
				}
			}
		})
	}
	clients.Wait()
	stop()
	keeper.Wait()
	checkOutbox(t, s)
	want := map[registry.Digest]int64{}
	for _, c := range all {
		for repo, images := range map[string][]registrytest.Image{c.local: values(c.pushed), c.below: values(c.synced)} {
			for _, image := range images {
				if err := readImage(t.Context(), s, repo, image); err != nil {
					t.Errorf("%s@%s at the end: %v", repo, image.Digest, err)
				}
				want[image.Digest] = image.Size
				for _, b := range image.Blobs {
					want[b.Digest] = b.Size
				}
			}
		}
	}
	collect(t, s, GCOptions{Grace: -1})
	var bytes, files int64
	for _, size := range want {
		bytes += size
	}
	err := s.eachShard(func(dir string) (bool, error) {
		list, err := os.ReadDir(dir)
		files += int64(len(list))
		return true, err
	})
	if c := s.counts.Load(); err != nil || c.bytes != bytes || c.blobs != int64(len(want)) || files != c.blobs {
		t.Errorf("left at the end: %d bytes in %d rows and %d files, %v, want %d in %d", c.bytes, c.blobs, files, err, bytes, len(want))
	}
	t.Logf("%d events beside %d collections", events, collections.Load())
}

func values[K comparable](m map[K]registrytest.Image) (list []registrytest.Image) {
	for _, v := range m {
		list = append(list, v)
	}
	return list
}
