package syncer_test

import (
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// TestChangeOfParentKeepsTheBytes gives another parent while a layer is half here: the other parent sends the other half.
func TestChangeOfParentKeepsTheBytes(t *testing.T) {
	const size, half = 1 << 20, 1 << 19
	img := registrytest.NewImage(1, size)
	layer := img.Blobs[1].Digest
	first, second := newParent(), newParent()
	push(t, first, "app", "v1", img)
	push(t, second, "app", "v1", img)
	reached, gone := make(chan struct{}, 100), make(chan struct{})
	first.read = func(d registry.Digest, off int64, _ []byte) error {
		if d != layer || off < half {
			return nil
		}
		reached <- struct{}{}
		<-gone
		return away
	}
	set := settings(t, first, "app")
	r, _ := newReplica(t, t.TempDir(), set, syncer.Options{})
	synced := make(chan error, 1)
	go func() { synced <- r.Sync(t.Context()) }()
	<-reached
	set.Parent, set.ParentName = second, "other"
	r.Update(set)
	close(gone)
	if err := <-synced; err != nil {
		t.Fatal(err)
	}
	mustHave(t, r.store, "app", "v1", img)
	if a, b := first.bytes(layer), second.bytes(layer); b == 0 || a+b != size {
		t.Errorf("%d bytes of the layer came from the first parent and %d from the second, want %d together", a, b, size)
	}
}
