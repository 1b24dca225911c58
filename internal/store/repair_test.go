package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// indexFiles are the files that an index and what stands in for it consist of.
var indexFiles = slices.Concat([]string{indexName}, snapshotNames, redoNames)

// volumeOf is a stopped store with what was acknowledged: some of it before a snapshot, some after, with locks.
type volumeOf struct {
	*oracle
	dir    string
	files  map[string][]byte
	queued []registry.OutboxEntry
	told   JournalPage
}

func stopped(t *testing.T) volumeOf {
	t.Helper()
	v := volumeOf{dir: t.TempDir(), files: map[string][]byte{}}
	s := openStore(t, v.dir, Options{})
	if err := errors.Join(s.SetClimbing(t.Context(), true), s.SetJournal(t.Context(), true)); err != nil {
		t.Fatal(err)
	}
	v.oracle = fill(t, s, 20)
	if err := s.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		image := registrytest.NewImage(uint64(500+i), 700, 900)
		if err := registrytest.Push(t.Context(), s, "later/app", fmt.Sprint("t", i), image); err != nil {
			t.Fatal(err)
		}
		v.tags[fmt.Sprint("later/app:t", i)] = image
		if i == 5 {
			if err := s.Snapshot(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.SetAttributes(t.Context(), "later/app", registry.TagReference("t1"), registry.AttributeChange{NoDelete: &yes}); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteTag(t.Context(), "fill/0", "t0"); err != nil {
		t.Fatal(err)
	}
	delete(v.tags, "fill/0:t0")
	var err error
	if v.queued, err = s.OutboxEntries(t.Context(), 0, registry.MaxPage); err == nil {
		v.told, err = s.Journal(t.Context(), 1000)
	}
	if err != nil || len(v.queued) < 30 || len(v.told.Events) < 30 {
		t.Fatalf("%d entries of the outbox, %d of the journal, %v", len(v.queued), len(v.told.Events), err)
	}
	closeChecked(t, s)
	for _, name := range indexFiles {
		body, err := os.ReadFile(filepath.Join(v.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		v.files[name] = body
	}
	return v
}

// reset puts the files back, one of them changed.
func (v volumeOf) reset(t *testing.T, name string, body []byte) {
	t.Helper()
	old, _ := filepath.Glob(filepath.Join(v.dir, "*.corrupt-*"))
	for _, path := range old {
		_ = os.Remove(path)
	}
	for _, n := range indexFiles {
		b := v.files[n]
		if n == name {
			b = body
		}
		if err := os.WriteFile(filepath.Join(v.dir, n), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// holdsAll checks tags, deletions and locks.
func (v volumeOf) holdsAll(ctx context.Context, s *Store) error {
	for key, image := range v.tags {
		repo, tag, _ := strings.Cut(key, ":")
		m, err := s.GetManifest(ctx, repo, registry.TagReference(tag))
		if err != nil || m.Digest != image.Digest {
			return fmt.Errorf("tag %s: %s, %w", key, m.Digest, err)
		}
	}
	if m, err := s.GetManifest(ctx, "fill/0", registry.TagReference("t0")); !errors.Is(err, registry.ErrManifestUnknown) {
		return fmt.Errorf("a tag that was deleted is back: %s, %w", m.Digest, err)
	}
	if !s.Locks("later/app").Tag("t1").NoDelete {
		return errors.New("a lock is lost")
	}
	queued, err := s.OutboxEntries(ctx, 0, registry.MaxPage)
	if err != nil || len(queued) < len(v.queued) || !reflect.DeepEqual(queued[:len(v.queued)], v.queued) {
		return fmt.Errorf("the outbox has %d entries and had %d, %w", len(queued), len(v.queued), err)
	}
	told, err := s.Journal(ctx, 1000)
	if err != nil || len(told.Events) < len(v.told.Events) || !reflect.DeepEqual(told.Events[:len(v.told.Events)], v.told.Events) {
		return fmt.Errorf("the journal has %d entries and had %d, %w", len(told.Events), len(v.told.Events), err)
	}
	if got := s.counts.Load().tags; got != int64(len(v.tags)) {
		return fmt.Errorf("%d tags, want %d", got, len(v.tags))
	}
	return nil
}

// spoil damages the bytes of a file as a bad card does.
func spoil(random *rand.Rand, kind int, good []byte) []byte {
	bad := bytes.Clone(good)
	size := max(min(len(good)/8, 4096), 8) // of a page; a packed snapshot may be smaller than one
	used := max(len(bytes.TrimRight(good, "\x00")), size)
	page := func() int { return random.IntN(used/size) * size }
	switch kind {
	case 0:
		clear(bad[page():][:size])
	case 1:
		bad = bad[:random.IntN(len(bad))]
	case 2: // a page that went to another's place
		copy(bad[page():], bytes.Clone(bad[page():][:size]))
	case 3: // an eighth of a page, as a sector of 512 bytes that was not written
		at := page() + random.IntN(8)*(size/8)
		for i := range size / 8 {
			bad[at+i] = byte(random.Uint32())
		}
	default:
		for range 1 + random.IntN(4) {
			bad[random.IntN(used)] ^= 1 << random.IntN(8)
		}
	}
	return bad
}

// TestRot damages the index, or one of the files that stand in for it, in every way that chance finds: each damage is
// noticed or hits nothing, and no tag, deletion or lock that was acknowledged is lost.
func TestRot(t *testing.T) {
	n := 300
	if long {
		n = 2000
	}
	v := stopped(t)
	random := rand.New(rand.NewPCG(5, 6))
	noticed, harmless, lost := 0, 0, 0
	for i := range n {
		name := indexName
		if i%10 == 9 {
			name = indexFiles[random.IntN(len(indexFiles))]
		}
		v.reset(t, name, spoil(random, i%5, v.files[name]))
		s, err := Open(t.Context(), v.dir, Options{})
		if err != nil {
			t.Fatalf("case %d: Open: %v", i, err)
		}
		s.worker.Wait()
		old, _ := filepath.Glob(indexPath(v.dir) + ".corrupt-*")
		if len(old) > 0 {
			noticed++
		} else {
			harmless++
		}
		if err := v.holdsAll(t.Context(), s); err != nil {
			lost++
			t.Errorf("case %d, %s, kind %d, noticed %d: %v", i, name, i%5, len(old), err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("case %d: Close: %v", i, err)
		}
	}
	t.Logf("of %d damages %d were noticed, %d hit nothing that is in use, and %d lost something", n, noticed, harmless, lost)
	if noticed < n/4 {
		t.Error("that are too few")
	}
}

// TestBreakWhileRunning damages the index under a store that runs: it says so, repairs itself, and nothing that was
// acknowledged before or meanwhile is lost.
func TestBreakWhileRunning(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"emptied":   func(path string) error { return os.Truncate(path, 0) },
		"truncated": func(path string) error { return os.Truncate(path, 3*4096) },
		"removed":   os.Remove,
		"replaced": func(path string) error {
			return errors.Join(os.WriteFile(path+".new", []byte("something else"), 0o600), os.Rename(path+".new", path))
		},
		"replaced by an old one": func(path string) error {
			var body bytes.Buffer
			_, err := (&Store{fs: OSFS{}}).unpack(filepath.Join(filepath.Dir(path), snapshotNames[1]), &body)
			return errors.Join(err, os.WriteFile(path+".new", body.Bytes(), 0o600), os.Rename(path+".new", path))
		},
		"zeroed": func(path string) error {
			body, err := os.ReadFile(path)
			clear(body)
			f, e := os.OpenFile(path, os.O_WRONLY, 0)
			if e != nil {
				return e
			}
			_, e = f.WriteAt(body, 0)
			return errors.Join(err, e, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := stopped(t)
			v.reset(t, "", nil)
			s := openStore(t, v.dir, Options{})
			if err := damage(indexPath(v.dir)); err != nil {
				t.Fatal(err)
			}
			image := registrytest.NewImage(900, 300)
			states := map[string]bool{}
			for deadline := time.Now().Add(20 * time.Second); ; {
				err := registrytest.Push(t.Context(), s, "later/app", "new", image)
				if st, e := s.Usage(t.Context()); e == nil {
					states[st.State] = true
				}
				if err == nil {
					break
				}
				if !errors.Is(err, registry.ErrUnavailable) || time.Now().After(deadline) {
					t.Fatalf("a push meanwhile: %v", err)
				}
				time.Sleep(time.Millisecond) // the repair runs against a real disk
			}
			v.tags["later/app:new"] = image
			recovered(t, s)
			if err := v.holdsAll(t.Context(), s); err != nil {
				t.Error(err)
			}
			t.Logf("states seen: %v", states)
			closeChecked(t, s)
			s = openStore(t, v.dir, Options{})
			if err := v.holdsAll(t.Context(), s); err != nil {
				t.Errorf("after a restart: %v", err)
			}
		})
	}
}

// TestBreakWhileReading takes the index away under those who read: who begins to read meets that with the locks of the
// index, and neither those who read already nor those who begin beside it wait for them for ever.
func TestBreakWhileReading(t *testing.T) {
	v := stopped(t)
	v.reset(t, "", nil)
	s := openStore(t, v.dir, Options{})
	const each = 8
	var begun sync.WaitGroup
	begun.Add(each)
	met, ended := make(chan struct{}), make(chan error)
	for range each {
		go func() {
			ended <- s.view(func(*tx) error {
				begun.Done()
				<-met
				return nil
			})
		}()
	}
	begun.Wait()
	if err := os.Truncate(indexPath(v.dir), 0); err != nil {
		t.Fatal(err)
	}
	_, err := s.GetManifest(t.Context(), "later/app", registry.TagReference("t1"))
	if !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("without an index: %v", err)
	}
	for range each {
		go func() {
			_, err := s.GetManifest(t.Context(), "later/app", registry.TagReference("t1"))
			if errors.Is(err, registry.ErrUnavailable) {
				err = nil
			}
			ended <- err
		}()
	}
	close(met)
	deadline := time.Now().Add(time.Minute)
	for range 2 * each {
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Until(deadline)):
			t.Fatal("somebody waits for ever")
		}
	}
	for ; s.broken.Load() != nil; time.Sleep(time.Millisecond) { // the repair runs against a real disk
		if time.Now().After(deadline) {
			t.Fatal("it is not repaired")
		}
	}
	recovered(t, s)
	if err := v.holdsAll(t.Context(), s); err != nil {
		t.Error(err)
	}
}

// TestRowThatFlips changes one bit of a row under a store that runs: the read that meets it has the index looked at, and
// it is repaired without a restart.
func TestRowThatFlips(t *testing.T) {
	v := stopped(t)
	v.reset(t, "", nil)
	s := openStore(t, v.dir, Options{})
	key := digestKey(v.tags["later/app:t1"].Digest)
	body, err := os.ReadFile(indexPath(v.dir))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(indexPath(v.dir), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for at := bytes.Index(body, key); at >= 0; at = bytes.Index(body, key) { // wherever it stands
		body[at+5] ^= 4
		if _, err := f.WriteAt(body[at+5:][:1], int64(at+5)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := s.GetManifest(t.Context(), "later/app", registry.TagReference("t1")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not repaired")
		}
	}
	recovered(t, s)
	if err := v.holdsAll(t.Context(), s); err != nil {
		t.Error(err)
	}
}

// TestSyncThatFails lets the disk refuse one sync of the index: that push fails, and the next one succeeds.
func TestSyncThatFails(t *testing.T) {
	dir := t.TempDir()
	fail := false
	s := openStore(t, dir, Options{hook: func(step string) error {
		if step == "commit" && fail {
			fail = false
			return syscall.EIO
		}
		return nil
	}})
	image := registrytest.NewImage(1, 10)
	fail = true
	if err := registrytest.Push(t.Context(), s, testRepo, "v1", image); !errors.Is(err, registry.ErrDisk) {
		t.Errorf("%v, want DiskError", err)
	}
	if err := registrytest.Push(t.Context(), s, testRepo, "v1", image); err != nil {
		t.Error(err)
	}
}
