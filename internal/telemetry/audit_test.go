package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// disk is the files of a log with what a power cut would leave of them.
type disk struct {
	mu    sync.Mutex
	files map[uint64]*inode
	full  bool
	torn  int // bytes that a write still takes while the disk is full
	fails int // syncs from now on that fail
}

// inode is what the disk has of a file. What a sync that failed was to bring there it never has, whatever a later sync
// says: the kernel takes those pages for clean.
type inode struct {
	synced  int64      // bytes that are durable
	dropped [][2]int64 // from and to of what is not, although it was synced since
}

func (d *disk) inode(info os.FileInfo) *inode {
	number := info.Sys().(*syscall.Stat_t).Ino
	if d.files[number] == nil {
		d.files[number] = &inode{}
	}
	return d.files[number]
}

type diskFile struct {
	*os.File
	d *disk
}

func (d *disk) open(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if info, err := f.Stat(); err == nil && info.Size() == 0 {
		*d.inode(info) = inode{} // the number was another file's
	}
	return diskFile{f, d}, nil
}

func (f diskFile) Write(p []byte) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.full {
		n, _ := f.File.Write(p[:min(f.d.torn, len(p))])
		return n, syscall.ENOSPC
	}
	return f.File.Write(p)
}

func (f diskFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	i := f.d.inode(info)
	from := i.synced
	i.synced = info.Size()
	if f.d.fails > 0 {
		f.d.fails--
		i.dropped = append(i.dropped, [2]int64{from, info.Size()})
		return syscall.EIO
	}
	return f.File.Sync()
}

// cut leaves what was synced, and in the file that is written to a torn part of what was not.
func (d *disk) cut(t *testing.T, dir string, torn int64) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		i := d.inode(info)
		if e.Name() != currentName {
			torn = 0
		}
		raw = raw[:min(i.synced+torn, info.Size())]
		for _, at := range i.dropped {
			for n := at[0]; n < min(at[1], int64(len(raw))); n++ {
				raw[n] = 0
			}
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func newDisk() *disk { return &disk{files: map[uint64]*inode{}} }

// read returns the records of all files in order.
func read(t *testing.T, dir string) []registry.AuditRecord {
	t.Helper()
	names, err := olderFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []registry.AuditRecord
	for _, name := range append(names, currentName) {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			var r registry.AuditRecord
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%s: %q: %v", name, line, err)
			}
			all = append(all, r)
		}
	}
	return all
}

func push(repo string) registry.AuditRecord {
	return registry.AuditRecord{Category: registry.AuditContent, Operation: "push", Repository: repo, Result: registry.AuditSuccess}
}

// run runs a log over the files in dir, and returns how to stop it.
func run(t *testing.T, dir string, o AuditOptions) (a *AuditLog, stop func()) {
	t.Helper()
	a = NewAuditLog(o)
	if err := a.Open(dir); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx, dir) }()
	return a, func() { cancel(); <-done }
}

func TestRecordSaysWhoAndFromWhere(t *testing.T) {
	dir := t.TempDir()
	a, stop := run(t, dir, AuditOptions{Now: time.Now})
	ctx := registry.WithOrigin(registry.WithPrincipal(t.Context(), registry.Principal{Name: "line-a"}), "10.0.0.7")
	a.Audit(ctx, push("before/it/is/on"))
	a.Enable(t.Context(), true)
	a.Audit(ctx, push("acme/app"))
	a.Enable(t.Context(), false)
	a.Audit(ctx, push("after/it/is/off"))
	stop()
	got := read(t, dir)
	if len(got) != 3 || got[0].Operation != "enabled" || got[2].Operation != "disabled" {
		t.Fatalf("%+v", got)
	}
	if r := got[1]; r.Principal != "line-a" || r.From != "10.0.0.7" || r.Repository != "acme/app" || r.Seq != 2 || r.Time.IsZero() {
		t.Errorf("%+v", r)
	}
	var none *AuditLog
	none.Audit(ctx, push("nowhere")) // a registry without a log
	none.Enable(ctx, true)
}

// TestPowerCutLeavesAllButTheLastBatch: what was written longer than a batch ago is there, the torn end is not, and the
// numbers go on.
func TestPowerCutLeavesAllButTheLastBatch(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		early := rapid.IntRange(1, 40).Draw(rt, "early")
		late := rapid.IntRange(0, 40).Draw(rt, "late")
		torn := rapid.Int64Range(0, 300).Draw(rt, "torn")
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			d := newDisk()
			a, stop := run(t, dir, AuditOptions{open: d.open})
			a.Enable(t.Context(), true)
			for range early {
				a.Audit(t.Context(), push("early"))
			}
			time.Sleep(2 * batch)
			if last, synced := a.Reached(); last != synced || last != uint64(early)+1 {
				t.Errorf("after two batches %d of %d records are synced", synced, last)
			}
			for range late {
				a.Audit(t.Context(), push("late"))
			}
			synctest.Wait()
			d.cut(t, dir, torn)
			d.mu.Lock()
			d.full = true // the dead process writes nothing any more
			d.mu.Unlock()
			stop()
		})
		synctest.Test(t, func(t *testing.T) {
			a, stop := run(t, dir, AuditOptions{})
			a.Enable(t.Context(), true)
			a.Audit(t.Context(), push("after"))
			stop()
			got := read(t, dir)
			kept := 0
			for i, r := range got {
				if r.Repository == "early" {
					kept++
				}
				if i > 0 && r.Seq != got[i-1].Seq+1 {
					t.Fatalf("record %d has number %d after %d", i, r.Seq, got[i-1].Seq)
				}
			}
			if kept != early || got[len(got)-1].Repository != "after" {
				t.Errorf("%d of %d early records, the last is %+v", kept, early, got[len(got)-1])
			}
		})
	})
}

// TestHoleInTheEnd: a file system may have brought the end of a batch to the disk and not its middle. The log ends before
// the hole then; a line that is damaged otherwise is no reason to forget those behind it.
func TestHoleInTheEnd(t *testing.T) {
	for what, tt := range map[string]struct {
		damage string
		kept   int
	}{
		"a hole": {strings.Repeat("\x00", 20), 4}, "another byte": {"{", 10},
	} {
		dir := t.TempDir()
		a, stop := run(t, dir, AuditOptions{})
		a.Enable(t.Context(), true)
		for range 9 {
			a.Audit(t.Context(), push("acme/app"))
		}
		stop()
		path := filepath.Join(dir, currentName)
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for range 4 {
			at += strings.IndexByte(string(raw[at:]), '\n') + 1
		}
		copy(raw[at+5:], tt.damage)
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		last, err := recoverDir(dir)
		after, _ := os.ReadFile(path)
		if n := strings.Count(string(after), "\n"); err != nil || n != tt.kept || last != uint64(tt.kept) {
			t.Errorf("%s: %v, %d lines are left and the last has number %d, want %d", what, err, n, last, tt.kept)
		}
	}
}

func TestFilesAreRotatedAndBounded(t *testing.T) {
	dir := t.TempDir()
	a, stop := run(t, dir, AuditOptions{MaxBytes: 2000, Keep: 3})
	a.Enable(t.Context(), true)
	for range 500 {
		a.Audit(t.Context(), push("acme/app"))
	}
	stop()
	entries, _ := os.ReadDir(dir)
	if len(entries) != 4 {
		t.Errorf("%d files, want 4", len(entries))
	}
	for _, e := range entries {
		info, _ := e.Info()
		if info.Size() > 2000 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %v", e.Name(), info.Size(), info.Mode())
		}
	}
	got := read(t, dir)
	for i := range got[1:] {
		if got[i+1].Seq != got[i].Seq+1 {
			t.Fatalf("%d follows %d", got[i+1].Seq, got[i].Seq)
		}
	}
	if last := got[len(got)-1].Seq; last != 501 {
		t.Errorf("the last record has number %d", last)
	}
}

// TestFullDisk: nobody waits, half a line does not stay, and when there is room again the records follow; those beyond
// the bound are counted.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		d := newDisk()
		a, stop := run(t, dir, AuditOptions{open: d.open})
		a.Enable(t.Context(), true)
		synctest.Wait()
		d.mu.Lock()
		d.full, d.torn = true, 17
		d.mu.Unlock()
		const n = 5000
		long := push("acme/app")
		long.Detail = strings.Repeat("x", 1000)
		for range n {
			a.Audit(t.Context(), long)
		}
		synctest.Wait()
		if lost, err := a.Trouble(); !errors.Is(err, syscall.ENOSPC) || lost == 0 {
			t.Errorf("trouble: %d lost, %v", lost, err)
		}
		d.mu.Lock()
		d.full = false
		d.mu.Unlock()
		time.Sleep(2 * retryPause)
		if _, err := a.Trouble(); err != nil {
			t.Error(err)
		}
		a.Audit(t.Context(), push("one more"))
		stop()
		got := read(t, dir)
		written, lost := 0, uint64(0)
		for _, r := range got {
			switch {
			case r.Repository == "acme/app":
				written++
			case r.Operation == "lost":
				lost += r.Count
			}
		}
		if written+int(lost) != n || lost == 0 {
			t.Errorf("%d written and %d counted as lost of %d; the last is %+v", written, lost, n, got[len(got)-1])
		}
	})
}

// TestBurst: more than may wait for the disk comes within one batch, and nothing of it is lost.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, stop := run(t, t.TempDir(), AuditOptions{open: newDisk().open})
		defer stop()
		a.Enable(t.Context(), true)
		long := push("acme/app")
		long.Detail = strings.Repeat("x", 1000)
		for i := range 3 * maxQueue / 1000 {
			a.Audit(t.Context(), long)
			if i%100 == 0 {
				synctest.Wait() // for the writer; no time passes
			}
		}
		if lost, err := a.Trouble(); lost > 0 || err != nil {
			t.Errorf("%d lost, %v", lost, err)
		}
	})
}

// TestFailedSync: what is said to be durable is there after a power cut, also where the disk failed before and a later
// sync succeeded; and what waited for the disk follows, once and in order.
func TestFailedSync(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		type step struct{ fails, records int }
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{rapid.SampledFrom([]int{0, 0, 1, 2, 5}).Draw(rt, "fails"), rapid.IntRange(1, 12).Draw(rt, "records")}
		}), 1, 6).Draw(rt, "steps")
		after := time.Duration(rapid.IntRange(0, 12_000).Draw(rt, "cut after ms")) * time.Millisecond
		cut := rapid.Bool().Draw(rt, "cut")
		maxBytes := rapid.SampledFrom([]int64{0, 700}).Draw(rt, "file")
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			d := newDisk()
			a, stop := run(t, dir, AuditOptions{open: d.open, MaxBytes: maxBytes, Keep: 1000})
			a.Enable(t.Context(), true)
			for _, s := range steps {
				d.mu.Lock()
				d.fails = s.fails
				d.mu.Unlock()
				for range s.records {
					a.Audit(t.Context(), push("acme/app"))
				}
				time.Sleep(after / time.Duration(len(steps)))
			}
			if !cut {
				time.Sleep(10 * retryPause)
				if last, synced := a.Reached(); last != synced {
					t.Errorf("%d of %d records are durable on a disk that works again", synced, last)
				}
				if _, err := a.Trouble(); err != nil {
					t.Error(err)
				}
			}
			synctest.Wait()
			_, want := a.Reached()
			if cut {
				d.cut(t, dir, 0)
			}
			got := lenient(t, dir)
			if uint64(len(got)) < want {
				t.Fatalf("%d records are said to be durable, and %d are: %v", want, len(got), got)
			}
			for i := range want {
				if got[i] != i+1 {
					t.Fatalf("record %d is not where it belongs: %v", i+1, got)
				}
			}
			stop()
		})
	})
}

// lenient returns the numbers of the records that can be read, in the order of the files.
func lenient(t *testing.T, dir string) (numbers []uint64) {
	t.Helper()
	names, err := olderFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(names, currentName) {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if seq, ok := seqOf([]byte(line)); ok {
				numbers = append(numbers, seq)
			}
		}
	}
	return numbers
}

func BenchmarkAudit(b *testing.B) {
	a := NewAuditLog(AuditOptions{})
	if err := a.Open(b.TempDir()); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx, b.TempDir()) }()
	a.Enable(ctx, true)
	for b.Loop() {
		a.Audit(ctx, push("acme/app"))
	}
	cancel()
	<-done
}
