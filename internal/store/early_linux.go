//go:build amd64 || arm64

package store

import (
	"os"
	"syscall"
)

// startWriteback has the disk begin with a part of a file. It waits for nothing but room in the queue of the device, and
// what goes wrong is found by the sync that follows.
func startWriteback(f File, from, size int64) {
	const write = 2 // SYNC_FILE_RANGE_WRITE, sync_file_range(2)
	if file, ok := f.(*os.File); ok {
		_ = syscall.SyncFileRange(int(file.Fd()), from, size, write)
	}
}
