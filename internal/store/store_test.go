package store

import (
	"flag"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

func TestMain(m *testing.M) {
	_ = flag.Set("rapid.checks", "25") // the command line may ask for more
	goleak.VerifyTestMain(m)
}

// openStore opens a store and, at the end of the test, checks the structure of its index and closes it.
func openStore(t *testing.T, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir, o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { closeChecked(t, s) })
	return s
}

// withShards makes the directories of content, which the first content would do.
func withShards(t *testing.T, s *Store) *Store {
	t.Helper()
	if err := s.makeShard(registrytest.NewBlob(1, 1).Digest); err != nil {
		t.Fatal(err)
	}
	return s
}

// closeChecked closes a store after bbolt found no fault in its index and the counters were found true.
func closeChecked(t *testing.T, s *Store) {
	t.Helper()
	if s.closed.Load() {
		return
	}
	tx, err := s.bolt().Begin(true) // beside a writer the check would read a free list that is not of its own time
	if err != nil {
		t.Errorf("check of the index: %v", err)
	} else {
		for err := range tx.Check() {
			t.Errorf("index: %v", err)
		}
		checkCounts(t, s, tx)
		if end, ok := readSeal(tx); !ok || end.sum != sumIndex(tx) {
			t.Errorf("the sum of the rows is %x, and the seal is %+v, %t", sumIndex(tx), end, ok)
		}
		_ = tx.Rollback()
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// checkCounts compares the counters that Usage answers from with the rows.
func checkCounts(t *testing.T, s *Store, tx *bbolt.Tx) {
	t.Helper()
	var want counts
	_ = tx.Bucket(bucketBlobs).ForEach(func(_, v []byte) error {
		row, err := decodeBlob(v)
		if err != nil {
			t.Errorf("blob row: %v", err)
		}
		want.blobs++
		want.bytes += row.size
		return nil
	})
	repos := tx.Bucket(bucketRepos)
	_ = repos.ForEachBucket(func(k []byte) error {
		want.repositories++
		b := repos.Bucket(k)
		want.manifests += int64(b.Bucket(bucketManifests).Stats().KeyN)
		want.tags += int64(b.Bucket(bucketTags).Stats().KeyN)
		return nil
	})
	if got := *s.counts.Load(); got != want {
		t.Errorf("counters %+v, rows %+v", got, want)
	}
}

func TestRegistry(t *testing.T) {
	registrytest.Test(t, func(t *testing.T) registry.Registry { return openStore(t, t.TempDir(), Options{}) })
}

// bolt is the database that is in use.
func (s *Store) bolt() *bbolt.DB { return s.index.Load().db }

// TestNamesAreNoPaths: whatever repositories and tags are called, what they hold is in the files of its digests, and no
// file comes with a name.
func TestNamesAreNoPaths(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	files := func() (list []string) {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && (e.IsDir() || filepath.Dir(path) != dir) { // the index, its log and snapshots come and go
				list = append(list, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	image := registrytest.NewImage(1, 100)
	push := func(repo, tag string) {
		t.Helper()
		if err := registrytest.Push(t.Context(), s, repo, tag, image); err != nil {
			t.Fatal(err)
		}
		m, err := s.GetManifest(t.Context(), repo, registry.TagReference(tag))
		if err != nil || m.Digest != image.Digest {
			t.Fatalf("%s:%s: %s, %v", repo, tag, m.Digest, err)
		}
	}
	push("acme/app", "v1")
	before := files()
	for _, repo := range []string{"blobs/sha256", "uploads", "quarantine/a", "partial", "meta.db", "snapshot-1", "a/blobs/uploads/b", strings.Repeat("a/", 127) + "a"} {
		for _, tag := range []string{"meta.db", "reserve", "_.._", strings.Repeat("t", 128)} {
			push(repo, tag)
		}
	}
	if after := files(); !slices.Equal(before, after) {
		t.Errorf("%q, before it was %q", after, before)
	}
}
