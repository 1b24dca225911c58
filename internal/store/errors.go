package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	bberrors "go.etcd.io/bbolt/errors"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// errDamaged is a row of the index that cannot be read. Collection stops at it; reads take it as absent.
var errDamaged = errors.New("store: damaged index row")

// diskTexts says what a client is told for each error of the volume; the first match counts.
var diskTexts = []struct {
	err  error
	text string
}{
	{syscall.ENOSPC, "No space left on device."},
	{syscall.EDQUOT, "No space left on device: the disk quota is used up."},
	{syscall.EFBIG, "The file is larger than the data volume or the process limit allows."},
	{syscall.EROFS, "Permission denied: the data volume is mounted read-only."},
	{syscall.EACCES, "Permission denied on the data volume: its files belong to another user."},
	{syscall.EPERM, "Permission denied on the data volume: its files belong to another user."},
	{syscall.EIO, "Input/output error on the data volume: check the disk."},
	{syscall.EMFILE, "Too many open files."},
	{syscall.ENFILE, "Too many open files."},
	{io.ErrShortWrite, "No space left on device."},
	{bberrors.ErrMaxSizeReached, "No space left on device: the index reached its largest size."},
	{bberrors.ErrDatabaseReadOnly, "Permission denied: the index is read-only."},
}

// diskError turns an error of the file system or of bbolt into one for the client. Errors that were written for the
// client pass unchanged.
func diskError(err error) error {
	var e *registry.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return err
	case errors.Is(err, bberrors.ErrDatabaseNotOpen), errors.Is(err, os.ErrClosed):
		return registry.ErrUnavailable.WithMessage("the registry is shutting down").Wrap(err)
	}
	for _, t := range diskTexts {
		if errors.Is(err, t.err) {
			return registry.ErrDisk.WithMessage("%s", t.text).Wrap(err)
		}
	}
	// bbolt formats some causes into text, so errors.Is does not find them.
	for _, t := range diskTexts {
		var errno syscall.Errno
		if errors.As(t.err, &errno) && strings.Contains(err.Error(), errno.Error()) {
			return registry.ErrDisk.WithMessage("%s", t.text).Wrap(err)
		}
	}
	return registry.ErrInternal.Wrap(err)
}

// isFull reports whether an error says that the volume has no room.
func isFull(err error) bool {
	return err != nil && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) ||
		strings.Contains(err.Error(), syscall.ENOSPC.Error()))
}

// isAbsent reports whether an error says that there is no file.
func isAbsent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
