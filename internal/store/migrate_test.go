package store

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// golden puts the index that the first release of a schema wrote into a new data directory.
func golden(t *testing.T, version int) (dir string) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("testdata/schema-%d.db.gz", version))
	if err != nil {
		t.Fatalf("each schema has an index in testdata: %v", err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.WriteFile(indexPath(dir), body, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func versionOf(t *testing.T, path string) uint64 {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var version uint64
	_ = db.View(func(tx *bbolt.Tx) error {
		version, _ = binary.Uvarint(tx.Bucket(bucketMeta).Get(keySchemaVersion))
		return nil
	})
	return version
}

// TestGolden opens the index of each schema that was ever written: all of its names are there, and it takes new ones.
func TestGolden(t *testing.T) {
	for version := 1; version <= len(migrations)+1; version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			dir := golden(t, version)
			s, err := Open(t.Context(), dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if st, err := s.Usage(t.Context()); err != nil || st.Repositories != 6 || st.Tags != 8 || st.Manifests != 12 || st.Blobs != 42 {
				t.Errorf("%+v, %v", st, err)
			}
			index := registrytest.NewIndex(registrytest.NewImage(1, 100), registrytest.NewImage(2, 200))
			states, err := s.TagStates(t.Context(), "parent/app")
			if err != nil || len(states) != 1 || states[0] != (registry.LocalTag{Tag: "v1", Digest: index.Digest}) {
				t.Errorf("tags of parent/app: %+v, %v", states, err)
			}
			states, err = s.TagStates(t.Context(), "fill/0")
			if err != nil || len(states) != 2 || !states[0].Pushed || states[0].Digest != registrytest.NewImage(100, 2000, 3000).Digest {
				t.Errorf("tags of fill/0: %+v, %v", states, err)
			}
			list, err := s.Referrers(t.Context(), "fill/0", registrytest.NewImage(100, 2000, 3000).Digest, "application/vnd.example")
			if err != nil || len(list) != 1 {
				t.Errorf("referrers: %+v, %v", list, err)
			}
			if body, err := s.Document(t.Context(), "config/last-good"); err != nil || string(body) != "{}" {
				t.Errorf("document: %q, %v", body, err)
			}
			changes, err := s.Changes(t.Context(), "", 100, nil)
			if err != nil || len(changes.Entries) != 9 {
				t.Errorf("changes: %d, %v", len(changes.Entries), err)
			}
			if err := registrytest.Push(t.Context(), s, "fill/0", "new", registrytest.NewImage(77, 500)); err != nil {
				t.Errorf("a push to it: %v", err)
			}
		})
	}
}

// TestMigration runs migrations that are not there yet: in order, in one transaction, with a copy of the old index, and
// again from the start after a crash in the middle. An older release refuses the result and changes nothing.
func TestMigration(t *testing.T) {
	crash := errors.New("crash")
	var ran []int
	stop := 0
	list := append([]migration{}, migrations...)
	old := uint64(len(list) + 1)
	for i := range 2 {
		list = append(list, func(tx *bbolt.Tx) error {
			ran = append(ran, i)
			if err := tx.Bucket(bucketDocuments).Put(fmt.Append(nil, "step", i), []byte("done")); err != nil {
				return err
			}
			if stop == i+1 {
				return crash
			}
			return nil
		})
	}
	dir := golden(t, 1)
	before, err := os.ReadFile(indexPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	for stop = range []int{1, 2} {
		stop++
		if _, err := Open(t.Context(), dir, Options{migrations: list}); !errors.Is(err, crash) {
			t.Fatalf("Open: %v, want the crash", err)
		}
		if v := versionOf(t, indexPath(dir)); v != 1 {
			t.Fatalf("version %d after a crash, want 1", v)
		}
	}
	stop, ran = 0, nil
	s, err := Open(t.Context(), dir, Options{migrations: list})
	if err != nil {
		t.Fatal(err)
	}
	if len(ran) != 2 || ran[0] != 0 || ran[1] != 1 {
		t.Errorf("ran %v, want each once, in order", ran)
	}
	for i := range 2 {
		if body, err := s.Document(t.Context(), fmt.Sprint("step", i)); err != nil || string(body) != "done" {
			t.Errorf("step %d: %q, %v", i, body, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if v := versionOf(t, indexPath(dir)); v != old+2 {
		t.Errorf("version %d, want %d", v, old+2)
	}
	kept := filepath.Join(dir, keptName(1))
	if v := versionOf(t, kept); v != 1 {
		t.Errorf("the copy has version %d, want 1", v)
	}
	after, err := os.ReadFile(indexPath(dir))
	if err != nil || bytes.Equal(before, after) {
		t.Fatal("nothing changed")
	}
	_, err = Open(t.Context(), dir, Options{}) // the release before
	wantText(t, err, registry.ErrUnsupported, "newer release", fmt.Sprint("schema ", old+2))
	if again, err := os.ReadFile(indexPath(dir)); err != nil || !bytes.Equal(again, after) {
		t.Errorf("the older release changed the index: %v", err)
	}
}
