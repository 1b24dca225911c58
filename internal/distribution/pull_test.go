package distribution_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

const absent = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// eachRegistry runs a test against every registry, in both modes where the mode must not matter.
func eachRegistry(t *testing.T, modes []registry.Mode, run func(t *testing.T, s *server)) {
	for name, newRegistry := range registries {
		for _, mode := range modes {
			t.Run(name+"/"+string(mode), func(t *testing.T) {
				s := newServer(t, newRegistry(t), distribution.Options{})
				s.mode = mode
				run(t, s)
			})
		}
	}
}

var (
	bothModes = []registry.Mode{registry.ReadOnly, registry.ReadWrite}
	readWrite = []registry.Mode{registry.ReadWrite}
	readOnly  = []registry.Mode{registry.ReadOnly}
)

// call is one request and the answer that it must have.
type call struct {
	name, method, path string
	header             []string
	status             int
	code               registry.Code
	want               []string // headers
	body               []byte   // nil is not compared
}

func (s *server) calls(t *testing.T, calls []call) {
	for _, c := range calls {
		t.Run(c.name, func(t *testing.T) {
			sub := *s
			sub.t = t
			a := sub.do("all", c.method, c.path, nil, c.header...)
			if c.code != "" {
				sub.wantError(c.name, a, c.status, c.code)
				sub.want(c.name, a, c.status, c.want...)
				return
			}
			sub.want(c.name, a, c.status, c.want...)
			if c.body != nil && !bytes.Equal(a.body, c.body) {
				t.Errorf("body of %d bytes, want %d: %.100q", len(a.body), len(c.body), a.body)
			}
		})
	}
}

// TestPull has the requirements of the OCI distribution spec 1.1, "Pull", and of HTTP for conditions and ranges.
func TestPull(t *testing.T) {
	eachRegistry(t, bothModes, func(t *testing.T, s *server) {
		image, docker, index := registrytest.NewImage(1, 1000), registrytest.NewDockerImage(2, 10), registrytest.NewIndex(registrytest.NewImage(3, 10))
		s.push("acme/app", "v1", image)
		s.push("acme/app", "docker", docker)
		s.push("acme/app", "multi", index)
		blob := image.Blobs[1]
		m, b := "/v2/acme/app/manifests/", "/v2/acme/app/blobs/"+blob.Digest.String()
		etag := `"` + blob.Digest.String() + `"`
		ref := func(d registry.Digest) string { return m + d.String() }
		describe := func(i registrytest.Image) []string {
			return []string{
				"Content-Type", i.MediaType, "Docker-Content-Digest", i.Digest.String(), "Content-Length", fmt.Sprint(i.Size),
				"Etag", `"` + i.Digest.String() + `"`, "Location", "-", "X-Content-Type-Options", "nosniff",
			}
		}
		describeBlob := []string{
			"Content-Type", "application/octet-stream", "Docker-Content-Digest", blob.Digest.String(),
			"Content-Length", "1000", "Etag", etag, "Accept-Ranges", "bytes",
		}
		s.calls(t, []call{
			{name: "end-1 GET", method: "GET", path: "/v2/", status: 200, body: []byte("{}")},
			{name: "end-1 HEAD", method: "HEAD", path: "/v2/", status: 200},
			{name: "end-1 without slash", method: "GET", path: "/v2", status: 200},

			{name: "end-2 GET blob", method: "GET", path: b, status: 200, want: describeBlob, body: blob.Bytes},
			{name: "end-2 HEAD blob", method: "HEAD", path: b, status: 200, want: describeBlob, body: []byte{}},
			{name: "end-2 escaped digest", method: "GET", path: strings.ReplaceAll(b, ":", "%3A"), status: 200, body: blob.Bytes},
			{name: "end-2 GET absent", method: "GET", path: "/v2/acme/app/blobs/" + absent, status: 404, code: registry.CodeBlobUnknown, want: []string{"Etag", "-", "Docker-Content-Digest", "-"}},
			{name: "end-2 HEAD absent", method: "HEAD", path: "/v2/acme/app/blobs/" + absent, status: 404, body: []byte{}, want: []string{"Etag", "-"}},
			{name: "end-2 through another repository", method: "GET", path: "/v2/acme/other/blobs/" + blob.Digest.String(), status: 404, code: registry.CodeNameUnknown},
			{name: "end-2 bad digest", method: "GET", path: "/v2/acme/app/blobs/sha256:abc", status: 400, code: registry.CodeDigestInvalid},
			{name: "end-2 unknown algorithm", method: "GET", path: "/v2/acme/app/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", status: 400, code: registry.CodeDigestInvalid},

			{name: "range of the middle", method: "GET", path: b, header: []string{"Range", "bytes=100-199"}, status: 206, want: []string{"Content-Range", "bytes 100-199/1000", "Content-Length", "100"}, body: blob.Bytes[100:200]},
			{name: "range to the end", method: "GET", path: b, header: []string{"Range", "bytes=900-"}, status: 206, want: []string{"Content-Range", "bytes 900-999/1000"}, body: blob.Bytes[900:]},
			{name: "range of the last", method: "GET", path: b, header: []string{"Range", "bytes=-10"}, status: 206, body: blob.Bytes[990:]},
			{name: "range over the end", method: "GET", path: b, header: []string{"Range", "bytes=990-5000"}, status: 206, want: []string{"Content-Range", "bytes 990-999/1000"}, body: blob.Bytes[990:]},
			{name: "range after the end", method: "GET", path: b, header: []string{"Range", "bytes=1000-"}, status: 416, code: registry.CodeSizeInvalid, want: []string{"Content-Range", "bytes */1000", "Etag", "-", "Docker-Content-Digest", "-"}},
			{name: "range that is none", method: "GET", path: b, header: []string{"Range", "bytes=x"}, status: 416, code: registry.CodeSizeInvalid},
			{name: "range in another unit", method: "GET", path: b, header: []string{"Range", "lines=1-2"}, status: 200, body: blob.Bytes},
			{name: "two ranges", method: "GET", path: b, header: []string{"Range", "bytes=0-0,5-5"}, status: 206},
			{name: "hundred ranges", method: "GET", path: b, header: []string{"Range", "bytes=0-0" + strings.Repeat(",2-2", 99)}, status: 200, body: blob.Bytes},
			{name: "range with HEAD", method: "HEAD", path: b, header: []string{"Range", "bytes=0-9"}, status: 206, want: []string{"Content-Length", "10"}, body: []byte{}},
			{name: "If-Range that holds", method: "GET", path: b, header: []string{"Range", "bytes=0-9", "If-Range", etag}, status: 206, body: blob.Bytes[:10]},
			{name: "If-Range that does not", method: "GET", path: b, header: []string{"Range", "bytes=0-9", "If-Range", `"x"`}, status: 200, body: blob.Bytes},
			{name: "If-None-Match blob", method: "GET", path: b, header: []string{"If-None-Match", etag}, status: 304, want: []string{"Etag", etag}, body: []byte{}},
			{name: "If-Match blob", method: "GET", path: b, header: []string{"If-Match", `"x"`}, status: 412, body: []byte{}},

			{name: "end-3 GET by tag", method: "GET", path: m + "v1", status: 200, want: describe(image), body: image.Bytes},
			{name: "end-3 GET by digest", method: "GET", path: ref(image.Digest), status: 200, want: describe(image), body: image.Bytes},
			{name: "end-3 HEAD by tag", method: "HEAD", path: m + "v1", status: 200, want: describe(image), body: []byte{}},
			{name: "end-3 HEAD by digest", method: "HEAD", path: ref(image.Digest), status: 200, want: describe(image), body: []byte{}},
			{name: "end-3 Docker", method: "GET", path: m + "docker", status: 200, want: describe(docker), body: docker.Bytes},
			{name: "end-3 index", method: "GET", path: m + "multi", status: 200, want: describe(index), body: index.Bytes},
			{name: "end-3 Accept never converts", method: "GET", path: m + "docker", header: []string{"Accept", registry.MediaTypeImageManifest}, status: 200, want: describe(docker), body: docker.Bytes},
			{name: "end-3 index is served to who asks for an image", method: "GET", path: m + "multi", header: []string{"Accept", registry.MediaTypeDockerManifest}, status: 200, want: describe(index)},
			{name: "end-3 If-None-Match", method: "GET", path: m + "v1", header: []string{"If-None-Match", `W/"x", "` + image.Digest.String() + `"`}, status: 304, want: []string{"Docker-Content-Digest", image.Digest.String()}, body: []byte{}},
			{name: "end-3 If-None-Match with HEAD", method: "HEAD", path: m + "v1", header: []string{"If-None-Match", "*"}, status: 304},
			{name: "end-3 If-None-Match of another", method: "GET", path: m + "v1", header: []string{"If-None-Match", `"x"`}, status: 200, body: image.Bytes},
			{name: "end-3 absent tag", method: "GET", path: m + "absent", status: 404, code: registry.CodeManifestUnknown},
			{name: "end-3 absent tag with HEAD", method: "HEAD", path: m + "absent", status: 404, body: []byte{}},
			{name: "end-3 absent digest", method: "GET", path: m + absent, status: 404, code: registry.CodeManifestUnknown},
			{name: "end-3 absent repository", method: "GET", path: "/v2/absent/manifests/v1", status: 404, code: registry.CodeNameUnknown},
			{name: "end-3 a tag that cannot be is not there", method: "GET", path: m + ".INVALID_MANIFEST_NAME", status: 404, code: registry.CodeManifestUnknown},
			{name: "end-3 a blob is no manifest", method: "GET", path: ref(blob.Digest), status: 404, code: registry.CodeManifestUnknown},
		})
	})
}

// TestBadPaths has what is not of the API.
func TestBadPaths(t *testing.T) {
	s := newServer(t, registrytest.NewMemory(), distribution.Options{})
	s.push("acme/app", "v1", registrytest.NewImage(1, 10))
	s.calls(t, []call{
		{name: "root", method: "GET", path: "/", status: 404, code: registry.CodeNameInvalid},
		{name: "v1", method: "GET", path: "/v1/search", status: 404, code: registry.CodeNameInvalid},
		{name: "unknown noun", method: "GET", path: "/v2/acme/app/things/x", status: 404, code: registry.CodeNameInvalid},
		{name: "unknown extension", method: "GET", path: "/v2/_connected/v1/x", status: 404, code: registry.CodeNameInvalid},
		{name: "no name", method: "GET", path: "/v2/manifests/x", status: 404, code: registry.CodeNameInvalid},
		{name: "empty name", method: "GET", path: "/v2//manifests/x", status: 400, code: registry.CodeNameInvalid},
		{name: "upper case", method: "GET", path: "/v2/ACME/manifests/x", status: 400, code: registry.CodeNameInvalid},
		{name: "dots", method: "GET", path: "/v2/a/../b/manifests/x", status: 400, code: registry.CodeNameInvalid},
		{name: "escaped dots", method: "GET", path: "/v2/a/%2e%2e/b/manifests/x", status: 400, code: registry.CodeNameInvalid},
		{name: "nul", method: "GET", path: "/v2/a%00/manifests/x", status: 400, code: registry.CodeNameInvalid},
		{name: "long name", method: "GET", path: "/v2/" + strings.Repeat("a", 256) + "/manifests/x", status: 400, code: registry.CodeNameInvalid},
		{name: "long path", method: "GET", path: "/v2/" + strings.Repeat("a", 2000) + "/manifests/x", status: 414, code: registry.CodeNameInvalid},
		{name: "long query", method: "GET", path: "/v2/?" + strings.Repeat("a", 5000), status: 414, code: registry.CodeNameInvalid},
		{name: "malformed query", method: "GET", path: "/v2/_catalog?n=%zz", status: 400, code: registry.CodeUnsupported},
		{name: "parameter twice", method: "GET", path: "/v2/_catalog?n=1&n=2", status: 400, code: registry.CodeUnsupported},
		{name: "tags without list", method: "GET", path: "/v2/acme/app/tags/all", status: 404, code: registry.CodeNameInvalid},
		{name: "trailing slash", method: "GET", path: "/v2/acme/app/tags/list/", status: 404, code: registry.CodeNameInvalid},
		{name: "method of a blob", method: "PUT", path: "/v2/acme/app/blobs/" + absent, status: 405, code: registry.CodeUnsupported, want: []string{"Allow", "GET, HEAD, DELETE"}},
		{name: "method of a manifest", method: "POST", path: "/v2/acme/app/manifests/v1", status: 405, code: registry.CodeUnsupported, want: []string{"Allow", "GET, HEAD, PUT, DELETE"}},
		{name: "method of a list", method: "DELETE", path: "/v2/acme/app/tags/list", status: 405, code: registry.CodeUnsupported, want: []string{"Allow", "GET, HEAD"}},
		{name: "method of uploads", method: "GET", path: "/v2/acme/app/blobs/uploads/", status: 405, code: registry.CodeUnsupported, want: []string{"Allow", "POST"}},
		{name: "method of ping", method: "OPTIONS", path: "/v2/", status: 405, code: registry.CodeUnsupported, want: []string{"Allow", "GET, HEAD"}},
		{name: "odd method", method: "BREW", path: "/v2/", status: 405, code: registry.CodeUnsupported},
		{name: "an upload's id with a path", method: "GET", path: "/v2/acme/app/blobs/uploads/..%2f..%2fx", status: 404, code: registry.CodeNameInvalid},
		{name: "an upload's id with dots", method: "GET", path: "/v2/acme/app/blobs/uploads/..", status: 404, code: registry.CodeBlobUploadUnknown},
	})
}

// TestList has end-8, "Content Discovery", and the catalog.
func TestList(t *testing.T) {
	eachRegistry(t, bothModes, func(t *testing.T, s *server) {
		image := registrytest.NewImage(1, 10)
		for _, tag := range []string{"b", "a", "c", "B"} {
			s.push("acme/app", tag, image)
		}
		s.push("mine", "x", image)
		tags := "/v2/acme/app/tags/list"
		doc := func(tags ...string) []byte {
			if tags == nil {
				tags = []string{}
			}
			b, _ := json.Marshal(map[string]any{"name": "acme/app", "tags": tags})
			return b
		}
		s.calls(t, []call{
			{name: "end-8a all", method: "GET", path: tags, status: 200, want: []string{"Link", "-", "Content-Type", "application/json"}, body: doc("a", "B", "b", "c")},
			{name: "end-8b first page", method: "GET", path: tags + "?n=2", status: 200, want: []string{"Link", `</v2/acme/app/tags/list?last=B&n=2>; rel="next"`}, body: doc("a", "B")},
			{name: "end-8b second page", method: "GET", path: tags + "?n=2&last=B", status: 200, want: []string{"Link", "-"}, body: doc("b", "c")},
			{name: "end-8b exact page", method: "GET", path: tags + "?n=4", status: 200, want: []string{"Link", "-"}, body: doc("a", "B", "b", "c")},
			{name: "end-8b last that is not there", method: "GET", path: tags + "?last=aa", status: 200, body: doc("B", "b", "c")},
			{name: "end-8b after the end", method: "GET", path: tags + "?last=zz", status: 200, want: []string{"Link", "-"}, body: doc()},
			{name: "end-8b zero", method: "GET", path: tags + "?n=0", status: 200, want: []string{"Link", "-"}, body: doc()},
			{name: "end-8b huge", method: "GET", path: tags + "?n=99999999999999999999999", status: 200, body: doc("a", "B", "b", "c")},
			{name: "end-8b negative", method: "GET", path: tags + "?n=-1", status: 400, code: registry.CodeUnsupported},
			{name: "end-8b no number", method: "GET", path: tags + "?n=x", status: 400, code: registry.CodeUnsupported},
			{name: "end-8b empty", method: "GET", path: tags + "?n=", status: 400, code: registry.CodeUnsupported},
			{name: "end-8b odd last", method: "GET", path: tags + "?last=%00%ff%22", status: 200},
			{name: "end-8a absent", method: "GET", path: "/v2/absent/tags/list", status: 404, code: registry.CodeNameUnknown},
			{name: "end-8b absent, zero", method: "GET", path: "/v2/absent/tags/list?n=0", status: 404, code: registry.CodeNameUnknown},
			{name: "catalog", method: "GET", path: "/v2/_catalog", status: 200, want: []string{"Link", "-"}, body: []byte(`{"repositories":["acme/app","mine"]}`)},
			{name: "catalog page", method: "GET", path: "/v2/_catalog?n=1", status: 200, want: []string{"Link", `</v2/_catalog?last=acme%2Fapp&n=1>; rel="next"`}, body: []byte(`{"repositories":["acme/app"]}`)},
			{name: "catalog last page", method: "GET", path: "/v2/_catalog?n=1&last=acme%2Fapp", status: 200, want: []string{"Link", "-"}, body: []byte(`{"repositories":["mine"]}`)},
		})
		a := s.do("narrow", "GET", "/v2/_catalog", nil)
		s.want("catalog of who may read one", a, 200)
		if string(a.body) != `{"repositories":["acme/app"]}` {
			t.Errorf("catalog of who may read one: %s", a.body)
		}
	})
}

// TestListIsCapped follows the Links of a long list.
func TestListIsCapped(t *testing.T) {
	s := newServer(t, registrytest.NewMemory(), distribution.Options{})
	image := registrytest.NewImage(1, 10)
	s.push("many", "", image)
	for i := range 2500 {
		if _, err := s.reg.PutManifest(t.Context(), "many", registry.TagReference(fmt.Sprintf("t%04d", i)), image.Manifest); err != nil {
			t.Fatal(err)
		}
	}
	for _, query := range []string{"", "?n=5000", "?n=1000", "?n=999", "?n=700"} {
		var got []string
		for path := "/v2/many/tags/list" + query; path != ""; {
			a := s.do("all", "GET", path, nil)
			s.want(path, a, 200)
			var doc struct{ Tags []string }
			if err := json.Unmarshal(a.body, &doc); err != nil {
				t.Fatal(err)
			}
			if len(doc.Tags) > registry.MaxPage {
				t.Fatalf("page of %d", len(doc.Tags))
			}
			got = append(got, doc.Tags...)
			path, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
		}
		if len(got) != 2500 || !slices.IsSorted(got) {
			t.Errorf("%q: %d tags, sorted: %v", query, len(got), slices.IsSorted(got))
		}
	}
}

// TestReferrers has end-12, "Listing Referrers".
func TestReferrers(t *testing.T) {
	eachRegistry(t, bothModes, func(t *testing.T, s *server) {
		subject := registrytest.NewImage(1, 10)
		s.push("acme/app", "v1", subject)
		a, b := registrytest.NewReferrer(2, subject.Descriptor, "x/a"), registrytest.NewReferrer(3, subject.Descriptor, "x/b+c")
		s.push("acme/app", "", a)
		s.push("acme/app", "", b)
		list := func(path string, want ...registry.Digest) answer {
			t.Helper()
			got := s.do("all", "GET", path, nil)
			s.want(path, got, 200, "Content-Type", registry.MediaTypeImageIndex)
			var index struct {
				SchemaVersion int
				MediaType     string
				Manifests     []registry.Descriptor
			}
			if err := json.Unmarshal(got.body, &index); err != nil || index.SchemaVersion != 2 || index.MediaType != registry.MediaTypeImageIndex || index.Manifests == nil {
				t.Fatalf("%s: no index: %s", path, got.body)
			}
			var digests []registry.Digest
			for _, d := range index.Manifests {
				digests = append(digests, d.Digest)
				if d.ArtifactType == "" || d.Annotations["org.example.seed"] == "" || d.Size == 0 || d.MediaType == "" {
					t.Errorf("%s: descriptor %+v", path, d)
				}
			}
			slices.Sort(want)
			if !slices.Equal(digests, want) {
				t.Errorf("%s: %v, want %v", path, digests, want)
			}
			return got
		}
		base := "/v2/acme/app/referrers/"
		s.want("end-12a", list(base+subject.Digest.String(), a.Digest, b.Digest), 200, "Oci-Filters-Applied", "-", "Link", "-")
		s.want("end-12b filter", list(base+subject.Digest.String()+"?artifactType=x/a", a.Digest), 200, "Oci-Filters-Applied", "artifactType")
		list(base+subject.Digest.String()+"?artifactType="+url.QueryEscape("x/b+c"), b.Digest)
		list(base+subject.Digest.String()+"?artifactType=none", []registry.Digest{}...)
		list(base + absent)
		list("/v2/absent/referrers/" + subject.Digest.String())
		s.wantError("end-12a bad digest", s.do("all", "GET", base+"v1", nil), 400, registry.CodeDigestInvalid)
	})
}

// manyReferrers has more than a page of them, with annotations that are too long for one index.
type manyReferrers struct {
	registry.Unsupported
	list []registry.Descriptor
}

func (m manyReferrers) Referrers(_ contextType, _ string, _ registry.Digest, _ string) ([]registry.Descriptor, error) {
	return m.list, nil
}

func TestReferrersArePaged(t *testing.T) {
	for name, size := range map[string]int{"by number": 10, "by bytes": 9000} {
		t.Run(name, func(t *testing.T) {
			var m manyReferrers
			for i := range 2300 {
				m.list = append(m.list, registry.Descriptor{
					MediaType: registry.MediaTypeImageManifest, Digest: registry.Digest(fmt.Sprintf("sha256:%064x", i)), Size: 1,
					ArtifactType: "x/a", Annotations: map[string]string{"k": strings.Repeat("v", size)},
				})
			}
			s := newServer(t, m, distribution.Options{})
			n, pages := 0, 0
			for path := "/v2/a/referrers/" + absent + "?artifactType=x/a"; path != ""; pages++ {
				a := s.do("all", "GET", path, nil)
				s.want(path, a, 200)
				var index struct{ Manifests []registry.Descriptor }
				if err := json.Unmarshal(a.body, &index); err != nil || len(index.Manifests) > registry.MaxPage || len(a.body) > registry.MaxManifestSize {
					t.Fatalf("page of %d entries, %d bytes: %v", len(index.Manifests), len(a.body), err)
				}
				for _, d := range index.Manifests {
					if d.Digest != m.list[n].Digest {
						t.Fatalf("entry %d: %s", n, d.Digest)
					}
					n++
				}
				path, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
				if path != "" && !strings.Contains(path, "artifactType=x%2Fa") {
					t.Fatalf("Link without the filter: %s", path)
				}
			}
			if n != len(m.list) || pages < 3 {
				t.Errorf("%d entries on %d pages, want %d", n, pages, len(m.list))
			}
		})
	}
}

// TestDigestsOfBothKinds pulls by sha512.
func TestDigestsOfBothKinds(t *testing.T) {
	eachRegistry(t, readWrite, func(t *testing.T, s *server) {
		image := registrytest.NewImage(1, 10)
		image.Digest = digest.SHA512.FromBytes(image.Bytes)
		s.push("acme/app", "", image)
		a := s.do("all", http.MethodGet, "/v2/acme/app/manifests/"+image.Digest.String(), nil)
		s.want("GET", a, 200, "Docker-Content-Digest", image.Digest.String())
		if !bytes.Equal(a.body, image.Bytes) {
			t.Error("other bytes")
		}
	})
}
