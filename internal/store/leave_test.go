package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// worked is a stopped store that has its work behind it, with logs that are not worth mentioning.
func worked(t *testing.T) (dir string, o *oracle) {
	t.Helper()
	dir, o = t.TempDir(), newOracle()
	s := openStore(t, dir, Options{})
	pushImages(t, s, o, 0, 40)
	closeChecked(t, s)
	return dir, o
}

func pushImages(t *testing.T, s *Store, o *oracle, from, to int) {
	t.Helper()
	layer := registrytest.NewBlob(1, 100)
	for i := from; i < to; i++ {
		image := registrytest.NewImageOf(uint64(i), layer)
		if err := registrytest.Push(t.Context(), s, "left/app", fmt.Sprint("v", i), image); err != nil {
			t.Fatal(err)
		}
		o.tags[fmt.Sprint("left/app:v", i)] = image
	}
}

// endNow ends a process whose logs are long.
func endNow(s *Store) error {
	s.writing.Lock()
	s.opts.redoLong = 1 << 10
	s.writing.Unlock()
	return s.Close()
}

// reached is the size of the index in a file.
func reached(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	v, err := inspectIndex(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return v.mark().size
}

// TestLeave ends a process that worked: what it leaves is small, any part of it may rot, and a process that does nothing
// leaves it as it is.
func TestLeave(t *testing.T) {
	dir, o := worked(t)
	s := openStore(t, dir, Options{})
	pushImages(t, s, o, 100, 160)
	before := s.indexSize.Load()
	if err := endNow(s); err != nil {
		t.Fatal(err)
	}
	for _, name := range redoNames {
		if l := s.readRedo(name); l.at != int64(logHeader) || l.size != redoChunk {
			t.Errorf("%s ends at %d of %d bytes, want nothing in it", name, l.at, l.size)
		}
	}
	if l := s.readRedo(redoNames[0]); !l.ended {
		t.Error("the log does not say that the end was in order")
	}
	files := map[string][]byte{}
	for _, name := range indexFiles {
		body, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = body
	}
	if after := reached(t, indexPath(dir)); after > before*3/4 {
		t.Errorf("the index has %d bytes, and had %d", after, before)
	}
	one, two := files[snapshotNames[0]], files[snapshotNames[1]]
	if !bytes.Equal(one, two) || len(one) > len(files[indexName])/3 {
		t.Errorf("the snapshots have %d and %d bytes, of %d", len(one), len(two), len(files[indexName]))
	}
	for _, name := range []string{snapshotRaw, snapshotTemp, compactName} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !isAbsent(err) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	if err := endNow(openStore(t, dir, Options{})); err != nil {
		t.Fatal(err)
	}
	for name, body := range files {
		if again, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(body, again) {
			t.Errorf("a process that did nothing changed %s, %v", name, err)
		}
	}
	for _, lost := range [][]string{
		{indexName},
		{indexName, snapshotNames[0]},
		{indexName, snapshotNames[1]},
		{indexName, snapshotNames[0], redoNames[0]},
		{indexName, redoNames[0], redoNames[1]},
		{snapshotNames[0], snapshotNames[1], redoNames[0], redoNames[1]},
	} {
		again := copyOf(t, dir)
		for _, name := range lost {
			rewrite(t, filepath.Join(again, name), func(b []byte) []byte { clear(b[:min(len(b), 64<<10)]); return b })
		}
		s := openStore(t, again, Options{})
		o.holds(t, s)
		recovered(t, s)
		closeChecked(t, s)
	}
}

// TestLeaveLess has nothing written at the end that is not worth it: after little work, and of a large index.
func TestLeaveLess(t *testing.T) {
	for name, large := range map[string]bool{"little work": false, "a large index": true} {
		t.Run(name, func(t *testing.T) {
			dir, o := worked(t)
			x := &testFS{dir: dir}
			s := openStore(t, dir, Options{FS: x})
			pushImages(t, s, o, 100, 104)
			x.arm(0, false, nil)
			end := s.Close
			if large {
				s.indexSize.Store(leaveLarge + 1)
				end = func() error { return endNow(s) }
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			for _, line := range x.lines() {
				if slices.Contains([]string{"create redo.new", "create snapshot.raw", "create snapshot.new"}, line) {
					t.Errorf("%s, want nothing of that", line)
				}
			}
		})
	}
}

// slowFS takes its time for each sync of a file.
type slowFS struct {
	*testFS
	now *testTime
}

type slowFile struct {
	File
	now *testTime
}

func (x slowFS) Create(path string) (File, error) {
	f, err := x.testFS.Create(path)
	if err != nil {
		return nil, err
	}
	return slowFile{f, x.now}, nil
}

func (f slowFile) Sync() error {
	f.now.pass(2 * time.Second)
	return f.File.Sync()
}

// TestLeaveOnASlowDisk ends in time on a disk that takes seconds for a sync: what there is no time for is left.
func TestLeaveOnASlowDisk(t *testing.T) {
	var now testTime
	dir, o := worked(t)
	x := slowFS{&testFS{dir: dir}, &now}
	opts := now.options()
	opts.FS = x
	s := openStore(t, dir, opts)
	pushImages(t, s, o, 100, 160)
	if err := s.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	pushImages(t, s, o, 160, 163)
	x.arm(0, false, nil)
	began := s.uptime()
	if err := endNow(s); err != nil {
		t.Fatal(err)
	}
	if took := s.uptime() - began; took > 3*restPatience {
		t.Errorf("the end took %s", took)
	}
	made := 0
	for _, line := range x.lines() {
		if line == "create redo.new" {
			made++
		}
	}
	if made > 1 {
		t.Errorf("%d snapshots in a time that is enough for one", made)
	}
	again := openStore(t, dir, Options{})
	o.holds(t, again)
}

// TestEnd stops the process at each operation of an orderly end, or has the disk refuse it: nothing that was acknowledged
// is lost, and the next process leaves what this one could not.
func TestEnd(t *testing.T) {
	base, before := worked(t)
	end := func(t *testing.T, failAt int, dead bool, errno error) (dir string, o *oracle, n int) {
		t.Helper()
		dir = copyOf(t, base)
		x := &testFS{dir: dir}
		s := openStore(t, dir, Options{FS: x, hook: func(step string) error {
			if step == "rest" {
				return x.op(step, "")
			}
			return nil
		}})
		o = newOracle()
		maps.Copy(o.tags, before.tags)
		pushImages(t, s, o, 100, 102)
		x.arm(failAt, dead, errno)
		_ = endNow(s)
		return dir, o, x.n
	}
	_, _, n := end(t, 0, false, nil)
	if n < 20 {
		t.Fatalf("only %d operations", n)
	}
	for i := 1; i <= n; i++ {
		for k, how := range []error{nil, syscall.ENOSPC, syscall.EIO} {
			if !long && i%3 != k {
				continue
			}
			t.Run(fmt.Sprint(i, "-", how), func(t *testing.T) {
				t.Parallel()
				dir, o, _ := end(t, i, how == nil, how)
				s := openStore(t, dir, Options{})
				o.holds(t, s)
				if s.recovering.Load() {
					t.Error("content is looked for")
				}
				pushImages(t, s, newOracle(), 200, 201)
				if err := endNow(s); err != nil {
					t.Error(err)
				}
				noLeaks(t, dir)
			})
		}
	}
}

// TestPack packs and unpacks, and damages what was packed: it is noticed, or the bytes are the same.
func TestPack(t *testing.T) {
	dir := t.TempDir()
	s := &Store{fs: OSFS{}}
	path := filepath.Join(dir, "packed")
	rapid.Check(t, func(t *rapid.T) {
		rows := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 80), 1, 20).Draw(t, "rows")
		var b []byte
		for _, i := range rapid.SliceOfN(rapid.IntRange(0, len(rows)-1), 0, 2000).Draw(t, "order") {
			b = append(b, rows[i]...)
		}
		want := packed{rapid.Uint64().Draw(t, "seq"), int64(len(b))}
		_ = os.Remove(path)
		if err := s.pack(bytes.NewReader(b), path, want); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if p, err := s.unpack(path, &got); err != nil || p != want || !bytes.Equal(got.Bytes(), b) {
			t.Fatalf("%+v, %v, want %+v", p, err, want)
		}
		bad, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		switch at := rapid.IntRange(0, len(bad)-1).Draw(t, "at"); rapid.IntRange(0, 3).Draw(t, "damage") {
		case 0:
			bad = bad[:at]
		case 1:
			bad = append(bad, bad[at:]...)
		case 2:
			clear(bad[at:])
		default:
			bad[at] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		got.Reset()
		if p, err := s.unpack(path, &got); err == nil && (p != want || !bytes.Equal(got.Bytes(), b)) || err != nil && !errors.Is(err, errDamaged) {
			t.Fatalf("damaged: %+v, %v, %d bytes", p, err, got.Len())
		}
	})
	if _, err := s.unpack(filepath.Join(dir, "none"), io.Discard); !isAbsent(err) {
		t.Errorf("no snapshot: %v", err)
	}
	if err := os.WriteFile(path, packed{1, 1 << 40}.encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.unpack(path, io.Discard); !errors.Is(err, errDamaged) {
		t.Errorf("a snapshot of a terabyte of nothing: %v", err)
	}
}

// TestSnapshotOfBefore makes the index again of snapshots that a release before left, which are not packed.
func TestSnapshotOfBefore(t *testing.T) {
	v := stopped(t)
	for _, name := range snapshotNames {
		var b bytes.Buffer
		if _, err := (&Store{fs: OSFS{}}).unpack(filepath.Join(v.dir, name), &b); err != nil {
			t.Fatal(err)
		}
		v.files[name] = b.Bytes()
	}
	for i, damage := range []func([]byte) []byte{
		func([]byte) []byte { return nil },
		func(b []byte) []byte { clear(b); return b },
		func(b []byte) []byte { return b[:len(b)/2] },
	} {
		v.reset(t, indexName, damage(bytes.Clone(v.files[indexName])))
		if i == 2 {
			rewrite(t, filepath.Join(v.dir, snapshotNames[0]), func(b []byte) []byte { b[len(b)/2]++; b[5000]++; return b })
		}
		s := openStore(t, v.dir, Options{})
		if err := v.holdsAll(t.Context(), s); err != nil {
			t.Error(err)
		}
		recovered(t, s)
		closeChecked(t, s)
	}
}
