package sim

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/connected-registry/connected-registry/internal/store"
)

// crash is how a registry ends without being asked.
type crash int

const (
	crashKill  crash = iota + 1 // kill -9: what was written is there
	crashPower                  // what was not synced may be lost, names and bytes alike
)

// volume is the data volume of one layer: a directory, and what of it would survive a loss of power. Its faults are
// switched; a crash is armed for the n-th operation from now. Whatever an old process does after the crash is done to a
// directory that nobody looks at again: what survived is in a copy, made at that moment.
//
// The index is opened by bbolt itself. It is copied as it is: bbolt syncs in its commit, and the order of its own writes
// is the power-cut driver's matter.
type volume struct {
	store.OSFS
	base  string // the copies are below it
	onEnd func() // called once, at the crash, before the copy is made

	mu      sync.Mutex
	dir     string // in use
	copies  int
	live    map[string]map[string]*inode // names by directory, as programs see them
	durable map[string]map[string]*inode // as they are after a loss of power
	full    bool
	failing bool // Sync fails
	dead    bool
	crashAt int // operations until the crash; 0 is none
	crash   crash
	chance  *rand.Rand
	went    map[string]int // how often content was removed or lost, by the hex of its digest
}

// inode is one file. While it is clean, its bytes on the disk are those that would survive.
type inode struct {
	path    string // where its bytes are; empty when it has no name
	clean   bool
	durable []byte // all that would survive, when it has no name
	size    int64  // that would survive, when it is not clean
	undo    []undo // what was changed since it was clean, in order
}

// undo is what was in a place of a file.
type undo struct {
	off  int64
	body []byte
}

// before makes of the bytes of a file those that would survive.
func (i *inode) before(body []byte) []byte {
	if i.clean {
		return body
	}
	old := append(make([]byte, 0, max(int64(len(body)), i.size)), body...)
	for at := len(i.undo) - 1; at >= 0; at-- {
		u := i.undo[at]
		if short := u.off + int64(len(u.body)) - int64(len(old)); short > 0 {
			old = append(old, make([]byte, short)...)
		}
		copy(old[u.off:], u.body)
	}
	return old[:min(i.size, int64(len(old)))]
}

func newVolume(base string, chance *rand.Rand) (*volume, error) {
	v := &volume{base: base, dir: filepath.Join(base, "0"), chance: chance, went: map[string]int{}}
	if err := os.MkdirAll(v.dir, 0o700); err != nil {
		return nil, err
	}
	return v, v.scan()
}

// scan takes all that is in the directory as durable.
func (v *volume) scan() error {
	v.live, v.durable = map[string]map[string]*inode{}, map[string]map[string]*inode{}
	return filepath.WalkDir(v.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() || d.Name() == "meta.db" {
			return nil
		}
		ino := &inode{path: path, clean: true}
		v.names(v.live, filepath.Dir(path))[d.Name()] = ino
		v.names(v.durable, filepath.Dir(path))[d.Name()] = ino
		return nil
	})
}

func (v *volume) names(of map[string]map[string]*inode, dir string) map[string]*inode {
	if of[dir] == nil {
		of[dir] = map[string]*inode{}
	}
	return of[dir]
}

// operation comes before each change; the caller holds the lock.
func (v *volume) operation() error {
	if v.dead {
		return syscall.EIO
	}
	if v.crashAt > 0 {
		if v.crashAt--; v.crashAt == 0 {
			if err := v.end(v.crash); err != nil {
				return err
			}
			return syscall.EIO
		}
	}
	return nil
}

// arm sets the crash for the n-th operation from now; 0 takes it back.
func (v *volume) arm(n int, c crash) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.crashAt, v.crash = n, c
}

// crashNow is a crash at this moment, unless there was one already.
func (v *volume) crashNow(c crash) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dead {
		return nil
	}
	return v.end(c)
}

// ended reports whether there was a crash.
func (v *volume) ended() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.dead
}

// set changes the faults of the disk.
func (v *volume) set(full, failing bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.full, v.failing = full, failing
}

// end makes the copy that the next process starts with.
func (v *volume) end(c crash) error {
	v.dead, v.crashAt = true, 0
	v.onEnd()
	old := v.dir
	v.copies++
	v.dir = filepath.Join(v.base, string(rune('0'+v.copies/10))+string(rune('0'+v.copies%10)))
	return v.copyTo(old, c)
}

// again gives the copy to the next process. The last one must have ended.
func (v *volume) again() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.dead {
		return nil
	}
	v.dead = false
	entries, err := os.ReadDir(v.base)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(v.dir) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(v.base, e.Name())))
		}
	}
	before := v.contents()
	if err = errors.Join(err, v.scan()); err != nil {
		return err
	}
	after := v.contents()
	for hex := range before {
		if !after[hex] {
			v.went[hex]++
		}
	}
	return nil
}

// isContent reports whether a path is that of a blob.
func (v *volume) isContent(path string) bool {
	return filepath.Base(filepath.Dir(filepath.Dir(path))) == "sha256"
}

// contents are the names of the blobs that are there.
func (v *volume) contents() map[string]bool {
	all := map[string]bool{}
	for dir, names := range v.live {
		for name := range names {
			if v.isContent(filepath.Join(dir, name)) {
				all[name] = true
			}
		}
	}
	return all
}

// Create implements store.FS.
func (v *volume) Create(path string) (store.File, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.operation(); err != nil {
		return nil, err
	}
	if v.full {
		return nil, syscall.ENOSPC
	}
	f, err := v.OSFS.Create(path)
	if err != nil {
		return nil, err
	}
	ino := &inode{path: path}
	v.names(v.live, filepath.Dir(path))[filepath.Base(path)] = ino
	return &file{File: f, v: v, ino: ino}, nil
}

// Open implements store.FS.
func (v *volume) Open(path string, write bool) (store.File, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dead {
		return nil, syscall.EIO
	}
	f, err := v.OSFS.Open(path, write)
	if err != nil {
		return nil, err
	}
	ino := v.live[filepath.Dir(path)][filepath.Base(path)]
	if ino == nil { // the index
		ino = &inode{path: path, clean: true}
	}
	return &file{File: f, v: v, ino: ino}, nil
}

// Rename implements store.FS.
func (v *volume) Rename(from, to string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.operation(); err != nil {
		return err
	}
	if err := v.unname(to); err != nil {
		return err
	}
	if err := v.OSFS.Rename(from, to); err != nil {
		return err
	}
	ino := v.live[filepath.Dir(from)][filepath.Base(from)]
	if ino == nil {
		return nil
	}
	delete(v.live[filepath.Dir(from)], filepath.Base(from))
	ino.path = to
	v.names(v.live, filepath.Dir(to))[filepath.Base(to)] = ino
	return nil
}

// unname keeps the bytes of a file whose name is about to go: after a loss of power it may be there again.
func (v *volume) unname(path string) error {
	ino := v.live[filepath.Dir(path)][filepath.Base(path)]
	if ino == nil {
		return nil
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	ino.durable, ino.path = ino.before(body), ""
	if v.isContent(path) {
		v.went[filepath.Base(path)]++
	}
	delete(v.live[filepath.Dir(path)], filepath.Base(path))
	return nil
}

// Remove implements store.FS.
func (v *volume) Remove(path string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.operation(); err != nil {
		return err
	}
	if err := v.unname(path); err != nil {
		return err
	}
	return v.OSFS.Remove(path)
}

// Mkdir implements store.FS.
func (v *volume) Mkdir(path string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.operation(); err != nil {
		return err
	}
	return v.OSFS.Mkdir(path)
}

// SyncDir implements store.FS: the names of a directory are durable from now on.
func (v *volume) SyncDir(path string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.operation(); err != nil {
		return err
	}
	if v.failing {
		return syscall.EIO
	}
	names := map[string]*inode{}
	for name, ino := range v.live[path] {
		names[name] = ino
	}
	v.durable[path] = names
	return nil
}

// ReadDir implements store.FS. A shard without files is not looked at: there are many.
func (v *volume) ReadDir(path string, n int) ([]fs.DirEntry, error) {
	v.mu.Lock()
	empty := len(v.live[path]) == 0 && filepath.Dir(path) == filepath.Join(v.dir, "blobs", "sha256")
	v.mu.Unlock()
	if empty {
		return nil, nil
	}
	return v.OSFS.ReadDir(path, n)
}

// Free implements store.FS.
func (v *volume) Free(string) (int64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.full {
		return 0, nil
	}
	return 1 << 30, nil
}

// Reserve implements store.FS: nothing is to be reserved in memory.
func (v *volume) Reserve(store.File, int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.full {
		return syscall.ENOSPC
	}
	return v.operation()
}

// file is an open file of a volume.
type file struct {
	store.File
	v   *volume
	ino *inode
}

// dirty keeps what is in a place, before it is changed.
func (f *file) dirty(off, n int64) error {
	if err := f.v.operation(); err != nil || f.ino.path == "" {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if f.ino.clean {
		f.ino.clean, f.ino.size, f.ino.undo = false, info.Size(), nil
	}
	if n = min(n, info.Size()-off); n <= 0 {
		return nil
	}
	body := make([]byte, n)
	_, err = f.File.ReadAt(body, off)
	f.ino.undo = append(f.ino.undo, undo{off, body})
	return err
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	if err := f.dirty(off, int64(len(p))); err != nil {
		return 0, err
	}
	if f.v.full { // a full disk takes a part
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, syscall.ENOSPC
	}
	return f.File.WriteAt(p, off)
}

func (f *file) Truncate(size int64) error {
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	if err := f.dirty(size, 1<<30); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// Sync makes the bytes durable, not the name.
func (f *file) Sync() error {
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	if err := f.v.operation(); err != nil {
		return err
	}
	if f.v.failing {
		return syscall.EIO
	}
	if f.ino.path == "" {
		body, err := io.ReadAll(io.NewSectionReader(f.File, 0, 1<<30))
		f.ino.durable = body
		return err
	}
	f.ino.clean, f.ino.undo = true, nil
	return nil
}

// sick reports whether the disk has a fault now.
func (v *volume) sick() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.full || v.failing
}
