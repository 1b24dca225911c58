package store

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

func benchStore(b *testing.B) *Store {
	s, err := Open(b.Context(), b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

func BenchmarkGetManifestByTag(b *testing.B) {
	s := benchStore(b)
	for i := range 50 {
		if err := registrytest.Push(b.Context(), s, testRepo, fmt.Sprintf("t%d", i), registrytest.NewImage(uint64(i+1), 10)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.GetManifest(b.Context(), testRepo, registry.TagReference("t7")); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkGetBlob(b *testing.B) {
	s := benchStore(b)
	blob := registrytest.NewBlob(1, 1000)
	if err := registrytest.PushBlob(b.Context(), s, testRepo, blob); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r, err := s.GetBlob(b.Context(), testRepo, blob.Digest)
		if err != nil {
			b.Fatal(err)
		}
		_ = r.Close()
	}
}

func BenchmarkPushSmallImages(b *testing.B) {
	for _, parallel := range []int{1, 4} {
		b.Run(fmt.Sprint(parallel), func(b *testing.B) {
			s := benchStore(b)
			var n atomic.Uint64
			b.SetParallelism(parallel)
			work := func() {
				i := n.Add(1)
				if err := registrytest.Push(b.Context(), s, testRepo, fmt.Sprintf("t%d", i), registrytest.NewImage(i, 1000)); err != nil {
					b.Error(err)
				}
			}
			if parallel == 1 {
				for b.Loop() {
					work()
				}
			} else {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						work()
					}
				})
			}
			b.ReportMetric(float64(s.commits.Load())/float64(n.Load()), "commits/image")
		})
	}
}

func BenchmarkUpload64MiB(b *testing.B) {
	s := benchStore(b)
	blob := registrytest.NewBlob(1, 64<<20)
	b.SetBytes(blob.Size)
	for b.Loop() {
		u, err := s.StartUpload(b.Context(), testRepo)
		if err != nil {
			b.Fatal(err)
		}
		for at := 0; at < len(blob.Bytes); at += 256 << 10 {
			if _, err := u.Write(blob.Bytes[at : at+256<<10]); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := u.Commit(b.Context(), blob.Digest); err != nil {
			b.Fatal(err)
		}
	}
}
