package chaos

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// TestNeverInTheWay pulls what is here while the registry synchronises as fast as it can, in each state of its parent, and
// prints the 99th percentile beside the one at rest. The ratio is for people: the machine may be busy. What is asserted
// is that no pull fails and that none waits for the parent.
func TestNeverInTheWay(t *testing.T) {
	const limit = time.Second
	size := 64 * mib
	if long {
		size = 512 * mib
	}
	s := newSite(t, 1)
	var fault atomic.Pointer[http.HandlerFunc]
	target := &url.URL{Scheme: "http", Host: s.cloud.Addr}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	front := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := fault.Load(); f != nil {
			(*f)(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	go func() { _ = front.Serve(ln) }()
	t.Cleanup(func() { _ = front.Close() })
	link, err := linkproxy.New(ln.Addr().String())
	s.must(err)
	t.Cleanup(func() { s.must(link.Close()) })
	addr, ca := s.expired(proxy)
	l, err := layer.New(layer.Options{
		Binary: binary, Dir: t.TempDir(), Name: "line", Parent: link.Addr(), Repositories: map[string]string{"all": repo}, Args: []string{"--parent-ca", ca},
	})
	s.must(err)
	t.Cleanup(func() { s.must(l.Close()) })
	small := s.push(repo+":1", mib, "small")
	s.must(l.Start(s.ctx))
	s.wait(l, 1)
	s.same(l, repo+":1", small)

	rest := s.percentile(l, 2*time.Second, limit)
	t.Logf("at rest: p99 %v", rest)
	say := func(status int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
		}
	}
	lying := func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			_, _ = io.WriteString(w, strings.Repeat("lies", 1<<20))
			return
		}
		proxy.ServeHTTP(w, r)
	}
	for i, state := range []struct {
		name  string
		plan  linkproxy.Plan
		fault http.HandlerFunc
	}{
		{"up", linkproxy.Plan{}, nil},
		{"slow", linkproxy.Plan{BytesPerSecond: mib}, nil},
		{"resetting", linkproxy.Plan{Fault: linkproxy.Reset}, nil},
		{"a black hole", linkproxy.Plan{Fault: linkproxy.BlackHole}, nil},
		{"lying", linkproxy.Plan{}, lying},
		{"refusing the credential", linkproxy.Plan{}, say(http.StatusUnauthorized, "Www-Authenticate", `Basic realm="x"`)},
		{"asking for a year of rest", linkproxy.Plan{}, say(http.StatusTooManyRequests, "Retry-After", "31536000")},
	} {
		s.push(fmt.Sprintf("%s:big%d", repo, i), size, fmt.Sprintf("big%d", i))
		s.must(link.Set(state.plan))
		if state.fault != nil {
			fault.Store(&state.fault)
		}
		synced := make(chan error, 1)
		go func() { synced <- l.Sync(s.ctx) }()
		busy := s.percentile(l, 2*time.Second, limit)
		t.Logf("parent %s: p99 %v, %.1f times that at rest", state.name, busy, float64(busy)/float64(rest))
		fault.Store(nil)
		s.must(link.Set(linkproxy.Plan{}))
		<-synced
	}
	l.Document = map[string]any{"parent": map[string]any{"gatewayEndpoint": addr, "protocol": "https", "syncProperties": map[string]string{"schedule": "* * * * *"}}}
	s.must(l.Configure())
	s.must(l.Until(s.ctx, "it says that the certificate has expired", func(ctx context.Context) (bool, error) {
		st, err := l.Status(ctx)
		return err == nil && slices.ContainsFunc(st.StatusDetails, func(d registry.StatusDetail) bool {
			return strings.Contains(d.Description, "expired")
		}), nil
	}))
	go func() { _ = l.Sync(s.ctx) }()
	busy := s.percentile(l, 2*time.Second, limit)
	t.Logf("parent with an expired certificate: p99 %v, %.1f times that at rest", busy, float64(busy)/float64(rest))
}

// expired serves with a certificate that ended an hour ago, and returns where and the file with whom to trust for it.
func (s *site) expired(h http.Handler) (addr, ca string) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	s.must(err)
	ca = filepath.Join(s.t.TempDir(), "ca.pem")
	s.must(os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // each handshake that fails
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	server.StartTLS()
	s.t.Cleanup(server.Close)
	return server.Listener.Addr().String(), ca
}

// percentile pulls what is here for a while, four at a time, and returns the 99th percentile of the times.
func (s *site) percentile(l *layer.Layer, long, limit time.Duration) time.Duration {
	s.t.Helper()
	const clients = 4
	times := make(chan []time.Duration, clients)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	defer client.CloseIdleConnections()
	until := time.Now().Add(long)
	for range clients {
		go func() {
			var list []time.Duration
			for time.Now().Before(until) {
				began := time.Now()
				resp, err := client.Get("http://" + l.Addr + "/v2/" + repo + "/manifests/1")
				if err != nil {
					s.t.Errorf("a pull of what is here: %v", err)
					break
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					s.t.Errorf("a pull of what is here: %s", resp.Status)
				}
				list = append(list, time.Since(began))
			}
			times <- list
		}()
	}
	var all []time.Duration
	for range clients {
		all = append(all, <-times...)
	}
	if len(all) == 0 {
		s.t.Fatal("no pull at all")
	}
	slices.Sort(all)
	p99 := all[len(all)*99/100]
	if p99 > limit {
		s.t.Errorf("the 99th percentile of %d pulls is %v: they wait for the parent", len(all), p99)
	}
	return p99
}
