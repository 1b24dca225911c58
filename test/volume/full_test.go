package volume

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/linkproxy"
	"github.com/connected-registry/connected-registry/test/mounts"
)

// slack is for headers, manifests and lists that are asked for again while there is no room.
const slack = 256 << 10

// full is a registry whose volume has no room for the next image.
type full struct {
	*daemon
	*above
	stray string // content without a row since a year: what a collection frees
}

// newFull starts a registry on data with an image from its parent and one that was pushed to it.
func newFull(t *testing.T, data string, before ...string) full {
	t.Helper()
	f := full{daemon: newDaemon(t, data), above: newAbove(t)}
	f.daemon.before = before
	first := f.above.push("acme/first:1", mib, "a", "b")
	f.configure(document(f.link.Addr(), "http"))
	f.start()
	f.synced(1)
	pushed := image(t, mib, "mine")
	f.must(cloud.Push(t.Context(), f.addr, "floor/pushed:1", pushed))
	f.has("acme/first:1", first)
	f.has("floor/pushed:1", pushed)
	f.stray = filepath.Join(data, "blobs", "sha256", "ab", "ab"+strings.Repeat("0", 62))
	return f
}

// plant makes the stray file, n bytes of it on the disk.
func (f full) plant(n int) {
	f.daemon.t.Helper()
	f.must(os.WriteFile(f.stray, make([]byte, n), 0o600))
	old := time.Now().AddDate(-1, 0, 0)
	f.must(os.Chtimes(f.stray, old, old))
}

// paused checks what must hold while there is no room, and then collects garbage.
func (f full) paused(text string) {
	t := f.daemon.t
	t.Helper()
	status := f.shows(`! Disk DiskError since .*`+text, `CONNECTION STATE +UNHEALTHY|CONNECTION STATE +Unhealthy`)
	t.Logf("status:\n%s", hints(status))
	f.alive()
	f.has("acme/first:1", image(t, mib, "a", "b"))
	if code, body := f.v2("GET", "acme/next/manifests/1"); code != http.StatusOK && !strings.Contains(body, "errors") {
		t.Errorf("a pull of what is not here: %d %s", code, body)
	}
	err := cloud.Push(t.Context(), f.addr, "floor/pushed:2", image(t, 8*mib, "too large"))
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("a push: %v, want an error with %q", err, text)
	} else {
		t.Logf("push: %v", err)
	}
	if code, body := f.v2("DELETE", "floor/pushed/manifests/1"); code != http.StatusAccepted {
		t.Errorf("a delete: %d %s", code, body)
	}
	if !strings.Contains(f.logged(), text) {
		t.Errorf("the log does not say %q", text)
	}
}

// collect frees the stray file.
func (f full) collect() {
	t := f.daemon.t
	t.Helper()
	out, err := f.run("gc")
	if err != nil || !strings.Contains(out, "1 stray file") || strings.HasPrefix(out, "freed 0 B") {
		t.Fatalf("gc: %v: %s", err, out)
	}
	t.Logf("gc: %s", strings.TrimSpace(out))
}

// goesOn checks that all comes here by itself, with so many bytes more than the content at most, and that nothing
// unfinished is left.
func (f full) goesOn(allowed int64) {
	t := f.daemon.t
	t.Helper()
	f.synced(1)
	f.shows(`acme/next +1 +in sync`)
	if extra := f.down() - f.unique.Bytes(); extra > allowed {
		t.Errorf("%d bytes more than the content crossed the link", extra)
	} else {
		t.Logf("%d of %d bytes crossed the link: %+d", f.down(), f.unique.Bytes(), extra)
	}
	if status := f.shows(`CONNECTION STATE +O`); strings.Contains(status, "!") {
		t.Errorf("the status still shows trouble:\n%s", status)
	}
	if left := files(t, filepath.Join(f.data, "partial")); len(left) > 0 {
		t.Errorf("left in partial: %q", left)
	}
	// A client may go on with its upload for a week: what is there are sessions, each with its bytes, and nothing else.
	for _, name := range files(t, filepath.Join(f.data, "uploads")) {
		if _, err := os.Stat(filepath.Join(f.data, "uploads", strings.TrimSuffix(name, ".json")+".json")); err != nil {
			t.Errorf("left in uploads: %s", name)
		}
	}
}

// TestFullDisk takes the last byte of the volume away.
func TestFullDisk(t *testing.T) {
	data := filepath.Join(scratch(t), "data")
	mounts.Tmpfs(t, data, "size=96m")
	f := newFull(t, data)
	f.set(linkproxy.Refuse)
	f.plant(64 * mib)
	// 96 - 64 - 4 of the reserve - 3 of images - 1 of the index - 12: room for one of the three layers.
	ballast := filepath.Join(data, "ballast")
	f.must(os.WriteFile(ballast, make([]byte, 14*mib), 0o600))
	next := f.push("acme/next:1", 6*mib, "c", "d", "e")
	f.set(linkproxy.None)
	f.syncNow()
	f.shows(`! Disk DiskError since .*No space left on device[.:]`)
	fill(t, filepath.Join(data, "rest"))
	f.paused(`No space left on device`)
	f.collect()
	f.goesOn(slack)
	f.has("acme/next:1", next)
	f.has("acme/first:1", image(t, mib, "a", "b"))
}

// fill writes a file until the volume takes not a byte more.
func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for n := mib; n > 0; {
		if _, err = file.Write(make([]byte, n)); err != nil {
			n /= 2
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// TestNoInodes leaves bytes and takes the names.
func TestNoInodes(t *testing.T) {
	data := filepath.Join(scratch(t), "data")
	mounts.Tmpfs(t, data, "size=64m,nr_inodes=330")
	f := newFull(t, data)
	f.set(linkproxy.Refuse)
	var names []string
	for i := range 30 {
		names = append(names, fmt.Sprint("layer ", i))
	}
	f.plant(mib)
	for i := 0; inodes(t, data) > 10; i++ {
		f.must(os.WriteFile(filepath.Join(data, fmt.Sprint("ballast-", i)), nil, 0o600))
	}
	next := f.push("acme/next:1", 32*kib, names...)
	f.set(linkproxy.None)
	f.syncNow()
	f.shows(`! Disk DiskError since .*No space left on device[.:]`)
	for i := 0; inodes(t, data) > 0; i++ {
		f.must(os.WriteFile(filepath.Join(data, fmt.Sprint("rest-", i)), nil, 0o600))
	}
	f.paused(`No space left on device`)
	f.collect()
	ballast, err := filepath.Glob(filepath.Join(data, "ballast-*"))
	f.must(err)
	rest, err := filepath.Glob(filepath.Join(data, "rest-*"))
	f.must(err)
	for _, file := range append(ballast, rest...) {
		f.must(os.Remove(file))
	}
	f.goesOn(slack)
	f.has("acme/next:1", next)
}

// inodes is how many files the volume still takes.
func inodes(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ffree
}

// TestFileSizeLimit bounds the size of a file (RLIMIT_FSIZE): the system sends a signal at the limit, whose default is
// the end of the process.
func TestFileSizeLimit(t *testing.T) {
	data := filepath.Join(scratch(t), "data")
	f := newFull(t, data, "prlimit", fmt.Sprintf("--fsize=%d:unlimited", 4*mib))
	f.plant(mib)
	next := f.push("acme/next:1", 6*mib, "c", "d", "e")
	f.syncNow()
	f.paused(`The file is larger than the data volume or the process limit allows.`)
	f.collect()
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	f.must(unix.Prlimit(f.cmd.Process.Pid, unix.RLIMIT_FSIZE, &unlimited, nil))
	f.goesOn(4 * mib) // the write fails and not the room before it: each attempt has asked the parent already
	f.has("acme/next:1", next)
}

// syncNow asks for an iteration; that it fails is what the status shows.
func (f full) syncNow() { _, _ = f.run("sync") }
