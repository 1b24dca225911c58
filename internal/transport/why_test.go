package transport_test

import (
	"io"
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
