package distribution_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/filter"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/store"
)

// oneManifest has one manifest and costs nothing itself.
type oneManifest struct {
	registry.Unsupported
	m registry.Manifest
}

func (o oneManifest) GetManifest(context.Context, string, registry.Reference) (registry.Manifest, error) {
	return o.m, nil
}

// discard is a ResponseWriter without costs of its own.
type discard struct{ h http.Header }

func (d discard) Header() http.Header            { return d.h }
func (discard) Write(p []byte) (int, error)      { return len(p), nil }
func (discard) SetReadDeadline(time.Time) error  { return nil }
func (discard) SetWriteDeadline(time.Time) error { return nil }
func (discard) WriteHeader(int)                  {}

// BenchmarkManifest is a pull's first request without the network: parse, authenticate, permit, answer.
func BenchmarkManifest(b *testing.B) {
	image := registrytest.NewImage(1, 100)
	h := distribution.New(oneManifest{m: image.Manifest}, newAccess(auth.Options{}), distribution.Options{})
	for name, path := range map[string]string{"tag": "/v2/acme/app/manifests/v1", "digest": "/v2/acme/app/manifests/" + image.Digest.String()} {
		b.Run(name, func(b *testing.B) {
			r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, path, nil)
			r.SetBasicAuth("all", "all")
			w := discard{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.h)
				h.ServeHTTP(w, r)
			}
		})
	}
}

// BenchmarkBlob is a pull of 64 MiB over loopback, from a file by sendfile(2) and from a reader.
func BenchmarkBlob(b *testing.B) {
	const size = 64 << 20
	name := filepath.Join(b.TempDir(), "blob")
	if err := os.WriteFile(name, registrytest.NewBlob(1, size).Bytes, 0o600); err != nil {
		b.Fatal(err)
	}
	for kind, open := range map[string]func() (registry.BlobReader, error){
		"file":   func() (registry.BlobReader, error) { f, err := os.Open(name); return fileBlob{f, f}, err },
		"reader": func() (registry.BlobReader, error) { f, err := os.Open(name); return fileBlob{f, nil}, err },
	} {
		b.Run(kind, func(b *testing.B) {
			ts := httptest.NewServer(distribution.New(oneBlob{open: open}, newAccess(auth.Options{AnonymousPull: true}), distribution.Options{}))
			defer ts.Close()
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				resp, err := ts.Client().Get(ts.URL + anyBlob)
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if err != nil || n != size {
					b.Fatal(fmt.Errorf("%d bytes: %w", n, err))
				}
			}
		})
	}
}

// TestManifestIsCheap bounds the allocations of a pull's first request through all of the stack but the connection.
func TestManifestIsCheap(t *testing.T) {
	st := registries["store"](t).(*store.Store)
	if err := registrytest.Push(t.Context(), st, "acme/app", "v1", registrytest.NewImage(1, 100)); err != nil {
		t.Fatal(err)
	}
	access := newAccess(auth.Options{})
	readWrite := func() registry.Mode { return registry.ReadWrite }
	h := distribution.New(filter.Scoped(filter.Locked(filter.Switch(readWrite, st), st), access.MayList), access, distribution.Options{})
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/acme/app/manifests/v1", nil)
	r.SetBasicAuth("all", "all")
	w := discard{http.Header{}}
	if n := testing.AllocsPerRun(100, func() {
		clear(w.h)
		h.ServeHTTP(w, r)
	}); n > 70 {
		t.Errorf("%.0f allocations, want at most 70", n)
	}
	if got := w.h.Get("Docker-Content-Digest"); got == "" {
		t.Error("no manifest")
	}
}
