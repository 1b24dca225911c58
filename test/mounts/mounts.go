// Package mounts runs tests in a mount namespace of their own, so that they may mount what they like and nothing of it
// stays behind. It needs root; without it, or where the machine forbids namespaces, a test that asks says so and is
// skipped.
package mounts

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside is set in the process that has mounts of its own.
const inside = "TEST_MOUNT_NAMESPACE"

// Enter starts the test binary anew in a mount namespace of its own, where that is possible. The tests ran there, with
// that exit code, when done is true; else they run here. TestMain calls it first.
func Enter() (code int, done bool) {
	if os.Getenv(inside) != "" || os.Geteuid() != 0 {
		return 0, false
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if cmd.Start() != nil {
		return 0, false
	}
	if cmd.Wait() != nil {
		return 1, true
	}
	return 0, true
}

// Forbidden says why this process cannot mount anything, or "".
func Forbidden() string {
	switch {
	case os.Geteuid() != 0:
		return "mounting needs root"
	case os.Getenv(inside) == "":
		return "this machine forbids mount namespaces (CLONE_NEWNS)"
	}
	return ""
}

// Tmpfs mounts a tmpfs with the options of mount -o at dir, which it makes, until the test ends.
func Tmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if reason := Forbidden(); reason != "" {
		t.Skip(reason)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("this machine forbids mounts: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
