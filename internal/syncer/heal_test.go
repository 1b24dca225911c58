package syncer_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/store"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// TestHeal flips one bit in every file of a registry, manifests included, and under content that was pushed here too.
// One scrub and one iteration later all is as it was; while the parent is away nothing is lost for good.
func TestHeal(t *testing.T) {
	p, dir := newParent(), t.TempDir()
	images := map[string]registrytest.Image{}
	n := 12
	if os.Getenv("CHAOS") == "long" {
		n = 165 // 500 files
	}
	for i := range n {
		tag := fmt.Sprint("t", i)
		images[tag] = registrytest.NewImage(uint64(100+i), 500+i*1000)
		push(t, p, "app", tag, images[tag])
	}
	pushed := registrytest.NewImage(7, 90_000)
	push(t, p, "local", "v1", pushed) // it climbed before
	r, stop := newReplica(t, dir, settings(t, p, "app"), syncer.Options{})
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := registrytest.Push(t.Context(), r.store, "local", "v1", pushed); err != nil {
		t.Fatal(err)
	}
	stop()
	flipped := 0
	err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		body[flipped%len(body)] ^= 4
		flipped++
		return os.WriteFile(path, body, 0o600)
	})
	if err != nil || flipped != 3*(n+1) {
		t.Fatalf("%d files, %v", flipped, err)
	}
	p.set(func(p *parent) { p.away = registry.ErrUnavailable })
	r, _ = newReplica(t, dir, settings(t, p, "app"), syncer.Options{})
	res, err := r.store.Scrub(t.Context(), store.ScrubOptions{BytesPerSecond: 1 << 40})
	if err != nil || res.Damaged != flipped {
		t.Fatalf("Scrub: %+v, %v, want %d damaged", res, err, flipped)
	}
	if err := r.Sync(t.Context()); err == nil {
		t.Error("an iteration without a parent succeeded")
	}
	if list, err := r.store.Damaged(t.Context()); err != nil || len(list) != flipped {
		t.Fatalf("Damaged: %d, %v, want %d", len(list), err, flipped)
	}
	p.set(func(p *parent) { p.away = nil })
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for tag, image := range images {
		mustHave(t, r.store, "app", tag, image)
	}
	mustHave(t, r.store, "local", "v1", pushed)
	if list, err := r.store.Damaged(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("Damaged after one iteration: %v, %v", list, err)
	}
	states, err := r.store.TagStates(t.Context(), "local")
	if err != nil || len(states) != 1 || !states[0].Pushed {
		t.Errorf("%+v, %v: what was pushed here stays so", states, err)
	}
}
