package store

import (
	"errors"
	"os"
	"syscall"
)

// fallocKeepSize is FALLOC_FL_KEEP_SIZE of linux/falloc.h: the size of a partial file is its offset, so room must not
// change it.
const fallocKeepSize = 1

// Free implements FS.
func (OSFS) Free(path string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, os.NewSyscallError("statfs", err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // the field's width differs between architectures
}

// Reserve implements FS.
func (OSFS) Reserve(f File, size int64) error {
	file, ok := f.(*os.File)
	if !ok || size <= 0 {
		return nil
	}
	for {
		err := syscall.Fallocate(int(file.Fd()), fallocKeepSize, 0, size)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
			return nil
		}
		return os.NewSyscallError("fallocate", err)
	}
}

// syncData makes the bytes of a file durable, without its times.
func syncData(f File) error {
	file, ok := f.(*os.File)
	if !ok {
		return f.Sync()
	}
	for {
		if err := syscall.Fdatasync(int(file.Fd())); !errors.Is(err, syscall.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// lowPriority gives the calling thread the idle class of the disk (ioprio_set(2): IOPRIO_WHO_PROCESS is 1, the class
// idle is 3 above 13 bits of data) and the last place for the processor. Where that is forbidden it stays as it was.
func lowPriority() {
	_, _, _ = syscall.Syscall(syscall.SYS_IOPRIO_SET, 1, 0, 3<<13)
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), 19)
}
