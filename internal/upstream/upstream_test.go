package upstream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/transport"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	user     = "line-a"
	password = "hunter2-hunter2"
)

// host is an HTTP server on a loopback address that keeps what it is sent.
type host struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
	raw      bytes.Buffer
}

// start serves h on ip until the test ends.
func start(t *testing.T, ip string, h http.Handler) *host {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	s := &host{}
	s.Server = &httptest.Server{Listener: tap{l, s}, Config: &http.Server{
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			s.requests = append(s.requests, r)
			s.mu.Unlock()
			h.ServeHTTP(w, r)
		}),
	}}
	s.Start()
	t.Cleanup(s.Close)
	return s
}

type tap struct {
	net.Listener
	s *host
}

func (l tap) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return tapped{c, l.s}, err
}

type tapped struct {
	net.Conn
	s *host
}

func (c tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.s.mu.Lock()
	c.s.raw.Write(p[:n])
	c.s.mu.Unlock()
	return n, err
}

// lines returns "METHOD path" of the requests so far, and forgets them.
func (s *host) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, r := range s.requests {
		list = append(list, r.Method+" "+r.URL.Path)
	}
	s.requests = nil
	return list
}

func (s *host) heard() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.raw.String()
}

func (s *host) endpoint() string { return strings.TrimPrefix(s.URL, "http://") }

// connect returns the parent at s; change may edit the options.
func connect(t *testing.T, s *host, change func(*upstream.Options)) *upstream.Parent {
	t.Helper()
	o := upstream.Options{
		Endpoint: s.endpoint(), Protocol: "http", Name: "child", InstanceID: "child-1", Mode: registry.ReadOnly,
		Transport: transport.ClientOptions{
			Rand:     func() float64 { return 0 },
			Timeouts: transport.Timeouts{Header: 5 * time.Second, Idle: 5 * time.Second},
		},
	}
	if change != nil {
		change(&o)
	}
	p, err := upstream.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func login(o *upstream.Options) { o.Username, o.Password = user, password }

// open lets everybody in.
type open struct{}

func (open) Enter(r *http.Request) (context.Context, error)       { return r.Context(), nil }
func (open) Check(context.Context, string, registry.Action) error { return nil }
func (open) Challenge(http.Header)                                {}

// ChallengeFor is never asked: everybody is in.
func (open) ChallengeFor(http.Header, *http.Request, string, registry.Action) {}

func serve(reg registry.Registry) http.Handler {
	return distribution.New(reg, open{}, distribution.Options{})
}
func handler(f func(http.ResponseWriter, *http.Request)) http.HandlerFunc { return f }

// filled returns a registry with the content of the suite.
func filled(t *testing.T) (registry.Registry, registrytest.Content) {
	t.Helper()
	reg := registrytest.NewMemory()
	content, err := registrytest.Seed(t.Context(), reg)
	if err != nil {
		t.Fatal(err)
	}
	return reg, content
}

// basic asks for the password with a Basic challenge.
func basic(next http.Handler) http.Handler {
	return handler(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != user || p != password {
			w.Header().Set("Www-Authenticate", `Basic realm="registry"`)
			refuse(w, registry.ErrUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// tokens is a token server with its registry: it gives tokens for the scopes that are asked for, as long as it likes.
type tokens struct {
	mu     sync.Mutex
	realm  string // as the challenge says it
	salt   int    // changes when the server forgets its tokens
	given  int
	answer func(w http.ResponseWriter, r *http.Request) bool // in place of a token
}

func (k *tokens) wrap(next http.Handler) http.Handler {
	return handler(func(w http.ResponseWriter, r *http.Request) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if r.URL.Path == "/token" {
			k.give(w, r)
			return
		}
		repo, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
		repo, _, _ = strings.Cut(repo, "/blobs/")
		repo, _, _ = strings.Cut(repo, "/tags/")
		repo, _, _ = strings.Cut(repo, "/referrers/")
		scope := "repository:" + repo + ":pull"
		if repo == "_catalog" {
			scope = "registry:catalog:*"
		}
		if repo == "" {
			scope = ""
		}
		auth := r.Header.Get("Authorization")
		if !strings.HasPrefix(auth, fmt.Sprintf("Bearer %d|", k.salt)) || !strings.Contains(auth, scope) {
			w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="reg",scope=%q`, k.realm, scope))
			refuse(w, registry.ErrUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (k *tokens) give(w http.ResponseWriter, r *http.Request) {
	if k.answer != nil && k.answer(w, r) {
		return
	}
	if u, p, _ := r.BasicAuth(); u != user || p != password {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	k.given++
	_ = json.NewEncoder(w).Encode(map[string]any{
		"token": fmt.Sprintf("%d|%s", k.salt, strings.Join(r.URL.Query()["scope"], ",")), "expires_in": 3600,
	})
}

func (k *tokens) set(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

func TestReader(t *testing.T) {
	reg, content := filled(t)
	ways := map[string]struct {
		handler http.Handler
		change  func(*upstream.Options)
	}{
		"open":   {serve(reg), nil},
		"basic":  {basic(serve(reg)), login},
		"bearer": {(&tokens{realm: "/token"}).wrap(serve(reg)), login},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			registrytest.TestReader(t, content, func(t *testing.T) registrytest.ReadLister {
				return connect(t, start(t, "127.0.0.1", way.handler), way.change)
			})
		})
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []upstream.Options{
		{},
		{Endpoint: "https://host"},
		{Endpoint: "host/path"},
		{Endpoint: "user@host"},
		{Endpoint: "host", Protocol: "ftp"},
		{Endpoint: "ho st"},
		{Endpoint: ":8000"},
		{Endpoint: "host:port"},
		{Endpoint: "host?x"},
		{Endpoint: "host", Transport: transport.ClientOptions{Realms: []string{"nonsense"}}},
	} {
		if _, err := upstream.New(o); err == nil {
			t.Errorf("%+v passes", o)
		}
	}
	for _, endpoint := range []string{"host", "HOST:8000", "10.0.0.1:5000", "[::1]:5000", "a-b.example"} {
		if _, err := upstream.New(upstream.Options{Endpoint: endpoint}); err != nil {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
}

// wantCode checks code and text of an error.
func wantCode(t *testing.T, err error, code registry.Code, text string) *registry.Error {
	t.Helper()
	var e *registry.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(err.Error(), text) {
		t.Fatalf("error %v, want %s with %q", err, code, text)
	}
	return e
}

// someBlob returns the largest blob of the content, and where it is.
func someBlob(c registrytest.Content) (string, registrytest.Blob) {
	return "acme/base", c.Repositories["acme/base"].Tags["latest"].Blobs[1]
}

func readBlob(ctx context.Context, p *upstream.Parent, repo string, d registry.Digest, from int64) ([]byte, error) {
	b, err := p.GetBlob(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if _, err := b.Seek(from, io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(b)
}

// refuse writes an error as registries do.
func refuse(w http.ResponseWriter, e *registry.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.HTTPStatus())
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]any{"code": e.Code, "message": e.Message}}})
}
