package transport_test

import (
	"crypto/x509"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// TestFailedConnectionsSayWhy looks at what a person reads in the status.
func TestFailedConnectionsSayWhy(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	plain, secure := httptest.NewServer(nil), httptest.NewUnstartedServer(nil)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer plain.Close()
	defer secure.Close()
	host := func(s string) string { u, _ := url.Parse(s); return u.Host }
	for _, tt := range []struct{ name, origin, want string }{
		{"nobody listens", "http://" + gone, "connection refused"},
		{"no such name", "http://parent.invalid", "cannot be resolved"},
		{"plain server, https asked for", "https://" + host(plain.URL), "TLS handshake failed"},
		{"unknown root", "https://" + host(secure.URL), "unknown authority"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := transport.NewClient(transport.ClientOptions{Origin: tt.origin})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _, err = get(c, request(t, t.Context(), "GET", tt.origin, nil))
			e := registry.AsError(err)
			if e.Code != registry.CodeUnavailable || !strings.Contains(e.Message, tt.want) || !strings.Contains(e.Message, strings.SplitN(tt.origin, "://", 2)[1]) {
				t.Errorf("%s: %q, want the host and %q", e.Code, e.Message, tt.want)
			}
		})
	}
}

// TestNoRootsSaysWhy: what RootCAs says is what a person has to mend.
func TestNoRootsSaysWhy(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	for _, tt := range []struct {
		err  error
		want string
	}{
		{registry.ErrUnavailable.WithMessage("the bundle is empty"), "the bundle is empty"},
		{fs.ErrNotExist, "the certificates to trust cannot be read"}, // it may name files
	} {
		c, err := transport.NewClient(transport.ClientOptions{Origin: server.URL, RootCAs: func() (*x509.CertPool, error) { return nil, tt.err }})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = get(c, request(t, t.Context(), "GET", server.URL, nil))
		if e := registry.AsError(err); e.Code != registry.CodeUnavailable || !strings.HasSuffix(e.Message, ": "+tt.want) {
			t.Errorf("%s: %q, want %q", e.Code, e.Message, tt.want)
		}
		c.Close()
	}
}
