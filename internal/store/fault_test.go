package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// oracle is what was acknowledged.
type oracle struct {
	blobs     map[string]registrytest.Blob // repository and digest
	tags      map[string]registrytest.Image
	documents map[string]string
	queued    map[string]bool // rows of the outbox, as action, repository:tag and digest
	partial   int64           // bytes of unfinished content that Write returned for
}

const (
	testRepo  = "acme/app"
	otherRepo = "acme/copy"
)

// act is one step of a scenario: what it does, and what must be true when it succeeded.
type act struct {
	name string
	do   func(ctx context.Context, s *Store, o *oracle) error
}

func pushBlob(repo string, b registrytest.Blob) act {
	return act{"push blob", func(ctx context.Context, s *Store, o *oracle) error {
		u, err := s.StartUpload(ctx, repo)
		if err != nil {
			return err
		}
		defer u.Cancel(ctx)
		half := len(b.Bytes) / 2
		for _, part := range [][]byte{b.Bytes[:half], b.Bytes[half:]} {
			if _, err := u.Write(part); err != nil {
				return err
			}
		}
		if _, err := u.Commit(ctx, b.Digest); err != nil {
			_ = u.Close()
			return err
		}
		o.blobs[repo+"@"+b.Digest.String()] = b
		return nil
	}}
}

func putManifest(repo, tag string, image registrytest.Image) act {
	return act{"put manifest", func(ctx context.Context, s *Store, o *oracle) error {
		_, err := s.PutManifest(ctx, repo, registry.TagReference(tag), image.Manifest)
		if err == nil {
			o.tags[repo+":"+tag] = image
			o.queued[fmt.Sprint("push ", repo, ":", tag, " ", image.Digest)] = true
		}
		return err
	}}
}

// fetchBlob brings a blob as synchronisation does, in two runs.
func fetchBlob(b registrytest.Blob) act {
	return act{"fetch blob", func(ctx context.Context, s *Store, o *oracle) error {
		for {
			if size, ok := s.StatContent(ctx, b.Digest); ok {
				o.partial = 0
				if size != b.Size {
					return fmt.Errorf("StatContent: %d bytes, want %d", size, b.Size)
				}
				return nil
			}
			p, err := s.Partial(ctx, b.Digest, b.Size)
			if err != nil {
				return err
			}
			at := p.Size()
			if at < o.partial {
				_ = p.Close()
				return fmt.Errorf("partial of %d bytes, %d were written", at, o.partial)
			}
			if at == b.Size {
				if err := p.Commit(ctx); err != nil {
					return err
				}
				continue
			}
			_, err = p.Write(b.Bytes[at:min(at+int64(len(b.Bytes)/2+1), b.Size)])
			o.partial = p.Size()
			if err := errors.Join(err, p.Close()); err != nil {
				return err
			}
		}
	}}
}

func commitImage(repo, tag string, image registrytest.Image) act {
	return act{"commit image", func(ctx context.Context, s *Store, o *oracle) error {
		list := []registry.Manifest{}
		for _, c := range image.Children {
			list = append(list, c.Manifest)
		}
		_, err := s.CommitImage(ctx, registry.Image{Repository: repo, Manifests: append(list, image.Manifest), Tags: []string{tag}})
		if err == nil {
			o.tags[repo+":"+tag] = image
		}
		return err
	}}
}

// scenario pushes an image, mounts it elsewhere, brings an index by synchronisation, moves and deletes.
func scenario() []act {
	one := registrytest.NewImage(1, 3000, smallContent+1)
	two, three := registrytest.NewImage(2, 4000), registrytest.NewImage(3, 60_000)
	index := registrytest.NewIndex(two, three)
	list := []act{{"climb", func(ctx context.Context, s *Store, _ *oracle) error {
		return errors.Join(s.SetClimbing(ctx, true), s.SetJournal(ctx, true))
	}}}
	for _, b := range one.Blobs {
		list = append(list, pushBlob(testRepo, b))
	}
	list = append(list, putManifest(testRepo, "v1", one))
	for _, b := range one.Blobs {
		list = append(list, act{"mount", func(ctx context.Context, s *Store, o *oracle) error {
			_, err := s.MountBlob(ctx, otherRepo, testRepo, b.Digest)
			if err == nil {
				o.blobs[otherRepo+"@"+b.Digest.String()] = b
			}
			return err
		}})
	}
	list = append(list, putManifest(otherRepo, "v1", one))
	for _, b := range slices.Concat(two.Blobs, three.Blobs) {
		list = append(list, fetchBlob(b))
	}
	return append(
		list, commitImage(testRepo, "synced", index), commitImage(testRepo, "next", index),
		act{"delete manifest", func(ctx context.Context, s *Store, o *oracle) error {
			delete(o.tags, otherRepo+":v1") // from the attempt on, either is right
			delete(o.queued, fmt.Sprint("push ", otherRepo, ":v1 ", one.Digest))
			err := s.DeleteManifest(ctx, otherRepo, one.Digest)
			if err == nil {
				o.queued[fmt.Sprint("delete ", otherRepo, ": ", one.Digest)] = true
			}
			return err
		}},
		act{"deliver", func(ctx context.Context, s *Store, o *oracle) error {
			entries, err := s.OutboxEntries(ctx, 0, 1)
			if err != nil || len(entries) == 0 {
				return err
			}
			e := entries[0]
			delete(o.queued, fmt.Sprint(e.Action, " ", e.Repository, ":", e.Tag, " ", e.Digest))
			return s.OutboxDone(ctx, e.Seq)
		}},
		act{"untag", func(ctx context.Context, s *Store, o *oracle) error {
			delete(o.tags, testRepo+":next")
			_, err := s.Untag(ctx, testRepo, []string{"next"})
			return err
		}},
		act{"document", func(ctx context.Context, s *Store, o *oracle) error {
			delete(o.documents, "config")
			err := s.PutDocument(ctx, "config", []byte("{}"))
			if err == nil {
				o.documents["config"] = "{}"
			}
			return err
		}},
		act{"collect", func(ctx context.Context, s *Store, _ *oracle) error {
			_, err := s.GC(ctx, GCOptions{})
			return err
		}},
	)
}

func newOracle() *oracle {
	return &oracle{blobs: map[string]registrytest.Blob{}, tags: map[string]registrytest.Image{}, documents: map[string]string{}, queued: map[string]bool{}}
}

// holds checks that all that was acknowledged is here and right, and that no tag points at anything incomplete.
func (o *oracle) holds(t *testing.T, s *Store) {
	t.Helper()
	ctx := t.Context()
	read := func(repo string, b registrytest.Blob) {
		t.Helper()
		r, err := s.GetBlob(ctx, repo, b.Digest)
		if err != nil {
			t.Errorf("acknowledged blob %s of %s: %v", b.Digest, repo, err)
			return
		}
		body, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || digest.FromBytes(body) != b.Digest {
			t.Errorf("acknowledged blob %s of %s: %d bytes, %v", b.Digest, repo, len(body), err)
		}
	}
	for key, b := range o.blobs {
		repo, _, _ := strings.Cut(key, "@")
		read(repo, b)
	}
	for key, image := range o.tags {
		repo, tag, _ := strings.Cut(key, ":")
		m, err := s.GetManifest(ctx, repo, registry.TagReference(tag))
		if err != nil || m.Digest != image.Digest || digest.FromBytes(m.Bytes) != m.Digest {
			t.Errorf("acknowledged tag %s: %s, %v, want %s", key, m.Digest, err, image.Digest)
		}
	}
	checkOutbox(t, s)
	entries, err := s.OutboxEntries(ctx, 0, registry.MaxPage)
	if err != nil {
		t.Errorf("OutboxEntries: %v", err)
	}
	for row := range o.queued {
		if !slices.ContainsFunc(entries, func(e registry.OutboxEntry) bool {
			return row == fmt.Sprint(e.Action, " ", e.Repository, ":", e.Tag, " ", e.Digest)
		}) {
			t.Errorf("acknowledged and not queued: %s; queued: %v", row, entries)
		}
	}
	for name, body := range o.documents {
		if got, err := s.Document(ctx, name); err != nil || string(got) != body {
			t.Errorf("acknowledged document %s: %q, %v", name, got, err)
		}
	}
	repos, err := s.Repositories(ctx, "", registry.MaxPage)
	if err != nil {
		t.Errorf("Repositories: %v", err)
	}
	for _, repo := range repos {
		tags, err := s.TagStates(ctx, repo)
		if err != nil {
			t.Errorf("TagStates: %v", err)
		}
		for _, tag := range tags {
			if tag.Digest == "" {
				continue // it went, and its going is queued
			}
			if list, err := s.Missing(ctx, repo, tag.Digest, nil); err != nil || len(list) > 0 {
				t.Errorf("tag %s:%s is served and incomplete: %v, %v", repo, tag.Tag, list, err)
			}
		}
	}
}

// noLeaks checks that after a collection with a late clock nothing is on the disk but rows' files.
func noLeaks(t *testing.T, dir string) {
	t.Helper()
	late := clock.Func(func() time.Time { return time.Now().Add(100 * 24 * time.Hour) })
	s := openStore(t, dir, Options{Clock: late})
	recovered(t, s)
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Fatalf("GC: %v", err)
	}
	var files int64
	err := s.eachShard(func(shard string) (bool, error) {
		list, err := os.ReadDir(shard)
		files += int64(len(list))
		return true, err
	})
	if want := s.counts.Load().blobs; err != nil || files != want {
		t.Errorf("%d files for %d rows, %v", files, want, err)
	}
	for _, d := range []string{dirUploads, dirPartial} {
		if list, err := os.ReadDir(filepath.Join(dir, d)); err != nil || len(list) > 0 {
			t.Errorf("left in %s: %v, %v", d, list, err)
		}
	}
	closeChecked(t, s)
}

// recovered waits for the rebuilding of the index to end, if there is one.
func recovered(t *testing.T, s *Store) {
	t.Helper()
	for s.recovering.Load() {
		select {
		case <-t.Context().Done():
			t.Fatal("the index is still being rebuilt")
		case <-time.After(time.Millisecond):
		}
	}
}

// operations counts the failing points of the scenario.
func operations(t *testing.T) int {
	dir := t.TempDir()
	x := &testFS{dir: dir}
	s := withShards(t, openStore(t, dir, Options{FS: x, hook: x.hook}))
	x.arm(0, false, nil)
	o := newOracle()
	for _, a := range scenario() {
		if err := a.do(t.Context(), s, o); err != nil {
			t.Fatalf("%s: %v", a.name, err)
		}
	}
	o.holds(t, s)
	return x.n
}

// TestKill stops the process at every operation, starts it again and compares with what was acknowledged; then the
// scenario runs again, to its end.
func TestKill(t *testing.T) {
	n := operations(t)
	if n < 100 {
		t.Fatalf("only %d operations", n)
	}
	step := 1
	if testing.Short() {
		step = 3
	}
	for i := 1; i <= n; i += step {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			x := &testFS{dir: dir}
			s, err := Open(t.Context(), dir, Options{FS: x, hook: x.hook})
			if err != nil {
				t.Fatal(err)
			}
			withShards(t, s)
			x.arm(i, true, nil)
			o := newOracle()
			failed := ""
			for _, a := range scenario() {
				if err := a.do(t.Context(), s, o); err != nil {
					failed = a.name
					break
				}
			}
			if failed == "" && !x.reached() {
				t.Errorf("nothing failed at operation %d", i)
			}
			_ = s.Close()
			again := openStore(t, dir, Options{})
			o.holds(t, again)
			recovered(t, again) // a kill before the first commit leaves content beside an empty index
			for _, a := range scenario() {
				if err := a.do(t.Context(), again, o); err != nil && a.name != "delete manifest" {
					t.Fatalf("after the restart (failed in %q): %s: %v", failed, a.name, err)
				}
			}
			o.holds(t, again)
			closeChecked(t, again)
			noLeaks(t, dir)
		})
	}
}

// TestFault lets every operation fail once, with each error that a disk has. The step that meets it fails with the
// right code or not at all, everything else goes on, and the step succeeds when it is tried again.
func TestFault(t *testing.T) {
	n := operations(t)
	for i := 1; i <= n; i++ {
		for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EIO} {
			if testing.Short() && i%2 == int(errno)%2 {
				continue
			}
			t.Run(fmt.Sprintf("%d-%s", i, errno), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				x := &testFS{dir: dir}
				s := openStore(t, dir, Options{FS: x, hook: func(step string) error {
					if step == "committed" {
						return nil // an error after the commit is no error of a disk
					}
					return x.hook(step)
				}})
				withShards(t, s)
				x.arm(i, false, errno)
				o := newOracle()
				for _, a := range scenario() {
					err := a.do(t.Context(), s, o)
					if err != nil && !errors.Is(err, registry.ErrDisk) {
						t.Errorf("%s: %v, want DiskError", a.name, err)
					}
					if err != nil {
						o.holds(t, s)
						o.partial = 0 // a failed fsync is final for its file
						if err := a.do(t.Context(), s, o); err != nil {
							t.Errorf("%s again: %v", a.name, err)
						}
					}
				}
				o.holds(t, s)
				closeChecked(t, s)
				noLeaks(t, dir)
			})
		}
	}
}

// TestFailedSyncIsFinal: a second fsync may succeed though the bytes never reached the disk.
func TestFailedSyncIsFinal(t *testing.T) {
	dir := t.TempDir()
	x := &testFS{dir: dir, only: "fsync"}
	s := openStore(t, dir, Options{FS: x})
	b := registrytest.NewBlob(1, smallContent+1)
	u, err := s.StartUpload(t.Context(), testRepo)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Partial(t.Context(), b.Digest, b.Size)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.Writer{u, p} {
		if _, err := w.Write(b.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	x.arm(1, false, syscall.EIO)
	if _, err := u.Commit(t.Context(), b.Digest); !errors.Is(err, registry.ErrDisk) {
		t.Errorf("Commit of an upload: %v, want DiskError", err)
	}
	if _, err := s.ResumeUpload(t.Context(), testRepo, u.ID()); !errors.Is(err, registry.ErrBlobUploadUnknown) {
		t.Errorf("ResumeUpload: %v, want BLOB_UPLOAD_UNKNOWN", err)
	}
	x.arm(1, false, syscall.EIO)
	if err := p.Commit(t.Context()); !errors.Is(err, registry.ErrDisk) {
		t.Errorf("Commit of a partial: %v, want DiskError", err)
	}
	p, err = s.Partial(t.Context(), b.Digest, b.Size)
	if err != nil || p.Size() != 0 {
		t.Errorf("after a failed fsync: %v, want nothing kept", err)
	}
	_ = p.Close()
}

// TestOrder reads the recorded operations: fsync of the file, rename, fsync of the directory, the log, the index. Small
// content has one sync, that of the log.
func TestOrder(t *testing.T) {
	dir := t.TempDir()
	x := &testFS{dir: dir}
	s := withShards(t, openStore(t, dir, Options{FS: x, hook: x.hook}))
	image, synced := registrytest.NewImage(1, 30_000), registrytest.NewImage(2, 40_000)
	log := filepath.Base(s.redo.file.(*testFile).path)
	for _, tt := range []struct {
		act
		final  registry.Digest
		logged bool
	}{
		{pushBlob(testRepo, image.Blobs[0]), image.Blobs[0].Digest, true},
		{pushBlob(testRepo, image.Blobs[1]), image.Blobs[1].Digest, false},
		{putManifest(testRepo, "pushed", image), image.Digest, true},
		{fetchBlob(synced.Blobs[0]), synced.Blobs[0].Digest, true},
		{fetchBlob(synced.Blobs[1]), synced.Blobs[1].Digest, false},
		{commitImage(testRepo, "latest", synced), synced.Digest, false},
	} {
		x.arm(0, false, nil)
		if err := tt.do(t.Context(), s, newOracle()); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		final := dirBlobs + "/sha256/" + tt.final.Encoded()[:2]
		want := []string{"fsync", "rename " + final + "/" + tt.final.Encoded(), "syncdir " + final, "commit", "write " + log, "fsync " + log, "committed"}
		if tt.logged {
			want = []string{"rename " + final + "/" + tt.final.Encoded(), "commit", "write " + log, "fsync " + log, "committed"}
		}
		at, syncs := 0, 0
		for _, line := range x.lines() {
			if strings.Contains(line, "sync") {
				syncs++
			}
			if at < len(want) && strings.HasPrefix(line, want[at]) {
				at++
			} else if strings.HasPrefix(line, "write") && !strings.Contains(line, log) && at > 0 {
				t.Errorf("%s: a write after the fsync: %q", tt.name, x.lines())
			}
		}
		if at != len(want) {
			t.Errorf("%s: %q is not in order in %q", tt.name, want[at], x.lines())
		}
		if n := map[bool]int{true: 1, false: 3}[tt.logged]; syncs != n {
			t.Errorf("%s: %d syncs, want %d: %q", tt.name, syncs, n, x.lines())
		}
	}
	if !s.bolt().NoSync {
		t.Error("the index is synced beside its log")
	}
}

// TestShards: the directories of content are made with the first of it and are durable before it is, also where a killed
// process left some of them.
func TestShards(t *testing.T) {
	dir := t.TempDir()
	x := &testFS{dir: dir, only: "mkdir"}
	s := openStore(t, dir, Options{FS: x})
	x.arm(100, false, syscall.ENOSPC)
	if err := pushBlob(testRepo, registrytest.NewBlob(1, 100)).do(t.Context(), s, newOracle()); !errors.Is(err, registry.ErrDisk) {
		t.Errorf("%v, want DiskError", err)
	}
	for i, want := range []bool{true, false} {
		x.arm(0, false, nil)
		if err := pushBlob(testRepo, registrytest.NewBlob(uint64(2+i), 100)).do(t.Context(), s, newOracle()); err != nil {
			t.Fatal(err)
		}
		lines := x.lines()
		synced := slices.Index(lines, "syncdir "+dirBlobs+"/sha256")
		named := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "rename "+dirBlobs) })
		if want != (synced >= 0) || synced > named {
			t.Errorf("push %d: %q", i, lines)
		}
	}
	closeChecked(t, s)
	s = openStore(t, dir, Options{FS: x})
	x.arm(0, false, nil)
	if err := pushBlob(testRepo, registrytest.NewBlob(9, 100)).do(t.Context(), s, newOracle()); err != nil {
		t.Fatal(err)
	}
	if lines := x.lines(); !slices.Contains(lines, "syncdir "+dirBlobs+"/sha256") || slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "mkdir") }) {
		t.Errorf("in the next process: %q", lines)
	}
}
