package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// cutFS is the machine's file system with a memory of what a power cut would leave of it. Names change in order, as they
// do in a journal: a cut takes some of the last ones back, down to the last sync of a directory with one of them. What
// was written to a file since its sync is there, or not, or some of its pages are.
type cutFS struct {
	OSFS
	mu      sync.Mutex
	dir     string
	random  *rand.Rand
	store   *Store
	durable map[string]*cutNode // names that stay
	names   map[string]*cutNode // as programs see them
	changes []cutChange         // since then
	left    int                 // operations until the cut; 0 is none
	to      string              // where what is left goes
	older   [][]byte            // the index at earlier times
	rested  []byte              // as it was synced at an orderly end
	dead    bool
}

type cutNode struct{ now, synced []byte }

// cutChange is one change of names.
type cutChange struct {
	dirs [2]string
	do   func(names map[string]*cutNode)
}

var errCut = fmt.Errorf("the power is gone: %w", syscall.EIO)

// newCutFS takes what is in the directory as durable.
func newCutFS(t *testing.T, dir, to string, random *rand.Rand, left int) *cutFS {
	t.Helper()
	x := &cutFS{dir: dir, to: to, random: random, left: left, durable: map[string]*cutNode{}, names: map[string]*cutNode{}}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == indexName {
			return err
		}
		body, err := os.ReadFile(path)
		n := &cutNode{now: body, synced: body}
		x.durable[path], x.names[path] = n, n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// op comes before each operation that changes something, with the lock.
func (x *cutFS) op() error {
	if x.dead {
		return errCut
	}
	if x.left--; x.left%7 == 0 && len(x.older) < 20 {
		if body, err := os.ReadFile(indexPath(x.dir)); err == nil {
			x.older = append(x.older, body)
		}
	}
	if x.left == 0 {
		x.dead = true
		if err := x.cut(); err != nil {
			panic(err)
		}
		return errCut
	}
	return nil
}

// alive fails the steps of a commit after the cut: bbolt has a disk of its own that goes on.
func (x *cutFS) alive(step string) (err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.dead {
		return errCut
	}
	if step == "rest" {
		x.rested, err = os.ReadFile(indexPath(x.dir))
	}
	return err
}

// cutNow cuts the power unless it is gone.
func (x *cutFS) cutNow() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.dead {
		return nil
	}
	x.dead = true
	return x.cut()
}

func (x *cutFS) change(from, to string, do func(names map[string]*cutNode)) {
	do(x.names)
	x.changes = append(x.changes, cutChange{[2]string{filepath.Dir(from), filepath.Dir(to)}, do})
}

// cut writes what is left of the directory to another one.
func (x *cutFS) cut() error {
	names := map[string]*cutNode{}
	for path, n := range x.durable {
		names[path] = n
	}
	for _, c := range x.changes[:x.random.IntN(len(x.changes)+1)] {
		c.do(names)
	}
	for path, n := range names {
		to := filepath.Join(x.to, strings.TrimPrefix(path, x.dir))
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, x.torn(n.synced, n.now), 0o600)); err != nil {
			return err
		}
	}
	body, err := os.ReadFile(indexPath(x.dir))
	if x.store != nil && x.store.covered.Load() {
		body = x.tornIndex(body)
	}
	return errors.Join(err, os.WriteFile(indexPath(x.to), body, 0o600))
}

// torn is what is left of a file of which a version was synced.
func (x *cutFS) torn(synced, now []byte) []byte {
	if bytes.Equal(synced, now) {
		return now
	}
	switch x.random.IntN(4) {
	case 0:
		return synced
	case 1:
		return now
	case 2:
		return append(bytes.Clone(now[:min(len(now), len(synced))]), make([]byte, max(0, len(now)-len(synced)))...)
	}
	return x.mixed(synced, now)
}

// mixed has some pages of one and some of the other.
func (x *cutFS) mixed(a, b []byte) []byte {
	out := bytes.Clone(b)
	if x.random.IntN(2) == 0 {
		out = out[:min(len(a), len(b))]
	}
	for at := 0; at < len(out); at += 512 {
		if x.random.IntN(2) == 0 && at < len(a) {
			copy(out[at:min(at+512, len(out))], a[at:])
		}
	}
	return out
}

// tornIndex is what is left of an index that nobody synced.
func (x *cutFS) tornIndex(now []byte) []byte {
	if len(x.older) == 0 || bytes.Equal(x.rested, now) {
		return now
	}
	old := x.older[x.random.IntN(len(x.older))]
	switch x.random.IntN(5) {
	case 0:
		return now
	case 1:
		return old
	case 2:
		return now[:x.random.IntN(len(now)+1)]
	}
	return x.mixed(old, now)
}

func (x *cutFS) Create(path string) (File, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.op(); err != nil {
		return nil, err
	}
	f, err := x.OSFS.Create(path)
	if err != nil {
		return nil, err
	}
	n := &cutNode{}
	x.change(path, path, func(names map[string]*cutNode) { names[path] = n })
	return &cutFile{f, x, n}, nil
}

func (x *cutFS) Open(path string, write bool) (File, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.dead {
		return nil, errCut
	}
	f, err := x.OSFS.Open(path, write)
	if err != nil {
		return nil, err
	}
	n := x.names[path]
	if n == nil {
		return f, nil
	}
	return &cutFile{f, x, n}, nil
}

func (x *cutFS) Rename(from, to string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.op(); err != nil {
		return err
	}
	if err := x.OSFS.Rename(from, to); err != nil {
		return err
	}
	x.change(from, to, func(names map[string]*cutNode) {
		if n := names[from]; n != nil {
			names[to] = n
		}
		delete(names, from)
	})
	return nil
}

func (x *cutFS) Remove(path string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.op(); err != nil {
		return err
	}
	if err := x.OSFS.Remove(path); err != nil {
		return err
	}
	x.change(path, path, func(names map[string]*cutNode) { delete(names, path) })
	return nil
}

func (x *cutFS) SyncDir(path string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.op(); err != nil {
		return err
	}
	last := 0
	for i, c := range x.changes {
		if c.dirs[0] == path || c.dirs[1] == path {
			last = i + 1
		}
	}
	for _, c := range x.changes[:last] {
		c.do(x.durable)
	}
	x.changes = x.changes[last:]
	return nil
}

type cutFile struct {
	File
	x *cutFS
	n *cutNode
}

func (f *cutFile) WriteAt(p []byte, off int64) (int, error) {
	f.x.mu.Lock()
	defer f.x.mu.Unlock()
	if err := f.x.op(); err != nil {
		return 0, err
	}
	n, err := f.File.WriteAt(p, off)
	now := append(bytes.Clone(f.n.now), make([]byte, max(0, int(off)+n-len(f.n.now)))...)
	copy(now[off:], p[:n])
	f.n.now = now
	return n, err
}

func (f *cutFile) Truncate(size int64) error {
	f.x.mu.Lock()
	defer f.x.mu.Unlock()
	f.n.now = bytes.Clone(f.n.now[:min(int64(len(f.n.now)), size)])
	return f.File.Truncate(size)
}

func (f *cutFile) Sync() error {
	f.x.mu.Lock()
	defer f.x.mu.Unlock()
	if err := f.x.op(); err != nil {
		return err
	}
	f.n.synced = f.n.now
	return nil
}

// TestPowerCut cuts the power of a model of a disk at random operations, in process after process: whatever is left of
// the names, the files and an index that nobody synced, all that was acknowledged is there. Some processes end in order,
// and the power is cut while they do, or after it.
func TestPowerCut(t *testing.T) {
	seeds, lives := 20, 4
	if long {
		seeds = 3000
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(uint64(seed), 9))
			dir, o := t.TempDir(), newOracle()
			for life := range lives {
				next := t.TempDir()
				x := newCutFS(t, dir, next, rand.New(rand.NewPCG(random.Uint64(), 1)), 20+random.IntN(600))
				s, err := Open(t.Context(), dir, Options{FS: x, hook: x.alive, redoLong: 8 << 10})
				if err == nil {
					x.mu.Lock()
					x.store = s
					x.mu.Unlock()
					id := s.InstanceID()
					stop := 0
					if random.IntN(3) == 0 {
						stop = 1 + random.IntN(60)
					}
					if workUntilCut(t, s, o, random, uint64(life)<<32|uint64(seed)<<16, stop) {
						x.mu.Lock()
						x.left = 1 + random.IntN(70)
						x.mu.Unlock()
					}
					_ = s.Close()
					if err := x.cutNow(); err != nil {
						t.Fatal(err)
					}
					again := openStore(t, copyOf(t, next), Options{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
					if again.InstanceID() != id && !again.recovering.Load() {
						t.Error("the index has another name after a power cut")
					}
					recovered(t, again)
					o.holds(t, again)
					closeChecked(t, again)
				} else if !errors.Is(err, syscall.EIO) && !errors.Is(err, registry.ErrDisk) {
					t.Fatalf("Open: %v", err)
				}
				dir = next
			}
		})
	}
}

// copyOf is a copy of a directory, so that the next process finds what the cut left and not what a look at it did.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// workUntilCut does what clients and synchronisation do until something fails, or for so many images, when it returns
// true; 0 is without an end.
func workUntilCut(t *testing.T, s *Store, o *oracle, random *rand.Rand, number uint64, images int) bool {
	t.Helper()
	sizes := func() int {
		if random.IntN(4) == 0 {
			return smallContent + random.IntN(20_000)
		}
		return random.IntN(5000)
	}
	for n := number; images == 0 || n < number+uint64(images); n++ {
		image := registrytest.NewImage(n, sizes(), sizes())
		acts := []act{}
		tag := fmt.Sprint("t", random.IntN(20))
		if random.IntN(3) == 0 {
			for _, b := range image.Blobs {
				acts = append(acts, fetchBlob(b))
			}
			acts = append(acts, commitImage("synced/app", tag, image))
		} else {
			for _, b := range image.Blobs {
				acts = append(acts, pushBlob(testRepo, b))
			}
			acts = append(acts, putManifest(testRepo, tag, image))
		}
		if random.IntN(6) == 0 {
			acts = append(acts, act{"delete tag", func(ctx context.Context, s *Store, o *oracle) error {
				delete(o.tags, testRepo+":"+tag)
				if err := s.DeleteTag(ctx, testRepo, tag); !errors.Is(err, registry.ErrManifestUnknown) && !errors.Is(err, registry.ErrNameUnknown) {
					return err
				}
				return nil
			}})
		}
		for _, a := range acts {
			if strings.HasPrefix(a.name, "put") {
				delete(o.tags, testRepo+":"+tag)
			}
			if strings.HasPrefix(a.name, "commit") {
				delete(o.tags, "synced/app:"+tag)
			}
			o.partial = 0
			clear(o.queued)
			if err := a.do(t.Context(), s, o); err != nil {
				return false
			}
			clear(o.queued) // nothing climbs here
		}
	}
	return true
}

// TestSwitch cuts the power after a log took the place of another and before its snapshot is there: what the new log has
// is acknowledged, so its name has to be durable.
func TestSwitch(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	dir, next := t.TempDir(), t.TempDir()
	x := newCutFS(t, dir, next, random, 1<<30)
	s := openStore(t, dir, Options{FS: x})
	image, late := registrytest.NewImage(1, 100), registrytest.NewImage(2, 200)
	if err := registrytest.Push(t.Context(), s, testRepo, "v1", image); err != nil {
		t.Fatal(err)
	}
	if err := s.switchRedo(); err != nil {
		t.Fatal(err)
	}
	if err := registrytest.Push(t.Context(), s, testRepo, "v2", late); err != nil {
		t.Fatal(err)
	}
	x.mu.Lock()
	for _, n := range x.names {
		n.now = n.synced
	}
	x.changes = nil // nothing that was not synced is left
	x.store, x.dead = s, true
	err := x.cut()
	x.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	again := openStore(t, next, Options{})
	o := newOracle()
	o.tags[testRepo+":v1"], o.tags[testRepo+":v2"] = image, late
	o.holds(t, again)
}
