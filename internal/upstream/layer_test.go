package upstream_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/transport"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

var info = registry.LayerInfo{
	APIVersion: "1", Name: "line-5", InstanceID: "i-5", Mode: registry.ReadWrite, Version: "1.0", Ancestors: []string{"i-6"}, Capabilities: []string{"changes"},
}

// ours is a connected registry's answer to its children in few words.
func ours(changes http.HandlerFunc, rest http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(registry.LayerPath, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(info) })
	if changes != nil {
		mux.HandleFunc(registry.LayerPath+"changes", changes)
	}
	if rest != nil {
		mux.Handle("/", rest)
	}
	return mux
}

func TestProbe(t *testing.T) {
	reg, _ := filled(t)
	answer := func(status int, body string, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for _, h := range header {
				name, value, _ := strings.Cut(h, ": ")
				w.Header().Set(name, value)
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	acr := func(catalog http.HandlerFunc) http.Handler {
		mux := http.NewServeMux()
		mux.Handle("/v2/", basic(serve(reg)))
		mux.HandleFunc("/acr/v1/_catalog", catalog)
		return mux
	}
	page := answer(200, "<html>")
	tests := []struct {
		name    string
		handler http.Handler
		kind    registry.ParentKind
		code    registry.Code
		text    string
	}{
		{"ours", basic(ours(nil, serve(reg))), registry.KindConnected, "", ""},
		{"any", basic(serve(reg)), registry.KindOCI, "", ""},
		{"any, with tokens", (&tokens{realm: "/token"}).wrap(serve(reg)), registry.KindOCI, "", ""},
		{"acr", acr(answer(200, `{"registry":"x.azurecr.io","repositories":[]}`)), registry.KindACR, "", ""},
		{"acr that asks for a token", acr(answer(401, "", `Www-Authenticate: Bearer realm="https://x.azurecr.io/oauth2/token",service="x"`)), registry.KindACR, "", ""},
		{"web page in place of acr", acr(page), registry.KindOCI, "", ""},
		{"does not fit", answer(409, `{"errors":[{"code":"CONFLICT","message":"a ReadOnly parent has only ReadOnly children"}]}`), "", registry.CodeConflict, "only ReadOnly children"},
		{"bad credential", answer(401, `{}`, `Www-Authenticate: Basic realm="r"`), "", registry.CodeUnauthorized, "line-a"},
		{"away", answer(503, ""), "", registry.CodeUnavailable, "503"},
		{"busy", answer(429, "", "Retry-After: 60"), "", registry.CodeUnavailable, "429"},
		{"proxy without a parent", answer(502, "<html>"), "", registry.CodeUnavailable, "502"},
		{"no registry", answer(404, "<html>"), "", registry.CodeUnsupported, "no registry"},
		{"denied", answer(403, "<html>"), "", registry.CodeDenied, "127.0.0.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, "127.0.0.1", tt.handler)
			p := connect(t, s, login)
			status, got, err := p.Probe(t.Context())
			if tt.code != "" {
				wantCode(t, err, tt.code, tt.text)
				return
			}
			if err != nil || status.Kind != tt.kind || status.GatewayEndpoint != s.endpoint() || status.Protocol != "http" {
				t.Fatalf("%+v, %v", status, err)
			}
			if tt.kind == registry.KindConnected {
				if !reflect.DeepEqual(got, info) || status.InstanceID != "i-5" || status.Mode != registry.ReadWrite {
					t.Errorf("%+v, %+v", status, got)
				}
				return
			}
			if !reflect.DeepEqual(got, registry.LayerInfo{}) {
				t.Errorf("%+v", got)
			}
			s.lines()
			_, err = p.Changes(t.Context(), registry.ChangesRequest{})
			wantCode(t, err, registry.CodeUnsupported, "127.0.0.1")
			if n := len(s.lines()); n != 0 {
				t.Errorf("%d requests for what it is known not to have", n)
			}
		})
	}
}

// After Probe the credential goes with the first request: no question costs a refusal first.
func TestProbeSavesChallenges(t *testing.T) {
	reg, _ := filled(t)
	s := start(t, "127.0.0.1", basic(ours(nil, serve(reg))))
	p := connect(t, s, login)
	if _, _, err := p.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Tags(t.Context(), "acme/app", "", 10); err != nil {
		t.Fatal(err)
	}
	if got := s.lines(); len(got) != 2 {
		t.Errorf("requests %q", got)
	}
}

func TestChildIntroducesItself(t *testing.T) {
	var got http.Header
	p := connect(t, start(t, "127.0.0.1", basic(ours(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		w.WriteHeader(http.StatusNotModified)
	}, nil))), login)
	if _, err := p.Changes(t.Context(), registry.ChangesRequest{Since: "c"}); err != nil {
		t.Fatal(err)
	}
	if got.Get(registry.HeaderChildName) != "child" || got.Get(registry.HeaderChildInstance) != "child-1" || got.Get(registry.HeaderChildMode) != "ReadOnly" {
		t.Errorf("%v", got)
	}
}

func TestChanges(t *testing.T) {
	d := registrytest.NewBlob(1, 1).Digest
	want := registry.Changes{Cursor: "c2", Full: true, More: true, Entries: []registry.Change{
		{Repository: "acme/app", Tag: "1.0", Digest: d},
		{Repository: "acme/app", Tag: "gone"},
		{Repository: "acme/app", Subject: d, Digest: d},
	}}
	good, _ := json.Marshal(want)
	bad := want
	bad.Entries = append([]registry.Change{
		{Repository: "../x", Tag: "1", Digest: d},
		{Repository: "a", Tag: "../1", Digest: d},
		{Repository: "a", Tag: "1", Digest: "sha256:../../x"},
		{Repository: "a"},
		{Repository: "a", Tag: "1", Subject: d, Digest: d},
		{Repository: "a", Subject: d},
		{Repository: "a", Subject: "x", Digest: d},
	}, want.Entries...)
	mixed, _ := json.Marshal(bad)
	var zipped, bomb bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(good)
	_ = z.Close()
	z = gzip.NewWriter(&bomb)
	for range 17 {
		_, _ = z.Write(make([]byte, 1<<20))
	}
	_ = z.Close()
	body := func(b []byte, header ...string) http.HandlerFunc { return say("application/json", b, header...) }
	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    registry.Changes
		code    registry.Code
	}{
		{"plain", body(good), want, ""},
		{"compressed", body(zipped.Bytes(), "Content-Encoding: gzip"), want, ""},
		{"with entries that are not well formed", body(mixed), want, ""},
		{"nothing", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) }, registry.Changes{Cursor: "c1"}, ""},
		{"nothing in the scope", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("ETag", `"c7"`)
			w.WriteHeader(304)
		}, registry.Changes{Cursor: "c7"}, ""},
		{"no list", func(w http.ResponseWriter, _ *http.Request) { refuse(w, registry.ErrNameUnknown) }, registry.Changes{}, registry.CodeUnsupported},
		{"conflict", func(w http.ResponseWriter, _ *http.Request) { refuse(w, registry.ErrConflict) }, registry.Changes{}, registry.CodeConflict},
		{"fault", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, registry.Changes{}, registry.CodeUnavailable},
		{"web page", body([]byte("<html>")), registry.Changes{}, registry.CodeUnavailable},
		{"no cursor", body([]byte("{}")), registry.Changes{}, registry.CodeUnavailable},
		{"broken compression", body(good, "Content-Encoding: gzip"), registry.Changes{}, registry.CodeUnavailable},
		{"bomb", body(bomb.Bytes(), "Content-Encoding: gzip"), registry.Changes{}, registry.CodeUnavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := connect(t, start(t, "127.0.0.1", ours(tt.handler, nil)), nil)
			got, err := p.Changes(t.Context(), registry.ChangesRequest{Since: "c1"})
			if tt.code != "" {
				wantCode(t, err, tt.code, "")
				return
			}
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestChangesQuery(t *testing.T) {
	var query map[string][]string
	p := connect(t, start(t, "127.0.0.1", ours(func(w http.ResponseWriter, r *http.Request) {
		query = r.URL.Query()
		w.WriteHeader(http.StatusNotModified)
	}, nil)), nil)
	ask := func(req registry.ChangesRequest) map[string][]string {
		if _, err := p.Changes(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		return query
	}
	got := ask(registry.ChangesRequest{Since: "a&b", Wait: 30*time.Second + 500*time.Millisecond, Scope: []string{"acme/app", "base/*"}})
	want := map[string][]string{"since": {"a&b"}, "wait": {"30"}, "repository": {"acme/app", "base/*"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	var long []string
	for i := range 300 {
		long = append(long, fmt.Sprintf("a-repository-with-a-name/%d", i))
	}
	if got := ask(registry.ChangesRequest{Since: "a", Wait: time.Hour, Scope: long}); !reflect.DeepEqual(got, map[string][]string{"since": {"a"}, "wait": {"55"}}) {
		t.Errorf("long scope: %v", got)
	}
}

// counted counts all bytes of a connection.
type counted struct {
	net.Conn
	mu *sync.Mutex
	n  *int
}

func (c counted) Read(p []byte) (int, error)  { n, err := c.Conn.Read(p); c.add(n); return n, err }
func (c counted) Write(p []byte) (int, error) { n, err := c.Conn.Write(p); c.add(n); return n, err }
func (c counted) add(n int)                   { c.mu.Lock(); *c.n += n; c.mu.Unlock() }

func TestUnchangedIsCheap(t *testing.T) {
	var mu sync.Mutex
	total := 0
	s := start(t, "127.0.0.1", basic(ours(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }, nil)))
	p := connect(t, s, func(o *upstream.Options) {
		login(o)
		o.Transport.Dial = func(_ context.Context, network, addr string) (net.Conn, error) {
			c, err := net.Dial(network, addr)
			return counted{c, &mu, &total}, err
		}
	})
	req := registry.ChangesRequest{Since: strings.Repeat("c", 40), Scope: []string{"acme/vision", "acme/plc-gateway", "azureiotedge-agent", "azureiotedge-hub", "base/*"}}
	for range 2 {
		mu.Lock()
		total = 0
		mu.Unlock()
		if _, err := p.Changes(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if total > 1600 {
			t.Errorf("%d bytes over the link for nothing new", total)
		}
		t.Logf("%d bytes", total)
		mu.Unlock()
	}
}

func TestLongPollWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open sync.WaitGroup
		t.Cleanup(open.Wait)
		p, err := upstream.New(upstream.Options{Endpoint: "parent:8000", Protocol: "http", Transport: transport.ClientOptions{
			Dial: func(context.Context, string, string) (net.Conn, error) {
				near, far := net.Pipe()
				open.Go(func() { _, _ = io.Copy(io.Discard, far) })
				return near, nil
			},
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		start := time.Now()
		_, err = p.Changes(t.Context(), registry.ChangesRequest{Wait: 50 * time.Second})
		if took := time.Since(start); took != 70*time.Second || !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestTraffic(t *testing.T) {
	reg, content := filled(t)
	repo, blob := someBlob(content)
	p := connect(t, start(t, "127.0.0.1", serve(reg)), nil)
	if _, err := readBlob(t.Context(), p, repo, blob.Digest, 0); err != nil {
		t.Fatal(err)
	}
	if got := p.Traffic(); got != (registry.Traffic{Requests: 1, BytesReceived: blob.Size}) {
		t.Errorf("%+v", got)
	}
}
