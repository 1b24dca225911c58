package powercut

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// shutdown is FS_IOC_SHUTDOWN of linux/fs.h, and noLogFlush its way without a flush of the journal: from then on the
// file system writes nothing more, which is what a disk sees of a power cut.
const (
	shutdown   = 0x8004587D
	noLogFlush = 2
)

// sizes of the volumes by file system, in bytes: XFS makes none below 300 MiB. The files are sparse.
var sizes = map[string]int64{"ext4": 96 << 20, "xfs": 320 << 20}

// volume is a file system in a file, mounted in the mount namespace of this process.
type volume struct {
	kind, options string
	image, dir    string
}

// newVolume makes a file system below base and mounts it at dir. Options are those of mount -o, or large.
func newVolume(ctx context.Context, base, dir, kind, options string) (*volume, error) {
	size, inodes := sizes[kind], "20000"
	if options == large {
		size, inodes, options = largeSize, largeInodes, ""
	}
	v := &volume{kind: kind, options: options, image: filepath.Join(base, kind+".img"), dir: dir}
	f, err := os.Create(v.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	mkfs := []string{"mkfs." + kind, "-q", v.image}
	if kind == "ext4" {
		mkfs = []string{"mkfs.ext4", "-q", "-F", "-b", "4096", "-N", inodes, v.image}
	}
	if err := command(ctx, mkfs...); err != nil {
		return nil, err
	}
	return v, v.mount(ctx)
}

func command(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%q: %w: %s", args, err, bytes.TrimSpace(out))
	}
	return nil
}

func (v *volume) mount(ctx context.Context) error {
	options := "loop"
	if v.options != "" {
		options += "," + v.options
	}
	return command(ctx, "mount", "-t", v.kind, "-o", options, v.image, v.dir)
}

// cut is the power cut.
func (v *volume) cut() error {
	d, err := os.Open(v.dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlSetPointerInt(int(d.Fd()), shutdown, noLogFlush), d.Close())
}

// unmount waits until nobody uses the volume any more.
func (v *volume) unmount() error {
	var err error
	for range 500 {
		if err = unix.Unmount(v.dir, 0); !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(10 * time.Millisecond) // a killed process lets go of its files a moment after its end
	}
	return fmt.Errorf("unmount %s: %w", v.dir, err)
}

// remount is the machine's start after the cut: the file system replays its journal.
func (v *volume) remount(ctx context.Context) error {
	return errors.Join(v.unmount(), v.mount(ctx))
}

// forbidden says why this process cannot mount file systems, or "".
func forbidden(ctx context.Context, kind string) string {
	for _, tool := range []string{"mount", "mkfs." + kind} {
		if _, err := exec.LookPath(tool); err != nil {
			return "there is no " + tool + ": apt-get install mount e2fsprogs xfsprogs"
		}
	}
	base, err := os.MkdirTemp("", "powercut-probe-")
	if err != nil {
		return err.Error()
	}
	defer os.RemoveAll(base)
	dir := filepath.Join(base, "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err.Error()
	}
	v, err := newVolume(ctx, base, dir, kind, "")
	if err != nil {
		return "this machine forbids loop mounts: " + err.Error()
	}
	defer v.unmount()
	if err := v.cut(); err != nil {
		return "this machine forbids FS_IOC_SHUTDOWN on " + kind + ": " + err.Error()
	}
	return ""
}
