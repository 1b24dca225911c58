package access

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// flooded is a process with a TLS listener that clients mean ill with.
type flooded struct {
	t     *testing.T
	layer *layer.Layer
	addr  string // of TLS
	tls   *tls.Config
	pulls *http.Client // of one who pulls meanwhile
}

// maxFlooded bounds what the process ever has in memory under all of it, in bytes.
const maxFlooded = 128 << 20

// TestFloods is the real binary with TLS under clients that are slow, greedy or break the rules of HTTP/2. Each of them is
// cut off or bounded, others pull on, and memory stays small.
func TestFloods(t *testing.T) {
	f := newFlooded(t)
	t.Run("waiting", func(t *testing.T) { // side by side, as each waits for the same seconds
		for name, attack := range map[string]func(*flooded){
			"half a header":                      (*flooded).halfHeaders,        // CVE-2026-56853
			"half a header over TLS":             (*flooded).halfHeadersOverTLS, // CVE-2026-56853
			"handshakes that never end":          (*flooded).handshakes,         // CVE-2026-73500
			"more connections than there may be": (*flooded).connections,        // CVE-2026-73500
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f.run(t, attack)
			})
		}
	})
	for name, attack := range map[string]func(*flooded){
		"a header without an end":                 (*flooded).endlessHeader, // CVE-2025-61726
		"HTTP/2 rapid reset":                      (*flooded).rapidReset,    // CVE-2023-44487, CVE-2023-39325
		"HTTP/2 resets that the server makes":     (*flooded).madeReset,     // CVE-2025-8671
		"HTTP/2 continuation without an end":      (*flooded).continuation,  // CVE-2023-45288
		"HTTP/2 headers that unpack to many":      (*flooded).packedHeaders, // CVE-2022-41723
		"HTTP/2 pings whose answers nobody reads": (*flooded).deafPings,     // CVE-2019-9512, CVE-2019-9515
		"HTTP/2 more streams than there may be":   (*flooded).streams,       // CVE-2023-39325
	} {
		t.Run(name, func(t *testing.T) { f.run(t, attack) })
	}
	now, peak := f.layer.RSS()
	t.Logf("resident memory %d MiB, %d MiB at most", now>>20, peak>>20)
	if peak > maxFlooded && !layer.Race {
		t.Errorf("resident memory was %d MiB, want at most %d", peak>>20, maxFlooded>>20)
	}
}

// run attacks, and then somebody else pulls.
func (f *flooded) run(t *testing.T, attack func(*flooded)) {
	sub := *f
	sub.t = t
	attack(&sub)
	sub.pull()
}

func newFlooded(t *testing.T) *flooded {
	certified := httptest.NewTLSServer(http.NotFoundHandler())
	certified.Close() // only its certificate is of use
	certificate := certified.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "tls.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "tls.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	addr, release, err := linkproxy.ReservePort()
	must(t, err)
	t.Cleanup(release)
	l, err := layer.New(layer.Options{
		Binary: built(t), Dir: dir, Name: "flooded", Mode: registry.ReadWrite, Closed: true, Args: []string{"--listen-tls", addr},
		Env: []string{"ACR_REGISTRY_CERTIFICATE_VOLUME=" + dir},
		Document: map[string]any{
			"scopeMaps": map[string]any{"all": layer.Everything("*")}, "clientTokens": map[string]any{"all": layer.Token("all", "pw-all")},
		},
	})
	must(t, err)
	must(t, l.Start(t.Context()))
	t.Cleanup(func() { must(t, l.Close()) })
	roots := x509.NewCertPool()
	roots.AddCert(certified.Certificate())
	f := &flooded{t: t, layer: l, addr: addr, tls: &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}}
	f.pulls = &http.Client{Timeout: limit, Transport: &http.Transport{TLSClientConfig: f.tls.Clone(), ForceAttemptHTTP2: true, DisableKeepAlives: true}}
	s := &site{t: t, addr: l.Addr, http: http.DefaultClient}
	s.ready()
	s.ask(request{method: "PUT", path: "/v2/acme/app/manifests/v1", user: "all", password: "pw-all", body: empty, contentType: indexType})
	f.pull()
	return f
}

// pull is somebody else's request, on a connection of its own.
func (f *flooded) pull() {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, "https://"+f.addr+"/v2/acme/app/manifests/v1", http.NoBody)
	must(f.t, err)
	req.SetBasicAuth("all", "pw-all")
	resp, err := f.pulls.Do(req)
	must(f.t, err)
	raw, err := io.ReadAll(resp.Body)
	must(f.t, err)
	must(f.t, resp.Body.Close())
	if resp.StatusCode != http.StatusOK || string(raw) != empty {
		f.t.Errorf("somebody else's pull: %d %s", resp.StatusCode, raw)
	}
}

// dial opens a connection, with what is sent on it at once.
func (f *flooded) dial(addr, first string) net.Conn {
	f.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(f.t.Context(), "tcp", addr)
	must(f.t, err)
	f.t.Cleanup(func() { _ = conn.Close() })
	_, err = io.WriteString(conn, first)
	must(f.t, err)
	return conn
}

// secure opens a connection with TLS and one protocol.
func (f *flooded) secure(protocol string) *tls.Conn {
	f.t.Helper()
	c := f.tls.Clone()
	c.NextProtos = []string{protocol}
	conn, err := (&tls.Dialer{Config: c}).DialContext(f.t.Context(), "tcp", f.addr)
	must(f.t, err)
	f.t.Cleanup(func() { _ = conn.Close() })
	return conn.(*tls.Conn)
}

// ends waits until the other side closes each of the connections.
func (f *flooded) ends(what string, conns []net.Conn) {
	f.t.Helper()
	for _, conn := range conns {
		must(f.t, conn.SetReadDeadline(time.Now().Add(limit)))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			f.t.Fatalf("%s: kept open for %v", what, limit)
		}
	}
}

func (f *flooded) handshakes() {
	var open []net.Conn
	for i := range 200 {
		open = append(open, f.dial(f.addr, []string{"", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc"}[i%2]))
	}
	f.pull()
	f.ends("half a handshake", open)
}

const halfHeader = "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: "

func (f *flooded) halfHeaders() {
	var open []net.Conn
	for range 50 {
		open = append(open, f.dial(f.layer.Addr, halfHeader))
	}
	f.pull()
	f.ends("half a header", open)
}

func (f *flooded) halfHeadersOverTLS() {
	var open []net.Conn
	for range 50 {
		conn := f.secure("http/1.1")
		_, err := io.WriteString(conn, halfHeader)
		must(f.t, err)
		open = append(open, conn)
	}
	f.pull()
	f.ends("half a header", open)
}

func (f *flooded) endlessHeader() {
	conn := f.secure("http/1.1")
	go func() { // until the other side has enough
		_, err := io.WriteString(conn, "GET /v2/ HTTP/1.1\r\nHost: x\r\n")
		for i := 0; err == nil && i < 1<<20; i++ {
			_, err = fmt.Fprintf(conn, "X-%d: %0100d\r\n", i, i)
		}
	}()
	must(f.t, conn.SetReadDeadline(time.Now().Add(limit)))
	raw, _ := io.ReadAll(conn) // reset, when more came than was read
	if len(raw) > 0 && !strings.HasPrefix(string(raw), "HTTP/1.1 431 ") {
		f.t.Errorf("answer %.60q", raw)
	}
}

func (f *flooded) connections() {
	var files syscall.Rlimit
	must(f.t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files))
	n := int(min(3000, files.Cur/2))
	var wg sync.WaitGroup
	for range n {
		conn := f.dial(f.addr, "")
		wg.Go(func() { _, _ = io.Copy(io.Discard, conn) })
	}
	f.pull()
	wg.Wait() // all of them end: those of too many at once, the others when they said nothing for long enough
	f.t.Logf("%d connections ended", n)
}

// h2 is a connection that breaks the rules of HTTP/2.
type h2 struct {
	*http2.Framer
	conn   *tls.Conn
	table  bytes.Buffer
	packer *hpack.Encoder
	gone   chan struct{} // closed when the other side is
	away   atomic.Uint32 // the code of its GOAWAY, plus 1
	acks   atomic.Int64  // frames of answers to pings
}

// open connects; read is false for a client that never reads.
func (f *flooded) open(read bool) *h2 {
	f.t.Helper()
	conn := f.secure("h2")
	if p := conn.ConnectionState().NegotiatedProtocol; p != "h2" {
		f.t.Fatalf("the server speaks %q", p)
	}
	h := &h2{Framer: http2.NewFramer(conn, conn), conn: conn, gone: make(chan struct{})}
	h.packer = hpack.NewEncoder(&h.table)
	_, err := io.WriteString(conn, http2.ClientPreface)
	must(f.t, err)
	must(f.t, h.WriteSettings())
	if !read {
		return h
	}
	go func() {
		defer close(h.gone)
		for {
			frame, err := h.ReadFrame()
			if err != nil {
				return
			}
			switch frame := frame.(type) {
			case *http2.GoAwayFrame:
				h.away.Store(uint32(frame.ErrCode) + 1)
			case *http2.PingFrame:
				h.acks.Add(1)
			}
		}
	}()
	return h
}

// header packs a header.
func (h *h2) header(more ...hpack.HeaderField) []byte {
	h.table.Reset()
	for _, field := range append([]hpack.HeaderField{
		{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "x"}, {Name: ":path", Value: "/v2/"},
	}, more...) {
		_ = h.packer.WriteField(field) // into memory
	}
	return bytes.Clone(h.table.Bytes())
}

// alive asks whether the connection still answers a ping, and returns false when it is ended.
func (h *h2) alive(t *testing.T) bool {
	t.Helper()
	before := h.acks.Load()
	if h.WritePing(false, [8]byte{1}) != nil {
		<-h.gone
		return false
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for h.acks.Load() == before {
		select {
		case <-h.gone:
			return false
		case <-ctx.Done():
			t.Fatalf("a ping was not answered for %v, and the connection not ended", limit)
		case <-tick.C:
		}
	}
	return true
}

// many is how often a frame is sent; a tenth under the race detector, which is that much slower at answering them all.
func many(n int) int {
	if layer.Race {
		return n / 10
	}
	return n
}

func (f *flooded) rapidReset() {
	h := f.open(true)
	var err error
	for i := 0; i < many(50_000) && err == nil; i++ {
		id := uint32(2*i + 1)
		err = errors.Join(
			h.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.header(), EndStream: true, EndHeaders: true}),
			h.WriteRSTStream(id, http2.ErrCodeCancel),
		)
		if i%many(10_000) == 0 {
			f.pull()
		}
	}
	f.t.Logf("%d resets: alive %t, GOAWAY %d", many(50_000), h.alive(f.t), int(h.away.Load())-1)
}

func (f *flooded) madeReset() {
	h := f.open(true)
	var err error
	for i := 0; i < many(20_000) && err == nil; i++ {
		id := uint32(2*i + 1)
		err = errors.Join(
			h.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.header(), EndHeaders: true}),
			h.WriteRawFrame(http2.FrameWindowUpdate, 0, id, []byte{0, 0, 0, 0}),
		) // by nothing, for which the server resets
	}
	f.t.Logf("%d streams that the server resets: alive %t, GOAWAY %d", many(20_000), h.alive(f.t), int(h.away.Load())-1)
}

func (f *flooded) continuation() {
	h := f.open(true)
	must(f.t, h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.header(), EndStream: true}))
	piece := h.header(hpack.HeaderField{Name: "x-more", Value: strings.Repeat("x", 8<<10)})
	sent := 0
	for h.WriteContinuation(1, false, piece[:4096]) == nil && sent < 512<<20 {
		sent += 4096
	}
	select {
	case <-h.gone:
	case <-time.After(limit):
		f.t.Fatalf("%d MiB of a header are taken", sent>>20)
	}
	f.t.Logf("ended after %d KiB were sent, GOAWAY %d", sent>>10, int(h.away.Load())-1)
	if sent > 16<<20 { // most of it are the buffers of both sides
		f.t.Errorf("%d MiB of a header are taken", sent>>20)
	}
}

func (f *flooded) packedHeaders() {
	h := f.open(true)
	many := make([]hpack.HeaderField, 10_000) // each a byte or two once it is in the table
	for i := range many {
		many[i] = hpack.HeaderField{Name: "x-packed", Value: strings.Repeat("x", 3000)}
	}
	var err error
	for i := 0; i < 50 && err == nil; i++ {
		err = h.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: h.header(many...), EndStream: true, EndHeaders: true})
	}
	f.t.Logf("50 headers of 30 MB in 13 KB: alive %t, GOAWAY %d", h.alive(f.t), int(h.away.Load())-1)
}

func (f *flooded) deafPings() {
	h := f.open(false)
	must(f.t, h.conn.SetWriteDeadline(time.Now().Add(limit)))
	for i := range 4_000_000 {
		if err := h.WritePing(false, [8]byte{}); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				f.t.Errorf("after %d pings whose answers nobody reads the connection is neither ended nor read", i)
			}
			f.t.Logf("ended after %d pings", i)
			return
		}
	}
	f.t.Error("4,000,000 answers wait for a client that does not read")
}

func (f *flooded) streams() {
	h := f.open(true)
	var err error
	for i := 0; i < 5000 && err == nil; i++ { // uploads that wait for their bodies
		err = h.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: h.header(), EndHeaders: true})
	}
	f.t.Logf("5,000 streams: alive %t, GOAWAY %d", h.alive(f.t), int(h.away.Load())-1)
}
