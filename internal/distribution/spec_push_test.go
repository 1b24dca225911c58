package distribution_test

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// location checks that an answer names a blob or manifest that can be pulled there.
func (x *spec) location(a answer, want []byte) {
	x.t.Helper()
	got := x.get(a.header.Get("Location"))
	x.want("GET "+a.header.Get("Location"), got, 200)
	if !bytes.Equal(got.body, want) {
		x.t.Errorf("%s: other bytes", a.header.Get("Location"))
	}
}

func (x *spec) patch(at string, first, last int) answer {
	x.t.Helper()
	return x.send("PATCH", at, x.blob().Bytes[first:last+1], "Content-Range", fmt.Sprintf("%d-%d", first, last))
}

func (x *spec) digestQuery() string { return "?digest=" + x.blob().Digest.String() }

// mounted pushes the blobs to another repository and asks for one of them.
func (x *spec) mount(query string) answer {
	x.t.Helper()
	base := x.base
	x.base = "/v2/spec/source/"
	x.pushed("v1", x.image)
	x.base = base
	return x.send("POST", "blobs/uploads/"+query, nil)
}

var _ = checks(map[string]func(x *spec){
	"subject-may-be-missing": func(x *spec) {
		referrer := registrytest.NewReferrer(1, x.image.Descriptor, "a/b")
		x.pushed("", referrer)
		x.pushed("v1", x.image)
		x.want("both", x.get("manifests/"+referrer.Digest.String()), 200)
	},
	"missing-content-code": func(x *spec) {
		x.wantError("blob", x.put("v1", x.image), 400, registry.CodeManifestBlobUnknown)
		x.wantError("child", x.put("v1", registrytest.NewIndex(x.image)), 400, registry.CodeManifestBlobUnknown)
	},
	"session-202": func(x *spec) { x.want("POST", x.send("POST", "blobs/uploads/", nil), 202, "Location", "*") },
	"session-unique": func(x *spec) {
		seen := map[string]bool{}
		for range 20 {
			at := x.session()
			if id := strings.TrimPrefix(at, x.base+"blobs/uploads/"); seen[id] || !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) {
				x.t.Errorf("%s: want 128 bits that no other session has", at)
			}
			seen[at] = true
		}
	},
	"put-201": func(x *spec) {
		x.want("PUT", x.send("PUT", x.session()+x.digestQuery(), x.blob().Bytes), 201)
	},
	"put-location": func(x *spec) {
		x.location(x.send("PUT", x.session()+x.digestQuery(), x.blob().Bytes), x.blob().Bytes)
	},
	"post-length": func(x *spec) {
		at := x.session()
		x.wantError("a range that is longer", x.send("PATCH", at, x.blob().Bytes[:9], "Content-Range", "0-9"), 400, registry.CodeSizeInvalid)
		x.wantError("content that is shorter", x.send("POST", "blobs/uploads/"+x.digestQuery(), x.blob().Bytes[:499]), 400, registry.CodeDigestInvalid)
	},
	"post-digest": func(x *spec) {
		x.wantError("another", x.send("POST", "blobs/uploads/?digest="+absent, x.blob().Bytes), 400, registry.CodeDigestInvalid)
		x.want("nothing was kept", x.get("blobs/"+absent), 404)
	},
	"post-201": func(x *spec) {
		a := x.send("POST", "blobs/uploads/"+x.digestQuery(), x.blob().Bytes)
		x.want("POST", a, 201)
		x.location(a, x.blob().Bytes)
	},
	"post-or-202": func(x *spec) {
		x.want("POST", x.send("POST", "blobs/uploads/"+x.digestQuery(), x.blob().Bytes), 201)
	},
	"chunk-min-length": func(x *spec) {
		x.want("POST", x.send("POST", "blobs/uploads/", nil), 202, "OCI-Chunk-Min-Length", "1")
	},
	"chunk-range-inclusive": func(x *spec) {
		x.want("0-9 are ten bytes", x.patch(x.session(), 0, 9), 202, "Range", "0-9")
	},
	"chunk-first-zero": func(x *spec) {
		x.want("1-9", x.send("PATCH", x.session(), x.blob().Bytes[:9], "Content-Range", "1-9"), 416)
	},
	"chunk-range-grammar": func(x *spec) {
		at := x.session()
		for _, bad := range []string{"x", "0", "0-", "-9", "0 - 9", "0-9-9", "a-b", "9-0"} {
			x.want(bad, x.send("PATCH", at, x.blob().Bytes[:10], "Content-Range", bad), 416)
		}
	},
	"chunk-202": func(x *spec) {
		at := x.session()
		x.want("first", x.patch(at, 0, 99), 202, "Location", at, "Range", "0-99")
		x.want("second", x.patch(at, 100, 499), 202, "Location", at, "Range", "0-499")
	},
	"chunk-order-416": func(x *spec) {
		at := x.session()
		x.want("first", x.patch(at, 0, 99), 202)
		x.want("again", x.patch(at, 0, 99), 416, "Location", at, "Range", "0-99")
		x.want("with a hole", x.patch(at, 101, 200), 416, "Location", at, "Range", "0-99")
		x.want("with an overlap", x.patch(at, 99, 200), 416)
		x.want("PUT with a hole", x.send("PUT", at+x.digestQuery(), x.blob().Bytes[101:], "Content-Range", "101-499"), 416)
		x.want("the right one", x.patch(at, 100, 200), 202, "Range", "0-200")
	},
	"chunk-closed-by-put": func(x *spec) {
		at := x.session()
		x.want("PATCH", x.patch(at, 0, 499), 202)
		x.want("no blob yet", x.get("blobs/"+x.blob().Digest.String()), 404)
		x.want("PUT", x.send("PUT", at+x.digestQuery(), nil), 201)
		x.want("a blob now", x.get("blobs/"+x.blob().Digest.String()), 200)
		x.wantError("the session is over", x.get(at), 404, registry.CodeBlobUploadUnknown)
	},
	"chunk-put-digest": func(x *spec) {
		at := x.session()
		x.want("PATCH", x.patch(at, 0, 99), 202)
		x.wantError("none", x.send("PUT", at, x.blob().Bytes[100:]), 400, registry.CodeDigestInvalid)
		last := digest.FromBytes(x.blob().Bytes[100:]).String()
		x.wantError("of the last chunk", x.send("PUT", at+"?digest="+last, x.blob().Bytes[100:], "Content-Range", "100-499"), 400, registry.CodeDigestInvalid)
	},
	"chunk-put-201": func(x *spec) {
		for _, from := range []int{100, 500} { // with the last chunk in PUT, and without
			at := x.session()
			x.want("PATCH", x.patch(at, 0, from-1), 202)
			var header []string
			if from < 500 {
				header = []string{"Content-Range", fmt.Sprintf("%d-499", from)}
			}
			a := x.send("PUT", at+x.digestQuery(), x.blob().Bytes[from:], header...)
			x.want("PUT", a, 201)
			x.location(a, x.blob().Bytes)
		}
	},
	"chunk-status-204": func(x *spec) {
		at := x.session()
		x.want("PATCH", x.patch(at, 0, 99), 202)
		x.want("GET", x.get(at), 204, "Location", at, "Range", "0-99")
		x.want("HEAD, which the specification has not", x.head(at), 204, "Location", at, "Range", "0-99")
	},
	"mount-201": func(x *spec) {
		a := x.mount("?mount=" + x.blob().Digest.String() + "&from=spec/source")
		x.want("POST", a, 201, "Docker-Content-Digest", x.blob().Digest.String())
		x.location(a, x.blob().Bytes)
	},
	"mount-202": func(x *spec) {
		a := x.mount("?mount=" + absent + "&from=spec/source")
		x.want("POST", a, 202, "Location", "*")
		x.want("the session works", x.send("PUT", a.header.Get("Location")+x.digestQuery(), x.blob().Bytes), 201)
	},
	"mount-without-from": func(x *spec) {
		x.want("POST", x.mount("?mount="+x.blob().Digest.String()), 201)
	},
	"push-type-parameters": func(x *spec) {
		x.blobs(x.image)
		x.want("PUT", x.put("v1", x.image, "Content-Type", x.image.MediaType+"; charset=utf-8; q=1"), 201)
	},
	"push-reference": func(x *spec) {
		x.blobs(x.image)
		x.want("tag", x.put("v1", x.image), 201)
		x.want("digest", x.put(x.image.Digest.String(), x.image), 201)
		x.wantError("neither", x.put("-v1", x.image), 400, registry.CodeManifestInvalid)
		x.wantError("a digest of another algorithm", x.put("md5:d41d8cd98f00b204e9800998ecf8427e", x.image), 400, registry.CodeDigestInvalid)
	},
	"push-bytes-kept": func(x *spec) {
		for tag, i := range map[string]registrytest.Image{"oci": x.image, "docker": registrytest.NewDockerImage(52, 10), "list": registrytest.NewDockerList(registrytest.NewDockerImage(53, 10))} {
			x.pushed(tag, i)
			i.Bytes = append([]byte(" \n"), append(bytes.ReplaceAll(i.Bytes, []byte(`":`), []byte("\" :\t")), '\n')...)
			x.want("PUT", x.put("odd", i), 201)
			if a := x.get("manifests/odd"); !bytes.Equal(a.body, i.Bytes) || a.header.Get("Content-Type") != i.MediaType {
				x.t.Errorf("%s: %s %q", tag, a.header.Get("Content-Type"), a.body)
			}
		}
	},
	"push-201": func(x *spec) {
		x.blobs(x.image)
		a := x.put("v1", x.image)
		x.want("PUT", a, 201)
		x.location(a, x.image.Bytes)
	},
	"push-digest-equal": func(x *spec) {
		x.blobs(x.image)
		for _, d := range []digest.Digest{x.image.Digest, digest.SHA512.FromBytes(x.image.Bytes)} {
			x.want("PUT", x.put(d.String(), x.image), 201, "Docker-Content-Digest", d.String())
		}
		x.wantError("another", x.put(absent, x.image), 400, registry.CodeDigestInvalid)
	},
	"push-limit": func(x *spec) { x.large(registry.MaxManifestSize+1, 413) },
	"push-413":   func(x *spec) { x.large(2*registry.MaxManifestSize, 413) },
	"push-4-megabytes": func(x *spec) {
		x.large(4_000_000, 201)
		x.large(4<<20, 201)
	},
	"oci-subject": func(x *spec) {
		for _, i := range []registrytest.Image{registrytest.NewReferrer(2, x.image.Descriptor, "a/b"), x.subjectIndex()} {
			x.blobs(i)
			x.want("PUT", x.put(i.Digest.String(), i), 201, "OCI-Subject", x.image.Digest.String())
			x.want("PUT by tag", x.put("v2", i), 201, "OCI-Subject", x.image.Digest.String())
		}
		x.blobs(x.image)
		x.want("none", x.put("v1", x.image), 201, "OCI-Subject", "-")
	},
	"end-4a": func(x *spec) { x.want("POST", x.send("POST", "blobs/uploads/", nil), 202) },
	"end-4b": func(x *spec) {
		x.want("POST", x.send("POST", "blobs/uploads/"+x.digestQuery(), x.blob().Bytes), 201)
		x.want("a digest that is none", x.send("POST", "blobs/uploads/?digest=x", nil), 400)
	},
	"end-5": func(x *spec) {
		x.want("PATCH", x.patch(x.session(), 0, 9), 202)
		x.want("out of order", x.patch(x.session(), 1, 9), 416)
		x.wantError("no session", x.patch("blobs/uploads/x", 0, 9), 404, registry.CodeBlobUploadUnknown)
	},
	"end-6": func(x *spec) {
		x.want("PUT", x.send("PUT", x.session()+x.digestQuery(), x.blob().Bytes), 201)
		x.want("another digest", x.send("PUT", x.session()+"?digest="+absent, x.blob().Bytes), 400)
		x.wantError("no session", x.send("PUT", "blobs/uploads/x"+x.digestQuery(), nil), 404, registry.CodeBlobUploadUnknown)
	},
	"end-7": func(x *spec) {
		x.pushed("v1", x.image)
		x.large(5<<20, 413)
	},
	"end-11": func(x *spec) {
		x.want("there", x.mount("?mount="+x.blob().Digest.String()+"&from=spec/source"), 201)
		x.want("not there", x.mount("?mount="+absent+"&from=spec/source"), 202)
	},
	"end-13": func(x *spec) {
		x.want("GET", x.get(x.session()), 204)
		x.wantError("no session", x.get("blobs/uploads/x"), 404, registry.CodeBlobUploadUnknown)
	},
})

// large pushes a manifest of so many bytes.
func (x *spec) large(size, status int) {
	x.t.Helper()
	x.blobs(x.image)
	i := x.image
	i.Bytes = append(bytes.Clone(i.Bytes), bytes.Repeat([]byte(" "), size-len(i.Bytes))...)
	x.want(fmt.Sprintf("%d bytes", size), x.put("large", i), status)
}

// subjectIndex is an index about the image, without an artifact type.
func (x *spec) subjectIndex() registrytest.Image {
	doc := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[],"subject":{"mediaType":%q,"digest":%q,"size":%d},"annotations":{"k":"index"}}`,
		registry.MediaTypeImageIndex, x.image.MediaType, x.image.Digest, x.image.Size)
	return registrytest.Image{Manifest: registry.Manifest{Bytes: []byte(doc), Descriptor: registry.Descriptor{
		MediaType: registry.MediaTypeImageIndex, Digest: digest.FromString(doc), Size: int64(len(doc)),
	}}}
}
