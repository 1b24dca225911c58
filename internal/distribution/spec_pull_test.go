package distribution_test

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

var _ = checks(map[string]func(x *spec){
	"categories": func(x *spec) {
		x.pushed("v1", x.image)
		x.want("pull", x.get("manifests/v1"), 200)
		x.want("discovery", x.get("tags/list"), 200)
		x.want("discovery", x.get("referrers/"+x.image.Digest.String()), 200)
		x.want("management", x.send("DELETE", "manifests/v1", nil), 202)
	},
	"reference-digest-or-tag": func(x *spec) {
		x.pushed("v1", x.image)
		x.want("tag", x.get("manifests/v1"), 200)
		x.want("digest", x.get("manifests/"+x.image.Digest.String()), 200)
		for _, ref := range []string{"-v1", ".v1", "v1%20", "v1+1", "sha256:abc", "a:b", x.image.Digest.Encoded()[:12]} {
			if a := x.get("manifests/" + ref); a.status != 400 && a.status != 404 {
				x.t.Errorf("%s: %d", ref, a.status)
			}
		}
	},
	"name-grammar": func(x *spec) {
		for _, name := range []string{"a", "a/b", "a.b", "a_b", "a__b", "a-b", "a---b/c0", "0/1"} {
			x.want(name, x.send("POST", "/v2/"+name+"/blobs/uploads/", nil), 202)
		}
		for _, name := range []string{"A", "a..b", "a___b", "-a", "a-", "a/", "/a", "a//b", "a/_b", "é", "a b", strings.Repeat("a", 256)} {
			x.wantError(name, x.send("POST", "/v2/"+strings.ReplaceAll(name, " ", "%20")+"/blobs/uploads/", nil), 400, registry.CodeNameInvalid)
		}
	},
	"tag-grammar": func(x *spec) {
		x.blobs(x.image)
		for _, tag := range []string{"_", "0", "A.b-c_d", strings.Repeat("t", 128)} {
			x.want(tag, x.put(tag, x.image), 201)
			x.want(tag, x.get("manifests/"+tag), 200)
		}
		for _, tag := range []string{".", "-a", "a+b", "a,b", strings.Repeat("t", 129)} {
			x.wantError(tag, x.put(tag, x.image), 400, registry.CodeManifestInvalid)
		}
	},
	"no-type-parameters": func(x *spec) {
		x.blobs(x.image)
		x.want("PUT", x.put("v1", x.image, "Content-Type", x.image.MediaType+"; charset=utf-8"), 201)
		x.want("GET", x.get("manifests/v1"), 200, "Content-Type", x.image.MediaType)
	},
	"type-as-pushed": func(x *spec) {
		docker := registrytest.NewDockerImage(51, 10)
		for tag, i := range map[string]registrytest.Image{"oci": x.image, "docker": docker, "index": registrytest.NewIndex(x.image), "list": registrytest.NewDockerList(docker)} {
			x.pushed(tag, i)
			for _, accept := range []string{"", "*/*", registry.MediaTypeImageManifest, "text/html"} {
				a := x.get("manifests/"+tag, "Accept", accept)
				x.want(tag+" for "+accept, a, 200, "Content-Type", i.MediaType)
				if !bytes.Equal(a.body, i.Bytes) {
					x.t.Errorf("%s for %q: other bytes", tag, accept)
				}
			}
		}
	},
	"manifest-200": func(x *spec) {
		x.pushed("v1", x.image)
		for _, ref := range []string{"v1", x.image.Digest.String()} {
			a := x.get("manifests/" + ref)
			x.want(ref, a, 200, "Content-Length", strconv.Itoa(len(x.image.Bytes)))
			if !bytes.Equal(a.body, x.image.Bytes) {
				x.t.Errorf("%s: other bytes", ref)
			}
		}
	},
	"manifest-digest-header": func(x *spec) {
		x.pushed("v1", x.image)
		x.want("by tag", x.get("manifests/v1"), 200, "Docker-Content-Digest", x.image.Digest.String())
		other := x.image
		other.Digest = digest.SHA512.FromBytes(other.Bytes)
		x.pushed("", other)
		x.want("by sha512", x.get("manifests/"+other.Digest.String()), 200, "Docker-Content-Digest", other.Digest.String())
	},
	"manifest-404": func(x *spec) {
		x.pushed("v1", x.image)
		x.wantError("tag", x.get("manifests/v2"), 404, registry.CodeManifestUnknown)
		x.wantError("digest", x.get("manifests/"+absent), 404, registry.CodeManifestUnknown)
		x.wantError("in another repository", x.get("/v2/spec/other/manifests/"+x.image.Digest.String()), 404, registry.CodeNameUnknown)
	},
	"blob-200": func(x *spec) {
		x.blobs(x.image)
		for _, b := range append(x.image.Blobs, registrytest.BlobOf("", nil)) {
			x.want("push", x.send("POST", "blobs/uploads/?digest="+b.Digest.String(), b.Bytes), 201)
			a := x.get("blobs/" + b.Digest.String())
			x.want("pull", a, 200, "Content-Length", strconv.Itoa(len(b.Bytes)))
			if !bytes.Equal(a.body, b.Bytes) {
				x.t.Errorf("%s: other bytes", b.Digest)
			}
		}
	},
	"blob-digest-header": func(x *spec) {
		x.blobs(x.image)
		x.want("GET", x.get("blobs/"+x.blob().Digest.String()), 200, "Docker-Content-Digest", x.blob().Digest.String())
	},
	"blob-digest-true": func(x *spec) {
		for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			content := []byte("by " + algorithm)
			d := algorithm.FromBytes(content).String()
			x.want("push", x.send("POST", "blobs/uploads/?digest="+d, content), 201, "Docker-Content-Digest", d)
			a := x.get("blobs/" + d)
			x.want("pull", a, 200)
			if got := algorithm.FromBytes(a.body).String(); got != d || a.header.Get("Docker-Content-Digest") != d {
				x.t.Errorf("%s, header %s, want %s", got, a.header.Get("Docker-Content-Digest"), d)
			}
		}
	},
	"blob-404": func(x *spec) {
		x.pushed("v1", x.image)
		x.wantError("absent", x.get("blobs/"+absent), 404, registry.CodeBlobUnknown)
		x.wantError("in another repository", x.get("/v2/spec/other/blobs/"+x.blob().Digest.String()), 404, registry.CodeNameUnknown)
	},
	"blob-range": func(x *spec) {
		x.blobs(x.image)
		b, path := x.blob(), "blobs/"+x.blob().Digest.String()
		for spec, want := range map[string][]byte{"bytes=0-9": b.Bytes[:10], "bytes=490-": b.Bytes[490:], "bytes=-5": b.Bytes[495:], "bytes=0-0": b.Bytes[:1]} {
			a := x.get(path, "Range", spec)
			x.want(spec, a, 206, "Content-Length", strconv.Itoa(len(want)), "Content-Range", "*", "Accept-Ranges", "bytes")
			if !bytes.Equal(a.body, want) {
				x.t.Errorf("%s: other bytes", spec)
			}
		}
		x.want("after the end", x.get(path, "Range", "bytes=500-"), 416, "Content-Range", "bytes */500")
		x.want("unknown unit", x.get(path, "Range", "lines=1-2"), 200)
		x.want("HEAD", x.head(path, "Range", "bytes=0-9"), 206, "Content-Length", "10")
		x.want("If-None-Match", x.get(path, "If-None-Match", `"`+b.Digest.String()+`"`), 304)
	},
	"head-200": func(x *spec) {
		x.pushed("v1", x.image)
		for _, path := range []string{"manifests/v1", "manifests/" + x.image.Digest.String(), "blobs/" + x.blob().Digest.String()} {
			a := x.head(path)
			x.want(path, a, 200)
			if len(a.body) != 0 {
				x.t.Errorf("%s: a body of %d bytes", path, len(a.body))
			}
		}
	},
	"head-digest": func(x *spec) {
		x.pushed("v1", x.image)
		x.want("manifest", x.head("manifests/v1"), 200, "Docker-Content-Digest", x.image.Digest.String())
		x.want("blob", x.head("blobs/"+x.blob().Digest.String()), 200, "Docker-Content-Digest", x.blob().Digest.String())
	},
	"head-length": func(x *spec) {
		x.pushed("v1", x.image)
		x.want("manifest", x.head("manifests/v1"), 200, "Content-Length", strconv.Itoa(len(x.image.Bytes)), "Content-Type", x.image.MediaType)
		x.want("blob", x.head("blobs/"+x.blob().Digest.String()), 200, "Content-Length", "500")
	},
	"head-404": func(x *spec) {
		x.pushed("v1", x.image)
		for _, path := range []string{"manifests/v2", "manifests/" + absent, "blobs/" + absent, "/v2/spec/absent/manifests/v1", "/v2/spec/absent/blobs/" + absent} {
			x.want(path, x.head(path), 404)
		}
	},
	"absent-repository-404": func(x *spec) {
		x.wantError("manifest", x.get("manifests/v1"), 404, registry.CodeNameUnknown)
		x.wantError("blob", x.get("blobs/"+absent), 404, registry.CodeNameUnknown)
		x.wantError("tags", x.get("tags/list"), 404, registry.CodeNameUnknown)
	},
	"end-1": func(x *spec) {
		x.want("GET", x.get("/v2/"), 200)
		x.wantError("without credentials", x.do("", "GET", "/v2/", nil), 401, registry.CodeUnauthorized)
	},
	"end-2": func(x *spec) {
		x.blobs(x.image)
		x.want("GET", x.get("blobs/"+x.blob().Digest.String()), 200)
		x.want("HEAD", x.head("blobs/"+x.blob().Digest.String()), 200)
		x.want("absent", x.get("blobs/"+absent), 404)
	},
	"end-3": func(x *spec) {
		x.pushed("v1", x.image)
		x.want("GET", x.get("manifests/v1"), 200)
		x.want("HEAD", x.head("manifests/v1"), 200)
		x.want("absent", x.get("manifests/v2"), 404)
	},
})
