package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// fill pushes images and returns what was acknowledged.
func fill(t *testing.T, s *Store, images int) *oracle {
	t.Helper()
	o := newOracle()
	for i := range images {
		image := registrytest.NewImage(uint64(100+i), 2000, 3000)
		repo, tag := fmt.Sprintf("fill/%d", i%5), fmt.Sprintf("t%d", i)
		if err := registrytest.Push(t.Context(), s, repo, tag, image); err != nil {
			t.Fatal(err)
		}
		o.tags[repo+":"+tag] = image
		for _, b := range image.Blobs {
			o.blobs[repo+"@"+b.Digest.String()] = b
		}
	}
	return o
}

// waitState waits for the background work of a start.
func waitState(t *testing.T, s *Store, want string) {
	t.Helper()
	s.worker.Wait()
	if st, err := s.Usage(t.Context()); err != nil || st.State != want {
		t.Fatalf("state %q, %v, want %q", st.State, err, want)
	}
}

func indexPath(dir string) string { return filepath.Join(dir, indexName) }

// rewrite changes the bytes of a file.
func rewrite(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// bare removes what an index could be made of beside the content.
func bare(t *testing.T, dir string) {
	t.Helper()
	for _, name := range slices.Concat(snapshotNames, redoNames) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// TestDamagedIndex opens a volume whose index rotted: never a panic, never a collection, all content found again.
func TestDamagedIndex(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"empty":             func([]byte) []byte { return nil },
		"cut":               func(b []byte) []byte { return b[:4*4096] },
		"one byte":          func(b []byte) []byte { return b[:1] },
		"metas":             func(b []byte) []byte { clear(b[:8192]); return b },
		"all zero":          func(b []byte) []byte { clear(b); return b },
		"all ones":          func(b []byte) []byte { return slices.Repeat([]byte{0xff}, len(b)) },
		"without its pages": func(b []byte) []byte { clear(b[8192:]); return b },
		"text":              func([]byte) []byte { return []byte("this is not an index\n") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, Options{})
			o := fill(t, s, 4)
			blobs, id := s.counts.Load().blobs, s.InstanceID()
			closeChecked(t, s)
			rewrite(t, indexPath(dir), change)
			bare(t, dir)

			hold := make(chan struct{})
			var now testTime
			opts := now.options()
			opts.hook = func(step string) error {
				if step == "commit" {
					<-hold // the rebuild waits, so that the state between is seen
				}
				return nil
			}
			s, err := Open(t.Context(), dir, opts)
			if err != nil {
				t.Fatalf("Open: %v", err)
			}
			if st, err := s.Usage(t.Context()); err != nil || st.State != stateRecovering {
				t.Errorf("state %q, %v, want recovering", st.State, err)
			}
			if _, err := s.GC(t.Context(), GCOptions{Grace: -1}); !errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("GC while recovering: %v, want UNAVAILABLE", err)
			}
			close(hold)
			waitState(t, s, stateOK)
			if got := s.counts.Load().blobs; got != blobs {
				t.Errorf("%d blobs adopted, want %d", got, blobs)
			}
			if s.InstanceID() == id {
				t.Error("the instance id survived the loss of the tags")
			}
			for _, image := range o.tags {
				for _, b := range image.Blobs {
					if size, ok := s.StatContent(t.Context(), b.Digest); !ok || size != b.Size {
						t.Errorf("content %s is lost", b.Digest)
					}
				}
			}
			now.pass(30 * 24 * time.Hour) // the parent is away
			if _, err := s.GC(t.Context(), GCOptions{}); err != nil || s.counts.Load().blobs != blobs {
				t.Errorf("a collection after the rebuild: %v, %d blobs left of %d", err, s.counts.Load().blobs, blobs)
			}
			for key, image := range o.tags { // synchronisation brings the names back, and no byte of a blob
				repo, tag, _ := strings.Cut(key, ":")
				if _, err := s.CommitImage(t.Context(), registry.Image{Repository: repo, Manifests: []registry.Manifest{image.Manifest}, Tags: []string{tag}}); err != nil {
					t.Errorf("CommitImage: %v", err)
				}
			}
			o.holds(t, s)
			closeChecked(t, s)
		})
	}
}

// TestRecoveryContinues kills a rebuild in the middle.
func TestRecoveryContinues(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	fill(t, s, 6)
	blobs := s.counts.Load().blobs
	closeChecked(t, s)
	rewrite(t, indexPath(dir), func([]byte) []byte { return nil })
	bare(t, dir)
	x := &testFS{dir: dir, failAt: 6, dead: true, only: "commit"}
	s, err := Open(t.Context(), dir, Options{FS: x, hook: x.hook})
	if err != nil {
		t.Fatal(err)
	}
	for !x.reached() {
		time.Sleep(time.Millisecond) // the rebuild runs against a real disk
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, Options{})
	waitState(t, s, stateOK)
	if got := s.counts.Load().blobs; got != blobs {
		t.Errorf("%d blobs adopted, want %d", got, blobs)
	}
}

// TestRandomRot flips bytes anywhere in the index: the store opens, lists and reads, and what it serves is right.
func TestRandomRot(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	o := fill(t, s, 40)
	closeChecked(t, s)
	good, err := os.ReadFile(indexPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	used := len(bytes.TrimRight(good, "\x00")) // bbolt makes its file larger than it needs
	random := rand.New(rand.NewPCG(1, 2))
	rebuilt := 0
	for i := range 150 {
		bad := slices.Clone(good)
		if i%3 == 0 {
			at := random.IntN(used/4096) * 4096
			clear(bad[at : at+4096])
		} else {
			for range 1 + i%4 {
				bad[random.IntN(used)] ^= 1 << random.IntN(8)
			}
		}
		if err := os.WriteFile(indexPath(dir), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), dir, Options{})
		if err != nil {
			t.Fatalf("round %d: Open: %v", i, err)
		}
		if s.recovering.Load() {
			rebuilt++
		}
		for key, image := range o.tags {
			repo, tag, _ := strings.Cut(key, ":")
			m, err := s.GetManifest(t.Context(), repo, registry.TagReference(tag))
			if err == nil && digest.FromBytes(m.Bytes) != m.Digest {
				t.Fatalf("round %d: wrong bytes for %s", i, key)
			}
			for _, b := range image.Blobs {
				if r, err := s.GetBlob(t.Context(), repo, b.Digest); err == nil {
					if r.Descriptor().Size != b.Size {
						t.Fatalf("round %d: %s has %d bytes, want %d", i, b.Digest, r.Descriptor().Size, b.Size)
					}
					_ = r.Close()
				}
			}
		}
		if _, err := s.Repositories(t.Context(), "", 100); err != nil && !errors.Is(err, registry.ErrUnavailable) {
			t.Fatalf("round %d: Repositories: %v", i, err)
		}
		_ = s.Close()
		old, _ := filepath.Glob(indexPath(dir) + ".corrupt-*")
		if len(old) > keptDamaged {
			t.Fatalf("%d damaged indexes are kept", len(old))
		}
	}
	if rebuilt < 20 {
		t.Errorf("only %d of 150 damaged indexes were noticed", rebuilt)
	}
}

func TestDamagedContent(t *testing.T) {
	blobs := map[string]func(path string) error{
		"missing": os.Remove,
		"short":   func(path string) error { return os.Truncate(path, 1) },
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"long":    func(path string) error { return os.Truncate(path, 1<<20) },
		"symlink": func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)) },
		"directory": func(path string) error {
			return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
		},
		"fifo": func(path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) },
	}
	for name, damage := range blobs {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, Options{CacheBytes: -1})
			image := registrytest.NewImage(1, 5000)
			if err := registrytest.Push(t.Context(), s, testRepo, "latest", image); err != nil {
				t.Fatal(err)
			}
			layer := image.Blobs[1]
			for _, d := range []registry.Digest{layer.Digest, image.Digest} {
				if err := damage(s.contentPath(d)); err != nil {
					t.Fatal(err)
				}
				if _, ok := s.StatContent(t.Context(), d); ok {
					t.Errorf("StatContent: %s is said to be here", d)
				}
			}
			if _, err := s.GetBlob(t.Context(), testRepo, layer.Digest); !errors.Is(err, registry.ErrBlobUnknown) && !errors.Is(err, registry.ErrInternal) {
				t.Errorf("GetBlob: %v", err)
			}
			if _, err := s.ResolveBlob(t.Context(), testRepo, layer.Digest); !errors.Is(err, registry.ErrBlobUnknown) {
				t.Errorf("ResolveBlob: %v, want BLOB_UNKNOWN", err)
			}
			for _, ref := range []registry.Reference{registry.TagReference("latest"), registry.DigestReference(image.Digest)} {
				if _, err := s.ResolveManifest(t.Context(), testRepo, ref); !errors.Is(err, registry.ErrManifestUnknown) {
					t.Errorf("ResolveManifest: %v, want MANIFEST_UNKNOWN", err)
				}
			}
			if _, err := s.PutManifest(t.Context(), testRepo, registry.TagReference("other"), image.Manifest); !errors.Is(err, registry.ErrManifestBlobUnknown) {
				t.Errorf("PutManifest over lost content: %v, want MANIFEST_BLOB_UNKNOWN", err)
			}
			if name == "directory" { // nothing to rename over
				for _, d := range []registry.Digest{layer.Digest, image.Digest} {
					_ = os.Remove(s.contentPath(d))
				}
			}
			o := newOracle()
			for _, a := range []act{fetchBlob(layer), commitImage(testRepo, "latest", image)} {
				if err := a.do(t.Context(), s, o); err != nil {
					t.Fatalf("healing: %s: %v", a.name, err)
				}
			}
			o.holds(t, s)
			body, err := s.GetBlob(t.Context(), testRepo, layer.Digest)
			if err != nil {
				t.Fatalf("GetBlob of healed content: %v", err)
			}
			_ = body.Close()
		})
	}
}

// TestFlippedManifest changes one bit under the right size.
func TestFlippedManifest(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{CacheBytes: -1})
	image := registrytest.NewImage(1, 500)
	if err := registrytest.Push(t.Context(), s, testRepo, "latest", image); err != nil {
		t.Fatal(err)
	}
	rewrite(t, s.contentPath(image.Digest), func(b []byte) []byte { b[10] ^= 1; return b })
	if m, err := s.GetManifest(t.Context(), testRepo, registry.TagReference("latest")); !errors.Is(err, registry.ErrManifestUnknown) {
		t.Fatalf("a flipped manifest: %q, %v, want MANIFEST_UNKNOWN", m.Bytes, err)
	}
	if _, ok := s.StatContent(t.Context(), image.Digest); ok {
		t.Error("StatContent: the flipped manifest is said to be here")
	}
	if _, err := s.PutManifest(t.Context(), testRepo, registry.TagReference("latest"), image.Manifest); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetManifest(t.Context(), testRepo, registry.TagReference("latest")); err != nil {
		t.Errorf("after it was pushed again: %v", err)
	}
}

func wantText(t *testing.T, err, target error, texts ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%v, want %v", err, target)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q does not say %q", err, text)
		}
	}
}

// TestOpenDiskErrors opens volumes that do not let themselves be used.
func TestOpenDiskErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		errno error
		texts []string
	}{
		"mode":        {syscall.EACCES, []string{"Permission denied", "has the mode 0755", "chmod -R u+rwX"}},
		"read-only":   {syscall.EROFS, []string{"Permission denied", "read-only"}},
		"full":        {syscall.ENOSPC, []string{"No space left on device."}},
		"quota":       {syscall.EDQUOT, []string{"quota"}},
		"broken disk": {syscall.EIO, []string{"Input/output error"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := Open(t.Context(), dir, Options{FS: &testFS{dir: dir, failAt: 1, dead: true, err: tt.errno}})
			wantText(t, err, registry.ErrDisk, tt.texts...)
		})
	}
}

func TestOpenErrors(t *testing.T) {
	t.Run("two on one volume", func(t *testing.T) {
		dir := t.TempDir()
		s := openStore(t, dir, Options{})
		start := time.Now()
		_, err := Open(t.Context(), dir, Options{LockTimeout: 100 * time.Millisecond})
		wantText(t, err, registry.ErrUnavailable, "another process uses")
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("took %v", d)
		}
		closeChecked(t, s)
		openStore(t, dir, Options{})
	})
	t.Run("a damaged index that another process uses", func(t *testing.T) {
		dir := t.TempDir()
		s := openStore(t, dir, Options{})
		o := fill(t, s, 2)
		if _, err := Open(t.Context(), dir, Options{LockTimeout: 60 * time.Millisecond}); err == nil {
			t.Fatal("opened twice")
		}
		o.holds(t, s)
		if old, _ := filepath.Glob(indexPath(dir) + ".corrupt-*"); len(old) > 0 {
			t.Errorf("the index in use was set aside: %v", old)
		}
	})
	t.Run("newer schema", func(t *testing.T) {
		dir := t.TempDir()
		s := openStore(t, dir, Options{})
		err := s.bolt().Update(func(tx *bbolt.Tx) error {
			return errors.Join(tx.Bucket(bucketMeta).Put(keySchemaVersion, binary.AppendUvarint(nil, uint64(len(migrations))+2)), reseal(tx))
		})
		if err != nil {
			t.Fatal(err)
		}
		closeChecked(t, s)
		before, _ := os.ReadFile(indexPath(dir))
		_, err = Open(t.Context(), dir, Options{})
		wantText(t, err, registry.ErrUnsupported, "newer release")
		if after, _ := os.ReadFile(indexPath(dir)); !slices.Equal(before, after) {
			t.Error("the newer index was changed")
		}
	})
	t.Run("a file in the place of the directory", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), path, Options{})
		wantText(t, err, registry.ErrUnavailable, "not a directory")
	})
	t.Run("a link in the place of the index", func(t *testing.T) {
		dir := t.TempDir()
		other := filepath.Join(t.TempDir(), "other")
		if err := errors.Join(os.WriteFile(other, []byte("x"), 0o600), os.Symlink(other, indexPath(dir))); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), dir, Options{}); err == nil {
			t.Fatal("followed a symbolic link")
		}
		if b, _ := os.ReadFile(other); string(b) != "x" {
			t.Error("wrote through a symbolic link")
		}
	})
}

// TestOpenIsQuick opens a volume with 100,000 files, with and without its index.
func TestOpenIsQuick(t *testing.T) {
	const files = 100_000
	dir := t.TempDir()
	s := withShards(t, openStore(t, dir, Options{}))
	var digests []registry.Digest
	first := map[string]string{} // a link to an empty file is cheaper than another one
	for i := range files {
		d := digest.FromString(fmt.Sprint(i))
		digests = append(digests, d)
		path := s.contentPath(d)
		var err error
		if linked, ok := first[s.shard(d)]; ok {
			err = os.Link(linked, path)
		} else {
			first[s.shard(d)] = path
			err = os.WriteFile(path, nil, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for batch := range slices.Chunk(digests, 10_000) {
		err := s.update(t.Context(), func(t *tx) error {
			for _, d := range batch {
				if err := t.putBlob(d, blobRow{at: t.now}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	closeChecked(t, s)
	for _, damage := range []bool{false, true} {
		if damage {
			rewrite(t, indexPath(dir), func(b []byte) []byte { return b[:len(b)/2] })
		}
		start := time.Now()
		s, err := Open(t.Context(), dir, Options{})
		took := time.Since(start)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("damaged %v: %v", damage, took)
		if took > slower*2*time.Second {
			t.Errorf("damaged %v: Open took %v", damage, took)
		}
		_ = s.Close()
	}
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := openStore(t, dir, Options{})
	fill(t, s, 1)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
