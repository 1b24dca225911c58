//go:build amd64 || arm64

package store

import (
	"io"
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

// readAhead has the disk read a file in one go that is about to be read page by page.
func readAhead(f io.ReaderAt, size int64) {
	if file, ok := f.(*os.File); ok {
		_, _, _ = syscall.Syscall(syscall.SYS_READAHEAD, file.Fd(), 0, uintptr(size))
	}
}
