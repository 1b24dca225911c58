package store

import (
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// TestManifestIsOneTransaction: what pulls ask for most is answered with one read transaction of the index and none that
// writes, without a storm of allocations. Half of those that are allowed are bbolt's.
func TestManifestIsOneTransaction(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	image := registrytest.NewImage(1, 100)
	if err := registrytest.Push(t.Context(), s, testRepo, "v1", image); err != nil {
		t.Fatal(err)
	}
	for name, ask := range map[string]func() error{
		"GET by tag": func() error { _, err := s.GetManifest(t.Context(), testRepo, registry.TagReference("v1")); return err },
		"GET by digest": func() error {
			_, err := s.GetManifest(t.Context(), testRepo, registry.DigestReference(image.Digest))
			return err
		},
		"HEAD by tag": func() error {
			_, err := s.ResolveManifest(t.Context(), testRepo, registry.TagReference("v1"))
			return err
		},
	} {
		if err := ask(); err != nil { // into the cache
			t.Fatal(err)
		}
		db := s.index.Load().db
		before := db.Stats()
		const asked = 20
		for range asked {
			if err := ask(); err != nil {
				t.Fatal(err)
			}
		}
		after := db.Stats()
		if n := after.TxN - before.TxN; n != asked {
			t.Errorf("%s: %d read transactions for %d requests", name, n, asked)
		}
		if n := after.TxStats.GetWrite() - before.TxStats.GetWrite(); n != 0 {
			t.Errorf("%s: %d writes", name, n)
		}
		if n := testing.AllocsPerRun(100, func() { _ = ask() }); n > 50 {
			t.Errorf("%s: %.0f allocations", name, n)
		}
	}
}
