package transport_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/transport"
)

// pipes is a listener of in-memory connections.
type pipes struct {
	conns chan net.Conn // nil: there is no file descriptor for one
	once  sync.Once
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		if c == nil {
			return nil, syscall.EMFILE
		}
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// startServer starts a server of this package inside the bubble, with TLS if there is a config. It returns what accepts
// connections, and what Serve returned.
func startServer(t *testing.T, h http.Handler, o transport.ServerOptions, config *tls.Config) (*http.Server, *pipes, <-chan error) {
	t.Helper()
	p, ended := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}, make(chan error, 1)
	s := transport.NewServer(h, o)
	var running sync.WaitGroup
	running.Go(func() { ended <- transport.Serve(t.Context(), s, p, config) })
	t.Cleanup(func() {
		_ = s.Close()
		running.Wait()
		time.Sleep(time.Second) // net/http lingers after an error
	})
	return s, p, ended
}

// dial connects to the server.
func (p *pipes) dial(t *testing.T) net.Conn {
	near, far := net.Pipe()
	p.conns <- far
	t.Cleanup(func() { _ = near.Close() })
	return near
}

// dialServer starts a server without TLS and returns how to connect to it.
func dialServer(t *testing.T, h http.Handler, o transport.ServerOptions) func() net.Conn {
	t.Helper()
	_, p, _ := startServer(t, h, o, nil)
	return func() net.Conn { return p.dial(t) }
}

func TestServerEndsSlowHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := dialServer(t, http.NotFoundHandler(), transport.ServerOptions{})
		for _, first := range []string{"", "GET / HTTP/1.1\r\nHost: a\r\nX-"} {
			c := dial()
			start := time.Now()
			go func() {
				_, _ = io.WriteString(c, first)
				for first != "" {
					time.Sleep(time.Second)
					if _, err := io.WriteString(c, "a"); err != nil {
						return
					}
				}
			}()
			_, _ = io.Copy(io.Discard, c)
			if took := time.Since(start); took != 5*time.Second {
				t.Errorf("%q: held for %v", first, took)
			}
		}
	})
}

// TestServerIsNotCrowdedOut: of too many connections those go that wait longest without a request; a request that is under
// way, and one that comes last, are answered.
func TestServerIsNotCrowdedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 8
		hold := make(chan struct{})
		dial := dialServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				<-hold
			}
			fmt.Fprint(w, "here")
		}), transport.ServerOptions{MaxConns: most})
		ask := func(c net.Conn, path string) *http.Response {
			if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path); err != nil {
				t.Error(err)
				return nil
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Error(err)
			}
			return resp
		}
		var slow sync.WaitGroup
		busy := dial()
		slow.Go(func() { ask(busy, "/slow") })
		synctest.Wait()
		closed := 0
		var mu sync.Mutex
		for range 10 * most {
			c := dial()
			go func() {
				_, _ = io.Copy(io.Discard, c)
				mu.Lock()
				closed++
				mu.Unlock()
			}()
			synctest.Wait()
		}
		ask(dial(), "/")
		synctest.Wait()
		mu.Lock()
		if want := 10*most + 2 - most; closed != want {
			t.Errorf("%d of %d connections were closed at once, want %d", closed, 10*most+2, want)
		}
		mu.Unlock()
		close(hold)
		slow.Wait()
	})
}

func TestServerRefusesLargeHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := dialServer(t, http.NotFoundHandler(), transport.ServerOptions{})()
		go func() {
			_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n", strings.Repeat("x", 40<<10))
		}()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%v, %v", resp, err)
		}
	})
}

func TestServerKeepsSlowBodiesAndEndsIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		base := context.WithValue(t.Context(), key{}, "base")
		c := dialServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, err, r.Context().Value(key{}))
		}), transport.ServerOptions{IdleTimeout: time.Minute, BaseContext: base})()
		go func() {
			_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 24\r\n\r\n")
			for range 24 {
				time.Sleep(time.Hour)
				_, _ = io.WriteString(c, "x")
			}
		}()
		br := bufio.NewReader(c)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "24 <nil>base" {
			t.Errorf("%q", body)
		}
		start := time.Now()
		_, _ = br.ReadByte()
		if took := time.Since(start); took != time.Minute {
			t.Errorf("idle for %v", took)
		}
	})
}
