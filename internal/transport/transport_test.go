package transport_test

import (
	"bytes"
	"context"
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

	"go.uber.org/goleak"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "Basic dXNlcjpodW50ZXIy"

// server is an httptest server on a given loopback address that keeps every byte it is sent.
type server struct {
	*httptest.Server
	mu   sync.Mutex
	log  bytes.Buffer
	hits int
}

func (s *server) seen() (string, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String(), s.hits
}

type tapListener struct {
	net.Listener
	s *server
}

func (l tapListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tapConn{c, l.s}, nil
}

type tapConn struct {
	net.Conn
	s *server
}

func (c tapConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.s.mu.Lock()
	c.s.log.Write(p[:n])
	c.s.mu.Unlock()
	return n, err
}

func newServer(t *testing.T, ip string, h http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	s.Server = &httptest.Server{Listener: tapListener{l, s}, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.hits++
		s.mu.Unlock()
		h(w, r)
	})}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func newClient(t *testing.T, o transport.ClientOptions) *transport.Client {
	t.Helper()
	if o.Rand == nil {
		o.Rand = func() float64 { return 0 }
	}
	c, err := transport.NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func request(t *testing.T, ctx context.Context, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", secret)
	req.Header.Set(registry.HeaderChildName, "line-a")
	return req
}

// get returns status and body, or the error of either.
func get(c *transport.Client, req *http.Request) (int, string, error) {
	resp, err := c.HTTP().Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

func TestOptionsAreChecked(t *testing.T) {
	for _, bad := range []string{"host", "ftp://host", "https://", "https://user@host", "https://host/path", "://"} {
		for name, o := range map[string]transport.ClientOptions{
			"origin": {Origin: bad}, "realm": {Realms: []string{bad}}, "data": {Data: []string{bad}},
		} {
			if _, err := transport.NewClient(o); err == nil || !strings.Contains(err.Error(), bad) {
				t.Errorf("%s %q: %v", name, bad, err)
			}
		}
	}
}

func TestCredentialGoesToItsOriginOnly(t *testing.T) {
	ok := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }
	parent, realm, evil := newServer(t, "127.0.0.1", ok), newServer(t, "127.0.0.3", ok), newServer(t, "127.0.0.2", ok)
	// The same host on another port is another origin.
	neighbour := newServer(t, "127.0.0.1", ok)
	c := newClient(t, transport.ClientOptions{Origin: parent.URL, Realms: []string{realm.URL}, Data: []string{evil.URL, neighbour.URL}})
	host := strings.TrimPrefix(evil.URL, "http://")
	tests := []struct {
		name, method, url string
		blob, refused     bool
	}{
		{"parent", "GET", parent.URL + "/v2/", false, false},
		{"parent post", "POST", parent.URL + "/v2/", false, false},
		{"realm", "GET", realm.URL + "/token", false, false},
		{"realm post", "POST", realm.URL + "/token", false, false},
		{"evil", "GET", evil.URL + "/token", false, true},
		{"evil post", "POST", evil.URL + "/token", false, true},
		{"evil for a blob without a redirect", "GET", evil.URL + "/b", true, true},
		{"other port", "GET", neighbour.URL + "/v2/", false, true},
		{"user name in the address", "GET", "http://u:p@" + strings.TrimPrefix(parent.URL, "http://"), false, true},
		{"other scheme", "GET", "https://" + strings.TrimPrefix(parent.URL, "http://"), false, true},
		{"parent's name as a prefix", "GET", "http://127.0.0.1.evil.example/", false, true},
		{"full-width letters", "GET", "http://ｅvil.example/", false, true},
		{"user name that looks like the host", "GET", parent.URL + "@" + host + "/", false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			if tt.blob {
				ctx = transport.WithBlob(ctx)
			}
			req, err := http.NewRequestWithContext(ctx, tt.method, tt.url, strings.NewReader("grant=secret"))
			if err != nil {
				return // not even an address
			}
			req.Header.Set("Authorization", secret)
			_, _, err = get(c, req)
			if tt.refused != errors.Is(err, registry.ErrDenied) || (!tt.refused && err != nil) {
				t.Fatalf("error %v, want refused %v", err, tt.refused)
			}
			if tt.refused && !strings.Contains(err.Error(), req.URL.Hostname()) {
				t.Errorf("error %q does not name the host", err)
			}
		})
	}
	for name, s := range map[string]*server{"evil": evil, "neighbour": neighbour} {
		if log, hits := s.seen(); hits != 0 || log != "" {
			t.Errorf("%s was sent %q", name, log)
		}
	}
	for name, s := range map[string]*server{"parent": parent, "realm": realm} {
		if log, _ := s.seen(); !strings.Contains(log, secret) {
			t.Errorf("%s got no credential", name)
		}
	}
}

func TestWithoutOriginNothingSecretIsSent(t *testing.T) {
	s := newServer(t, "127.0.0.1", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	c := newClient(t, transport.ClientOptions{Data: []string{s.URL}})
	if _, _, err := get(c, request(t, t.Context(), "GET", s.URL, nil)); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("credential: %v", err)
	}
	if _, _, err := get(c, request(t, t.Context(), "POST", s.URL, strings.NewReader("x"))); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("post: %v", err)
	}
	resp, err := c.HTTP().Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
}

func TestHeadersThatMislead(t *testing.T) {
	var got http.Header
	s := newServer(t, "127.0.0.1", func(_ http.ResponseWriter, r *http.Request) { got = r.Header })
	c := newClient(t, transport.ClientOptions{Origin: s.URL, UserAgent: "connected-registry/1"})
	req := request(t, t.Context(), "GET", s.URL, nil)
	req.Header.Set("x-ms-version", "2020-01-01")
	if _, _, err := get(c, req); err != nil {
		t.Fatal(err)
	}
	if got.Get("X-Ms-Version") != "" || got.Get("User-Agent") != "connected-registry/1" || got.Get("Accept-Encoding") != "" {
		t.Errorf("sent %v", got)
	}
}

func TestRedirects(t *testing.T) {
	for _, code := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			content := func(w http.ResponseWriter, r *http.Request) {
				if r.Method == "POST" {
					_, _ = io.Copy(w, r.Body)
					return
				}
				fmt.Fprint(w, "content")
			}
			data, stranger := newServer(t, "127.0.0.2", content), newServer(t, "127.0.0.3", content)
			parent := newServer(t, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/own":
					http.Redirect(w, r, "/here", code)
				case "/data":
					http.Redirect(w, r, data.URL+"/b?sig=1", code)
				case "/stranger":
					http.Redirect(w, r, stranger.URL+"/latest/meta-data", code)
				default:
					content(w, r)
				}
			})
			c := newClient(t, transport.ClientOptions{Origin: parent.URL, Data: []string{data.URL}})
			tests := []struct {
				name, method, path string
				blob, good         bool
			}{
				{"own host, list", "GET", "/own", false, true},
				{"own host, blob", "GET", "/own", true, true},
				{"data host, blob", "GET", "/data", true, true},
				{"data host, blob head", "HEAD", "/data", true, true},
				{"data host, manifest", "GET", "/data", false, false},
				{"stranger, blob", "GET", "/stranger", true, false}, // a loopback address that is not configured
				{"stranger, manifest", "GET", "/stranger", false, false},
				{"data host, post", "POST", "/data", false, false},
				{"data host, post of a blob", "POST", "/data", true, false},
				{"own host, post", "POST", "/own", false, false},
			}
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					ctx := t.Context()
					if tt.blob {
						ctx = transport.WithBlob(ctx)
					}
					var body io.Reader
					if tt.method == "POST" {
						body = strings.NewReader("layer")
					}
					_, _, err := get(c, request(t, ctx, tt.method, parent.URL+tt.path, body))
					if tt.good && err != nil || !tt.good && !errors.Is(err, registry.ErrDenied) {
						t.Errorf("error %v, want good %v", err, tt.good)
					}
				})
			}
			if log, hits := stranger.seen(); hits != 0 || log != "" {
				t.Errorf("the stranger was sent %q", log)
			}
			log, hits := data.seen()
			if hits != 2 || strings.Contains(log, "Authorization") || strings.Contains(log, "hunter") || strings.Contains(log, "line-a") || strings.Contains(log, "Referer") {
				t.Errorf("the data host had %d requests: %q", hits, log)
			}
		})
	}
}

func TestRedirectHopsAndLoops(t *testing.T) {
	parent := newServer(t, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
		var n int
		switch {
		case r.URL.Path == "/a":
			http.Redirect(w, r, "/b", http.StatusFound)
		case r.URL.Path == "/b":
			http.Redirect(w, r, "/a", http.StatusFound)
		default:
			if _, err := fmt.Sscanf(r.URL.Path, "/%d", &n); err == nil && n > 0 {
				http.Redirect(w, r, fmt.Sprintf("/%d", n-1), http.StatusTemporaryRedirect)
			}
		}
	})
	c := newClient(t, transport.ClientOptions{Origin: parent.URL})
	for path, good := range map[string]bool{"/3": true, "/4": true, "/5": false, "/100": false, "/a": false} {
		_, _, err := get(c, request(t, t.Context(), "GET", parent.URL+path, nil))
		if good && err != nil || !good && !errors.Is(err, registry.ErrDenied) {
			t.Errorf("%s: %v, want good %v", path, err, good)
		}
	}
	if _, hits := parent.seen(); hits > 30 {
		t.Errorf("%d requests", hits)
	}
}

func TestRedirectNeverLeavesHTTPS(t *testing.T) {
	from, _ := http.NewRequest("GET", "https://parent/v2/", nil)
	c := newClient(t, transport.ClientOptions{Origin: "https://parent"})
	for target, ctx := range map[string]context.Context{
		"http://parent/v2/b": transport.WithBlob(t.Context()),
		"https://other/v2/b": t.Context(),
		"https://parent:444": t.Context(),
	} {
		to, _ := http.NewRequestWithContext(ctx, "GET", target, nil)
		if err := c.CheckRedirect(to, []*http.Request{from}); !errors.Is(err, registry.ErrDenied) {
			t.Errorf("%s: %v", target, err)
		}
	}
	again, _ := http.NewRequest("GET", "https://parent/v2/again", nil)
	if err := c.CheckRedirect(again, []*http.Request{from}); err != nil {
		t.Errorf("on its own host: %v", err)
	}
	if err := c.CheckRedirect(from, []*http.Request{from, again}); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("a loop: %v", err)
	}
}

func TestCountersAndLimits(t *testing.T) {
	s := newServer(t, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/fit":
			_, _ = w.Write(make([]byte, 1000))
		case "/big":
			for range 100 {
				if _, err := w.Write(make([]byte, 1000)); err != nil {
					return
				}
			}
		case "/header":
			for i := range 10_000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 100))
			}
		default:
			fmt.Fprint(w, n)
		}
	})
	c := newClient(t, transport.ClientOptions{Origin: s.URL, MaxBody: 1000})
	if _, body, err := get(c, request(t, t.Context(), "GET", s.URL+"/fit", nil)); err != nil || len(body) != 1000 {
		t.Fatalf("exactly the limit: %d, %v", len(body), err)
	}
	if _, body, err := get(c, request(t, t.Context(), "POST", s.URL, strings.NewReader("12345"))); err != nil || body != "5" {
		t.Fatalf("post: %q, %v", body, err)
	}
	if got, want := c.Traffic(), (registry.Traffic{Requests: 2, BytesReceived: 1001, BytesSent: 5}); got != want {
		t.Errorf("traffic %+v, want %+v", got, want)
	}
	if _, body, err := get(c, request(t, t.Context(), "GET", s.URL+"/big", nil)); !errors.Is(err, registry.ErrSizeInvalid) || len(body) != 1000 {
		t.Errorf("too large: %d, %v", len(body), err)
	}
	if _, body, err := get(c, request(t, transport.WithBlob(t.Context()), "GET", s.URL+"/big", nil)); err != nil || len(body) != 100_000 {
		t.Errorf("a blob has no limit: %d, %v", len(body), err)
	}
	if _, body, err := get(c, request(t, transport.WithMaxBody(t.Context(), 7), "GET", s.URL+"/fit", nil)); !errors.Is(err, registry.ErrSizeInvalid) || len(body) != 7 {
		t.Errorf("own limit: %d, %v", len(body), err)
	}
	if _, _, err := get(c, request(t, t.Context(), "GET", s.URL+"/header", nil)); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("1 MB of header: %v", err)
	}
}

func TestLogHasNoSecret(t *testing.T) {
	var log bytes.Buffer
	s := newServer(t, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.9/x?sig=hunter2", http.StatusTemporaryRedirect)
	})
	c := newClient(t, transport.ClientOptions{Origin: s.URL, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	_, _, err := get(c, request(t, transport.WithBlob(t.Context()), "GET", s.URL+"/b?code=hunter2", nil))
	if !errors.Is(err, registry.ErrDenied) || log.Len() == 0 {
		t.Fatalf("%v, log %q", err, log.String())
	}
	if strings.Contains(log.String(), "hunter") || strings.Contains(log.String(), "dXNlcj") {
		t.Errorf("log %q", log.String())
	}
}
