package powercut

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// largeStart is how long a start may take, whatever happened before.
const largeStart = 2 * time.Second

// TestLargeStart kills the process and cuts the power on a volume of a hundred thousand blobs, of a tenth of them in a
// short run: the start after it is quick and nothing is lost.
func TestLargeStart(t *testing.T) {
	mustMount(t, "ext4")
	n, limit := 2, 10*largeStart // of a machine that does other things too
	if long {
		n, limit = 20, largeStart
	}
	base, err := os.MkdirTemp(workDir, "large-")
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRig(t.Context(), base, binary(t), "ext4", large, seed(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(base)
	}()
	clean, slowest := r.slowest, map[ending]time.Duration{}
	for i := range n {
		end := []ending{killed, powerCut}[i%2]
		r.slowest = 0
		if err := r.round(t.Context(), end, uint64(i)); err != nil {
			log, _ := os.ReadFile(r.layer.LogFile())
			t.Fatalf("%v\n%s", err, tail(log))
		}
		slowest[end] = max(slowest[end], r.slowest)
	}
	files := 0
	_ = filepath.WalkDir(filepath.Join(r.layer.DataDir(), "blobs"), func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			files++
		}
		return err
	})
	ms := func(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
	t.Logf("%d files, index %d KiB, log %d KiB: first start %s, longest start after a kill %s, after a cut %s; %d requests acknowledged, %d problems",
		files, fileSize(r.layer.DataDir(), "meta.db")>>10, fileSize(r.layer.DataDir(), "redo-1")>>10, ms(clean), ms(slowest[killed]), ms(slowest[powerCut]),
		r.oracle.count(), len(r.oracle.problems()))
	if files < largeImages()*4 {
		t.Errorf("only %d files", files)
	}
	if took := max(clean, slowest[killed], slowest[powerCut]); took >= limit {
		t.Errorf("a start took %v, want less than %v", took, limit)
	}
	for _, p := range r.oracle.problems() {
		t.Error(p)
	}
}
