package powercut

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/test/linkproxy"
	"github.com/connected-registry/connected-registry/test/mounts"
)

const page = 4096

// small is a registry on a tmpfs that a filler makes as full as wanted.
type small struct {
	*rig
	t   *testing.T
	dir string // where it is mounted
}

func newSmall(t *testing.T, options string) *small {
	t.Helper()
	base := t.TempDir()
	dir := filepath.Join(base, "data")
	mounts.Tmpfs(t, dir, options)
	r, err := newRig(t.Context(), base, binary(t), "", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	})
	return &small{rig: r, t: t, dir: dir}
}

// fill leaves so many bytes free; a negative number leaves no inode instead.
func (s *small) fill(free int64) {
	s.t.Helper()
	s.clear()
	if free < 0 {
		for i := 0; ; i++ {
			if err := os.WriteFile(filepath.Join(s.dir, fmt.Sprint("filler-", i)), nil, 0o600); err != nil {
				return
			}
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		s.t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(s.dir, "filler-0"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if n := int64(st.Bavail)*st.Bsize - free; n > 0 {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, n); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *small) clear() {
	s.t.Helper()
	list, err := filepath.Glob(filepath.Join(s.dir, "filler-*"))
	for _, name := range list {
		err = errors.Join(err, os.Remove(name))
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// try runs a request that may be refused for want of room, and nothing else.
func (s *small) try(what, value string, do func() error, paths ...string) bool {
	s.t.Helper()
	s.oracle.try(value, paths...)
	err := do()
	if err == nil {
		s.oracle.ack(value, paths...)
		return true
	}
	var r *refusal
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if !errors.As(err, &r) || r.status != http.StatusInsufficientStorage || json.Unmarshal([]byte(r.body), &body) != nil ||
		len(body.Errors) != 1 || !strings.Contains(body.Errors[0].Message, "No space left") {
		s.t.Errorf("%s: %v, want 507 with the reason", what, err)
	}
	return false
}

// push pushes an image as far as there is room.
func (s *small) push(ctx context.Context, repo, tag string, image registrytest.Image) bool {
	s.t.Helper()
	for _, b := range image.Blobs {
		if !s.try("blob", b.Digest.String(), func() error { return s.client.pushBlob(ctx, repo, b, 2) }, blobPath(repo, b)) {
			return false
		}
	}
	return s.try("manifest", image.Digest.String(), func() error { return s.client.putManifest(ctx, repo, tag, image.Manifest) },
		tagPath(repo, tag), tagPath(repo, image.Digest.String()))
}

func (s *small) untag(ctx context.Context, repo, tag string) {
	s.t.Helper()
	path := tagPath(repo, tag)
	if !s.try("delete", "", func() error { return s.client.remove(ctx, path) }, path) {
		s.t.Error("nothing can be deleted any more")
	}
}

// holds reads everything back.
func (s *small) holds(ctx context.Context) {
	s.t.Helper()
	err := errors.Join(s.oracle.verify(ctx, s.client), s.oracle.walk(ctx, s.client))
	if err != nil {
		s.t.Error(err)
	}
	for _, p := range s.oracle.problems() {
		s.t.Error(p)
	}
	if s.t.Failed() {
		log, _ := os.ReadFile(s.layer.LogFile())
		s.t.Fatal(tail(log))
	}
}

func (s *small) collect(ctx context.Context) {
	s.t.Helper()
	if err := module.Control(ctx, s.layer.DataDir(), "POST", "/methods/gc", struct{}{}, &struct{}{}); err != nil {
		s.t.Errorf("gc: %v", err)
	}
}

// leftovers lists what is neither content nor, as a partial is, what a transfer goes on with.
func (s *small) leftovers() (list []string) {
	for _, d := range []string{"uploads", "quarantine"} {
		_ = filepath.WalkDir(filepath.Join(s.dir, d), func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				list = append(list, path)
			}
			return err
		})
	}
	return list
}

// TestDiskFull lets the disk be full at each page that a push, a synchronisation, a delete and a collection write:
// what is refused says why, what was acknowledged stays, pulls and deletes go on, nothing leaks, and with room again
// all is as before.
func TestDiskFull(t *testing.T) {
	for name, options := range map[string]string{"space": "size=96m", "inodes": "size=96m,nr_inodes=700"} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			s := newSmall(t, options)
			for i := range 4 {
				s.push(ctx, "local/app0", fmt.Sprint("base", i), registrytest.NewImage(uint64(i), 20_000))
			}
			refused, pages, step := 0, 45, 3
			if name == "inodes" {
				pages, step = 3, 1
			}
			if long {
				step = 1
			}
			for k := 0; k < pages; k += step {
				n := uint64(1000 + k)
				s.push(ctx, "local/app0", "going", registrytest.NewImage(n<<8, 3000))
				if err := s.publish(ctx); err != nil {
					t.Fatal(err)
				}
				free := int64(k) * page
				if name == "inodes" {
					free = -1
				}
				s.fill(free)
				if !s.push(ctx, "local/app0", fmt.Sprint("t", k), registrytest.NewImage(n, 40_000, 50_000)) {
					refused++
				}
				s.fill(free) // the reserve may have been given back
				_ = module.Control(ctx, s.layer.DataDir(), "POST", "/methods/sync", struct{}{}, &struct{}{})
				s.holds(ctx)
				s.fill(free)
				s.untag(ctx, "local/app0", "going")
				s.collect(ctx)
				s.holds(ctx)
				s.clear()
				s.collect(ctx) // which makes the reserve anew
			}
			if refused == 0 {
				t.Error("nothing was refused: the disk was not full")
			}
			if !s.push(ctx, "local/app0", "after", registrytest.NewImage(9, 50_000)) {
				t.Error("a push with room again")
			}
			if err := module.Control(ctx, s.layer.DataDir(), "POST", "/methods/sync", struct{}{}, &struct{}{}); err != nil {
				t.Errorf("sync with room again: %v", err)
			}
			s.holds(ctx)
			if list := s.leftovers(); len(list) > 0 {
				t.Errorf("left behind: %q", list)
			}
			t.Logf("%d of %d pushes were refused; %d paths hold, %d tags are whole", refused, (pages+step-1)/step, len(s.oracle.facts), s.oracle.served)
		})
	}
}

// TestDiskFullRestarts starts a registry again and again on a volume without a free byte: it never ends by itself,
// serves all, and can delete.
func TestDiskFullRestarts(t *testing.T) {
	ctx := t.Context()
	s := newSmall(t, "size=96m")
	for i := range 20 {
		s.push(ctx, "local/app0", fmt.Sprint("t", i), registrytest.NewImage(uint64(i), 5000))
	}
	if err := s.link.Set(linkproxy.Plan{Fault: linkproxy.Refuse}); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		s.fill(0)
		if err := s.layer.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := s.start(ctx); err != nil {
			t.Fatal(err)
		}
		s.untag(ctx, "local/app0", fmt.Sprint("t", i))
		s.holds(ctx)
	}
	log, err := os.ReadFile(s.layer.LogFile())
	if starts := bytes.Count(log, []byte("listener=service")); err != nil || starts != 21 {
		t.Errorf("%d starts, %v, want 21: none by itself", starts, err)
	}
	t.Logf("20 restarts on a full disk, longest %s", s.slowest)
}
