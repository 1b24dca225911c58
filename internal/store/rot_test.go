package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// long takes all cases; without it a part of them is enough to see a mistake.
var long = os.Getenv("CHAOS") == "long"

const fast = 1 << 40 // bytes per second of a scrub that does not wait

// TestFlippedBlobs changes one bit in each of many blobs: no read gives wrong bytes as if they were complete, one scrub
// finds every one, and each is healed by its digest.
func TestFlippedBlobs(t *testing.T) {
	n := 60
	if long {
		n = 500
	}
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	random := rand.New(rand.NewPCG(3, 4))
	var blobs []registrytest.Blob
	for i := range n {
		size := 1 + random.IntN(5000)
		if i%7 == 0 {
			size = smallBlob + random.IntN(200_000)
		}
		image := registrytest.NewImage(uint64(i), size)
		if err := registrytest.Push(t.Context(), s, testRepo, fmt.Sprint("t", i), image); err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, image.Blobs[1])
	}
	closeChecked(t, s)
	s = openStore(t, dir, Options{}) // what this process wrote itself it believes
	for _, b := range blobs {
		rewrite(t, s.contentPath(b.Digest), func(body []byte) []byte {
			body[random.IntN(len(body))] ^= 1 << random.IntN(8)
			return body
		})
	}
	for _, b := range blobs[:n/2] {
		r, err := s.GetBlob(t.Context(), testRepo, b.Digest)
		if err != nil {
			if !errors.Is(err, registry.ErrBlobUnknown) {
				t.Errorf("GetBlob: %v", err)
			}
			continue
		}
		if r.(*Blob).File() != nil {
			t.Error("content that nobody has hashed is given out for sendfile")
		}
		body, err := io.ReadAll(r)
		if err == nil || int64(len(body)) >= b.Size {
			t.Errorf("%d of %d wrong bytes were read, %v", len(body), b.Size, err)
		}
		_ = r.Close()
	}
	res, err := s.Scrub(t.Context(), ScrubOptions{BytesPerSecond: fast})
	if err != nil || !res.Done || res.Damaged != n {
		t.Fatalf("Scrub: %+v, %v, want %d damaged", res, err, n)
	}
	list, err := s.Damaged(t.Context())
	if err != nil || len(list) != n {
		t.Fatalf("Damaged: %d, %v, want %d", len(list), err, n)
	}
	kept, err := os.ReadDir(filepath.Join(dir, dirQuarantine))
	if err != nil || len(kept) != n {
		t.Errorf("%d files in quarantine, %v, want %d", len(kept), err, n)
	}
	for _, b := range blobs {
		if err := fetchBlob(b).do(t.Context(), s, newOracle()); err != nil {
			t.Fatal(err)
		}
		r, err := s.GetBlob(t.Context(), testRepo, b.Digest)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || digest.FromBytes(body) != b.Digest {
			t.Errorf("healed content: %d bytes, %v", len(body), err)
		}
	}
	if list, err := s.Damaged(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("Damaged after healing: %d, %v", len(list), err)
	}
	if res, err := s.GC(t.Context(), GCOptions{}); err != nil || res.Files != n || res.Blobs > 0 {
		t.Errorf("GC: %+v, %v, want the %d files of the quarantine", res, err, n)
	}
}

// TestScrubContinues stops a scrub in the middle and starts the process again: what was hashed is not hashed again.
func TestScrubContinues(t *testing.T) {
	var now testTime
	dir := t.TempDir()
	s := openStore(t, dir, now.options())
	fill(t, s, 20)
	all := int(s.counts.Load().blobs)
	list, err := s.blobsAfter("")
	if err != nil || len(list) != all {
		t.Fatalf("%d rows, %v", len(list), err)
	}
	body, err := json.Marshal(scrubState{Cursor: list[all/2].digest})
	if err == nil {
		err = s.PutDocument(t.Context(), scrubDocument, body)
	}
	if err != nil {
		t.Fatal(err)
	}
	closeChecked(t, s)
	s = openStore(t, dir, now.options())
	commits := s.commits.Load()
	res, err := s.Scrub(t.Context(), ScrubOptions{BytesPerSecond: fast})
	if err != nil || !res.Done || res.Blobs != all-all/2-1 {
		t.Errorf("Scrub: %+v, %v, want the rest, %d", res, err, all-all/2-1)
	}
	if n := s.commits.Load() - commits; n != 1 {
		t.Errorf("%d commits for a scrub of a moment, want 1", n)
	}
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{{time.Hour, 0}, {defaultScrubEvery, all}, {time.Hour, 0}} {
		now.pass(tt.after)
		if res, err := s.Scrub(t.Context(), ScrubOptions{BytesPerSecond: fast}); err != nil || !res.Done || res.Blobs != tt.want {
			t.Errorf("after %s more: %+v, %v, want %d", tt.after, res, err, tt.want)
		}
	}
}

// TestScrubIsSlow holds a scrub to its rate.
func TestScrubIsSlow(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	if err := pushBlob(testRepo, registrytest.NewBlob(1, 300_000)).do(t.Context(), s, newOracle()); err != nil {
		t.Fatal(err)
	}
	begin := s.uptime()
	res, err := s.Scrub(t.Context(), ScrubOptions{BytesPerSecond: 3_000_000})
	if took := s.uptime() - begin; err != nil || res.Blobs != 1 || took < 95*time.Millisecond {
		t.Errorf("Scrub: %+v, %v in %s, want 100 ms at least", res, err, took)
	}
}

// TestSnapshot loses the index after tags were pushed: those of the snapshot stand again, those that came later too, and
// children are told to ask for everything.
func TestSnapshot(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"index":         func(t *testing.T, dir string) { rewrite(t, indexPath(dir), func([]byte) []byte { return nil }) },
		"index is gone": func(t *testing.T, dir string) { _ = os.Remove(indexPath(dir)) },
		"index and a later": func(t *testing.T, dir string) {
			for _, name := range []string{indexName, snapshotNames[0]} {
				rewrite(t, filepath.Join(dir, name), func(b []byte) []byte { clear(b); return b })
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, Options{})
			o := fill(t, s, 6)
			for range 2 {
				if err := s.Snapshot(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := s.PutDocument(t.Context(), "clock", fmt.Append(nil, s.commits.Load())); err != nil {
					t.Fatal(err)
				}
			}
			late := registrytest.NewImage(999, 4000)
			if err := registrytest.Push(t.Context(), s, "late/app", "v1", late); err != nil {
				t.Fatal(err)
			}
			o.tags["late/app:v1"] = late
			id, before := s.InstanceID(), s.counts.Load().blobs
			closeChecked(t, s)
			damage(t, dir)
			s = openStore(t, dir, Options{})
			if st, err := s.Usage(t.Context()); err != nil || st.Tags != len(o.tags) {
				t.Errorf("%+v, %v, want %d tags at once", st, err, len(o.tags))
			}
			waitState(t, s, stateOK)
			o.holds(t, s)
			if s.InstanceID() == id {
				t.Error("the restored index has the name of the lost one")
			}
			if after := s.counts.Load().blobs; after != before {
				t.Errorf("%d blobs, want %d", after, before)
			}
			if size, ok := s.StatContent(t.Context(), late.Blobs[1].Digest); !ok || size != 4000 {
				t.Error("content that came after the snapshot is lost")
			}
		})
	}
}

// TestSnapshotWritesNothingNew: an idle device writes nothing.
func TestSnapshotWritesNothingNew(t *testing.T) {
	dir := t.TempDir()
	x := &testFS{dir: dir}
	s := openStore(t, dir, Options{FS: x})
	fill(t, s, 1)
	for i, want := range []bool{true, false, false} {
		x.arm(0, false, nil)
		if err := s.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		if wrote := len(x.lines()) > 0; wrote != want {
			t.Errorf("snapshot %d: wrote %t, want %t", i, wrote, want)
		}
	}
}

// TestCompact churns an index and does not let the process end in order: at the next start its file is small again, and
// nothing of it is lost.
func TestCompact(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	o := fill(t, s, 10)
	if err := s.PutDocument(t.Context(), "large", make([]byte, maxDocument)); err != nil {
		t.Fatal(err)
	}
	if err := s.PutDocument(t.Context(), "large", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	o.documents["large"] = "{}"
	id, killed := s.InstanceID(), copyOf(t, dir)
	closeChecked(t, s)
	dir = killed
	size := func() int64 {
		info, err := os.Stat(indexPath(dir))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	before := size()
	s = openStore(t, dir, Options{})
	if after := size(); after > before/3 {
		t.Errorf("%d bytes of %d are left", after, before)
	}
	o.holds(t, s)
	if s.InstanceID() != id {
		t.Error("another instance")
	}
	if list, _ := filepath.Glob(filepath.Join(dir, "*"+compactName+"*")); len(list) > 0 {
		t.Errorf("left behind: %v", list)
	}
	fill(t, s, 3)
}

// TestChurn writes and removes rows, a million in the long run: at the next start the index is at most three times what
// is live.
func TestChurn(t *testing.T) {
	n := 30_000
	if long {
		n = 1_000_000
	}
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	fill(t, s, 10)
	s.bolt().NoSync = true // what is measured is size
	random := rand.New(rand.NewPCG(8, 9))
	for i := 0; i < n; i += 100 {
		err := s.update(t.Context(), func(t *tx) error {
			r, err := t.makeRepo(testRepo)
			if err != nil {
				return err
			}
			for j := range 100 {
				d := digest.FromString(fmt.Sprint(i, j))
				if err := r.moveTag(fmt.Sprint("t", random.IntN(5000)), d, false); err != nil {
					return err
				}
				tag := fmt.Sprint("t", random.IntN(5000))
				if r.tags.Get([]byte(tag)) != nil {
					if err := r.removeTag(tag); err != nil {
						return err
					}
				}
			}
			return t.dropTombstones(maxTombstones)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// With all that is there the file may be just small enough as it is.
	err := s.update(t.Context(), func(t *tx) error {
		r, err := t.makeRepo(testRepo)
		for i := 500; i < 5000 && err == nil; i++ {
			if tag := fmt.Sprint("t", i); r.tags.Get([]byte(tag)) != nil {
				err = r.removeTag(tag)
			}
		}
		return errors.Join(err, t.dropTombstones(0))
	})
	if err != nil {
		t.Fatal(err)
	}
	s.bolt().NoSync = false
	closeChecked(t, s)
	before, err := os.Stat(indexPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, Options{})
	after, err := os.Stat(indexPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	walk, err := inspectIndex(s.index.Load().file, after.Size())
	if err != nil {
		t.Fatal(err)
	}
	live := filepath.Join(t.TempDir(), "live")
	dst, err := bbolt.Open(live, 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(bbolt.Compact(dst, s.bolt(), compactTx), dst.Close()); err != nil {
		t.Fatal(err)
	}
	least, err := os.Stat(live)
	if err != nil {
		t.Fatal(err)
	}
	// bbolt makes the file larger in steps without writing them: blocks are what the disk gives.
	disk, reached := after.Sys().(*syscall.Stat_t).Blocks*512, walk.mark().size
	t.Logf("after %d operations: %d KiB, after the start %d KiB, of which %d KiB take room and %d KiB are rows; live %d KiB",
		2*n, before.Size()>>10, after.Size()>>10, disk>>10, walk.used>>10, least.Size()>>10)
	if most := max(3*walk.used, compactFree); disk > most+64<<10 || reached > most {
		t.Errorf("%d bytes reached, %d of the disk, for %d", reached, disk, walk.used)
	}
	if walk.used > 3*least.Size() {
		t.Errorf("%d bytes of pages for %d", walk.used, least.Size())
	}
}
