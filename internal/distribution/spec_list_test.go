package distribution_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// tagged pushes the image under the tags.
func (x *spec) tagged(tags ...string) {
	x.t.Helper()
	x.blobs(x.image)
	for _, tag := range tags {
		x.want(tag, x.put(tag, x.image), 201)
	}
}

// list checks the tags of an answer.
func (x *spec) list(query string, want ...string) answer {
	x.t.Helper()
	a := x.get("tags/list" + query)
	x.want("tags"+query, a, 200, "Content-Type", "application/json")
	var doc struct {
		Name string
		Tags []string
	}
	if err := json.Unmarshal(a.body, &doc); err != nil || doc.Name != x.repo || doc.Tags == nil || !slices.Equal(doc.Tags, want) {
		x.t.Errorf("tags%s: %s, want %v", query, a.body, want)
	}
	return a
}

// next returns the target of a Link (RFC 8288) to the next page.
func (x *spec) next(a answer) string {
	x.t.Helper()
	m := regexp.MustCompile(`^<(/v2/[^>]+)>; rel="next"$`).FindStringSubmatch(a.header.Get("Link"))
	if m == nil {
		x.t.Fatalf("Link %q", a.header.Get("Link"))
	}
	return m[1]
}

// referrers checks an answer about referrers and returns their descriptors by digest.
func (x *spec) referrers(d registry.Digest, query string) (answer, map[registry.Digest]registry.Descriptor) {
	x.t.Helper()
	a := x.get("referrers/" + d.String() + query)
	x.want("referrers", a, 200, "Content-Type", registry.MediaTypeImageIndex)
	var index struct {
		SchemaVersion int
		MediaType     string
		Manifests     []registry.Descriptor
	}
	if err := json.Unmarshal(a.body, &index); err != nil || index.SchemaVersion != 2 || index.MediaType != registry.MediaTypeImageIndex || index.Manifests == nil {
		x.t.Fatalf("no index: %s", a.body)
	}
	found := map[registry.Digest]registry.Descriptor{}
	for _, m := range index.Manifests {
		found[m.Digest] = m
	}
	return a, found
}

// referrer is a manifest about the image; an empty artifactType leaves the type of its config.
func (x *spec) referrer(artifactType string) registrytest.Image {
	i := registrytest.NewReferrer(uint64(len(artifactType)), x.image.Descriptor, artifactType)
	if artifactType == "" {
		i.Bytes = []byte(strings.Replace(string(i.Bytes), `"artifactType":"",`, "", 1))
		i.Digest, i.Size = digest.FromBytes(i.Bytes), int64(len(i.Bytes))
	}
	x.pushed("", i)
	return i
}

// deletable checks that a registry that deletes nothing says so.
func (x *spec) undeletable(path string) {
	x.t.Helper()
	a := x.readOnly().send("DELETE", path, nil)
	x.wantError("DELETE "+path, a, http.StatusMethodNotAllowed, registry.CodeDenied)
	x.want("DELETE "+path, a, http.StatusMethodNotAllowed, "Allow", "*")
}

var _ = checks(map[string]func(x *spec){
	"tags-200": func(x *spec) {
		x.tagged("v1")
		x.list("", "v1")
		x.want("DELETE", x.send("DELETE", "manifests/v1", nil), 202)
		x.list("")
	},
	"tags-order": func(x *spec) {
		x.tagged("b", "C", "a", "B", "A1", "_", "10", "9", "a-b", "a.b")
		x.list("", "10", "9", "_", "a", "a-b", "a.b", "A1", "B", "b", "C")
	},
	"tags-json": func(x *spec) {
		x.tagged("a", "b")
		if a, want := x.list("", "a", "b"), fmt.Sprintf(`{"name":%q,"tags":["a","b"]}`, x.repo); string(a.body) != want {
			x.t.Errorf("%s, want %s", a.body, want)
		}
	},
	"tags-n": func(x *spec) {
		x.tagged("a", "b", "c")
		x.list("?n=2", "a", "b")
		x.list("?n=3", "a", "b", "c")
		x.list("?n=4", "a", "b", "c")
	},
	"tags-link": func(x *spec) {
		x.tagged("a", "B", "c", "D", "e")
		x.list(strings.TrimPrefix(x.next(x.list("?n=2", "a", "B")), x.base+"tags/list"), "c", "D")
		x.want("the last page", x.list("?n=2&last=D", "e"), 200, "Link", "-")
		x.want("a page that is all", x.list("?n=5", "a", "B", "c", "D", "e"), 200, "Link", "-")
	},
	"tags-zero":         func(x *spec) { x.tagged("a"); x.list("?n=0") },
	"tags-zero-no-link": func(x *spec) { x.tagged("a"); x.want("n=0", x.list("?n=0"), 200, "Link", "-") },
	"tags-last-is-a-tag": func(x *spec) {
		x.tagged("1", "2", "3", "a")
		x.list("?last=1&n=1", "2")
		x.list("?last=3", "a")
	},
	"tags-last-order": func(x *spec) {
		x.tagged("b", "C", "a", "D")
		x.list("?last=a", "b", "C", "D")
		x.list("?last=B&n=2", "b", "C") // not there itself
		x.list("?last=D")
	},
	"referrers-200": func(x *spec) { x.pushed("v1", x.image); x.referrers(x.image.Digest, "") },
	"referrers-no-404": func(x *spec) {
		x.referrers(absent, "") // a repository that is not there
		x.pushed("v1", x.image)
		x.referrers(absent, "")
	},
	"referrers-400": func(x *spec) {
		for _, bad := range []string{"v1", "sha256:x", "sha256:" + strings.Repeat("A", 64), "md5:d41d8cd98f00b204e9800998ecf8427e"} {
			x.wantError(bad, x.get("referrers/"+bad), 400, registry.CodeDigestInvalid)
		}
	},
	"referrers-index": func(x *spec) {
		i := x.referrer("a/b")
		_, found := x.referrers(x.image.Digest, "")
		if d := found[i.Digest]; len(found) != 1 || d.MediaType != i.MediaType || d.Size != i.Size {
			x.t.Errorf("%+v", found)
		}
	},
	"referrers-type": func(x *spec) {
		x.want("GET", x.get("referrers/"+absent), 200, "Content-Type", "application/vnd.oci.image.index.v1+json")
	},
	"referrers-artifact-type": func(x *spec) {
		i := x.referrer("application/vnd.example.sbom+json")
		if _, found := x.referrers(x.image.Digest, ""); found[i.Digest].ArtifactType != "application/vnd.example.sbom+json" {
			x.t.Errorf("%+v", found)
		}
	},
	"referrers-config-type": func(x *spec) {
		i := x.referrer("")
		if _, found := x.referrers(x.image.Digest, ""); found[i.Digest].ArtifactType != "application/vnd.oci.empty.v1+json" {
			x.t.Errorf("%+v", found)
		}
	},
	"referrers-index-without": func(x *spec) {
		x.pushed("", x.subjectIndex())
		if a, found := x.referrers(x.image.Digest, ""); len(found) != 1 || strings.Contains(string(a.body), "artifactType") {
			x.t.Errorf("%s", a.body)
		}
	},
	"referrers-annotations": func(x *spec) {
		i, index := x.referrer("a/b"), x.subjectIndex()
		x.pushed("", index)
		if _, found := x.referrers(x.image.Digest, ""); found[i.Digest].Annotations["org.example.seed"] != "3" || found[index.Digest].Annotations["k"] != "index" {
			x.t.Errorf("%+v", found)
		}
	},
	"referrers-empty": func(x *spec) {
		x.pushed("v1", x.image)
		if a, _ := x.referrers(x.image.Digest, ""); !strings.Contains(string(a.body), `"manifests":[]`) {
			x.t.Errorf("%s", a.body)
		}
	},
	"referrers-link":      (*spec).manyReferrers,
	"referrers-link-next": (*spec).manyReferrers,
	"referrers-filter": func(x *spec) {
		one := x.referrer("a/b")
		x.referrer("c/de")
		if _, found := x.referrers(x.image.Digest, "?artifactType=a/b"); len(found) != 1 || found[one.Digest].Digest == "" {
			x.t.Errorf("%+v", found)
		}
	},
	"referrers-filters-applied": func(x *spec) {
		a, _ := x.referrers(x.image.Digest, "?artifactType=none")
		x.want("a filter", a, 200, "OCI-Filters-Applied", "artifactType")
		a, _ = x.referrers(x.image.Digest, "")
		x.want("none", a, 200, "OCI-Filters-Applied", "-")
	},
	"referrers-filters-list": func(x *spec) {
		a, _ := x.referrers(x.image.Digest, "?artifactType=a/b&annotation=k")
		x.want("what is not known is not applied", a, 200, "OCI-Filters-Applied", "artifactType")
	},
	"delete-tag-202": func(x *spec) {
		x.tagged("v1", "v2")
		x.want("DELETE", x.send("DELETE", "manifests/v1", nil), 202)
		x.want("gone", x.get("manifests/v1"), 404)
		x.want("the manifest stays", x.get("manifests/v2"), 200)
	},
	"delete-tag-disabled": func(x *spec) { x.undeletable("manifests/v1") },
	"delete-manifest-202": func(x *spec) {
		x.tagged("v1", "v2")
		x.want("DELETE", x.send("DELETE", "manifests/"+x.image.Digest.String(), nil), 202)
		for _, ref := range []string{"v1", "v2", x.image.Digest.String()} {
			x.want(ref, x.get("manifests/"+ref), 404)
		}
	},
	"delete-manifest-404": func(x *spec) {
		x.want("repository", x.send("DELETE", "manifests/"+absent, nil), 404)
	},
	"delete-manifest-disabled": func(x *spec) { x.undeletable("manifests/" + x.image.Digest.String()) },
	"delete-blob-202": func(x *spec) {
		x.blobs(x.image)
		x.want("DELETE", x.send("DELETE", "blobs/"+x.blob().Digest.String(), nil), 202)
		x.want("gone", x.get("blobs/"+x.blob().Digest.String()), 404)
	},
	"delete-blob-404": func(x *spec) {
		x.blobs(x.image)
		x.wantError("absent", x.send("DELETE", "blobs/"+absent, nil), 404, registry.CodeBlobUnknown)
	},
	"delete-blob-disabled": func(x *spec) { x.undeletable("blobs/" + x.blob().Digest.String()) },
	"tag-schema": func(x *spec) {
		index := registrytest.NewIndex(x.referrer("a/b"))
		x.pushed(strings.Replace(x.image.Digest.String(), ":", "-", 1), index)
		x.want("GET", x.get("manifests/sha256-"+x.image.Digest.Encoded()), 200, "Content-Type", registry.MediaTypeImageIndex)
	},
	"referrers-preexisting": func(x *spec) {
		i := x.referrer("a/b")
		x.pushed("sha256-"+x.image.Digest.Encoded(), registrytest.NewIndex(i))
		if _, found := x.referrers(x.image.Digest, ""); len(found) != 1 || found[i.Digest].Digest == "" {
			x.t.Errorf("%+v", found)
		}
	},
	"referrers-new": func(x *spec) {
		x.pushed("v1", x.image)
		i := x.referrer("a/b")
		if _, found := x.referrers(x.image.Digest, ""); found[i.Digest].Digest == "" {
			x.t.Errorf("%+v", found)
		}
	},
	"end-8a": func(x *spec) {
		x.tagged("a")
		x.list("", "a")
		x.want("absent", x.get("/v2/spec/absent/tags/list"), 404)
	},
	"end-8b": func(x *spec) {
		x.tagged("a", "b")
		x.list("?n=1&last=a", "b")
		x.want("absent", x.get("/v2/spec/absent/tags/list?n=1"), 404)
	},
	"end-9": func(x *spec) {
		x.tagged("v1")
		x.want("tag", x.send("DELETE", "manifests/v1", nil), 202)
		x.want("manifest", x.send("DELETE", "manifests/"+x.image.Digest.String(), nil), 202)
		x.want("absent", x.send("DELETE", "manifests/"+x.image.Digest.String(), nil), 404)
	},
	"end-10": func(x *spec) {
		x.blobs(x.image)
		x.want("DELETE", x.send("DELETE", "blobs/"+x.blob().Digest.String(), nil), 202)
		x.want("absent", x.send("DELETE", "blobs/"+x.blob().Digest.String(), nil), 404)
	},
	"end-12a": func(x *spec) {
		x.referrers(absent, "")
		x.want("a digest that is none", x.get("referrers/x"), 400)
	},
	"end-12b": func(x *spec) {
		x.referrers(absent, "?artifactType=a/b")
		x.want("a digest that is none", x.get("referrers/x?artifactType=a/b"), 400)
	},
	"error-json": func(x *spec) {
		x.failures(func(path string, a answer) {
			var doc struct {
				Errors []map[string]any `json:"errors"`
			}
			if err := json.Unmarshal(a.body, &doc); err != nil || len(doc.Errors) == 0 || a.header.Get("Content-Type") != "application/json" {
				x.t.Errorf("%s: %s", path, a.body)
			}
		})
	},
	"error-code-grammar": func(x *spec) {
		x.failures(func(path string, a answer) {
			if !regexp.MustCompile(`^[A-Z_]+$`).MatchString(string(a.code())) {
				x.t.Errorf("%s: %s", path, a.body)
			}
		})
	},
	"error-message": func(x *spec) {
		x.failures(func(path string, a answer) {
			if !regexp.MustCompile(`"message":"[A-Za-z]([^"\\]|\\.){9,}"`).Match(a.body) {
				x.t.Errorf("%s: %s", path, a.body)
			}
		})
	},
	"error-code-listed": func(x *spec) {
		listed := []registry.Code{
			"BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID", "MANIFEST_UNKNOWN",
			"NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED", "UNSUPPORTED", "TOOMANYREQUESTS",
		}
		x.failures(func(path string, a answer) {
			if !slices.Contains(listed, a.code()) {
				x.t.Errorf("%s: %s", path, a.body)
			}
		})
	},
	"warnings-format": func(x *spec) { x.failures(func(path string, a answer) { x.want(path, a, a.status, "Warning", "-") }) },
	"warnings-size":   func(x *spec) { x.want("GET", x.get("/v2/"), 200, "Warning", "-") },
})

// failures asks for what is refused with each status and code that there is.
func (x *spec) failures(each func(path string, a answer)) {
	x.t.Helper()
	x.pushed("v1", x.image)
	at := x.session()
	for _, c := range []struct{ method, path, status string }{
		{"GET", "/", "404"},
		{"GET", "/v2/A/tags/list", "400"},
		{"GET", "/v2/spec/absent/tags/list", "404"},
		{"GET", "tags/list?n=-1", "400"},
		{"GET", "tags/list?n=%zz", "400"},
		{"GET", "manifests/v2", "404"},
		{"PUT", "manifests/-", "400"},
		{"PUT", "manifests/v1", "400"},
		{"POST", "manifests/v1", "405"},
		{"GET", "blobs/" + absent, "404"},
		{"GET", "blobs/x", "400"},
		{"GET", "referrers/x", "400"},
		{"GET", "blobs/uploads/x", "404"},
		{"PUT", at, "400"},
		{"PUT", at + "?digest=x", "400"},
		{"PATCH", at, "416"},
		{"GET", "blobs/" + x.blob().Digest.String(), "416"},
		{"GET", "/v2/" + strings.Repeat("a", 3000), "414"},
	} {
		header := map[string][]string{"416": {"Range", "bytes=900-", "Content-Range", "7-9"}}[c.status]
		a := x.send(c.method, c.path, nil, header...)
		if fmt.Sprint(a.status) != c.status {
			x.t.Errorf("%s %.80s: %d %s, want %s", c.method, c.path, a.status, a.body, c.status)
		}
		each(c.method+" "+c.path, a)
	}
	each("no credentials", x.do("", "GET", "/v2/", nil))
	each("no permission", x.do("none", "GET", x.base+"manifests/v1", nil))
}

// manyReferrers has more than fit into one index.
func (x *spec) manyReferrers() {
	x.t.Helper()
	var m manyReferrers
	for i := range registry.MaxPage + 1 {
		m.list = append(m.list, registry.Descriptor{MediaType: registry.MediaTypeImageManifest, Digest: registry.Digest(fmt.Sprintf("sha256:%064x", i)), Size: 1})
	}
	y := &spec{server: newServer(x.t, m, distribution.Options{}), repo: x.repo, base: x.base}
	a, first := y.referrers(absent, "")
	rest := y.get(y.next(a))
	y.want("the next page", rest, 200, "Link", "-")
	if len(first) != registry.MaxPage || strings.Count(string(rest.body), `"digest"`) != 1 {
		x.t.Errorf("%d, then %s", len(first), rest.body)
	}
}
