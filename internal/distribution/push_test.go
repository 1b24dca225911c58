package distribution_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

const uploads = "/v2/acme/app/blobs/uploads/"

// start opens a session and returns its Location.
func (s *server) start(user string) string {
	s.t.Helper()
	a := s.do(user, "POST", uploads, nil)
	s.want("end-4a", a, 202, "Location", "*", "Range", "0-0", "Docker-Upload-Uuid", "*", "Content-Length", "0")
	if want := uploads + a.header.Get("Docker-Upload-Uuid"); a.header.Get("Location") != want {
		s.t.Fatalf("Location %q, want %q", a.header.Get("Location"), want)
	}
	return a.header.Get("Location")
}

// wantBlob checks that the blob can be pulled.
func (s *server) wantBlob(repo string, b registrytest.Blob) {
	s.t.Helper()
	a := s.do("all", "GET", "/v2/"+repo+"/blobs/"+b.Digest.String(), nil)
	s.want("pull of "+repo, a, 200)
	if !bytes.Equal(a.body, b.Bytes) {
		s.t.Errorf("%s: %d other bytes, want %d", repo, len(a.body), len(b.Bytes))
	}
}

// wantCreated checks the answer 201 to a blob.
func (s *server) wantCreated(what string, a answer, repo string, d registry.Digest) {
	s.t.Helper()
	s.want(what, a, 201, "Location", "/v2/"+repo+"/blobs/"+d.String(), "Docker-Content-Digest", d.String(), "Content-Length", "0")
}

// TestPushBlob has the ways of the OCI distribution spec 1.1, "Pushing Blobs", to a blob.
func TestPushBlob(t *testing.T) {
	b := registrytest.NewBlob(1, 300_000)
	put := func(location string) string { return location + "?digest=" + b.Digest.String() }
	ways := map[string]func(s *server){
		"end-4a end-6 POST then PUT": func(s *server) {
			s.wantCreated("PUT", s.do("all", "PUT", put(s.start("all")), body(b.Bytes), "Content-Type", "application/octet-stream"), "acme/app", b.Digest)
		},
		"end-6 PUT of unknown length": func(s *server) {
			s.wantCreated("PUT", s.do("all", "PUT", put(s.start("all")), chunked(b.Bytes)), "acme/app", b.Digest)
		},
		"end-4b POST with digest": func(s *server) {
			s.wantCreated("POST", s.do("all", "POST", put(uploads), body(b.Bytes)), "acme/app", b.Digest)
		},
		"end-5 streamed PATCH, PUT without body": func(s *server) {
			at := s.start("all")
			s.want("PATCH", s.do("all", "PATCH", at, chunked(b.Bytes)), 202, "Location", at, "Range", "0-299999", "Docker-Upload-Uuid", "*", "Content-Length", "0")
			s.wantCreated("PUT", s.do("all", "PUT", put(at), nil), "acme/app", b.Digest)
		},
		"end-5 chunks": func(s *server) {
			at := s.start("all")
			for from := 0; from < 300_000; from += 100_000 {
				a := s.do("all", "PATCH", at, body(b.Bytes[from:from+100_000]), "Content-Range", fmt.Sprintf("%d-%d", from, from+99_999))
				s.want("PATCH", a, 202, "Location", at, "Range", fmt.Sprintf("0-%d", from+99_999))
			}
			s.wantCreated("PUT", s.do("all", "PUT", put(at), nil), "acme/app", b.Digest)
		},
		"end-6 last chunk in the PUT": func(s *server) {
			at := s.start("all")
			s.want("PATCH", s.do("all", "PATCH", at, body(b.Bytes[:1]), "Content-Range", "0-0"), 202, "Range", "0-0")
			s.want("PATCH", s.do("all", "PATCH", at, chunked(b.Bytes[1:1000]), "Content-Range", "bytes 1-999/*"), 202, "Range", "0-999")
			s.wantCreated("PUT", s.do("all", "PUT", put(at), body(b.Bytes[1000:]), "Content-Range", "1000-299999"), "acme/app", b.Digest)
		},
		"end-11 mount": func(s *server) {
			s.push("acme/base", "v1", registrytest.NewImageOf(9, b))
			s.wantCreated("POST", s.do("all", "POST", uploads+"?mount="+b.Digest.String()+"&from=acme/base", nil), "acme/app", b.Digest)
		},
		"end-11 mount without the final slash": func(s *server) {
			s.push("acme/base", "v1", registrytest.NewImageOf(9, b))
			s.wantCreated("POST", s.do("all", "POST", strings.TrimSuffix(uploads, "/")+"?mount="+b.Digest.String()+"&from=acme%2Fbase", nil), "acme/app", b.Digest)
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			eachRegistry(t, readWrite, func(_ *testing.T, s *server) {
				way(s)
				s.wantBlob("acme/app", b)
			})
		})
	}
}

// TestUploadSession has end-5, end-6, end-13 and end-14 and the order of chunks.
func TestUploadSession(t *testing.T) {
	eachRegistry(t, readWrite, func(t *testing.T, s *server) {
		b := registrytest.NewBlob(1, 1000)
		put := func(location string) string { return location + "?digest=" + b.Digest.String() }

		at := s.start("all")
		s.want("end-13 of nothing", s.do("all", "GET", at, nil), 204, "Location", at, "Range", "0-0", "Docker-Upload-Uuid", "*")
		s.want("PATCH", s.do("all", "PATCH", at, body(b.Bytes[:500]), "Content-Range", "0-499"), 202)
		s.want("end-13", s.do("all", "GET", at, nil), 204, "Location", at, "Range", "0-499")
		for _, bad := range []string{"0-499", "499-998", "501-999", "600-999", "500-499", "x", "500", "500-", "-499", "bytes 0-1/2", "500-99999999999999999999", "18446744073709551616-18446744073709551617"} {
			a := s.do("all", "PATCH", at, body(b.Bytes[500:]), "Content-Range", bad)
			s.wantError("end-5 out of order "+bad, a, 416, registry.CodeBlobUploadInvalid)
			s.want("end-5 out of order "+bad, a, 416, "Location", at, "Range", "0-499")
			a = s.do("all", "PUT", put(at), body(b.Bytes[500:]), "Content-Range", bad)
			s.wantError("end-6 out of order "+bad, a, 416, registry.CodeBlobUploadInvalid)
		}
		s.wantError("Content-Range against Content-Length", s.do("all", "PATCH", at, body(b.Bytes[500:600]), "Content-Range", "500-998"), 400, registry.CodeSizeInvalid)
		s.want("the session is as it was", s.do("all", "GET", at, nil), 204, "Range", "0-499")
		s.wantError("end-6 without a digest", s.do("all", "PUT", at, nil), 400, registry.CodeDigestInvalid)
		s.wantError("end-6 with a bad digest", s.do("all", "PUT", at+"?digest=sha256:x", nil), 400, registry.CodeDigestInvalid)
		s.wantCreated("end-6", s.do("all", "PUT", put(at), body(b.Bytes[500:])), "acme/app", b.Digest)
		for _, method := range []string{"GET", "PATCH", "DELETE"} {
			s.wantError(method+" after the end", s.do("all", method, at, nil), 404, registry.CodeBlobUploadUnknown)
		}
		s.wantError("PUT after the end", s.do("all", "PUT", put(at), nil), 404, registry.CodeBlobUploadUnknown)

		at = s.start("all")
		s.want("end-14", s.do("all", "DELETE", at, nil), 204)
		s.wantError("end-14 again", s.do("all", "DELETE", at, nil), 404, registry.CodeBlobUploadUnknown)

		at = s.start("all")
		s.wantError("end-6 with another digest", s.do("all", "PUT", at+"?digest="+absent, body(b.Bytes)), 400, registry.CodeDigestInvalid)
		s.wantError("what was refused is gone", s.do("all", "GET", at, nil), 404, registry.CodeBlobUploadUnknown)
		s.wantError("end-4b with another digest", s.do("all", "POST", uploads+"?digest="+absent, body(b.Bytes)), 400, registry.CodeDigestInvalid)
		s.wantError("chunked body shorter than its range", s.do("all", "PATCH", s.start("all"), chunked(b.Bytes[:10]), "Content-Range", "0-10"), 400, registry.CodeSizeInvalid)
		s.wantError("chunked body longer than its range", s.do("all", "PATCH", s.start("all"), chunked(b.Bytes[:10]), "Content-Range", "0-8"), 400, registry.CodeSizeInvalid)

		empty := registrytest.BlobOf("", nil)
		s.wantCreated("blob of no bytes", s.do("all", "PUT", s.start("all")+"?digest="+empty.Digest.String(), nil), "acme/app", empty.Digest)
		s.wantBlob("acme/app", empty)
		b512 := registrytest.NewBlob(2, 100)
		b512.Digest = digest.SHA512.FromBytes(b512.Bytes)
		s.wantCreated("blob by sha512", s.do("all", "PUT", s.start("all")+"?digest="+b512.Digest.String(), body(b512.Bytes)), "acme/app", b512.Digest)
		s.wantBlob("acme/app", b512)
	})
}

// TestUploadIsOfItsPrincipal has what CVE-2026-32589 of another registry was about.
func TestUploadIsOfItsPrincipal(t *testing.T) {
	eachRegistry(t, readWrite, func(_ *testing.T, s *server) {
		at := s.start("all")
		elsewhere := strings.Replace(at, "acme/app", "acme/other", 1)
		for _, method := range []string{"GET", "PATCH", "PUT", "DELETE"} {
			query := ""
			if method == "PUT" {
				query = "?digest=" + absent
			}
			s.wantError(method+" of another's session", s.do("other", method, at+query, body([]byte("x"))), 404, registry.CodeBlobUploadUnknown)
			s.wantError(method+" through another repository", s.do("all", method, elsewhere+query, body([]byte("x"))), 404, registry.CodeBlobUploadUnknown)
		}
		s.want("it is untouched", s.do("all", "GET", at, nil), 204, "Range", "0-0")
	})
}

// TestMountNeedsPermission shows no difference between a blob that is not there and one that may not be read.
func TestMountNeedsPermission(t *testing.T) {
	eachRegistry(t, readWrite, func(_ *testing.T, s *server) {
		b := registrytest.NewBlob(1, 1000)
		s.push("secret", "v1", registrytest.NewImageOf(1, b))
		mine := "/v2/mine/blobs/uploads/?mount="
		for what, query := range map[string]string{
			"of a repository that may not be read": b.Digest.String() + "&from=secret",
			"of a repository that is not there":    b.Digest.String() + "&from=absent",
			"of a blob that is not there":          absent + "&from=acme/app",
			"without a source":                     b.Digest.String(),
			"of a digest that is none":             "sha256:x&from=acme/app",
			"from a repository that cannot be":     absent + "&from=../secret",
		} {
			s.want("end-11 "+what, s.do("narrow", "POST", mine+query, nil), 202, "Location", "*", "Range", "0-0", "Docker-Content-Digest", "-")
		}
		s.wantError("it was not mounted", s.do("narrow", "GET", "/v2/mine/blobs/"+b.Digest.String(), nil), 404, registry.CodeNameUnknown)
	})
}

// TestPushManifest has end-7, "Pushing Manifests".
func TestPushManifest(t *testing.T) {
	eachRegistry(t, readWrite, func(t *testing.T, s *server) {
		image := registrytest.NewImage(1, 100)
		s.push("acme/app", "", image)
		subject := registrytest.NewReferrer(2, image.Descriptor, "x/a")
		for _, b := range subject.Blobs {
			if err := registrytest.PushBlob(t.Context(), s.reg, "acme/app", b); err != nil {
				t.Fatal(err)
			}
		}
		m := "/v2/acme/app/manifests/"
		put := func(ref string, i registrytest.Image, header ...string) answer {
			return s.do("all", "PUT", m+ref, body(i.Bytes), append([]string{"Content-Type", i.MediaType}, header...)...)
		}
		location := []string{"Location", m + image.Digest.String(), "Docker-Content-Digest", image.Digest.String(), "Content-Length", "0"}
		s.want("end-7 by tag", put("v1", image), 201, append(location, "Oci-Subject", "-")...)
		s.want("end-7 by digest", put(image.Digest.String(), image), 201, location...)
		s.want("end-7 type with a parameter", put("v2", image, "Content-Type", image.MediaType+"; charset=utf-8"), 201, location...)
		a := s.do("all", "GET", m+"v2", nil)
		s.want("end-3 of it", a, 200, "Content-Type", image.MediaType)
		if !bytes.Equal(a.body, image.Bytes) {
			t.Error("other bytes")
		}
		s.push("acme/app", "", registrytest.NewImage(3, 50))
		next, at := registrytest.NewImage(3, 50), `"`+image.Digest.String()+`"`
		s.wantError("If-None-Match *", put("v2", next, "If-None-Match", "*"), 412, registry.CodePrecondition)
		s.wantError("If-Match of another", put("v2", next, "If-Match", `"`+next.Digest.String()+`"`), 412, registry.CodePrecondition)
		s.wantError("If-Match, and no tag", put("v3", next, "If-Match", "*"), 412, registry.CodePrecondition)
		s.wantError("DELETE If-Match of another", s.do("all", "DELETE", m+"v2", nil, "If-Match", `"`+next.Digest.String()+`"`), 412, registry.CodePrecondition)
		s.want("end-3 after these", s.do("all", "HEAD", m+"v2", nil), 200, "Docker-Content-Digest", image.Digest.String())
		s.want("it stands there already", put("v2", image, "If-None-Match", "*"), 201)
		s.want("If-Match of a list", put("v2", next, "If-Match", `"x", `+at), 201)
		s.want("DELETE If-Match", s.do("all", "DELETE", m+"v2", nil, "If-Match", `"`+next.Digest.String()+`"`), 202)
		s.want("If-None-Match *, and no tag", put("v2", image, "If-None-Match", "*"), 201)
		s.want("end-7 with a subject", put(subject.Digest.String(), subject), 201, "Oci-Subject", image.Digest.String())

		s.wantError("end-7 by another digest", put(absent, image), 400, registry.CodeDigestInvalid)
		s.wantError("end-7 by a bad tag", put(".v1", image), 400, registry.CodeManifestInvalid)
		s.wantError("end-7 by a long tag", put(strings.Repeat("a", 129), image), 400, registry.CodeManifestInvalid)
		s.want("end-7 by a tag of 128", put(strings.Repeat("a", 128), image), 201)
		s.wantError("no type", put("v1", image, "Content-Type", ""), 400, registry.CodeManifestInvalid)
		s.wantError("odd type", put("v1", image, "Content-Type", "text/plain"), 400, registry.CodeManifestInvalid)
		s.wantError("type against document", put("v1", image, "Content-Type", registry.MediaTypeDockerManifest), 400, registry.CodeManifestInvalid)
		s.wantError("absent blobs", put("v1", registrytest.NewImage(9, 10)), 400, registry.CodeManifestBlobUnknown)
		junk := image
		junk.Bytes = []byte("{")
		s.wantError("no JSON", put("v1", junk), 400, registry.CodeManifestInvalid)
		junk.Bytes = nil
		s.wantError("nothing", put("v1", junk), 400, registry.CodeManifestInvalid)
		junk.Bytes = []byte(strings.Repeat("[", 1<<20))
		s.wantError("deep JSON", put("v1", junk), 400, registry.CodeManifestInvalid)

		full := image
		full.Bytes = append(bytes.Clone(image.Bytes), bytes.Repeat([]byte(" "), registry.MaxManifestSize-len(image.Bytes))...)
		s.want("4 MiB", put("full", full), 201)
		a = s.do("all", "GET", m+"full", nil)
		s.want("4 MiB back", a, 200, "Content-Length", fmt.Sprint(registry.MaxManifestSize))
		full.Bytes = append(full.Bytes, ' ')
		s.wantError("4 MiB and one", put("full", full), 413, registry.CodeManifestInvalid)
		s.wantError("4 MiB and one, chunked", s.do("all", "PUT", m+"full", chunked(full.Bytes), "Content-Type", image.MediaType), 413, registry.CodeManifestInvalid)
	})
}

// TestTooLongManifestIsRefusedAtOnce: a length that is too much is answered before the body comes.
func TestTooLongManifestIsRefusedAtOnce(t *testing.T) {
	s := newServer(t, registrytest.NewMemory(), distribution.Options{})
	conn, err := net.Dial("tcp", s.url[len("http://"):])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = fmt.Fprintf(conn, "PUT /v2/a/manifests/v1 HTTP/1.1\r\n%sExpect: 100-continue\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", basicAll, registry.MediaTypeImageManifest, registry.MaxManifestSize+1)
	if line := make([]byte, 12); readFull(conn, line) != nil || string(line) != "HTTP/1.1 413" {
		t.Errorf("answer %q", line)
	}
}

// TestDelete has end-9 and end-10, "Content Management".
func TestDelete(t *testing.T) {
	eachRegistry(t, readWrite, func(_ *testing.T, s *server) {
		image := registrytest.NewImage(1, 100)
		s.push("acme/app", "v1", image)
		s.push("acme/app", "v2", image)
		m, b := "/v2/acme/app/manifests/", "/v2/acme/app/blobs/"
		s.want("end-9 tag", s.do("all", "DELETE", m+"v1", nil), 202)
		s.wantError("end-9 tag again", s.do("all", "DELETE", m+"v1", nil), 404, registry.CodeManifestUnknown)
		s.wantError("end-3 of it", s.do("all", "GET", m+"v1", nil), 404, registry.CodeManifestUnknown)
		s.want("its manifest stays", s.do("all", "GET", m+"v2", nil), 200)
		s.want("end-9 manifest", s.do("all", "DELETE", m+image.Digest.String(), nil), 202)
		s.wantError("end-9 manifest again", s.do("all", "DELETE", m+image.Digest.String(), nil), 404, registry.CodeManifestUnknown)
		s.wantError("its tags are gone", s.do("all", "GET", m+"v2", nil), 404, registry.CodeManifestUnknown)
		blob := image.Blobs[1].Digest.String()
		s.want("end-10 blob", s.do("all", "DELETE", b+blob, nil), 202)
		s.wantError("end-10 blob again", s.do("all", "DELETE", b+blob, nil), 404, registry.CodeBlobUnknown)
		s.wantError("end-2 of it", s.do("all", "GET", b+blob, nil), 404, registry.CodeBlobUnknown)
		s.wantError("end-9 odd tag", s.do("all", "DELETE", m+".x", nil), 404, registry.CodeManifestUnknown)
	})
}

// TestReadOnlyMode answers every change with the text of ACR's connected registry.
func TestReadOnlyMode(t *testing.T) {
	eachRegistry(t, readOnly, func(t *testing.T, s *server) {
		image := registrytest.NewImage(1, 100)
		s.push("acme/app", "v1", image)
		for _, c := range []struct{ method, path string }{
			{"POST", uploads},
			{"POST", uploads + "?digest=" + absent},
			{"POST", uploads + "?mount=" + image.Blobs[0].Digest.String() + "&from=acme/app"},
			{"PATCH", uploads + "id"},
			{"PUT", uploads + "id?digest=" + absent},
			{"DELETE", uploads + "id"},
			{"GET", uploads + "id"},
			{"POST", uploads + "?mount=" + image.Blobs[0].Digest.String()},
			{"PUT", "/v2/acme/app/manifests/v1"},
			{"PUT", "/v2/acme/app/manifests/" + image.Digest.String()},
			{"DELETE", "/v2/acme/app/manifests/v1"},
			{"DELETE", "/v2/acme/app/manifests/" + image.Digest.String()},
			{"DELETE", "/v2/acme/app/blobs/" + image.Blobs[0].Digest.String()},
		} {
			a := s.do("all", c.method, c.path, body(image.Bytes), "Content-Type", image.MediaType)
			status := 403
			if c.method == "DELETE" && !strings.Contains(c.path, "/uploads/") {
				status = 405
				s.want(c.method+" "+c.path, a, status, "Allow", "*")
			}
			s.wantError(c.method+" "+c.path, a, status, registry.CodeDenied)
			if !bytes.Contains(a.body, []byte(`"message":"This operation is not allowed on this registry."`)) {
				t.Errorf("%s %s: %s", c.method, c.path, a.body)
			}
		}
		s.want("the image is there", s.do("all", "GET", "/v2/acme/app/manifests/v1", nil), 200)
	})
}

// fullDisk takes content and cannot keep it.
type fullDisk struct {
	registry.Unsupported
	cancelled chan bool
}

func (f fullDisk) StartUpload(contextType, string) (registry.Upload, error) {
	return fullUpload{cancelled: f.cancelled}, nil
}

type fullUpload struct {
	registry.Upload
	cancelled chan bool
}

func (fullUpload) Write(p []byte) (int, error) { return len(p), nil }

func (fullUpload) Commit(contextType, registry.Digest) (registry.Descriptor, error) {
	return registry.Descriptor{}, registry.ErrDisk
}

func (u fullUpload) Cancel(contextType) error {
	u.cancelled <- true
	return nil
}

// TestFailedMonolithicPushIsCancelled: nobody knows the id of its session, so nobody else would free its space.
func TestFailedMonolithicPushIsCancelled(t *testing.T) {
	reg := fullDisk{cancelled: make(chan bool, 1)}
	s := newServer(t, reg, distribution.Options{})
	s.wantError("end-4b", s.do("all", "POST", uploads+"?digest="+absent, body([]byte("x"))), 507, registry.CodeDiskError)
	select {
	case <-reg.cancelled:
	default:
		t.Error("the session was not cancelled")
	}
}

// failing answers everything with one error.
type failing struct {
	registry.Unsupported
	err error
}

func (f failing) ResolveManifest(contextType, string, registry.Reference) (registry.Descriptor, error) {
	return registry.Descriptor{}, f.err
}

func (f failing) GetManifest(contextType, string, registry.Reference) (registry.Manifest, error) {
	return registry.Manifest{}, f.err
}

func (f failing) StartUpload(contextType, string) (registry.Upload, error) { return nil, f.err }

// TestErrors has how the errors of a registry come out.
func TestErrors(t *testing.T) {
	secret := fmt.Errorf("open /var/acr/data/x: %w", io.ErrClosedPipe)
	for _, tt := range []struct {
		name   string
		err    error
		status int
		code   registry.Code
		want   []string
	}{
		{"unknown", secret, 500, registry.CodeInternal, nil},
		{"wrapped", fmt.Errorf("x: %w", registry.ErrManifestUnknown.Wrap(secret)), 404, registry.CodeManifestUnknown, nil},
		{"disk", registry.ErrDisk.Wrap(secret), 507, registry.CodeDiskError, nil},
		{"unavailable", registry.ErrUnavailable.WithRetryAfter(1500e6), 503, registry.CodeUnavailable, []string{"Retry-After", "2"}},
		{"too many", registry.ErrTooManyRequests.WithRetryAfter(1), 429, registry.CodeTooManyRequests, []string{"Retry-After", "1"}},
		{"patience", errPatience, 503, registry.CodeUnavailable, []string{"Retry-After", "1"}},
		{"detail that is no JSON", registry.ErrManifestInvalid.WithDetail(func() {}), 400, registry.CodeManifestInvalid, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, failing{err: tt.err}, distribution.Options{})
			for _, c := range []struct{ method, path string }{{"GET", "/v2/a/manifests/v1"}, {"POST", "/v2/a/blobs/uploads/"}} {
				a := s.do("all", c.method, c.path, nil)
				s.wantError(c.method, a, tt.status, tt.code)
				s.want(c.method, a, tt.status, tt.want...)
				if bytes.Contains(a.body, []byte("/var/acr")) {
					t.Errorf("the cause is for the log: %s", a.body)
				}
			}
			a := s.do("all", http.MethodHead, "/v2/a/manifests/v1", nil)
			s.want("HEAD", a, tt.status, tt.want...)
		})
	}
}
