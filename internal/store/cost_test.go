package store

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// TestManifestIsOneTransaction: what pulls ask for most is answered with one read transaction of the index at most and none
// that writes, without a storm of allocations. Half of those that are allowed are bbolt's. What was asked since the last
// commit is not looked up again.
func TestManifestIsOneTransaction(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	image := registrytest.NewImage(1, 100)
	if err := registrytest.Push(t.Context(), s, testRepo, "v1", image); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetManifest(t.Context(), testRepo, registry.TagReference("v1")); err != nil { // or a HEAD looks for its file
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
		const asked = 20
		for _, c := range []struct {
			commits      bool
			transactions int
			allocations  float64
		}{{true, asked, 50}, {false, 0, 1}} {
			again := func() {
				if c.commits {
					s.version.Add(2)
				}
				if err := ask(); err != nil {
					t.Fatal(err)
				}
			}
			before := db.Stats()
			for range asked {
				again()
			}
			after := db.Stats()
			if n := after.TxN - before.TxN; n != c.transactions {
				t.Errorf("%s, commits between them: %v: %d read transactions for %d requests", name, c.commits, n, asked)
			}
			if n := after.TxStats.GetWrite() - before.TxStats.GetWrite(); n != 0 {
				t.Errorf("%s: %d writes", name, n)
			}
			n := testing.AllocsPerRun(100, again)
			for range 20 { // it counts what others do meanwhile too
				n = min(n, testing.AllocsPerRun(100, again))
			}
			if n > c.allocations {
				t.Errorf("%s, commits between them: %v: %.0f allocations", name, c.commits, n)
			}
		}
	}
}

// TestNothingOldAfterACommit: who asks after a push was acknowledged gets what was pushed, and who got the new content of
// one tag never gets the old content of another that moved with it, whatever is remembered.
func TestNothingOldAfterACommit(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	images := []registrytest.Image{registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)}
	for _, image := range images {
		if err := registrytest.Push(t.Context(), s, testRepo, "", image); err != nil {
			t.Fatal(err)
		}
	}
	var moved atomic.Int64 // rounds that are acknowledged
	ctx, fail := t.Context(), t.Errorf
	move := func(round int) error {
		return s.update(ctx, func(t *tx) error {
			r, err := t.makeRepo(testRepo)
			if err != nil {
				return err
			}
			d := images[round%2].Digest
			for _, tag := range []string{"a", "b"} {
				t.OnCommit(func() { // bbolt shows it, and nobody was told yet
					if m, err := s.ResolveManifest(ctx, testRepo, registry.TagReference(tag)); round > 0 && (err != nil || m.Digest != d) {
						fail("at the end of commit %d: %s is %s, %v", round, tag, m.Digest, err)
					}
				})
			}
			return errors.Join(r.moveTag("a", d, true), r.moveTag("b", d, true), r.moveTag("n"+strconv.Itoa(round), d, true))
		})
	}
	const rounds = 40
	if err := move(0); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for _, tags := range [][2]string{{"a", "b"}, {"b", "a"}, {"a", "a"}} {
		group.Go(func() {
			for moved.Load() < rounds {
				from := moved.Load()
				first, err1 := s.ResolveManifest(t.Context(), testRepo, registry.TagReference(tags[0]))
				second, err2 := s.ResolveManifest(t.Context(), testRepo, registry.TagReference(tags[1]))
				if err1 != nil || err2 != nil {
					t.Error(err1, err2)
					return
				}
				// Without a round between them both are of one state, or the second is of a later one.
				if to := moved.Load(); from == to && first.Digest != images[from%2].Digest && second.Digest == images[from%2].Digest {
					t.Errorf("round %d: %s is new and then %s is old", from, tags[0], tags[1])
				}
			}
		})
	}
	for round := 1; round <= rounds; round++ {
		if err := move(round); err != nil {
			t.Fatal(err)
		}
		for _, tag := range []string{"a", "b"} {
			if d, err := s.ResolveManifest(t.Context(), testRepo, registry.TagReference(tag)); err != nil || d.Digest != images[round%2].Digest {
				t.Fatalf("after round %d: %s, %v", round, d.Digest, err)
			}
		}
		moved.Store(int64(round))
	}
	group.Wait()
}
