//go:build interop

package apiproxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	stock = "IoTEdgeAPIProxy"
	host5 = "127.0.0.85"
	host4 = "127.0.0.84"
	host3 = "127.0.0.83"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// freePort returns one that is free on all three devices. It is below those that the kernel gives to connections.
func freePort(t *testing.T) int {
	t.Helper()
next:
	for range 100 {
		port := 20000 + rand.IntN(12000)
		for _, host := range []string{host5, host4, host3} {
			ln, err := net.Listen("tcp", fmt.Sprintf("%s:%d", host, port))
			if err != nil {
				continue next
			}
			must(t, ln.Close())
		}
		return port
	}
	t.Fatal("no port is free on 127.0.0.83 to 127.0.0.85")
	return 0
}

// newProxy prepares the proxy of a device with a good certificate; the root signs it, and is what the device trusts.
func newProxy(t *testing.T, root *Authority, o Options) *Proxy {
	t.Helper()
	if o.Module == "" {
		o.Module = stock
	}
	var err error
	o.Certificate, err = root.Server(o.Host, o.Module, time.Now().Add(24*time.Hour))
	must(t, err)
	o.Dir, o.TrustBundle = filepath.Join(t.TempDir(), o.Host), root.Bundle()
	p := New(o)
	t.Cleanup(func() { must(t, p.Stop()) })
	return p
}

// newClient trusts the root and keeps no connection, so that each request says what the handshake says.
func newClient(root *Authority, change func(*tls.Config)) *http.Client {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if root != nil {
		conf.RootCAs = root.Pool()
	}
	if change != nil {
		change(conf)
	}
	return &http.Client{
		Transport:     &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       30 * time.Second,
	}
}

// seen is what the registry behind the proxies was asked.
type seen struct {
	mu   sync.Mutex
	last *http.Request
	body int64
	n    int
}

func (s *seen) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n, _ := io.Copy(io.Discard, r.Body)
	s.mu.Lock()
	s.last, s.body, s.n = r, n, s.n+1
	s.mu.Unlock()
	w.Header().Set("Location", "/v2/relative")
	w.WriteHeader(http.StatusAccepted)
}

func (s *seen) take() (r *http.Request, body int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r = s.last
	s.last = nil
	return r, s.body
}

// TestBehaviour holds our configuration against what was seen of the stock proxy, without the product: three devices,
// of which the first alone has a registry.
func TestBehaviour(t *testing.T) {
	root, err := NewAuthority("behaviour")
	must(t, err)
	var backend seen
	server := httptest.NewServer(&backend)
	defer server.Close()
	port := freePort(t)
	top := newProxy(t, root, Options{Host: host5, Port: port, Registry: server.Listener.Addr().String()})
	middle := newProxy(t, root, Options{Host: host4, Port: port, Parent: host5})
	bottom := newProxy(t, root, Options{Host: host3, Port: port, Parent: host4})
	for _, p := range []*Proxy{top, middle, bottom} {
		must(t, p.Start(t.Context()))
	}
	const mebibyte = 1 << 20
	tests := []struct {
		name    string
		at      *Proxy
		method  string
		path    string
		header  string // name of one more
		size    int
		chunked bool
		status  int
	}{
		{"GET at the registry's hop", top, "GET", "/v2/a/tags/list?n=1&last=x%2Fy", "", 0, false, 202},
		{"GET through two hops", bottom, "GET", "/v2/a/tags/list?n=1&last=x%2Fy", "", 0, false, 202},
		{"PATCH through two hops", bottom, "PATCH", "/v2/a/blobs/uploads/u", "", mebibyte, false, 202},
		{"chunked PATCH through two hops", bottom, "PATCH", "/v2/a/blobs/uploads/u", "", 1000, true, 202},
		{"1 MiB and a byte at the registry's hop", top, "PATCH", "/v2/a/blobs/uploads/u", "", mebibyte + 1, false, 202},
		{"1 MiB and a byte at a hop that forwards", bottom, "PATCH", "/v2/a/blobs/uploads/u", "", mebibyte + 1, false, 413},
		{"the same, chunked", bottom, "PATCH", "/v2/a/blobs/uploads/u", "", mebibyte + 1, true, 413},
		{"/acr at the registry's hop", top, "GET", "/acr/oauth2/token", "", 0, false, 202},
		{"/acr at a hop that forwards", bottom, "GET", "/acr/oauth2/token", "", 0, false, 404},
		{"/healthz", top, "GET", "/healthz", "", 0, false, 404},
		{"/", bottom, "GET", "/", "", 0, false, 404},
		{"twins/ in a repository", top, "GET", "/v2/acme/twins/manifests/1", "", 0, false, 500},
		{"twins/ in a repository, forwarded", bottom, "GET", "/v2/acme/twins/manifests/1", "", 0, false, 500},
		{"twins in a repository", bottom, "GET", "/v2/acme/mytwins1/manifests/1", "", 0, false, 202},
		{"devices at the end of a repository", bottom, "GET", "/v2/acme/devices/manifests/1", "", 0, false, 202},
		{"x-ms-version at the registry's hop", top, "GET", "/v2/", "X-Ms-Version", 0, false, 404},
		{"x-ms-version at a hop that forwards", bottom, "GET", "/v2/", "X-Ms-Version", 0, false, 404},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var body io.Reader = http.NoBody
			if tt.size > 0 {
				body = bytes.NewReader(make([]byte, tt.size))
			}
			if tt.chunked {
				body = struct{ io.Reader }{body}
			}
			req, err := http.NewRequestWithContext(t.Context(), tt.method, "https://"+tt.at.Addr()+tt.path, body)
			must(t, err)
			req.SetBasicAuth("name", "secret")
			if tt.header != "" {
				req.Header.Set(tt.header, "2020-01-01")
			}
			resp, err := newClient(root, nil).Do(req)
			must(t, err)
			must(t, resp.Body.Close())
			got, size := backend.take()
			if resp.StatusCode != tt.status || (got != nil) != (tt.status == 202) {
				t.Fatalf("%s, want %d; the registry saw %v", resp.Status, tt.status, got)
			}
			if got == nil {
				return
			}
			if got.URL.RequestURI() != tt.path || got.Header.Get("Authorization") != req.Header.Get("Authorization") {
				t.Errorf("the registry saw %s with %q", got.URL.RequestURI(), got.Header.Get("Authorization"))
			}
			if resp.Header.Get("Location") != "/v2/relative" {
				t.Errorf("Location %q", resp.Header.Get("Location"))
			}
			if forwarded := got.Header.Get("X-Forwarded-Host"); forwarded != top.Addr() || got.Header.Get("X-Forwarded-Proto") != "https" {
				t.Errorf("forwarded for %q %q, want the last hop's", forwarded, got.Header.Get("X-Forwarded-Proto"))
			}
			if size != int64(tt.size) || got.ContentLength != size || got.TransferEncoding != nil {
				t.Errorf("%d bytes, Content-Length %d, want %d", size, got.ContentLength, tt.size)
			}
		})
	}
}

// TestNames: the proxy of a device that forwards wants the parent's certificate to name its own module.
func TestNames(t *testing.T) {
	root, err := NewAuthority("names")
	must(t, err)
	server := httptest.NewServer(&seen{})
	defer server.Close()
	port := freePort(t)
	must(t, newProxy(t, root, Options{Host: host5, Port: port, Registry: server.Listener.Addr().String()}).Start(t.Context()))
	for name, status := range map[string]int{"iotedgeapiproxy": 202, "proxy": 502} {
		p := newProxy(t, root, Options{Host: host4, Port: port, Parent: host5, Module: name})
		must(t, p.Start(t.Context()))
		if got := get(t, newClient(root, nil), p); got.StatusCode != status {
			t.Errorf("module %s: %s, want %d", name, got.Status, status)
		}
		must(t, p.Stop())
	}
}

// get asks a proxy for /v2/.
func get(t *testing.T, client *http.Client, p *Proxy) *http.Response {
	t.Helper()
	resp, err := ask(t.Context(), client, p)
	must(t, err)
	must(t, resp.Body.Close())
	return resp
}

func ask(ctx context.Context, client *http.Client, p *Proxy) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.Addr()+"/v2/", http.NoBody)
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}

// TestVersions: TLS 1.2 and no other.
func TestVersions(t *testing.T) {
	root, err := NewAuthority("versions")
	must(t, err)
	server := httptest.NewServer(&seen{})
	defer server.Close()
	p := newProxy(t, root, Options{Host: host5, Port: freePort(t), Registry: server.Listener.Addr().String()})
	must(t, p.Start(t.Context()))
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		resp, err := ask(t.Context(), newClient(root, func(c *tls.Config) { c.MinVersion, c.MaxVersion = version, version }), p)
		if err == nil {
			must(t, resp.Body.Close())
		}
		if (err == nil) != (version == tls.VersionTLS12) {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err != nil && !strings.Contains(err.Error(), "protocol version") {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
	if _, err := ask(t.Context(), newClient(nil, nil), p); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a client without the root: %v", err)
	}
}
