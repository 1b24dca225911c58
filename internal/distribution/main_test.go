package distribution_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/filter"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/store"
)

var _ distribution.Access = (*auth.Authenticator)(nil)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// registries are what the endpoint tests run against.
var registries = map[string]func(t *testing.T) registry.Registry{
	"memory": func(*testing.T) registry.Registry { return registrytest.NewMemory() },
	"store": func(t *testing.T) registry.Registry {
		st, err := store.Open(t.Context(), t.TempDir(), store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = st.Close() })
		return st
	},
}

// tokens of the tests: each one has its name as its password, and the scope map of the same name.
var scopeMaps = map[string]registry.ScopeMap{
	"all":    {"repositories/*/content/read", "repositories/*/content/write", "repositories/*/content/delete", "repositories/*/metadata/read", "repositories/*/metadata/write"},
	"other":  {"repositories/*/content/read", "repositories/*/content/write"},
	"none":   {},
	"narrow": {"repositories/acme/app/content/read", "repositories/acme/app/metadata/read", "repositories/mine/content/read", "repositories/mine/content/write"},

	"content-read":   {"repositories/*/content/read"},
	"content-write":  {"repositories/*/content/write"},
	"content-delete": {"repositories/*/content/delete"},
	"metadata-read":  {"repositories/*/metadata/read"},
	"metadata-write": {"repositories/*/metadata/write"},
}

func newAccess(o auth.Options) *auth.Authenticator {
	a := auth.New(o)
	tokens := map[string]registry.ClientToken{}
	for name := range scopeMaps {
		tokens[name] = registry.ClientToken{ScopeMap: name, Enabled: true, Passwords: []registry.TokenPassword{{SHA256: sha256.Sum256([]byte(name))}}}
	}
	a.Update(tokens, scopeMaps)
	return a
}

// server is a registry over HTTP on loopback.
type server struct {
	t    testing.TB
	reg  registry.Registry // without policy
	mode registry.Mode
	url  string
	h    http.Handler
}

func newServer(t testing.TB, reg registry.Registry, o distribution.Options) *server {
	t.Helper()
	s := &server{t: t, reg: reg, mode: registry.ReadWrite}
	access := newAccess(auth.Options{})
	h := distribution.New(filter.Scoped(filter.Switch(func() registry.Mode { return s.mode }, reg), access.MayList), access, o)
	ts := httptest.NewServer(h)
	t.Cleanup(ts.Close)
	s.url, s.h = ts.URL, h
	return s
}

// answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // of the body
}

// code returns the error code of the body.
func (a answer) code() registry.Code {
	var doc struct {
		Errors []struct {
			Code    registry.Code
			Message string
		}
	}
	if err := json.Unmarshal(a.body, &doc); err != nil || len(doc.Errors) != 1 || doc.Errors[0].Message == "" {
		return registry.Code("not an OCI error: " + string(a.body))
	}
	return doc.Errors[0].Code
}

// do sends a request as a token; header is key, value, key, value.
func (s *server) do(user, method, path string, body io.Reader, header ...string) answer {
	s.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, s.url+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	if user != "" {
		r.SetBasicAuth(user, user)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: got, err: err}
}

// want checks status and headers of an answer; header is key, value; the value "-" wants the key absent, "*" present.
func (s *server) want(what string, a answer, status int, header ...string) {
	s.t.Helper()
	if a.status != status || a.err != nil {
		s.t.Errorf("%s: status %d, want %d (%v): %.300s", what, a.status, status, a.err, a.body)
	}
	if got := a.header.Get("Docker-Distribution-Api-Version"); got != "registry/2.0" {
		s.t.Errorf("%s: Docker-Distribution-Api-Version %q", what, got)
	}
	for i := 0; i < len(header); i += 2 {
		got, key, value := a.header.Values(header[i]), header[i], header[i+1]
		switch {
		case value == "-" && len(got) != 0, value == "*" && len(got) == 0:
			s.t.Errorf("%s: %s: %q", what, key, got)
		case value == "-" || value == "*":
		case len(got) != 1 || got[0] != value:
			s.t.Errorf("%s: %s: %q, want %q", what, key, got, value)
		}
	}
	for _, key := range []string{"Location", "Link"} {
		if v := a.header.Get(key); v != "" && !strings.HasPrefix(strings.TrimPrefix(v, "<"), "/v2/") {
			s.t.Errorf("%s: %s %q is not relative", what, key, v)
		}
	}
}

// wantError checks an answer that is an OCI error.
func (s *server) wantError(what string, a answer, status int, code registry.Code) {
	s.t.Helper()
	s.want(what, a, status, "Content-Type", "application/json")
	if got := a.code(); got != code {
		s.t.Errorf("%s: code %q, want %q", what, got, code)
	}
}

// push writes an image below HTTP.
func (s *server) push(repo, tag string, image registrytest.Image) {
	s.t.Helper()
	if err := registrytest.Push(context.Background(), s.reg, repo, tag, image); err != nil {
		s.t.Fatal(err)
	}
}

// body makes a reader whose length is known to net/http.
func body(b []byte) io.Reader { return bytes.NewReader(b) }

// chunked hides the length, so that net/http uses a chunked body.
func chunked(b []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(b)} }

type contextType = context.Context

var errPatience = context.DeadlineExceeded

// record serves one request without a connection.
func record(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), method, path, nil))
	return w
}
