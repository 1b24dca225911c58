package registry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// FuzzManifest checks that what is accepted is of one kind, and names nothing but content by digests that can be file
// names; and that what is refused is MANIFEST_INVALID.
func FuzzManifest(f *testing.F) {
	const d = `{"mediaType":"a/b","digest":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","size":1}`
	for _, doc := range []string{
		`{"schemaVersion":2,"config":` + d + `,"layers":[` + d + `]}`, `{"schemaVersion":2,"manifests":[` + d + `]}`, `{"config":` + d + `,"layers":[],"subject":` + d + `}`,
		`{"config":` + d + `,"manifests":[]}`, `{"manifests":[],"layers":null,"fsLayers":[]}`, `{"CONFIG":` + d + `,"Manifests":[]}`, `{"config":{"digest":"sha256:../x"}}`,
		`{"mediaType":"` + registry.MediaTypeImageIndex + `","config":` + d + `}`, `{"config":` + d + `,"config":null}`, `[]`, `null`, `{}`, strings.Repeat("[", 100), "\xff", `{"manifests":[{"digest":"","size":-1}]}`,
	} {
		for _, mediaType := range []string{registry.MediaTypeImageManifest, registry.MediaTypeDockerList} {
			f.Add(mediaType, []byte(doc))
		}
	}
	f.Fuzz(func(t *testing.T, mediaType string, body []byte) {
		refs, err := registry.ParseManifest(mediaType, body)
		if err != nil {
			var e *registry.Error
			if !errors.As(err, &e) || e.Code != registry.CodeManifestInvalid || len(e.Message) > 2000 {
				t.Fatalf("%q %q: %v", mediaType, body, err)
			}
			return
		}
		if refs.MediaType != mediaType || registry.IsIndex(mediaType) != (len(refs.Blobs) == 0) || len(refs.Blobs) > 0 && len(refs.Manifests) > 0 {
			t.Fatalf("%q %q: %+v", mediaType, body, refs)
		}
		all := append(append([]registry.Descriptor{}, refs.Blobs...), refs.Manifests...)
		if refs.Subject != nil {
			all = append(all, *refs.Subject)
		}
		for _, d := range all {
			if _, err := registry.ParseDigest(string(d.Digest)); err != nil || d.Size < 0 {
				t.Fatalf("%q: %+v: %v", body, d, err)
			}
		}
		if !json.Valid(body) {
			t.Fatalf("no JSON: %q", body)
		}
		m, _, err := registry.NewManifest(mediaType, body)
		if err != nil || m.Size != int64(len(body)) || m.Digest.Validate() != nil || !bytes.Equal(m.Bytes, body) {
			t.Fatalf("%q: %+v, %v", body, m.Descriptor, err)
		}
	})
}

// FuzzDigest checks that what is accepted as a digest, a name or a reference stays where it is put.
func FuzzDigest(f *testing.F) {
	for _, s := range []string{
		"sha256:" + strings.Repeat("a", 64), "sha512:" + strings.Repeat("0", 128), "sha256:" + strings.Repeat("A", 64), "sha256:" + strings.Repeat("a", 64) + "\n", "sha256:..", "a/../b", "a/b", "v1", "_", "..", "",
		"sha384:" + strings.Repeat("a", 96), "a__b", "a___b", "é", "a\x00",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := registry.ParseDigest(s); err == nil && (string(d) != s || d.Validate() != nil || path.Base(d.Encoded()) != d.Encoded() || strings.ContainsAny(s, "/.\\")) {
			t.Fatalf("digest %q", s)
		} else if err != nil && !errors.Is(err, registry.ErrDigestInvalid) {
			t.Fatal(err)
		}
		if registry.ValidateRepository(s) == nil && (path.Clean("/"+s) != "/"+s || len(s) > registry.MaxRepositoryLength || strings.ContainsAny(s, "\\\x00:@")) {
			t.Fatalf("repository %q", s)
		}
		if registry.ValidateTag(s) == nil && (len(s) > registry.MaxTagLength || strings.ContainsAny(s, "/\\\x00:@") || strings.HasPrefix(s, ".")) {
			t.Fatalf("tag %q", s)
		}
		if r, err := registry.ParseReference(s); err == nil && (r.String() != s || (r.Tag == "") == (r.Digest == "")) {
			t.Fatalf("reference %q: %+v", s, r)
		}
	})
}
