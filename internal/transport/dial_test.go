package transport_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// certificate makes a self-signed certificate for the names, good from now on for an hour.
func certificate(t *testing.T, from time.Time, names ...string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, NotBefore: from, NotAfter: from.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

// newTLSServer serves h with the certificate; protocols are those it offers.
func newTLSServer(t *testing.T, cert tls.Certificate, version uint16, http2 bool, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10, MaxVersion: version}
	s.EnableHTTP2 = http2
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func TestTrust(t *testing.T) {
	good, pool := certificate(t, time.Now().Add(-time.Minute), "127.0.0.1")
	_, otherPool := certificate(t, time.Now().Add(-time.Minute), "127.0.0.1")
	wrongName, wrongPool := certificate(t, time.Now().Add(-time.Minute), "elsewhere.example")
	expired, expiredPool := certificate(t, time.Now().Add(-48*time.Hour), "127.0.0.1")
	future, futurePool := certificate(t, time.Now().Add(48*time.Hour), "127.0.0.1")
	roots := func(p *x509.CertPool) func() (*x509.CertPool, error) {
		return func() (*x509.CertPool, error) { return p, nil }
	}
	tests := []struct {
		name    string
		cert    tls.Certificate
		version uint16
		roots   func() (*x509.CertPool, error)
		want    string // in the error; empty is good
	}{
		{"trusted", good, tls.VersionTLS13, roots(pool), ""},
		{"TLS 1.2", good, tls.VersionTLS12, roots(pool), ""},
		{"TLS 1.1", good, tls.VersionTLS11, roots(pool), "handshake"},
		{"TLS 1.0", good, tls.VersionTLS10, roots(pool), "handshake"},
		{"another authority", good, tls.VersionTLS13, roots(otherPool), "unknown authority"},
		{"system roots", good, tls.VersionTLS13, nil, "certificate"},
		{"nil roots", good, tls.VersionTLS13, roots(nil), "certificate"},
		{"no roots at all", good, tls.VersionTLS13, roots(x509.NewCertPool()), "unknown authority"},
		{"another name", wrongName, tls.VersionTLS13, roots(wrongPool), "certificate"},
		{"expired", expired, tls.VersionTLS13, roots(expiredPool), "expired"},
		{"not yet good", future, tls.VersionTLS13, roots(futurePool), "not yet valid"},
		{"bundle cannot be read", good, tls.VersionTLS13, func() (*x509.CertPool, error) { return nil, errors.New("no workload socket") }, "no workload socket"},
	}
	for _, tt := range tests {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, http2=%v", tt.name, http2), func(t *testing.T) {
				proto := ""
				s := newTLSServer(t, tt.cert, tt.version, http2, func(_ http.ResponseWriter, r *http.Request) { proto = r.Proto })
				c := newClient(t, transport.ClientOptions{Origin: s.URL, RootCAs: tt.roots})
				_, _, err := get(c, request(t, t.Context(), "GET", s.URL, nil))
				if tt.want == "" {
					if want := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[http2]; err != nil || proto != want {
						t.Errorf("%s, %v", proto, err)
					}
					return
				}
				if !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "127.0.0.1") || proto != "" {
					t.Errorf("request %q, error %v, want %q", proto, err, tt.want)
				}
			})
		}
	}
}

func TestRootsAreReadOnEachDial(t *testing.T) {
	cert, pool := certificate(t, time.Now().Add(-time.Minute), "127.0.0.1")
	s := newTLSServer(t, cert, tls.VersionTLS13, false, func(http.ResponseWriter, *http.Request) {})
	var missing atomic.Bool
	c := newClient(t, transport.ClientOptions{Origin: s.URL, RootCAs: func() (*x509.CertPool, error) {
		if missing.Load() {
			return nil, errors.New("gone")
		}
		return pool, nil
	}})
	for i, away := range []bool{true, false, true, false} {
		missing.Store(away)
		c.Close() // so that the next request dials
		_, _, err := get(c, request(t, t.Context(), "GET", s.URL, nil))
		if away != errors.Is(err, registry.ErrUnavailable) || !away && err != nil {
			t.Errorf("round %d, bundle missing %v: %v", i, away, err)
		}
	}
}

// names is a resolver.
type names map[string][]string

func (n names) resolve(_ context.Context, host string) ([]netip.Addr, error) {
	var ips []netip.Addr
	for _, s := range n[host] {
		ips = append(ips, netip.MustParseAddr(s))
	}
	if ips == nil {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return ips, nil
}

// follow asks for a blob that the parent redirects to target, and returns what was dialled beside the parent.
func follow(t *testing.T, o transport.ClientOptions, target string) (dialled []string, err error) {
	t.Helper()
	parent := newServer(t, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, target, http.StatusTemporaryRedirect)
	})
	o.Origin = "http://parent.example:5000"
	o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr == "parent.example:5000" {
			return new(net.Dialer).DialContext(ctx, network, parent.Listener.Addr().String())
		}
		dialled = append(dialled, addr)
		return nil, errors.New("dialled " + addr)
	}
	c := newClient(t, o)
	_, _, err = get(c, request(t, transport.WithBlob(t.Context()), "GET", o.Origin+"/b", nil))
	return dialled, err
}

func TestRedirectsLeadToPublicAddressesOnly(t *testing.T) {
	resolver := names{
		"parent.example": {"10.0.0.5"}, "public.example": {"93.184.216.34"}, "inside.example": {"10.1.2.3"},
		"mixed.example": {"93.184.216.34", "127.0.0.1"}, "data.parent.example": {"10.0.0.5"}, "mapped.example": {"::ffff:192.168.1.1"},
	}
	tests := map[string]string{ // target host -> address that is dialled, empty for none
		"public.example":           "93.184.216.34:80",
		"93.184.216.34":            "93.184.216.34:80",
		"93.184.216.34:8080":       "93.184.216.34:8080",
		"[2606:4700::1111]":        "[2606:4700::1111]:80",
		"data.parent.example":      "10.0.0.5:80", // the parent's own address
		"10.0.0.5:9000":            "10.0.0.5:9000",
		"inside.example":           "",
		"mixed.example":            "",
		"mapped.example":           "",
		"nowhere.example":          "",
		"127.0.0.1":                "",
		"127.8.8.8":                "",
		"[::1]":                    "",
		"[::]":                     "",
		"0.0.0.0":                  "",
		"10.0.0.6":                 "",
		"172.16.0.1":               "",
		"192.168.0.1":              "",
		"100.64.0.1":               "",
		"169.254.169.254":          "",
		"168.63.129.16":            "",
		"[fe80::1]":                "",
		"[fe80::1%25eth0]":         "",
		"[fd00:ec2::254]":          "",
		"[::ffff:169.254.169.254]": "",
		"[64:ff9b::a9fe:a9fe]":     "",
		"[2002:a9fe:a9fe::1]":      "",
		"224.0.0.1":                "",
		"255.255.255.255":          "",
		"2130706433":               "", // 127.0.0.1 as one number
		"0x7f.1":                   "",
		"localhost":                "",
	}
	for host, want := range tests {
		t.Run(host, func(t *testing.T) {
			dialled, err := follow(t, transport.ClientOptions{Resolve: resolver.resolve}, "http://"+host+"/b")
			if err == nil {
				t.Fatal("answered")
			}
			if want == "" && len(dialled) != 0 || want != "" && (len(dialled) == 0 || dialled[0] != want) {
				t.Errorf("dialled %q, want %q; %v", dialled, want, err)
			}
			if want == "" && !errors.Is(err, registry.ErrDenied) && !strings.Contains(err.Error(), "no such host") {
				t.Errorf("error %v", err)
			}
		})
	}
}

// The name is public when it is looked up and private a moment later: what was checked is what is dialled.
func TestNameThatChangesItsAddress(t *testing.T) {
	n := 0
	dialled, err := follow(t, transport.ClientOptions{Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
		if host == "parent.example" {
			return []netip.Addr{netip.MustParseAddr("10.0.0.5")}, nil
		}
		if n++; n == 1 {
			return []netip.Addr{netip.MustParseAddr("93.184.216.34")}, nil
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}}, "http://rebind.example/b")
	if err == nil || len(dialled) == 0 {
		t.Fatal(err)
	}
	if n < 2 {
		t.Errorf("looked up %d times: the second answer was not met", n)
	}
	for _, addr := range dialled {
		if addr != "93.184.216.34:80" {
			t.Errorf("dialled %s", addr)
		}
	}
}

func TestProxy(t *testing.T) {
	cert, pool := certificate(t, time.Now().Add(-time.Minute), "cloud.example", "proxy.example")
	cloud := newTLSServer(t, cert, tls.VersionTLS13, true, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })
	var asked []string
	refuse := false
	h := func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.Host+" "+r.Header.Get("Proxy-Authorization")+r.Header.Get("Authorization"))
		if refuse {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		far, err := net.Dial("tcp", cloud.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		near, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(near, "HTTP/1.1 200 Connection established\r\n\r\n")
		go func() { _, _ = io.Copy(far, near); _ = far.Close() }()
		_, _ = io.Copy(near, far)
		_ = near.Close()
	}
	plain := newServer(t, "127.0.0.1", h)
	secure := newTLSServer(t, cert, tls.VersionTLS13, false, h)
	open := func(scheme string) *transport.Client {
		return newClient(t, transport.ClientOptions{
			Origin:  "https://cloud.example",
			RootCAs: func() (*x509.CertPool, error) { return pool, nil },
			Resolve: names{"inside.example": {"10.0.0.1"}}.resolve,
			Proxy: func(target *url.URL) (*url.URL, error) {
				return url.Parse(scheme + "://u:p@proxy.example:3128")
			},
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				to := plain.Listener.Addr().String()
				if scheme == "https" {
					to = secure.Listener.Addr().String()
				}
				if addr != "proxy.example:3128" {
					return nil, errors.New("dialled " + addr)
				}
				return new(net.Dialer).DialContext(ctx, network, to)
			},
		})
	}
	for _, scheme := range []string{"http", "https"} {
		asked = nil
		_, body, err := get(open(scheme), request(t, t.Context(), "GET", "https://cloud.example/v2/", nil))
		if err != nil || body != "HTTP/2.0" || len(asked) != 1 || asked[0] != "CONNECT cloud.example:443 Basic dTpw" {
			t.Errorf("%s proxy: %q, %v, asked %q", scheme, body, err, asked)
		}
	}
	asked = nil
	for _, host := range []string{"10.0.0.1", "169.254.169.254", "inside.example"} {
		req := request(t, transport.WithBlob(t.Context()), "GET", "https://"+host+"/b", nil)
		req.Response = &http.Response{} // it follows a redirect
		if _, _, err := get(open("http"), req); !errors.Is(err, registry.ErrDenied) {
			t.Errorf("%s through the proxy: %v", host, err)
		}
	}
	if len(asked) != 0 {
		t.Errorf("asked %q", asked)
	}
	refuse = true
	if _, _, err := get(open("http"), request(t, t.Context(), "GET", "https://cloud.example/v2/", nil)); !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), "403") {
		t.Errorf("a proxy that refuses: %v", err)
	}
	if _, _, err := get(open("socks5"), request(t, t.Context(), "GET", "https://cloud.example/v2/", nil)); !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), "socks5") {
		t.Errorf("another kind of proxy: %v", err)
	}
}
