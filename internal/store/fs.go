package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// File is an open file of an FS.
type File interface {
	io.Reader
	io.ReaderAt
	io.WriterAt
	io.Closer
	Stat() (fs.FileInfo, error)
	Sync() error
	Truncate(size int64) error
}

// FS is what the store does to the data directory outside the index. Paths are absolute. Tests inject one that fails,
// stops or records.
type FS interface {
	// Create makes a new file, mode 0600, for reading and writing; it fails where something is, a symbolic link included.
	Create(path string) (File, error)
	// Open opens a regular file, never through a symbolic link in the last element; write opens it for writing too.
	Open(path string, write bool) (File, error)
	Rename(from, to string) error
	Remove(path string) error
	Directory
	Space
}

// Directory is the part of FS about directories.
type Directory interface {
	// Mkdir makes one directory, mode 0700.
	Mkdir(path string) error
	// ReadDir returns at most n entries, in any order; n <= 0 takes all.
	ReadDir(path string, n int) ([]fs.DirEntry, error)
	// SyncDir makes the names in a directory durable.
	SyncDir(path string) error
	Lstat(path string) (fs.FileInfo, error)
}

// Space is the part of FS about room.
type Space interface {
	// Free returns the bytes that this process may still write on the file system of path.
	Free(path string) (int64, error)
	// Reserve allocates blocks up to size bytes without a change of the file's size. A file system that cannot is no error.
	Reserve(f File, size int64) error
}

// openStat opens a file, and tells what it is.
func openStat(files FS, path string, write bool) (File, fs.FileInfo, error) {
	f, err := files.Open(path, write)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// OSFS is the machine's file system.
type OSFS struct{}

var _ FS = OSFS{}

// Create implements FS.
func (OSFS) Create(path string) (File, error) {
	return asFile(os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600))
}

// Open implements FS.
func (OSFS) Open(path string, write bool) (File, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	// O_NONBLOCK: a fifo that somebody planted must not hold the opener; it has no effect on regular files.
	return asFile(os.OpenFile(path, flag|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0))
}

// asFile keeps a nil *os.File from becoming a File that is not nil.
func asFile(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Rename implements FS.
func (OSFS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove implements FS.
func (OSFS) Remove(path string) error { return os.Remove(path) }

// Mkdir implements FS.
func (OSFS) Mkdir(path string) error { return os.Mkdir(path, 0o700) }

// ReadDir implements FS.
func (OSFS) ReadDir(path string, n int) ([]fs.DirEntry, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	list, err := d.ReadDir(n)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return list, err
}

// SyncDir implements FS.
func (OSFS) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// Lstat implements FS.
func (OSFS) Lstat(path string) (fs.FileInfo, error) { return os.Lstat(path) }
