package transport_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/transport"
)

// theirs is what package net/http writes itself to what is no request.
var theirs = []string{
	"HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nUnsupported transfer encoding",
	"HTTP/1.1 505 HTTP Version Not Supported: unsupported protocol version\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n505 HTTP Version Not Supported: unsupported protocol version",
	"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request",
}

// serve starts a server on loopback, with TLS if there is a config, and returns its address.
func serve(t *testing.T, h http.Handler, config *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := transport.NewServer(h, transport.ServerOptions{})
	var running sync.WaitGroup
	running.Go(func() { _ = transport.Serve(t.Context(), s, l, config) })
	t.Cleanup(func() {
		_ = s.Close()
		running.Wait()
	})
	return l.Addr().String()
}

// ways runs a test over http and over https with HTTP/1.1.
func ways(t *testing.T, h http.Handler, run func(t *testing.T, dial func() net.Conn)) {
	t.Helper()
	cert, pool := certificate(t, time.Now().Add(-time.Minute), "127.0.0.1")
	for name, config := range map[string]*tls.Config{"http": nil, "https": {Certificates: []tls.Certificate{cert}}} {
		t.Run(name, func(t *testing.T) {
			addr := serve(t, h, config)
			run(t, func() net.Conn {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				if config != nil {
					c = tls.Client(c, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"})
				}
				t.Cleanup(func() { _ = c.Close() })
				return c
			})
		})
	}
}

// answers sends bytes over a connection of their own, after others were answered, and returns the answers to both.
func answers(t *testing.T, c net.Conn, first, then string) (all []*http.Response, bodies []string) {
	t.Helper()
	in := bufio.NewReader(c)
	read := func() bool {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("after %d answers: %v", len(all), err)
			}
			return false
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			t.Errorf("the body of answer %d: %v", len(all), err)
		}
		all, bodies = append(all, resp), append(bodies, string(body))
		return true
	}
	if first != "" {
		if _, err := io.WriteString(c, first); err != nil || !read() {
			t.Fatalf("the first request: %v", err)
		}
	}
	if _, err := io.WriteString(c, then); err != nil {
		t.Fatal(err)
	}
	for read() {
		continue
	}
	return all, bodies
}

// TestNoRequestGetsAnErrorBody: what net/http refuses by itself is the client's fault, and the client is told in JSON; first
// on its connection, after an answer, and right behind a request.
func TestNoRequestGetsAnErrorBody(t *testing.T) {
	const good = "GET /good HTTP/1.1\r\nHost: x\r\n\r\n"
	large := "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 9000)
	ways(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "good") }), func(t *testing.T, dial func() net.Conn) {
		for _, tt := range []struct {
			name, raw string
			status    int
			says      string
		}{
			{"unknown coding", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n", 400, "send a Content-Length"},
			{"two codings", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400, "send a Content-Length"},
			{"HTTP/3.0", "GET / HTTP/3.0\r\nHost: x\r\n\r\n", 400, "use HTTP/1.1"},
			{"HTTP/2.0", "GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400, "use HTTP/1.1"},
			{"no Host", "GET / HTTP/1.1\r\n\r\n", 400, "missing required Host header"},
			{"no length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400, "mend it"},
			{"large header", large[:36<<10], 431, "32 KiB"}, // all that net/http reads: bytes that are left would reset the connection
		} {
			for before, sent := range map[string][2]string{"": {"", tt.raw}, " after an answer": {good, tt.raw}, " behind a request": {"", good + tt.raw}, " third": {good, good + tt.raw}} {
				if len(tt.raw) > 1000 && before != "" {
					continue
				}
				t.Run(tt.name+before, func(t *testing.T) {
					all, bodies := answers(t, dial(), sent[0], sent[1])
					if want := strings.Count(sent[0]+sent[1], good) + 1; len(all) != want {
						t.Fatalf("%d answers, want %d", len(all), want)
					}
					for _, body := range bodies[:len(bodies)-1] {
						if body != "good" {
							t.Errorf("the answer before has %q", body)
						}
					}
					resp, body := all[len(all)-1], bodies[len(bodies)-1]
					var doc struct {
						Errors []struct{ Code, Message string }
					}
					if err := json.Unmarshal([]byte(body), &doc); err != nil || len(doc.Errors) != 1 || doc.Errors[0].Code != "UNSUPPORTED" || !strings.Contains(doc.Errors[0].Message, tt.says) {
						t.Errorf("%q, want one error that says %q", body, tt.says)
					}
					if resp.StatusCode != tt.status || !resp.Close || resp.ContentLength != int64(len(body)) || resp.Header.Get("Content-Type") != "application/json" {
						t.Errorf("%s, close %v, length %d, %v; want %d", resp.Status, resp.Close, resp.ContentLength, resp.Header, tt.status)
					}
				})
			}
		}
	})
}

// TestContentIsNoAnswer: content that says what net/http would say is content, however it is sent, and an answer that a
// handler gives is its own.
func TestContentIsNoAnswer(t *testing.T) {
	dir := t.TempDir()
	for i, text := range theirs {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var at atomic.Int32
	send := map[string]func(w http.ResponseWriter, r *http.Request, text string){
		"whole": func(w http.ResponseWriter, r *http.Request, _ string) {
			http.ServeFile(w, r, filepath.Join(dir, fmt.Sprint(at.Load())))
		},
		"range": func(w http.ResponseWriter, r *http.Request, text string) {
			r.Header.Set("Range", "bytes=9-"+fmt.Sprint(9+len(text)-1))
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader("something"+text+"else"))
		},
		"header first": func(w http.ResponseWriter, _ *http.Request, text string) {
			w.Header().Set("Content-Length", fmt.Sprint(2*len(text)))
			for _, part := range []string{"", text, text} {
				_, _ = io.WriteString(w, part)
				_ = http.NewResponseController(w).Flush()
			}
		},
		"chunked": func(w http.ResponseWriter, _ *http.Request, text string) {
			for range 2 {
				_ = http.NewResponseController(w).Flush()
				_, _ = io.WriteString(w, text)
			}
		},
		"large": func(w http.ResponseWriter, _ *http.Request, text string) {
			for range 200 {
				_, _ = io.WriteString(w, text)
			}
		},
		"after an early hint": func(w http.ResponseWriter, _ *http.Request, text string) {
			w.WriteHeader(http.StatusEarlyHints)
			_, _ = io.WriteString(w, text)
		},
		"refused": func(w http.ResponseWriter, _ *http.Request, text string) {
			w.Header().Set("Connection", "keep-alive")
			http.Error(w, text, http.StatusNotImplemented)
		},
	}
	want := map[string]func(text string) string{
		"header first": func(text string) string { return text + text },
		"chunked":      func(text string) string { return text + text },
		"large":        func(text string) string { return strings.Repeat(text, 200) },
		"refused":      func(text string) string { return text + "\n" },
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { send[r.URL.Query().Get("way")](w, r, theirs[at.Load()]) })
	ways(t, handler, func(t *testing.T, dial func() net.Conn) {
		for i, text := range theirs {
			at.Store(int32(i))
			var all, names []string
			for name := range send {
				names = append(names, name)
				all = append(all, "GET /?way="+strings.ReplaceAll(name, " ", "+")+" HTTP/1.1\r\nHost: x\r\n\r\n")
			}
			for _, kept := range []bool{true, false} { // one after the other, or all at once
				c := dial()
				in := bufio.NewReader(c)
				if !kept {
					_, _ = io.WriteString(c, strings.Join(all, ""))
				}
				for j, name := range names {
					if kept {
						_, _ = io.WriteString(c, all[j])
					}
					resp, err := http.ReadResponse(in, nil)
					for err == nil && resp.StatusCode < 200 {
						resp, err = http.ReadResponse(in, nil)
					}
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					body, err := io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					whole := text
					if f := want[name]; f != nil {
						whole = f(text)
					}
					if err != nil || string(body) != whole || name == "refused" && resp.StatusCode != http.StatusNotImplemented {
						t.Errorf("%s, kept %v: %s, %d bytes, %v, want %d: %.300q", name, kept, resp.Status, len(body), err, len(whole), body)
					}
				}
				_ = c.Close()
			}
		}
	})
}

// TestTLSSpeaksBoth: HTTP/2 to who offers it and HTTP/1.1 to others, with the certificate of the moment; who does not speak
// TLS is told so.
func TestTLSSpeaksBoth(t *testing.T) {
	one, pool := certificate(t, time.Now().Add(-time.Minute), "127.0.0.1")
	var asked atomic.Int32
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Proto, " ", r.TLS != nil && r.TLS.HandshakeComplete)
	}), &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		asked.Add(1)
		return &one, nil
	}})
	for i, tt := range []struct {
		offers []string
		h2     bool
		want   string
	}{
		{nil, true, "HTTP/2.0 true"},
		{[]string{"http/1.1"}, false, "HTTP/1.1 true"},
		{[]string{"x"}, false, ""},
	} {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, NextProtos: tt.offers}, ForceAttemptHTTP2: tt.h2, DisableKeepAlives: true}}
		resp, err := c.Get("https://" + addr)
		if tt.want == "" {
			if err == nil {
				_ = resp.Body.Close()
				t.Error("a protocol that nobody knows was agreed to")
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if string(body) != tt.want || int(asked.Load()) != i+1 {
			t.Errorf("%q after %d certificates, want %q", body, asked.Load(), tt.want)
		}
	}
	for _, method := range []string{"GET", "PATCH", "DELETE"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		all, bodies := answers(t, c, "", method+" / HTTP/1.1\r\nHost: x\r\n\r\n")
		_ = c.Close()
		if len(all) != 1 || all[0].StatusCode != http.StatusBadRequest || !strings.Contains(bodies[0], "use https") {
			t.Errorf("%s without TLS: %v %q", method, all, bodies)
		}
	}
}

// TestHandshakesEnd: one that is not done is over after 5 s, or with the server, and no other waits for it.
func TestHandshakesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cert, pool := certificate(t, time.Now(), "127.0.0.1")
		s, p, ended := startServer(t, http.NotFoundHandler(), transport.ServerOptions{}, &tls.Config{Certificates: []tls.Certificate{cert}})
		begin := time.Now()
		var gone sync.WaitGroup
		for _, sent := range []string{"", "\x16\x03\x01\x02\x00\x01", "GE"} {
			c := p.dial(t)
			gone.Go(func() {
				_, _ = io.WriteString(c, sent)
				_, _ = io.Copy(io.Discard, c)
				if took := time.Since(begin); took != 5*time.Second {
					t.Errorf("%q: held for %v", sent, took)
				}
			})
		}
		p.conns <- nil // after which others come
		c := tls.Client(p.dial(t), &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"})
		if all, _ := answers(t, c, "", "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); len(all) != 1 || all[0].StatusCode != http.StatusNotFound {
			t.Errorf("%v", all)
		}
		_ = c.Close()
		if took := time.Since(begin); took >= 5*time.Second {
			t.Errorf("an answer took %v", took)
		}
		gone.Wait()

		half := p.dial(t)
		synctest.Wait()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		begin = time.Now()
		_, _ = io.Copy(io.Discard, half)
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) || time.Since(begin) > 0 {
			t.Errorf("Serve: %v after %v", err, time.Since(begin))
		}
	})
}

// TestHandshakesAreCounted: connections in their handshake are among those of the bound, once.
func TestHandshakesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 4
		hold := make(chan struct{})
		cert, pool := certificate(t, time.Now(), "127.0.0.1")
		_, p, _ := startServer(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				<-hold
			}
		}), transport.ServerOptions{MaxConns: most}, &tls.Config{Certificates: []tls.Certificate{cert}})
		var running sync.WaitGroup
		client := func() net.Conn { return tls.Client(p.dial(t), &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}) }
		ask := func(path string) {
			c := client()
			if all, _ := answers(t, c, "", "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); len(all) != 1 || all[0].StatusCode != http.StatusOK {
				t.Errorf("%s: %v", path, all)
			}
			_ = c.Close()
		}
		running.Go(func() { ask("/slow") })
		synctest.Wait()
		var closed atomic.Int32
		silent := func(n int) {
			for range n {
				c := p.dial(t)
				running.Go(func() {
					_, _ = io.Copy(io.Discard, c)
					closed.Add(1)
				})
				synctest.Wait()
			}
		}
		for _, step := range []struct {
			do   func()
			want int32
		}{
			{func() { silent(most - 1) }, 0}, // with the request that is under way the bound is reached
			{func() { silent(10) }, 10},
			{func() { ask("/") }, 11}, // is answered, and gives its place back
			{func() { silent(1) }, 11},
			{func() { silent(1) }, 12},
			{func() { time.Sleep(5 * time.Second) }, most + 11}, // the rest of them
		} {
			step.do()
			synctest.Wait()
			if got := closed.Load(); got != step.want {
				t.Fatalf("%d silent connections are closed, want %d", got, step.want)
			}
		}
		kept := client()
		in := bufio.NewReader(kept)
		for range 2 {
			_, _ = io.WriteString(kept, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("kept: %v, %v", resp, err)
			}
			for range 2 * most { // what fails gives its place back too
				synctest.Wait()
				if all, _ := answers(t, p.dial(t), "", "GET / HTTP/1.1\r\n\r\n"); len(all) != 1 || all[0].StatusCode != http.StatusBadRequest {
					t.Errorf("without TLS: %v", all)
				}
			}
			time.Sleep(time.Minute) // the end of a connection with TLS may take a while
		}
		_ = kept.Close()
		close(hold)
		running.Wait()
	})
}
