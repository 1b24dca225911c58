package distribution_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// hostile makes requests that are nearly right.
type hostile struct {
	*rand.Rand
	repos, digests, refs, ids []string
}

func (h *hostile) pick(list ...string) string { return list[h.IntN(len(list))] }

// spoil changes a few bytes of a string, or nothing.
func (h *hostile) spoil(s string) string {
	b := []byte(s)
	for h.IntN(6) == 0 && len(b) > 0 {
		i := h.IntN(len(b))
		switch h.IntN(5) {
		case 0:
			b[i] = byte(h.IntN(256))
		case 1:
			b = append(b[:i], b[i+1:]...)
		case 2:
			b = append(b[:i], append([]byte(h.pick("/", "..", "%00", "%2f", "//", "*", ":", "sha256:", "A", "-", "\x00", "é", "?", "&", "=")), b[i:]...)...)
		case 3:
			b = append(b, b[i:]...)
		case 4:
			b = bytes.ToUpper(b)
		}
	}
	return string(b)
}

// target is a path, and a method that mostly fits it.
func (h *hostile) target() (method, path string) {
	repo := h.pick(h.repos...)
	switch h.IntN(10) {
	case 0:
		method, path = "GET", h.pick("/", "/v2", "/v2/", "/v2//", "/v2/_catalog", "/v1/", "/v2/_catalog/", "/v2/..")
	case 1, 2:
		method, path = h.pick("GET", "GET", "GET", "HEAD", "HEAD", "DELETE"), "/v2/"+repo+"/blobs/"+h.pick(h.digests...)
	case 3, 4:
		method, path = h.pick("GET", "HEAD", "PUT", "PUT", "PUT", "DELETE"), "/v2/"+repo+"/manifests/"+h.pick(h.refs...)
	case 5:
		method, path = "POST", "/v2/"+repo+"/blobs/uploads/"
	case 6, 7:
		method, path = h.pick("GET", "PATCH", "PATCH", "PUT", "PUT", "DELETE"), "/v2/"+repo+"/blobs/uploads/"+h.pick(h.ids...)
	case 8:
		method, path = "GET", "/v2/"+repo+"/tags/list"
	default:
		method, path = "GET", "/v2/"+repo+"/referrers/"+h.pick(h.digests...)
	}
	if h.IntN(8) == 0 {
		method = h.pick("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "X")
	}
	return method, path
}

func (h *hostile) query() string {
	switch h.IntN(3) {
	case 0:
		return ""
	case 1:
		return "?" + h.pick("digest", "mount", "artifactType", "n", "last") + "=" + h.pick(h.digests...) + "&from=" + h.pick(h.repos...)
	}
	var parts []string
	for range 1 + h.IntN(3) {
		parts = append(parts, h.pick("n", "last", "digest", "mount", "from", "artifactType", "x")+"="+
			h.spoil(h.pick(append(append([]string{"0", "1", "-1", "99999999999999999999", "", "%zz", strings.Repeat("a", 2000)}, h.digests...), h.repos...)...)))
	}
	return "?" + strings.Join(parts, "&")
}

// request returns raw bytes of one HTTP/1.1 request whose framing is right, so that every one has an answer.
func (h *hostile) request(manifests [][]byte) (method string, raw []byte) {
	method, path := h.target()
	// What net/http itself refuses is its own business: the path is escaped, the query keeps its bad escapes.
	target := escape(h.spoil(path), "%") + escape(h.query(), "")
	if !strings.HasPrefix(target, "/") {
		target = "/" + target
	}
	var body []byte
	switch h.IntN(4) {
	case 0:
		body = bytes.Clone(manifests[h.IntN(len(manifests))])
		for h.IntN(2) == 0 {
			body = []byte(h.spoil(string(body)))
		}
	case 1:
		body = make([]byte, h.IntN(3000))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: x\r\n", method, target)
	if h.IntN(20) != 0 {
		b.WriteString("Authorization: Basic YWxsOmFsbA==\r\n")
	}
	for range h.IntN(4) {
		key := h.pick("Range", "Content-Range", "Content-Type", "If-None-Match", "If-Match", "If-Range", "Accept", "X-Forwarded-Host", "Expect")
		value := h.pick("bytes=0-", "bytes=5-1", "0-99", "0-0", "bytes=-1,-1,-1", "-1-5", "9223372036854775807-9223372036854775807", "*", `"x"`, `W/"`, "100-continue", "application/json; charset", registry.MediaTypeImageManifest, registry.MediaTypeImageIndex, registry.MediaTypeDockerManifest, strings.Repeat("0-1,", 500))
		if key == "Expect" {
			value = "100-continue"
		}
		fmt.Fprintf(&b, "%s: %s\r\n", key, value)
	}
	if len(body) > 0 && h.IntN(2) == 0 {
		fmt.Fprintf(&b, "Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	} else {
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(body), body)
	}
	return method, b.Bytes()
}

// escaped finds an escape that net/http takes.
var escaped = regexp.MustCompile(`^%[0-9a-fA-F]{2}`)

// escape makes s fit for a request line, and escapes those of the characters in also that are no escape already.
func escape(s, also string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || (strings.IndexByte(also, c) >= 0 && !escaped.MatchString(s[i:])) {
			fmt.Fprintf(&b, "%%%02x", c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// TestHostileRequests sends 20,000 malformed requests: each one has an answer below 500, and no handler panics.
func TestHostileRequests(t *testing.T) {
	const seed, total, workers = 20261101, 20_000, 4
	for name, newRegistry := range registries {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			image, index := registrytest.NewImage(1, 100), registrytest.NewIndex(registrytest.NewImage(2, 10))
			for tag, i := range map[string]registrytest.Image{"v1": image, "multi": index} {
				if err := registrytest.Push(t.Context(), reg, "acme/app", tag, i); err != nil {
					t.Fatal(err)
				}
			}
			var panics lockedBuffer
			ts := httptest.NewUnstartedServer(distribution.New(reg, newAccess(auth.Options{}), distribution.Options{}))
			ts.Config.ErrorLog = log.New(&panics, "", 0)
			ts.Start()
			defer ts.Close()
			errs := make(chan error, workers)
			for w := range workers {
				h := &hostile{
					Rand: rand.New(rand.NewPCG(seed, uint64(w))), repos: []string{"acme/app", "acme/app", "acme/app", "acme/app", "a", "blobs/uploads", "a/manifests/b", "../x"},
					digests: []string{absent, image.Digest.String(), image.Blobs[1].Digest.String(), "sha512:" + strings.Repeat("a", 128), "sha256:"},
					refs:    []string{"v1", "multi", image.Digest.String(), absent, ".x", strings.Repeat("t", 129)},
					ids:     []string{"x", "..", strings.Repeat("i", 200), "x", "x", "x"},
				}
				go func() {
					errs <- h.attack(t.Context(), ts.Listener.Addr().String(), total/workers, [][]byte{image.Bytes, index.Bytes, []byte(strings.Repeat(`{"manifests":[`, 500))})
				}()
			}
			for range workers {
				if err := <-errs; err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
			}
			if s := panics.String(); strings.Contains(s, "panic") {
				t.Errorf("seed %d: %.2000s", seed, s)
			}
			if m, err := reg.GetManifest(t.Context(), "acme/app", registry.DigestReference(image.Digest)); err == nil && !bytes.Equal(m.Bytes, image.Bytes) {
				t.Error("a manifest has changed")
			}
		})
	}
}

// attack sends n requests over connections that are kept, and reads the answer of each.
func (h *hostile) attack(ctx context.Context, addr string, n int, manifests [][]byte) error {
	var conn net.Conn
	var in *bufio.Reader
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	for i := range n {
		if conn == nil {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return err
			}
			conn, in = c, bufio.NewReader(c)
		}
		method, raw := h.request(manifests)
		if _, err := conn.Write(raw); err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		for err == nil && resp.StatusCode == http.StatusContinue {
			resp, err = http.ReadResponse(in, &http.Request{Method: method})
		}
		if err != nil {
			return fmt.Errorf("request %d was dropped: %w: %.300q", i, err, raw)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode >= 500 {
			return fmt.Errorf("request %d: status %d, %w: %.300q", i, resp.StatusCode, err, raw)
		}
		if id := resp.Header.Get("Docker-Upload-Uuid"); id != "" {
			h.ids[h.IntN(len(h.ids))] = id
		}
		if resp.Close {
			_ = conn.Close()
			conn = nil
		}
	}
	return nil
}

// lockedBuffer is a log that several connections write.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

// TestFraming has requests whose two ends could disagree about where they end. One answer comes to each connection: a
// second one would be to bytes that the sender meant as a body.
func TestFraming(t *testing.T) {
	s := newServer(t, registrytest.NewMemory(), distribution.Options{})
	s.push("a", "v1", registrytest.NewImage(1, 10))
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
		{"unknown coding", post + "Transfer-Encoding: xchunked\r\n\r\n" + smuggled, []int{501}},
		{"two codings", post + "Transfer-Encoding: chunked, identity\r\n\r\n" + smuggled, []int{501}},
		{"coding twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + smuggled, []int{501}},
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
			conn, err := net.Dial("tcp", s.url[len("http://"):])
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
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				got = append(got, resp.StatusCode)
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
