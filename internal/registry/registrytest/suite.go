package registrytest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// repo and other are where the suite writes.
const (
	repo  = "suite/repo"
	other = "suite/other"
)

// absent are digests of nothing that the suite ever writes.
const (
	absent    = registry.Digest("sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	absent512 = registry.Digest("sha512:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
)

// Test is the conformance suite of registry.Registry. newRegistry returns an empty registry, which cleans up after
// itself by t.Cleanup; it is called once for each sub-test.
func Test(t *testing.T, newRegistry func(t *testing.T) registry.Registry) {
	t.Helper()
	groups := []struct {
		name  string
		tests []subtest
	}{
		{"blob", blobTests},
		{"upload", uploadTests},
		{"manifest", manifestTests},
		{"list", listTests},
		{"referrers", referrerTests},
		{"delete", deleteTests},
		{"concurrent", concurrentTests},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			for _, st := range g.tests {
				t.Run(st.name, func(t *testing.T) { st.run(t, newRegistry(t)) })
			}
		})
	}
	t.Run("reader", func(t *testing.T) {
		r := newRegistry(t)
		content, err := Seed(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		TestReader(t, content, func(*testing.T) ReadLister { return r })
	})
}

// subtest is one promise of the interfaces.
type subtest struct {
	name string
	run  func(t *testing.T, r registry.Registry)
}

// wantCode fails the test unless err has one of the codes.
func wantCode(t *testing.T, what string, err error, codes ...registry.Code) {
	t.Helper()
	var e *registry.Error
	if !errors.As(err, &e) || !slices.Contains(codes, e.Code) {
		t.Fatalf("%s: error %v, want %v", what, err, codes)
	}
}

// must fails the test on an error of a step that has to work.
func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// push writes an image that has to be accepted.
func push(t *testing.T, r registry.Writer, repo, tag string, image Image) {
	t.Helper()
	must(t, "push "+repo+":"+tag, Push(t.Context(), r, repo, tag, image))
}

// wantManifest checks that ref names exactly the manifest, in both ways to ask.
func wantManifest(t *testing.T, r registry.Reader, repo string, ref registry.Reference, want registry.Manifest) {
	t.Helper()
	got, err := r.GetManifest(t.Context(), repo, ref)
	must(t, "GetManifest "+repo+" "+ref.String(), err)
	if !bytes.Equal(got.Bytes, want.Bytes) {
		t.Fatalf("GetManifest %s %s: other bytes: %q", repo, ref, got.Bytes)
	}
	wantDescriptor(t, "GetManifest", got.Descriptor, want.Descriptor)
	d, err := r.ResolveManifest(t.Context(), repo, ref)
	must(t, "ResolveManifest "+repo+" "+ref.String(), err)
	wantDescriptor(t, "ResolveManifest", d, want.Descriptor)
}

// wantDescriptor compares what every descriptor of a manifest has.
func wantDescriptor(t *testing.T, what string, got, want registry.Descriptor) {
	t.Helper()
	if got.MediaType != want.MediaType || got.Digest != want.Digest || got.Size != want.Size {
		t.Fatalf("%s: %s %s %d, want %s %s %d", what, got.MediaType, got.Digest, got.Size, want.MediaType, want.Digest, want.Size)
	}
}

// wantBlob checks content, digest and size of a blob, in both ways to ask.
func wantBlob(t *testing.T, r registry.Reader, repo string, want Blob) {
	t.Helper()
	b, err := r.GetBlob(t.Context(), repo, want.Digest)
	must(t, "GetBlob", err)
	got, err := io.ReadAll(b)
	must(t, "read blob", err)
	if !bytes.Equal(got, want.Bytes) {
		t.Fatalf("GetBlob %s: %d other bytes, want %d", want.Digest, len(got), len(want.Bytes))
	}
	d := b.Descriptor()
	must(t, "close blob", b.Close())
	if d.Digest != want.Digest || d.Size != want.Size {
		t.Fatalf("blob descriptor %s %d, want %s %d", d.Digest, d.Size, want.Digest, want.Size)
	}
	d, err = r.ResolveBlob(t.Context(), repo, want.Digest)
	must(t, "ResolveBlob", err)
	if d.Digest != want.Digest || d.Size != want.Size {
		t.Fatalf("ResolveBlob %s %d, want %s %d", d.Digest, d.Size, want.Digest, want.Size)
	}
}

// as returns a context that acts for a token.
func as(t *testing.T, name string) context.Context {
	t.Helper()
	return registry.WithPrincipal(t.Context(), registry.Principal{Name: name})
}
