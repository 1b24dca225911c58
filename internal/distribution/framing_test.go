package distribution_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// listen serves the same as s with the server that the product has, and returns its address.
func (s *server) listen() string {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	hs := transport.NewServer(s.h, transport.ServerOptions{})
	go func() { _ = transport.Serve(s.t.Context(), hs, l, nil) }()
	s.t.Cleanup(func() { _ = hs.Close() })
	return l.Addr().String()
}

// TestFraming has requests whose two ends could disagree about where they end. One answer comes to each connection: a
// second one would be to bytes that the sender meant as a body.
func TestFraming(t *testing.T) {
	s := newServer(t, registrytest.NewMemory(), distribution.Options{})
	s.push("a", "v1", registrytest.NewImage(1, 10))
	addr := s.listen()
	const smuggled = "DELETE /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YWxsOmFsbA==\r\n\r\n"
	post := "POST /v2/a/blobs/uploads/ HTTP/1.1\r\n" + basicAll
	for _, tt := range []struct {
		name, raw string
		answers   []int
	}{
		{"two lengths", post + "Content-Length: 5\r\nContent-Length: 0\r\n\r\n" + smuggled, []int{400}},
		{"two equal lengths", post + "Content-Length: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", []int{202}},
		{"a list of lengths", post + "Content-Length: 0, 5\r\n\r\n" + smuggled, []int{400}},
		{"negative length", post + "Content-Length: -1\r\n\r\n" + smuggled, []int{400}},
		{"length with a sign", post + "Content-Length: +5\r\n\r\n" + smuggled, []int{400}},
		{"length in hex", post + "Content-Length: 0x5\r\n\r\n" + smuggled, []int{400}},
		{"unknown coding", post + "Transfer-Encoding: xchunked\r\n\r\n" + smuggled, []int{400}},
		{"two codings", post + "Transfer-Encoding: chunked, identity\r\n\r\n" + smuggled, []int{400}},
		{"coding twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + smuggled, []int{400}},
		{"unknown version", "POST /v2/a/blobs/uploads/ HTTP/3.0\r\n" + basicAll + "\r\n" + smuggled, []int{400}},
		{"space before the colon", post + "Content-Length : 5\r\n\r\n" + smuggled, []int{400}},
		{"folded header", post + "Content-Length: 0\r\n Transfer-Encoding: chunked\r\n\r\n" + smuggled, []int{400}},
		{"bad chunk", post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + smuggled, []int{202}},
		{"no Host", "GET /v2/ HTTP/1.1\r\n\r\n", []int{400}},
		{"two Hosts", "GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", []int{400}},
		{"absolute URI", "GET http://elsewhere/v2/ HTTP/1.1\r\n" + basicAll + "Connection: close\r\n\r\n", []int{200}},
		{"absolute URI of another path", "GET http://elsewhere/v2/../x HTTP/1.1\r\n" + basicAll + "Connection: close\r\n\r\n", []int{404}},
		{"authority", "CONNECT elsewhere:443 HTTP/1.1\r\n" + basicAll + "Connection: close\r\n\r\n", []int{404}},
		{"asterisk", "OPTIONS * HTTP/1.1\r\n" + basicAll + "Connection: close\r\n\r\n", []int{200}},
		{"upgrade to h2c is ignored", "GET /v2/ HTTP/1.1\r\n" + basicAll + "Connection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", []int{200}},
		{"prior knowledge of h2c is no request of ours", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{404}},
		{"not HTTP", "\x16\x03\x01\x02\x00\x01", []int{400}},
		{"two credentials", "GET /v2/ HTTP/1.1\r\n" + basicAll + "Authorization: Basic YWxsOmFsbA==\r\nConnection: close\r\n\r\n", []int{401}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_, _ = io.WriteString(conn, tt.raw)
			_ = conn.(*net.TCPConn).CloseWrite()
			var got []int
			for in := bufio.NewReader(conn); ; {
				resp, err := http.ReadResponse(in, nil)
				if err != nil {
					if len(got) < len(tt.answers) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Logf("read: %v", err)
					}
					break
				}
				a := answer{status: resp.StatusCode}
				a.body, _ = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				got = append(got, a.status)
				if a.status == http.StatusBadRequest && a.code() != registry.CodeUnsupported {
					t.Error(a.code())
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.answers) {
				t.Errorf("answers %v, want %v", got, tt.answers)
			}
		})
	}
	if _, err := s.reg.GetManifest(t.Context(), "a", registry.TagReference("v1")); err != nil {
		t.Errorf("the smuggled request was done: %v", err)
	}
}

// TestLengthAndChunks: with both, net/http takes the chunks, as RFC 9112 wants, and what follows them is a request.
func TestLengthAndChunks(t *testing.T) {
	s := newServer(t, registrytest.NewMemory(), distribution.Options{})
	s.push("a", "v1", registrytest.NewImage(1, 10))
	conn, err := net.Dial("tcp", s.url[len("http://"):])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "POST /v2/a/blobs/uploads/ HTTP/1.1\r\n"+basicAll+"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"+
		"5c\r\nDELETE /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YWxsOmFsbA==\r\nX: 1234567890\r\n\r\n\r\n0\r\n\r\n")
	_ = conn.(*net.TCPConn).CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if _, err := s.reg.GetManifest(t.Context(), "a", registry.TagReference("v1")); err != nil {
		t.Errorf("the body was done as a request: %v", err)
	}
}
