package store

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// testFS is the machine's file system, which writes down what is done to it and fails at one operation, once or from
// then on. With hook it counts the steps of commits too, so that "from then on" is a killed process.
type testFS struct {
	OSFS
	mu     sync.Mutex
	dir    string
	log    []string
	n      int   // operations so far that change something
	failAt int   // 1 is the first; 0 never
	err    error // nil is ENOSPC
	dead   bool  // fail from failAt on
	only   string
	free   int64 // reported free bytes; 0 asks the machine
}

func (x *testFS) op(name, path string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if rel, err := filepath.Rel(x.dir, path); err == nil && x.dir != "" && path != "" {
		path = rel
	}
	x.log = append(x.log, strings.TrimSpace(name+" "+path))
	if x.only != "" && x.only != name {
		return nil
	}
	x.n++
	if x.failAt > 0 && (x.n == x.failAt || x.dead && x.n > x.failAt) {
		err := x.err
		if err == nil {
			err = syscall.ENOSPC
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// arm starts counting anew.
func (x *testFS) arm(failAt int, dead bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.n, x.failAt, x.dead, x.err, x.log = 0, failAt, dead, err, nil
}

func (x *testFS) reached() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.n >= x.failAt
}

func (x *testFS) lines() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]string{}, x.log...)
}

func (x *testFS) hook(step string) error {
	if step == "commit" || step == "committed" {
		return x.op(step, "")
	}
	return nil
}

type testFile struct {
	*os.File
	x    *testFS
	path string
}

func (x *testFS) wrap(f File, err error, path string) (File, error) {
	if err != nil {
		return nil, err
	}
	return &testFile{File: f.(*os.File), x: x, path: path}, nil
}

func (x *testFS) Create(path string) (File, error) {
	if err := x.op("create", path); err != nil {
		return nil, err
	}
	f, err := x.OSFS.Create(path)
	return x.wrap(f, err, path)
}

func (x *testFS) Open(path string, write bool) (File, error) {
	f, err := x.OSFS.Open(path, write)
	return x.wrap(f, err, path)
}

func (x *testFS) Rename(from, to string) error {
	if err := x.op("rename", to); err != nil {
		return err
	}
	return x.OSFS.Rename(from, to)
}

func (x *testFS) Remove(path string) error {
	if err := x.op("remove", path); err != nil {
		return err
	}
	return x.OSFS.Remove(path)
}

func (x *testFS) Mkdir(path string) error {
	if err := x.op("mkdir", path); err != nil {
		return err
	}
	return x.OSFS.Mkdir(path)
}

func (x *testFS) SyncDir(path string) error {
	if err := x.op("syncdir", path); err != nil {
		return err
	}
	return x.OSFS.SyncDir(path)
}

func (x *testFS) Free(path string) (int64, error) {
	if x.free != 0 {
		return x.free, nil
	}
	return x.OSFS.Free(path)
}

func (x *testFS) Reserve(f File, size int64) error {
	if err := x.op("reserve", f.(*testFile).path); err != nil {
		return err
	}
	return x.OSFS.Reserve(f.(*testFile).File, size)
}

func (f *testFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.x.op("write", f.path); err != nil {
		n, _ := f.File.WriteAt(p[:len(p)/2], off) // a full disk takes a part
		return n, err
	}
	return f.File.WriteAt(p, off)
}

func (f *testFile) Sync() error {
	if err := f.x.op("fsync", f.path); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *testFile) Truncate(size int64) error {
	if err := f.x.op("truncate", f.path); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *testFile) Stat() (fs.FileInfo, error) { return f.File.Stat() }
