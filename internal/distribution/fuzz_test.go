package distribution_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// FuzzRoute checks that whatever is accepted follows the grammar, and that whatever is not is the client's fault.
func FuzzRoute(f *testing.F) {
	for _, n := range needs {
		for method := range n.methods {
			f.Add(method, n.path, "")
		}
	}
	f.Add("GET", "/v2/a/blobs/b/blobs/uploads/", "mount="+absent+"&from=a/b")
	f.Add("PUT", "/v2/a/blobs/uploads/x", "digest="+absent)
	f.Add("GET", "/v2/a/tags/list", "n=10&last=b")
	f.Add("GET", "/v2/a/referrers/"+absent, "artifactType=x/y&last="+absent)
	f.Add("GET", "/v2/a/blobs/uploads/..", "")
	f.Add("GET", "/v2/a/blobs/uploads/a.b", "")
	f.Add("GET", "/v2/../../etc/passwd", "n=%zz")
	f.Add("GET", "/v2//blobs//uploads//", "n=-1")
	f.Fuzz(func(t *testing.T, method, path, query string) {
		req, err := distribution.Parse(method, path, query)
		if err != nil {
			var e *registry.Error
			if !errors.As(err, &e) || e.HTTPStatus() < 400 || e.HTTPStatus() >= 500 || len(e.Message) > 1000 {
				t.Fatalf("%q %q %q: %v", method, path, query, err)
			}
			return
		}
		ok := func(what string, err error) {
			if err != nil {
				t.Fatalf("%q %q %q: %s: %v", method, path, query, what, err)
			}
		}
		isDigest := func(what string, d registry.Digest) {
			_, err := registry.ParseDigest(string(d))
			ok(what, err)
		}
		if req.Kind != distribution.KindPing && req.Kind != distribution.KindCatalog {
			ok("repository", registry.ValidateRepository(req.Repo))
			if !strings.Contains(path, "/"+req.Repo+"/") {
				t.Fatalf("%q: repository %q is not in it", path, req.Repo)
			}
		}
		switch req.Kind {
		case distribution.KindBlob, distribution.KindReferrers:
			isDigest("digest", req.Digest)
		case distribution.KindManifest:
			isDigest("reference", req.Reference.Digest)
		case distribution.KindTag:
			ok("tag", registry.ValidateTag(req.Reference.Tag))
		case distribution.KindUpload:
			if req.UploadID == "" || strings.ContainsAny(req.UploadID, "/.\\\x00") || (method == http.MethodPut && req.Digest == "") {
				t.Fatalf("%q %q: upload %+v", path, query, req)
			}
		}
		if req.Digest != "" {
			isDigest("query digest", req.Digest)
		}
		if req.Mount != "" {
			isDigest("mount", req.Mount)
			if req.From != "" { // wherever it is
				ok("from", registry.ValidateRepository(req.From))
			}
		}
		if req.Page.N < 0 || req.Page.N > registry.MaxPage {
			t.Fatalf("page of %d", req.Page.N)
		}
	})
}

// FuzzRange checks that any Range gives the content, parts of it, or 416, with a length that is true.
func FuzzRange(f *testing.F) {
	content := registrytest.NewBlob(1, 1000)
	reg := registrytest.NewMemory()
	if err := registrytest.PushBlob(f.Context(), reg, "a", content); err != nil {
		f.Fatal(err)
	}
	h := distribution.New(reg, newAccess(auth.Options{AnonymousPull: true}), distribution.Options{})
	for _, seed := range []string{"bytes=0-", "bytes=-1", "bytes=5-4", "bytes=0-0,1-1", "bytes=999-", "bytes=1000-", "bytes=-0", "bytes=0-18446744073709551616", "x", "bytes=,", "bytes= 1 - 2"} {
		f.Add(seed, "GET")
	}
	f.Add("bytes=1-", "HEAD")
	f.Fuzz(func(t *testing.T, spec, method string) {
		if method != http.MethodHead {
			method = http.MethodGet
		}
		r := httptest.NewRequestWithContext(t.Context(), method, "/v2/a/blobs/"+content.Digest.String(), nil)
		r.Header.Set("Range", spec)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		got := w.Body.Bytes()
		switch {
		case w.Code == http.StatusOK && method == http.MethodGet && !bytes.Equal(got, content.Bytes):
			t.Fatalf("%q: 200 with %d bytes", spec, len(got))
		case w.Code == http.StatusPartialContent && method == http.MethodGet && !strings.HasPrefix(w.Header().Get("Content-Type"), "multipart/") && !bytes.Contains(content.Bytes, got):
			t.Fatalf("%q: 206 with bytes that are not of the content", spec)
		case w.Code != http.StatusOK && w.Code != http.StatusPartialContent && w.Code != http.StatusRequestedRangeNotSatisfiable:
			t.Fatalf("%q: status %d", spec, w.Code)
		}
		if method == http.MethodHead && len(got) != 0 {
			t.Fatalf("%q: HEAD with a body of %d bytes", spec, len(got))
		}
	})
}

// FuzzContentRange checks that a chunk is taken where it follows what is there, or refused without a trace.
func FuzzContentRange(f *testing.F) {
	reg := registrytest.NewMemory()
	h := distribution.New(reg, newAccess(auth.Options{}), distribution.Options{})
	do := func(t *testing.T, method, path, contentRange string, content []byte) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), method, path, bytes.NewReader(content))
		r.SetBasicAuth("all", "all")
		if contentRange != "" {
			r.Header.Set("Content-Range", contentRange)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	for _, seed := range []string{"4-6", "bytes 4-6/7", "4-6/*", "4-", "-6", "6-4", "0-2", "5-7", "04-06", "4-9223372036854775807", "4-99999999999999999999", "bytes=4-6", "4-6,7-9", " 4-6"} {
		f.Add(seed, []byte("abc"))
	}
	f.Fuzz(func(t *testing.T, contentRange string, content []byte) {
		at := do(t, http.MethodPost, "/v2/a/blobs/uploads/", "", nil).Header().Get("Location")
		if w := do(t, http.MethodPatch, at, "0-3", []byte("0123")); w.Code != http.StatusAccepted {
			t.Fatal(w.Code, w.Body)
		}
		w := do(t, http.MethodPatch, at, contentRange, content)
		size := 4
		switch w.Code {
		case http.StatusAccepted:
			size += len(content)
		case http.StatusRequestedRangeNotSatisfiable, http.StatusBadRequest:
		default:
			t.Fatalf("%q, %d bytes: %d %s", contentRange, len(content), w.Code, w.Body)
		}
		if got, want := do(t, http.MethodGet, at, "", nil).Header().Get("Range"), fmt.Sprintf("0-%d", size-1); got != want {
			t.Fatalf("%q, %d bytes: %d, then %s, want %s", contentRange, len(content), w.Code, got, want)
		}
		_ = do(t, http.MethodDelete, at, "", nil)
	})
}
