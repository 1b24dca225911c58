package registry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"path"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

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
		if errors.Is(err, registry.ErrManifestInvalid) { // it can be read in two ways
			return
		}
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
		agree(t, s)
		if r, err := registry.ParseReference(s); err == nil && (r.String() != s || (r.Tag == "") == (r.Digest == "")) {
			t.Fatalf("reference %q: %+v", s, r)
		}
	})
}

// The grammars as the specification writes them (OCI distribution spec, "Pulling manifests"; image spec, "Digests").
var (
	repositories = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tags         = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digests      = regexp.MustCompile(`^(?:sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$`)
)

// agree fails unless a text is taken as what the grammars say it is.
func agree(t interface {
	Helper()
	Fatalf(format string, args ...any)
}, s string,
) {
	t.Helper()
	_, err := registry.ParseDigest(s)
	for what, is := range map[string][2]bool{
		"repository": {registry.ValidateRepository(s) == nil, repositories.MatchString(s) && len(s) <= registry.MaxRepositoryLength},
		"tag":        {registry.ValidateTag(s) == nil, tags.MatchString(s)},
		"digest":     {err == nil, digests.MatchString(s)},
	} {
		if is[0] != is[1] {
			t.Fatalf("%q as a %s: %v, the grammar says %v", s, what, is[0], is[1])
		}
	}
}

func TestGrammars(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.SampledFrom([]string{"a", "Z", "7", ".", "_", "__", "-", "--", "/", ":", "sha256:", "sha512:", "\n", "\x00", "é"})
		agree(t, strings.Join(rapid.SliceOfN(part, 0, 8).Draw(t, "parts"), ""))
		hex := rapid.SampledFrom([]string{"0", "9", "a", "f", "g", "A", "/", ":", "`"})
		digest := rapid.SampledFrom([]string{"sha256:", "sha512:"}).Draw(t, "algorithm") +
			strings.Repeat("0", rapid.SampledFrom([]int{62, 63, 126, 127}).Draw(t, "zeros")) + hex.Draw(t, "first") + hex.Draw(t, "last")
		agree(t, digest)
		agree(t, strings.Repeat("a", rapid.SampledFrom([]int{127, 128, 129, 254, 255, 256}).Draw(t, "length")))
	})
}
