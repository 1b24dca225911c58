package gateway_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/gateway"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// source is a registry whose cursor is the number of its changes.
type source struct {
	mu      sync.Mutex
	entries []registry.Change
	changed chan struct{}
}

func newSource() *source { return &source{changed: make(chan struct{})} }

func (s *source) move(repo, tag string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = append(s.entries, registry.Change{Repository: repo, Tag: tag, Digest: "sha256:0"})
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *source) Changes(_ context.Context, since string, _ int, match func(string) bool) (registry.Changes, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := registry.Changes{Cursor: fmt.Sprint("x.", len(s.entries))}
	from := 0
	if n, _ := fmt.Sscanf(since, "x.%d", &from); n != 1 {
		c.Full = true
	}
	for _, e := range s.entries[min(from, len(s.entries)):] {
		if match(e.Repository) {
			c.Entries = append(c.Entries, e)
		}
	}
	return c, nil
}

// access admits everyone to repositories below "may/", and nobody without the header.
type access struct{}

func (access) Caller(r *http.Request) (registry.LayerCaller, error) {
	// The credential is the gateways that it has all actions on.
	names := strings.Fields(r.Header.Get("Authorization"))
	if len(names) == 0 {
		return registry.LayerCaller{}, registry.ErrUnauthorized
	}
	slices.Sort(names)
	return registry.LayerCaller{
		Token: "sync", MayRead: func(repo string) bool { return strings.HasPrefix(repo, "may/") },
		MayGateway: func(name string, _ registry.Action) bool { return slices.Contains(names, name) },
		Gateways:   func(registry.Action) []string { return names },
	}, nil
}

func (access) Challenge(h http.Header) { h.Set("WWW-Authenticate", "Basic realm=x") }

var info = registry.LayerInfo{APIVersion: "1", Name: "upper", InstanceID: "id-upper", Mode: registry.ReadOnly, Ancestors: []string{"id-top"}}

func newGateway(s *source, closing <-chan struct{}) http.Handler {
	return gateway.New(s, access{}, gateway.Options{Info: func() registry.LayerInfo { return info }, Closing: closing})
}

func get(h http.Handler, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, http.NoBody)
	r.Header.Set("Authorization", "x")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func changes(t *testing.T, w *httptest.ResponseRecorder) registry.Changes {
	t.Helper()
	var c registry.Changes
	body := io.Reader(w.Body)
	if w.Header().Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		body = z
	}
	if err := json.NewDecoder(body).Decode(&c); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %v", w.Code, err)
	}
	return c
}

func TestQuestions(t *testing.T) {
	s := newSource()
	s.move("may/a", "1")
	h := newGateway(s, nil)
	for _, tc := range []struct {
		name, path string
		header     []string
		code       int
		text       string
	}{
		{"info", registry.LayerPath, nil, 200, `"instanceId":"id-upper"`},
		{"a child of the same mode", registry.LayerPath, []string{registry.HeaderChildMode, "ReadOnly"}, 200, ""},
		{
			"a child that does not fit", registry.LayerPath,
			[]string{registry.HeaderChildMode, "ReadWrite", registry.HeaderChildName, "lower"},
			409, "Can't create the registry 'lower' with mode 'ReadWrite'",
		},
		{"a mode that is none", registry.LayerPath + "changes", []string{registry.HeaderChildMode, "Both"}, 409, "ReadOnly or ReadWrite"},
		{"itself", registry.LayerPath, []string{registry.HeaderChildInstance, "id-upper"}, 409, "leads to this registry itself"},
		{"its own ancestor", registry.LayerPath, []string{registry.HeaderChildInstance, "id-top"}, 409, "loop"},
		{"no credential", registry.LayerPath, []string{"Authorization", ""}, 401, "UNAUTHORIZED"},
		{"unknown question", registry.LayerPath + "secrets", nil, 404, "NAME_UNKNOWN"},
		{"everything", registry.LayerPath + "changes", nil, 200, `"full":true`},
		{"nothing new", registry.LayerPath + "changes?since=x.1", nil, 304, ""},
		{"a time that is none", registry.LayerPath + "changes?wait=soon", nil, 400, "whole seconds"},
		{"a repository that is none", registry.LayerPath + "changes?repository=../x", nil, 400, "NAME_INVALID"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := get(h, tc.path, tc.header...)
			if w.Code != tc.code || !strings.Contains(w.Body.String(), tc.text) {
				t.Errorf("%d %s, want %d with %q", w.Code, w.Body, tc.code, tc.text)
			}
		})
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPut, registry.LayerPath, http.NoBody))
	if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") == "" {
		t.Errorf("PUT: %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
}

func TestChangesAreFiltered(t *testing.T) {
	s := newSource()
	for _, repo := range []string{"may/a", "may/b", "hidden/a"} {
		s.move(repo, "1")
	}
	h := newGateway(s, nil)
	if c := changes(t, get(h, registry.LayerPath+"changes")); len(c.Entries) != 2 {
		t.Errorf("without names: %+v, want what the caller may read", c.Entries)
	}
	if c := changes(t, get(h, registry.LayerPath+"changes?repository=may/b&repository=hidden/*")); len(c.Entries) != 1 || c.Entries[0].Repository != "may/b" {
		t.Errorf("by name: %+v", c.Entries)
	}
}

func TestLongAnswersAreCompressed(t *testing.T) {
	s := newSource()
	for i := range 1000 {
		s.move("may/a", fmt.Sprint("tag-", i))
	}
	w := get(newGateway(s, nil), registry.LayerPath+"changes", "Accept-Encoding", "gzip, deflate")
	size := w.Body.Len()
	if c := changes(t, w); len(c.Entries) != 1000 || size > 20_000 {
		t.Errorf("%d entries in %d bytes", len(c.Entries), size)
	}
}

// TestHeldAnswer asks with time to wait: the answer comes at the change, at the end of the time, or at the drain.
func TestHeldAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.move("may/a", "1")
		closing := make(chan struct{})
		h := newGateway(s, closing)
		ask := func(path string) (w *httptest.ResponseRecorder, after time.Duration) {
			began := time.Now()
			w = get(h, path)
			return w, time.Since(began)
		}
		go func() {
			time.Sleep(10 * time.Second)
			s.move("hidden/a", "1")
			time.Sleep(10 * time.Second)
			s.move("may/a", "2")
		}()
		w, after := ask(registry.LayerPath + "changes?since=x.1&wait=50")
		if c := changes(t, w); after != 20*time.Second || len(c.Entries) != 1 || c.Entries[0].Tag != "2" {
			t.Errorf("after %v: %+v, want the change after 20 s and not the hidden one", after, c)
		}
		if w, after := ask(registry.LayerPath + "changes?since=x.3&wait=50"); w.Code != 304 || after != 50*time.Second {
			t.Errorf("no change: %d after %v", w.Code, after)
		}
		if w, after := ask(registry.LayerPath + "changes?since=x.3&wait=86400"); w.Code != 304 || after > time.Minute {
			t.Errorf("a long wait: %d after %v, want less than a minute", w.Code, after)
		}
		go func() { time.Sleep(time.Second); close(closing) }()
		if w, after := ask(registry.LayerPath + "changes?since=x.3&wait=50"); w.Code != 304 || after != time.Second {
			t.Errorf("drain: %d after %v", w.Code, after)
		}
	})
}

// TestUnchangedIsSmall counts the bytes of the answer that is given most often.
func TestUnchangedIsSmall(t *testing.T) {
	s := newSource()
	for i := range 1000 {
		s.move("may/a", fmt.Sprint(i))
	}
	server := httptest.NewServer(newGateway(s, nil))
	defer server.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+registry.LayerPath+"changes?since=x.1000", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "x")
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := httputil.DumpResponse(resp, true)
	if err != nil || resp.StatusCode != http.StatusNotModified || len(raw) > 512 {
		t.Errorf("%d in %d bytes, %v; want 304 in at most 512:\n%s", resp.StatusCode, len(raw), err, raw)
	}
}

// TestChildHangsUp ends a question that is held: that is how every child stops, and nothing to report.
func TestChildHangsUp(t *testing.T) {
	var log strings.Builder
	h := gateway.New(newSource(), access{}, gateway.Options{
		Info: func() registry.LayerInfo { return info }, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/v2/_connected/v1/changes?since=x.0&wait=50", http.NoBody)
	r.Header.Set("Authorization", "x")
	h.ServeHTTP(httptest.NewRecorder(), r)
	if log.Len() > 0 {
		t.Errorf("logged: %s", log.String())
	}
}
