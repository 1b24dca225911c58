//go:build !linux

package store

import (
	"os"
	"syscall"
)

// Free implements FS.
func (OSFS) Free(path string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, os.NewSyscallError("statfs", err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// Reserve implements FS; only Linux allocates ahead.
func (OSFS) Reserve(File, int64) error { return nil }

// lowPriority does nothing; only Linux has priorities of threads.
func lowPriority() {}

// syncData makes the bytes of a file durable.
func syncData(f File) error { return f.Sync() }
