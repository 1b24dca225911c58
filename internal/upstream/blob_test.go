package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/transport"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

// classes are the places of a cut in a body of size bytes.
func classes(size int64) []int64 { return []int64{0, 1, 4095, 4096, 4097, size / 2, size - 1} }

// end closes a connection: by FIN, or by RST.
func end(c net.Conn, reset bool) {
	if tcp, ok := c.(tapped); ok && reset {
		_ = tcp.Conn.(*net.TCPConn).SetLinger(0)
	}
	_ = c.Close()
}

// cutter answers blob requests with ranges, and ends the n-th answer after cuts[n] bytes of it.
type cutter struct {
	blob  registrytest.Blob
	reset bool
	taken func() bool // whether the client has all that was sent: a reset takes back what is still on its way
	cuts  []int64
	sent  []string // Range headers
}

func (c *cutter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var from int64
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
	c.sent = append(c.sent, r.Header.Get("Range"))
	size := int64(len(c.blob.Bytes))
	conn, out, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	status := "200 OK"
	if from > 0 {
		status = "206 Partial Content\r\nContent-Range: bytes " + fmt.Sprintf("%d-%d/%d", from, size-1, size)
	}
	upto := size
	cut := len(c.sent) <= len(c.cuts)
	if cut {
		upto = min(size, from+c.cuts[len(c.sent)-1])
	}
	_, _ = fmt.Fprintf(out, "HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", status, size-from)
	_, _ = out.Write(c.blob.Bytes[from:upto])
	_ = out.Flush()
	for deadline := time.Now().Add(20 * time.Second); cut && c.reset && !c.taken() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	end(conn, cut && c.reset)
}

func TestBlobContinuesAfterACut(t *testing.T) {
	blob := registrytest.NewBlob(1, 50_000)
	for _, reset := range []bool{false, true} {
		for _, at := range classes(blob.Size) {
			t.Run(fmt.Sprintf("reset=%v at %d", reset, at), func(t *testing.T) {
				c := &cutter{blob: blob, reset: reset, cuts: []int64{at}}
				p := connect(t, start(t, "127.0.0.1", c), nil)
				var answered atomic.Bool
				c.taken = func() bool { return answered.Load() && p.Traffic().BytesReceived >= at }
				ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotFirstResponseByte: func() { answered.Store(true) }})
				first, err := readBlob(ctx, p, "acme/base", blob.Digest, 0)
				if !errors.Is(err, registry.ErrUnavailable) {
					t.Fatalf("the cut: %d bytes, %v", len(first), err)
				}
				if !reset && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("the cut: %v", err)
				}
				if int64(len(first)) != at {
					t.Errorf("%d bytes before the cut, want %d", len(first), at)
				}
				rest, err := readBlob(t.Context(), p, "acme/base", blob.Digest, int64(len(first)))
				if err != nil || !bytes.Equal(append(first, rest...), blob.Bytes) {
					t.Fatalf("%d + %d bytes, %v", len(first), len(rest), err)
				}
				if got := p.Traffic().BytesReceived; got != blob.Size {
					t.Errorf("%d bytes received for %d", got, blob.Size)
				}
				if want := "bytes=" + strconv.FormatInt(at, 10) + "-"; at > 0 && c.sent[1] != want || c.sent[0] != "" {
					t.Errorf("ranges %q, want %q", c.sent, want)
				}
			})
		}
	}
}

// A client that leaks a slot at each cut stops here.
func TestManyCutsOfOneBlob(t *testing.T) {
	blob := registrytest.NewBlob(2, 100_000)
	c := &cutter{blob: blob}
	for range 99 {
		c.cuts = append(c.cuts, 1000)
	}
	p := connect(t, start(t, "127.0.0.1", c), nil)
	var got []byte
	for range 100 {
		part, err := readBlob(t.Context(), p, "acme/base", blob.Digest, int64(len(got)))
		got = append(got, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, registry.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, blob.Bytes) || p.Traffic().BytesReceived != blob.Size {
		t.Errorf("%d bytes, %d received", len(got), p.Traffic().BytesReceived)
	}
}

// answers is a table of what a parent may say to GET of a blob of which 100 bytes are here.
func TestBlobAnswers(t *testing.T) {
	const from = 100
	blob := registrytest.NewBlob(3, 10_000)
	send := func(status int, body []byte, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for _, h := range header {
				name, value, _ := strings.Cut(h, ": ")
				w.Header().Set(name, value)
			}
			w.WriteHeader(status)
			if r.Method != http.MethodHead {
				_, _ = w.Write(body)
			}
		}
	}
	chunked := func(status int, body []byte, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for _, h := range header {
				name, value, _ := strings.Cut(h, ": ")
				w.Header().Set(name, value)
			}
			w.WriteHeader(status)
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(body)
		}
	}
	body := blob.Bytes
	tests := []struct {
		name    string
		handler http.HandlerFunc
		good    bool
		code    registry.Code
		cause   error
	}{
		{"the range", send(206, body[from:], "Content-Range: bytes 100-9999/10000"), true, "", nil},
		{"the range, chunked", chunked(206, body[from:], "Content-Range: bytes 100-9999/10000"), true, "", nil},
		{"the range, total unknown", send(206, body[from:], "Content-Range: bytes 100-9999/*"), false, registry.CodeUnavailable, io.ErrUnexpectedEOF},
		{"all of it", send(200, body), true, "", nil},
		{"all of it, chunked", chunked(200, body), true, "", nil},
		{"another range", send(206, body[200:], "Content-Range: bytes 200-9999/10000"), false, registry.CodeRangeInvalid, nil},
		{"the range from 0", send(206, body, "Content-Range: bytes 0-9999/10000"), false, registry.CodeRangeInvalid, nil},
		{"no range said", send(206, body[from:]), false, registry.CodeRangeInvalid, nil},
		{"nonsense range", send(206, body[from:], "Content-Range: bytes 100-/10000"), false, registry.CodeRangeInvalid, nil},
		{"negative range", send(206, body[from:], "Content-Range: bytes 100--1/10000"), false, registry.CodeRangeInvalid, nil},
		{"range beyond the total", send(206, body[from:], "Content-Range: bytes 100-9999/500"), false, registry.CodeRangeInvalid, nil},
		{"range of another length", send(206, body[from:500], "Content-Range: bytes 100-9999/10000", "Content-Length: 400"), false, registry.CodeRangeInvalid, nil},
		{"less than the rest", send(206, body[from:500], "Content-Range: bytes 100-499/10000"), false, registry.CodeUnavailable, io.ErrUnexpectedEOF},
		{"more than the range", chunked(206, append(bytes.Clone(body[from:]), "more"...), "Content-Range: bytes 100-9999/10000"), false, registry.CodeSizeInvalid, nil},
		{"chunks that end early", chunked(206, body[from:500], "Content-Range: bytes 100-9999/10000"), false, registry.CodeUnavailable, io.ErrUnexpectedEOF},
		{"all of it, shorter than what is here", send(200, body[:50]), false, registry.CodeSizeInvalid, nil},
		{"all of it, chunked, shorter than what is here", chunked(200, body[:50]), false, registry.CodeUnavailable, io.ErrUnexpectedEOF},
		{"416 and it is longer", send(416, nil, "Content-Range: bytes */10000"), false, registry.CodeRangeInvalid, nil},
		{"not found", send(404, []byte(`{"errors":[{"code":"BLOB_UNKNOWN"}]}`)), false, registry.CodeBlobUnknown, nil},
		{"not found, web page", send(404, []byte(`<html>`)), false, registry.CodeBlobUnknown, nil},
		{"unknown name", send(404, []byte(`{"errors":[{"code":"NAME_UNKNOWN"}]}`)), false, registry.CodeNameUnknown, nil},
		{"denied", send(403, nil), false, registry.CodeDenied, nil},
		{"fault", send(500, nil), false, registry.CodeUnavailable, nil},
		{"too many", send(429, nil, "Retry-After: 31536000"), false, registry.CodeUnavailable, nil},
		{"nothing", send(204, nil), false, registry.CodeUnavailable, nil},
		{"redirect to nowhere", send(307, nil), false, registry.CodeDenied, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := connect(t, start(t, "127.0.0.1", tt.handler), nil)
			got, err := readBlob(t.Context(), p, "acme/base", blob.Digest, from)
			if tt.good {
				if err != nil || !bytes.Equal(got, body[from:]) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				return
			}
			e := wantCode(t, err, tt.code, "127.0.0.1")
			if tt.cause != nil && !errors.Is(err, tt.cause) {
				t.Errorf("cause of %v, want %v", err, tt.cause)
			}
			if e.RetryAfter > transport.MaxRetryAfter {
				t.Errorf("retry after %v", e.RetryAfter)
			}
			if !bytes.HasPrefix(body[from:], got) {
				t.Errorf("%d bytes that are not the blob's", len(got))
			}
		})
	}
}

func TestBlobFromItsEnd(t *testing.T) {
	blob := registrytest.NewBlob(4, 500)
	for name, header := range map[string]string{"total said": "bytes */500", "total not said": ""} {
		t.Run(name, func(t *testing.T) {
			p := connect(t, start(t, "127.0.0.1", handler(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead {
					w.Header().Set("Content-Length", "500")
					return
				}
				if header != "" {
					w.Header().Set("Content-Range", header)
				}
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			})), nil)
			got, err := readBlob(t.Context(), p, "acme/base", blob.Digest, 500)
			if err != nil || len(got) != 0 {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			_, err = readBlob(t.Context(), p, "acme/base", blob.Digest, 501)
			wantCode(t, err, registry.CodeRangeInvalid, "500 bytes")
		})
	}
}

func TestEmptyBlob(t *testing.T) {
	p := connect(t, start(t, "127.0.0.1", handler(func(http.ResponseWriter, *http.Request) {})), nil)
	got, err := readBlob(t.Context(), p, "acme/base", registrytest.NewBlob(1, 0).Digest, 0)
	if err != nil || len(got) != 0 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestParentThatIgnoresRangesIsReportedOnce(t *testing.T) {
	blob := registrytest.NewBlob(5, 10_000)
	var log bytes.Buffer
	p := connect(t, start(t, "127.0.0.1", handler(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(blob.Bytes) })),
		func(o *upstream.Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	for range 3 {
		got, err := readBlob(t.Context(), p, "acme/base", blob.Digest, 9000)
		if err != nil || !bytes.Equal(got, blob.Bytes[9000:]) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	if n := strings.Count(log.String(), "ignores ranges"); n != 1 {
		t.Errorf("reported %d times", n)
	}
	if got := p.Traffic().BytesReceived; got != 3*blob.Size {
		t.Errorf("%d bytes counted, %d received", got, 3*blob.Size)
	}
}

func TestSizeThatChanges(t *testing.T) {
	blob := registrytest.NewBlob(6, 10_000)
	p := connect(t, start(t, "127.0.0.1", handler(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.Header().Set("Content-Length", "20000")
			return
		}
		w.Header().Set("Content-Length", "10000")
		_, _ = w.Write(blob.Bytes)
	})), nil)
	b, err := p.GetBlob(t.Context(), "acme/base", blob.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if end, err := b.Seek(0, io.SeekEnd); end != 20_000 || err != nil {
		t.Fatal(end, err)
	}
	_, _ = b.Seek(0, io.SeekStart)
	_, err = io.ReadAll(b)
	wantCode(t, err, registry.CodeSizeInvalid, "20000 before")
}

func TestStalledBlob(t *testing.T) {
	blob := registrytest.NewBlob(7, 10_000)
	s := start(t, "127.0.0.1", handler(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10000")
		_, _ = w.Write(blob.Bytes[:1])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	p := connect(t, s, func(o *upstream.Options) { o.Transport.Timeouts.Idle = 50 * time.Millisecond })
	got, err := readBlob(t.Context(), p, "acme/base", blob.Digest, 0)
	wantCode(t, err, registry.CodeUnavailable, "")
	if !errors.Is(err, transport.ErrStalled) || len(got) != 1 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestBlobEndsWithItsContext(t *testing.T) {
	s := start(t, "127.0.0.1", handler(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("x"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	p := connect(t, s, nil)
	ctx, cancel := context.WithCancel(t.Context())
	b, err := p.GetBlob(ctx, "acme/base", registrytest.NewBlob(1, 1).Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) || errors.Is(err, registry.ErrUnavailable) {
		t.Error(err)
	}
}

func TestBlobFromADataHost(t *testing.T) {
	reg, content := filled(t)
	repo, blob := someBlob(content)
	data := start(t, "127.0.0.2", handler(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob.Bytes))
	}))
	stranger := start(t, "127.0.0.3", serve(reg))
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			k := &tokens{realm: "/token"}
			target := data.URL
			s := start(t, "127.0.0.1", k.wrap(handler(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/blobs/") || strings.Contains(r.URL.Path, "/manifests/") {
					http.Redirect(w, r, target+r.URL.Path+"?sig=abc", status)
					return
				}
				serve(reg).ServeHTTP(w, r)
			})))
			p := connect(t, s, func(o *upstream.Options) { login(o); o.Transport.Data = []string{data.URL} })
			for _, from := range []int64{0, 77, blob.Size - 1} {
				got, err := readBlob(t.Context(), p, repo, blob.Digest, from)
				if err != nil || !bytes.Equal(got, blob.Bytes[from:]) {
					t.Errorf("from %d: %d bytes, %v", from, len(got), err)
				}
			}
			if d, err := p.ResolveBlob(t.Context(), repo, blob.Digest); err != nil || d.Size != blob.Size {
				t.Errorf("head: %+v, %v", d, err)
			}
			_, err := p.GetManifest(t.Context(), repo, registry.TagReference("latest"))
			wantCode(t, err, registry.CodeDenied, "127.0.0.2")
			target = stranger.URL
			_, err = readBlob(t.Context(), p, repo, blob.Digest, 0)
			wantCode(t, err, registry.CodeDenied, "127.0.0.3")
		})
	}
	if heard := data.heard(); strings.Contains(heard, "Authorization") || secretsIn(heard) || strings.Contains(heard, "Connected-Registry") {
		t.Error("the data host was sent a credential")
	}
	if heard := stranger.heard(); heard != "" {
		t.Errorf("the stranger was sent %q", heard)
	}
}
