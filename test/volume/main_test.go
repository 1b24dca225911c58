// Package volume gives the real binary what a person may give it by mistake or by bad luck - a full disk, a volume of
// another owner, a second process, a damaged index, damaged content, a parent that is none, a broken configuration -
// and looks where a person looks: the HTTP answer, "connected-registry status", the log. Each time nothing may be lost,
// the process stays, and it goes on by itself when the cause is gone.
package volume

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/connected-registry/connected-registry/test/layer"
)

const (
	inside   = "VOLUME_NAMESPACE" // set in the process that has mounts of its own
	patience = 90 * time.Second   // for one thing to happen; the longest pause of the product is a minute
	kib      = 1 << 10
	mib      = 1 << 20
)

var (
	binary string
	// base is a directory that every user may enter, for processes of another uid.
	base string
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run starts this test anew in a mount namespace of its own, where that is possible, and else runs here: then the tests
// that need mounts say why they do not run.
func run(m *testing.M) int {
	if os.Getenv(inside) == "" && os.Geteuid() == 0 {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err == nil {
			if cmd.Wait() == nil {
				return 0
			}
			return 1
		}
	}
	dir, err := os.MkdirTemp("", "connected-registry-volume-")
	if err == nil {
		defer os.RemoveAll(dir)
		base, binary = dir, filepath.Join(dir, "connected-registry")
		err = layer.Build(context.Background(), binary)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// scratch returns an empty directory below base, as TempDir is below one that other users may not enter.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(base, "")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// mount mounts a tmpfs with the options of mount -o in the namespace of this process, until the test ends.
func mount(t *testing.T, dir, options string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small volume needs root")
	}
	if os.Getenv(inside) == "" {
		t.Skip("this machine forbids mount namespaces (CLONE_NEWNS)")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// What is mounted here stays here, whatever the propagation of the machine's root is.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Skipf("this machine forbids mounts: %v", err)
	}
	if err := unix.Mount("volume", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("this machine forbids mounts: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
