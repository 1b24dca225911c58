package volume

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// TestParentThatIsNone points the registry at what cannot be its parent. Within seconds the status names host and cause;
// when a real parent takes its place, all goes on by itself.
func TestParentThatIsNone(t *testing.T) {
	const bearer = `Bearer realm="%s/token",service="x"`
	html := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<html><title>Welcome to nginx!</title></html>")
	}
	tests := map[string]struct {
		serve    http.HandlerFunc // of a server over http, or with tls over https
		tls      bool
		raw      func(net.Conn) // of a server that speaks something else
		fault    linkproxy.Fault
		protocol string // http where empty
		host     string // that the status names; empty is the address
		says     string // a pattern
		within   time.Duration
	}{
		"refused":    {fault: linkproxy.Refuse, says: `refused`},
		"reset":      {fault: linkproxy.Reset, says: `reset`},
		"black hole": {fault: linkproxy.BlackHole, says: `no answer`, within: 30 * time.Second},
		"no such host": {
			host: "registry.invalid:5000", says: `no such host|lookup|look up|resolve`, within: 30 * time.Second,
		},
		"401, Basic": {serve: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Www-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}, says: `refuses the credential of "sync-token"`},
		"401, Bearer": {serve: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Www-Authenticate", fmt.Sprintf(bearer, "http://"+r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		}, says: `refuse[sd] the credential`},
		"403":                       {serve: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, says: `denies`},
		"a web server, 200 for all": {serve: html, says: `no registry|cannot be read`},
		"a web server, 404 for all": {serve: http.NotFound, says: `no registry`},
		"503":                       {serve: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, says: `answers HTTP 503`},
		"an SSH server": {raw: func(c net.Conn) {
			_, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.6p1 Debian-1\r\n")
			_, _ = io.Copy(io.Discard, c)
		}, says: `the connection to .* failed|HTTP`},
		"an SSH server, asked over https": {protocol: "https", raw: func(c net.Conn) {
			_, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.6p1 Debian-1\r\n")
			_, _ = io.Copy(io.Discard, c)
		}, says: `TLS`},
		"unknown root":             {serve: html, tls: true, protocol: "https", says: `certificate`},
		"http, asked over https":   {serve: html, protocol: "https", says: `TLS|http`},
		"https, asked over http":   {serve: html, tls: true, says: `(?i)https|TLS|answers HTTP 400`},
		"closes without an answer": {raw: func(net.Conn) {}, says: `closed|EOF|reset`},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAbove(t)
			img := a.push("acme/first:1", 64*kib, "a")
			a.set(c.fault)
			host := a.link.Addr()
			switch {
			case c.host != "":
				host = c.host
			case c.raw != nil:
				host = speak(t, c.raw)
			case c.serve != nil:
				s := httptest.NewUnstartedServer(c.serve)
				s.Config.ErrorLog = log.New(io.Discard, "", 0)
				if c.tls {
					s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
					s.StartTLS()
				} else {
					s.Start()
				}
				t.Cleanup(s.Close)
				host = s.Listener.Addr().String()
			}
			if c.protocol == "" {
				c.protocol = "http"
			}
			d := newDaemon(t, t.TempDir())
			d.env = []string{"ACR_REGISTRY_CONNECTION_STRING=ConnectedRegistryName=floor;SyncTokenName=sync-token;SyncTokenPassword=" + layer.Password +
				";ParentGatewayEndpoint=" + host + ";ParentEndpointProtocol=" + c.protocol}
			d.configure(document(host, c.protocol))
			begin := time.Now()
			d.start()
			status := d.shows(`(?m)^! (Parent|Sync) .* since`)
			if took, limit := time.Since(begin), max(c.within, 10*time.Second); took > limit {
				t.Errorf("it took %v until the status said so", took)
			}
			t.Logf("after %v:\n%s", time.Since(begin).Round(100*time.Millisecond), hints(status))
			for line := range strings.Lines(d.logged()) {
				if strings.Contains(line, "sync iteration ended early") {
					t.Logf("log: %s", line)
					break
				}
			}
			d.shows(`(?m)^! .*`+strings.ReplaceAll(host, ".", `\.`), `(?m)^! .*(`+c.says+`)`)
			if code, body := d.v2("GET", "acme/first/manifests/1"); code != http.StatusServiceUnavailable || !strings.Contains(body, host) {
				t.Errorf("a pull: %d %s", code, body)
			}
			if strings.Contains(d.logged()+status, layer.Password) {
				t.Error("the password is in the log or the status")
			}
			if code, _ := d.health("/readyz"); code != http.StatusOK {
				t.Errorf("/readyz: %d", code)
			}
			a.set(linkproxy.None)
			if host != a.link.Addr() {
				d.configure(document(a.link.Addr(), "http"))
			}
			d.synced(1)
			d.has("acme/first:1", img)
			d.alive()
		})
	}
}

// speak serves connections that are not HTTP.
func speak(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return // the test is over
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return ln.Addr().String()
}
