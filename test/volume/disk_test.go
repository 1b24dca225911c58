package volume

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/mounts"
)

// put pushes an image to the registry itself, when its tokens are known.
func (d *daemon) put(ref string, img v1.Image) error {
	d.until("the token is known", func() (bool, string) {
		code, body := d.v2("GET", "")
		return code == http.StatusOK, body
	})
	return cloud.Push(d.t.Context(), d.addr, ref, img)
}

// under is a strace that changes what system calls answer.
func under(t *testing.T, inject ...string) []string {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("there is no strace: apt-get install strace")
	}
	args := []string{"strace", "-D", "-f", "-qq", "-o", "/dev/null"}
	for _, i := range inject {
		args = append(args, "-e", "inject="+i)
	}
	return args
}

// noTemporaries fails for files that nothing accounts for.
func (d *daemon) noTemporaries() {
	d.t.Helper()
	for _, name := range files(d.t, filepath.Join(d.data, "uploads")) {
		if _, err := os.Stat(filepath.Join(d.data, "uploads", strings.TrimSuffix(name, ".json")+".json")); err != nil {
			d.t.Errorf("left in uploads: %s", name)
		}
	}
}

// ext4 makes a small file system in a file and mounts it.
func ext4(t *testing.T, dir string) (again func()) {
	t.Helper()
	if reason := mounts.Forbidden(); reason != "" {
		t.Skip(reason)
	}
	img := filepath.Join(scratch(t), "ext4.img")
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("this machine makes or mounts no ext4: %q: %v: %s", args, err, out)
		}
	}
	must(t, os.WriteFile(img, nil, 0o600))
	must(t, os.Truncate(img, 64*mib))
	run("mkfs.ext4", "-q", "-F", img)
	must(t, os.MkdirAll(dir, 0o700))
	run("mount", "-o", "loop", img, dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return func() {
		t.Helper()
		must(t, unix.Unmount(dir, 0))
		run("mount", "-o", "loop", img, dir)
	}
}

// TestReadOnlyRemount has the kernel make the volume read-only under a running registry, as it does when it finds an
// error of the disk: pulls go on, a push says why not, and after a start on a volume that is mended all goes on.
func TestReadOnlyRemount(t *testing.T) {
	data := filepath.Join(scratch(t), "data")
	again := ext4(t, data)
	f := newFull(t, data)
	if out, err := exec.Command("mount", "-o", "remount,abort", data).CombinedOutput(); err != nil {
		t.Skipf("this machine aborts no file system: %v: %s", err, out)
	}
	img := image(t, 64*kib, "while read-only")
	for range 3 {
		err := f.put("floor/pushed:2", img)
		if err == nil || !strings.Contains(err.Error(), "DiskError") {
			t.Errorf("a push: %v, want a DiskError", err)
		}
		t.Logf("push: %v", err)
	}
	first, pushed := image(t, mib, "a", "b"), image(t, mib, "mine")
	f.has("acme/first:1", first)
	f.has("floor/pushed:1", pushed)
	f.alive()
	f.end(unix.SIGTERM)
	again()
	f.start()
	f.has("acme/first:1", first)
	f.has("floor/pushed:1", pushed)
	f.must(f.put("floor/pushed:2", img))
	f.has("floor/pushed:2", img)
	f.noTemporaries()
}

// TestFailedSync lets every 5th fsync and every 7th fdatasync fail with EIO: what is acknowledged is there, what is not
// says why, the process stays, and after a restart on a good disk all is as it was acknowledged.
func TestFailedSync(t *testing.T) {
	d := newDaemon(t, filepath.Join(scratch(t), "data"))
	a := newAbove(t)
	d.configure(document(a.link.Addr(), "http"))
	d.before = under(t, "fsync:error=EIO:when=24+5", "fdatasync:error=EIO:when=12+7")
	d.start()
	d.until("it is ready", func() (bool, string) { code, body := d.health("/readyz"); return code == http.StatusOK, body })
	acked := map[string]v1.Image{}
	refused := 0
	for i := 0; i < 12 || i < 300 && refused == 0; i++ { // strace counts for each thread
		ref := fmt.Sprintf("floor/app%d:%d", i%3, i)
		img := image(t, 20*kib, fmt.Sprint("sync", i))
		err := d.put(ref, img)
		switch {
		case err == nil:
			acked[ref] = img
		case strings.Contains(err.Error(), "DiskError: Input/output error") || strings.Contains(err.Error(), "UNAVAILABLE: the index"):
			refused++
		default:
			t.Errorf("push: %v", err)
		}
	}
	d.alive()
	t.Logf("%d images were acknowledged, %d refused", len(acked), refused)
	if refused == 0 || len(acked) == 0 {
		t.Error("that says nothing")
	}
	for ref, img := range acked {
		d.has(ref, img)
	}
	d.noTemporaries()
	d.end(unix.SIGKILL)
	d.before = nil
	d.start()
	for ref, img := range acked {
		d.has(ref, img)
	}
}

// TestSlowSync makes each sync take 300 ms: pushes are slow, pulls are not.
func TestSlowSync(t *testing.T) {
	d := newDaemon(t, filepath.Join(scratch(t), "data"))
	a := newAbove(t)
	d.configure(document(a.link.Addr(), "http"))
	d.before = under(t, "fsync:delay_enter=300000", "fdatasync:delay_enter=300000")
	d.start()
	d.until("it is ready", func() (bool, string) { code, body := d.health("/readyz"); return code == http.StatusOK, body })
	img := image(t, 64*kib, "slow")
	begin := time.Now()
	d.must(d.put("floor/slow:1", img))
	pushed := time.Since(begin)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { // pushes go on beside the pulls
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				_ = d.put(fmt.Sprint("floor/slow:", i+2), image(t, 64*kib, fmt.Sprint("slow", i)))
			}
		}
	}()
	var slowest time.Duration
	for range 20 {
		begin := time.Now()
		d.has("floor/slow:1", img)
		slowest = max(slowest, time.Since(begin))
	}
	close(stop)
	<-done
	t.Logf("push %v, slowest of 20 pulls beside pushes %v", pushed, slowest)
	if pushed < 900*time.Millisecond {
		t.Error("the disk was not slow")
	}
	if slowest > pushed {
		t.Error("pulls wait for the disk")
	}
}

// TestIndexLostWhileRunning takes the index away under a running registry, in four ways: it repairs itself, says so in
// the log, and loses nothing that it acknowledged, also not what came a moment before.
func TestIndexLostWhileRunning(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"emptied": func(path string) error { return os.Truncate(path, 0) },
		"halved":  func(path string) error { return os.Truncate(path, 32*kib) },
		"removed": os.Remove,
		"another": func(path string) error {
			if err := os.WriteFile(path+".x", make([]byte, 64*kib), 0o600); err != nil {
				return err
			}
			return os.Rename(path+".x", path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, filepath.Join(scratch(t), "data"))
			a := newAbove(t)
			first := a.push("acme/first:1", 100*kib, "a")
			d.configure(document(a.link.Addr(), "http"))
			d.start()
			d.synced(1)
			mine := image(t, 100*kib, "mine")
			d.must(d.put("floor/mine:1", mine))
			must(t, spoil(filepath.Join(d.data, "meta.db")))
			next := image(t, 100*kib, "next")
			d.until("a push works again", func() (bool, string) {
				err := d.put("floor/mine:2", next)
				return err == nil, fmt.Sprint(err)
			})
			d.shows(`STORAGE +ok`)
			for range 2 {
				d.has("acme/first:1", first)
				d.has("floor/mine:1", mine)
				d.has("floor/mine:2", next)
				if !strings.Contains(d.logged(), "the index is in use again") {
					t.Errorf("the log does not say so:\n%s", d.tail())
				}
				d.end(unix.SIGTERM)
				d.start()
			}
		})
	}
}
