package store

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// TestRest: what was read of the index leaves the memory of the process, and is there for who asks.
func TestRest(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	err := s.update(t.Context(), func(t *tx) error {
		for n := range 1000 {
			if err := t.put(t.Bucket(bucketDocuments), fmt.Appendf(nil, "%04d", n), make([]byte, 1000)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.checkIndex(); err != nil {
		t.Fatal(err)
	}
	before := residentIndex(t, s)
	if err := s.Rest(); err != nil {
		t.Fatal(err)
	}
	after := residentIndex(t, s)
	if before < 1000 || after > before/4 {
		t.Errorf("%d KiB of the index are in memory, %d before", after, before)
	}
	if err := s.checkIndex(); err != nil {
		t.Error(err)
	}
	if _, err := s.GetManifest(t.Context(), "none", registry.TagReference("none")); registry.AsError(err).Code != registry.CodeNameUnknown {
		t.Error(err)
	}
}

// residentIndex is how many KiB of the index the kernel has mapped for this process.
func residentIndex(t *testing.T, s *Store) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(regexp.QuoteMeta(s.path(indexName)) + `\n(?:.*\n)*?Rss: +(\d+) kB`).FindSubmatch(maps)
	if m == nil {
		t.Fatal("the index is not mapped")
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib
}
