package powercut

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/connected-registry/connected-registry/test/layer"
)

// firstIndex is the index of schema 1 that the tests of the store keep.
func firstIndex(t *testing.T) []byte {
	t.Helper()
	root, err := layer.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(root, "internal/store/testdata/schema-1.db.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// TestMigrationCut starts this release on an index of the first schema and cuts the power at a random moment of the
// start, while it is copied and brought up to date: the next start has all of its tags.
func TestMigrationCut(t *testing.T) {
	n := count(t, 0, 100)
	if n == 0 {
		t.Skip("runs with POWERCUT=n (make test-chaos-short)")
	}
	mustMount(t, "ext4")
	rng := rand.New(rand.NewPCG(seed(t), 0))
	old, before := firstIndex(t), 0
	r, err := newRig(t.Context(), t.TempDir(), binary(t), "ext4", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	}()
	for i := range n {
		if err := errors.Join(r.layer.Stop(), plantIndex(r.layer.DataDir(), old)); err != nil {
			t.Fatal(err)
		}
		started := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { started <- r.layer.Start(ctx) }()
		time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond) // the moment of the cut is what is random here
		if err := r.volume.cut(); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-started
		if err := r.layer.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := r.volume.remount(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(r.layer.DataDir(), "redo-1")); err != nil {
			before++ // the migration was not done
		}
		if err := r.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for repo, tags := range map[string]string{"fill/0": `"t0"`, "parent/app": `"v1"`} {
			a, err := r.client.do(t.Context(), "GET", "/v2/"+repo+"/tags/list", "", nil)
			if err != nil || a.status != 200 || !strings.Contains(string(a.body), tags) {
				t.Errorf("cut %d: %s: %d %s, %v", i, repo, a.status, a.body, err)
			}
		}
		r.client.close()
	}
	t.Logf("%d cuts, %d of them before the migration was complete", n, before)
}

// plantIndex puts an index in the place of what the directory has, durably.
func plantIndex(dir string, body []byte) error {
	for _, name := range []string{"meta.db", "meta.db.schema-1", "snapshot-1", "snapshot-2", "redo-1", "redo-2"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "meta.db"), body, 0o600); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", dir, err)
	}
	return d.Close()
}
