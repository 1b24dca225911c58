package distribution_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// growing is a blob whose bytes arrive while it is read; the size is known.
type growing struct {
	mu     sync.Mutex
	more   sync.Cond
	have   int   // bytes that are here
	err    error // after them
	bytes  []byte
	at     int64
	closed bool
}

func newGrowing(content []byte) *growing {
	g := &growing{bytes: content}
	g.more.L = &g.mu
	return g
}

// arrive makes n more bytes readable, and then the error.
func (g *growing) arrive(n int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.have, g.err = g.have+n, err
	g.more.Broadcast()
}

func (g *growing) Read(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		switch {
		case g.at >= int64(len(g.bytes)):
			return 0, io.EOF
		case g.at < int64(g.have):
			n := copy(p, g.bytes[g.at:g.have])
			g.at += int64(n)
			return n, nil
		case g.err != nil:
			return 0, g.err
		}
		g.more.Wait()
	}
}

func (g *growing) Seek(offset int64, whence int) (int64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += g.at
	case io.SeekEnd:
		offset += int64(len(g.bytes))
	}
	g.at = offset
	return offset, nil
}

func (g *growing) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	return nil
}

func (g *growing) Descriptor() registry.Descriptor {
	return registry.Descriptor{Size: int64(len(g.bytes))}
}

// oneBlob has one blob, whatever is asked for.
type oneBlob struct {
	registry.Unsupported
	open func() (registry.BlobReader, error)
}

func (o oneBlob) GetBlob(context.Context, string, registry.Digest) (registry.BlobReader, error) {
	return o.open()
}

const anyBlob = "/v2/a/blobs/" + absent

// TestGrowingBlob reads the first bytes before the last are here, with and without a range.
func TestGrowingBlob(t *testing.T) {
	content := registrytest.NewBlob(1, 1<<20).Bytes
	for _, tt := range []struct {
		name, spec string
		status     int
		from, to   int
	}{
		{"all", "", 200, 0, len(content)},
		{"the second half", fmt.Sprintf("bytes=%d-", len(content)/2), 206, len(content) / 2, len(content)},
		{"a part", "bytes=1000-2000", 206, 1000, 2001},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGrowing(content)
			g.arrive(tt.from+500, nil)
			s := newServer(t, oneBlob{open: func() (registry.BlobReader, error) { return g, nil }}, distribution.Options{})
			r, err := http.NewRequestWithContext(t.Context(), "GET", s.url+anyBlob, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.SetBasicAuth("all", "all")
			if tt.spec != "" {
				r.Header.Set("Range", tt.spec)
			}
			type result struct {
				status int
				body   []byte
				err    error
			}
			done := make(chan result, 1)
			go func() {
				resp, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					done <- result{err: err}
					return
				}
				defer func() { _ = resp.Body.Close() }()
				b, err := io.ReadAll(resp.Body)
				done <- result{resp.StatusCode, b, err}
			}()
			for g.have < len(content) {
				g.arrive(min(100_000, len(content)-g.have), nil)
			}
			got := <-done
			if got.err != nil || got.status != tt.status || !bytes.Equal(got.body, content[tt.from:tt.to]) {
				t.Fatalf("status %d, %d bytes, %v; want %d, %d", got.status, len(got.body), got.err, tt.status, tt.to-tt.from)
			}
		})
	}
}

// TestCutBlob never looks complete to a client when the content ends early.
func TestCutBlob(t *testing.T) {
	content := registrytest.NewBlob(1, 300_000).Bytes
	for _, have := range []int{0, 1, 511, 512, 5000, 299_999} {
		for _, spec := range []string{"", "bytes=0-", "bytes=0-299998", "bytes=0-200000,250000-299999"} {
			g := newGrowing(content)
			g.arrive(have, errors.New("the link is gone"))
			s := newServer(t, oneBlob{open: func() (registry.BlobReader, error) { return g, nil }}, distribution.Options{})
			r, err := http.NewRequestWithContext(t.Context(), "GET", s.url+anyBlob, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.SetBasicAuth("all", "all")
			if spec != "" {
				r.Header.Set("Range", spec)
			}
			resp, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				continue // cut before the header was sent
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			complete := have == 299_999 && spec == "bytes=0-299998"
			if (err == nil) != complete {
				t.Errorf("%d bytes here, %q: %d bytes read, error %v", have, spec, len(got), err)
			}
			if !g.isClosed(5 * time.Second) {
				t.Errorf("%d bytes here, %q: the reader was not closed", have, spec)
			}
		}
	}
}

// isClosed waits for the handler, which closes its reader after the client has the last byte.
func (g *growing) isClosed(limit time.Duration) bool {
	for deadline := time.Now().Add(limit); ; runtime.Gosched() {
		g.mu.Lock()
		closed := g.closed
		g.mu.Unlock()
		if closed || time.Now().After(deadline) {
			return closed
		}
	}
}

// TestCutBlobAborts tells net/http, which knows of more than HTTP/1.1, that the answer is not to be ended properly.
func TestCutBlobAborts(t *testing.T) {
	g := newGrowing(registrytest.NewBlob(1, 1000).Bytes)
	g.arrive(10, errors.New("the link is gone"))
	reg := oneBlob{open: func() (registry.BlobReader, error) { return g, nil }}
	defer func() {
		if got := recover(); got != http.ErrAbortHandler { //nolint:errorlint // a panic's value is compared as net/http does
			t.Errorf("recovered %v, want http.ErrAbortHandler", got)
		}
	}()
	w := record(distribution.New(reg, newAccess(auth.Options{AnonymousPull: true}), distribution.Options{}), "GET", anyBlob)
	t.Errorf("status %d, %d bytes", w.Code, w.Body.Len())
}

// TestBlobThatCannotBeHad answers with an error and not with a cut, because Seek tells.
func TestBlobThatCannotBeHad(t *testing.T) {
	s := newServer(t, oneBlob{open: func() (registry.BlobReader, error) { return unseekable{}, nil }}, distribution.Options{})
	s.wantError("GET", s.do("all", "GET", anyBlob, nil), 503, registry.CodeUnavailable)
}

type unseekable struct{ registry.BlobReader }

func (unseekable) Seek(int64, int) (int64, error) { return 0, registry.ErrUnavailable }
func (unseekable) Close() error                   { return nil }

// fileBlob is a blob in a file, as the store has it.
type fileBlob struct {
	io.ReadSeekCloser
	f *os.File
}

func (b fileBlob) File() *os.File                  { return b.f }
func (b fileBlob) Descriptor() registry.Descriptor { return registry.Descriptor{} }

// probe is a connection that sees how a body is sent to it.
type probe struct {
	*net.TCPConn
	fromFile *bool
}

// ReadFrom is where net/http gives the file to the kernel.
func (p probe) ReadFrom(r io.Reader) (int64, error) {
	if l, ok := r.(*io.LimitedReader); ok {
		if _, ok := l.R.(*os.File); ok {
			*p.fromFile = true
		}
	}
	return p.TCPConn.ReadFrom(r)
}

type probeListener struct {
	net.Listener
	fromFile *bool
}

func (l probeListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return probe{c.(*net.TCPConn), l.fromFile}, nil
}

// TestSendfile proves that the file itself reaches the connection, whole and by ranges.
func TestSendfile(t *testing.T) {
	content := registrytest.NewBlob(1, 3<<20).Bytes
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	reg := oneBlob{open: func() (registry.BlobReader, error) {
		f, err := os.Open(name)
		return fileBlob{f, f}, err
	}}
	fromFile := false
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{Handler: distribution.New(reg, newAccess(auth.Options{}), distribution.Options{})}
	go func() { _ = hs.Serve(probeListener{l, &fromFile}) }()
	t.Cleanup(func() { _ = hs.Close() })
	s := &server{t: t, url: "http://" + l.Addr().String()}
	a := s.do("all", "GET", anyBlob, nil)
	s.want("GET", a, 200, "Content-Length", fmt.Sprint(len(content)))
	if !bytes.Equal(a.body, content) || !fromFile {
		t.Errorf("%d bytes, by sendfile: %v", len(a.body), fromFile)
	}
	fromFile = false
	a = s.do("all", "GET", anyBlob, nil, "Range", "bytes=1000-2000000")
	s.want("GET range", a, 206)
	if !bytes.Equal(a.body, content[1000:2_000_001]) || !fromFile {
		t.Errorf("range: %d bytes, by sendfile: %v", len(a.body), fromFile)
	}
}

// slowKernel is a connection whose sendfile(2) runs into the deadline after so many bytes of a step.
type slowKernel struct {
	*httptest.ResponseRecorder
	took int64
}

func (k slowKernel) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.CopyN(k.ResponseRecorder, r, k.took)
	if err == nil {
		err = os.ErrDeadlineExceeded
	} else if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// TestSlowIsNotStalled: 128 KiB in time are enough however large a step is, and the rest comes whole and in order.
func TestSlowIsNotStalled(t *testing.T) {
	content := registrytest.NewBlob(1, 3<<20).Bytes
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	reg := oneBlob{open: func() (registry.BlobReader, error) {
		f, err := os.Open(name)
		return fileBlob{f, f}, err
	}}
	h := distribution.New(reg, newAccess(auth.Options{AnonymousPull: true}), distribution.Options{})
	for took, whole := range map[int64]bool{128 << 10: true, 300_000: true, 128<<10 - 1: false} {
		k := slowKernel{httptest.NewRecorder(), took}
		func() {
			defer func() { _ = recover() }() // a body that ends early ends the connection
			h.ServeHTTP(k, httptest.NewRequestWithContext(t.Context(), http.MethodGet, anyBlob, http.NoBody))
		}()
		if got := k.Body.Bytes(); bytes.Equal(got, content) != whole || !bytes.HasPrefix(content, got) {
			t.Errorf("%d bytes at each deadline: %d bytes came", took, len(got))
		}
	}
}

// TestDamagedFile never sends a file that has lost its end as if it were the blob.
func TestDamagedFile(t *testing.T) {
	content := registrytest.NewBlob(1, 100_000).Bytes
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, content[:99_999], 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, oneBlob{open: func() (registry.BlobReader, error) {
		f, err := os.Open(name)
		return fileBlob{sectionCloser{io.NewSectionReader(f, 0, int64(len(content))), f}, f}, err
	}}, distribution.Options{})
	if a := s.do("all", "GET", anyBlob, nil); a.err == nil {
		t.Errorf("status %d with %d bytes and no error", a.status, len(a.body))
	}
}

// sectionCloser reads a part of a file that it closes.
type sectionCloser struct {
	*io.SectionReader
	io.Closer
}

// pipes is a listener whose connections are in memory, so that a bubble of synctest can hold both ends.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.conns <- server
	return client
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

// inBubble runs a server and a client on fake time. read is the response as it comes.
func inBubble(t *testing.T, reg registry.Registry, run func(t *testing.T, conn net.Conn, read io.Reader)) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		hs := &http.Server{Handler: distribution.New(reg, newAccess(auth.Options{}), distribution.Options{})}
		stopped := make(chan struct{})
		go func() { defer close(stopped); _ = hs.Serve(p) }()
		conn := p.dial()
		run(t, conn, conn)
		_ = conn.Close()
		_ = hs.Close()
		<-stopped
	})
}

const basicAll = "Host: x\r\nAuthorization: Basic YWxsOmFsbA==\r\n"

// TestSlowPushPasses sends 50 MiB at 2 kB/s, more than seven hours, which no deadline may end.
func TestSlowPushPasses(t *testing.T) {
	b := registrytest.NewBlob(1, 50<<20)
	reg := registrytest.NewMemory()
	inBubble(t, reg, func(t *testing.T, conn net.Conn, read io.Reader) {
		started := time.Now()
		_, _ = fmt.Fprintf(conn, "POST /v2/a/blobs/uploads/?digest=%s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n", b.Digest, basicAll, b.Size)
		for at := 0; at < len(b.Bytes); at += 2048 {
			time.Sleep(time.Second)
			if _, err := conn.Write(b.Bytes[at : at+2048]); err != nil {
				t.Fatalf("after %d bytes, %s: %v", at, time.Since(started), err)
			}
		}
		if line := make([]byte, 12); readFull(read, line) != nil || string(line) != "HTTP/1.1 201" {
			t.Fatalf("answer %q", line)
		}
		if d := time.Since(started); d < 7*time.Hour {
			t.Errorf("the push took only %s", d)
		}
	})
}

// slowCommit takes ten minutes to store what it got, as hashing a big layer on a small device may.
type slowCommit struct{ registry.Unsupported }

func (slowCommit) StartUpload(context.Context, string) (registry.Upload, error) {
	return slowUpload{}, nil
}

type slowUpload struct{ registry.Upload }

func (slowUpload) Write(p []byte) (int, error)  { return len(p), nil }
func (slowUpload) Cancel(context.Context) error { return nil }

func (slowUpload) Commit(ctx context.Context, d registry.Digest) (registry.Descriptor, error) {
	select {
	case <-ctx.Done():
		return registry.Descriptor{}, ctx.Err()
	case <-time.After(10 * time.Minute):
		return registry.Descriptor{Digest: d}, nil
	}
}

// TestSlowCommitPasses: the deadlines of the body end with it.
func TestSlowCommitPasses(t *testing.T) {
	for _, framing := range []string{"Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"} {
		inBubble(t, slowCommit{}, func(t *testing.T, conn net.Conn, read io.Reader) {
			_, _ = fmt.Fprintf(conn, "POST /v2/a/blobs/uploads/?digest=%s HTTP/1.1\r\n%s%s", absent, basicAll, framing)
			if line := make([]byte, 12); readFull(read, line) != nil || string(line) != "HTTP/1.1 201" {
				t.Errorf("answer %q", line)
			}
		})
	}
}

// TestStalledPushEnds sends a byte every second, then none.
func TestStalledPushEnds(t *testing.T) {
	for name, pace := range map[string]time.Duration{"a byte a second": time.Second, "nothing": time.Hour} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, registrytest.NewMemory(), func(t *testing.T, conn net.Conn, read io.Reader) {
				started := time.Now()
				_, _ = fmt.Fprintf(conn, "POST /v2/a/blobs/uploads/?digest=%s HTTP/1.1\r\n%sContent-Length: 100000\r\n\r\n", absent, basicAll)
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for {
						time.Sleep(pace)
						if _, err := conn.Write([]byte("x")); err != nil {
							return
						}
					}
				}()
				if line := make([]byte, 12); readFull(read, line) != nil || string(line) != "HTTP/1.1 408" {
					t.Errorf("answer %q", line)
				}
				if d := time.Since(started); d > 3*time.Minute {
					t.Errorf("the connection was held for %s", d)
				}
				_ = conn.Close()
				<-ended
			})
		})
	}
}

// TestUnwantedBodyDoesNotHold: a body that nobody reads, and that never comes, holds the connection for a bounded time.
func TestUnwantedBodyDoesNotHold(t *testing.T) {
	inBubble(t, registrytest.NewMemory(), func(t *testing.T, conn net.Conn, read io.Reader) {
		started := time.Now()
		_, _ = fmt.Fprint(conn, "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
		got, err := io.ReadAll(read)
		if err != nil || !bytes.HasPrefix(got, []byte("HTTP/1.1 401")) {
			t.Errorf("answer %.20q, %v", got, err)
		}
		if d := time.Since(started); d > 5*time.Minute {
			t.Errorf("the connection was held for %s", d)
		}
	})
}

// TestStalledPullEnds reads the first bytes and then none; TestSlowPullPasses reads 4 kB a second for a long time.
func TestStalledPullEnds(t *testing.T) {
	content := registrytest.NewBlob(1, 4<<20).Bytes
	reg := oneBlob{open: func() (registry.BlobReader, error) { return memoryBlob{bytes.NewReader(content)}, nil }}
	inBubble(t, reg, func(t *testing.T, conn net.Conn, read io.Reader) {
		_, _ = fmt.Fprint(conn, "GET "+anyBlob+" HTTP/1.1\r\n"+basicAll+"\r\n")
		_ = readFull(read, make([]byte, 5000))
		time.Sleep(3 * time.Minute)
		if n, err := io.Copy(io.Discard, read); err == nil && n > int64(len(content))-200_000 {
			t.Errorf("after a stall of three minutes %d more bytes came, %v", n, err)
		}
	})
}

func TestSlowPullPasses(t *testing.T) {
	content := registrytest.NewBlob(1, 8<<20).Bytes
	reg := oneBlob{open: func() (registry.BlobReader, error) { return memoryBlob{bytes.NewReader(content)}, nil }}
	inBubble(t, reg, func(t *testing.T, conn net.Conn, read io.Reader) {
		_, _ = fmt.Fprint(conn, "GET "+anyBlob+" HTTP/1.1\r\n"+basicAll+"\r\n")
		got, buf := 0, make([]byte, 4096)
		for got < len(content) {
			time.Sleep(time.Second)
			n, err := read.Read(buf)
			if err != nil {
				t.Fatalf("after %d bytes: %v", got, err)
			}
			got += n
		}
	})
}

// TestSlowContentIsNotTheClientsFault: content may take longer to arrive here than a client may take to read.
func TestSlowContentIsNotTheClientsFault(t *testing.T) {
	content := registrytest.NewBlob(1, 300_000).Bytes
	inBubble(t, oneBlob{open: func() (registry.BlobReader, error) { return &drip{Reader: bytes.NewReader(content)}, nil }}, func(t *testing.T, conn net.Conn, read io.Reader) {
		_, _ = fmt.Fprint(conn, "GET "+anyBlob+" HTTP/1.1\r\n"+basicAll+"Connection: close\r\n\r\n")
		got, err := io.ReadAll(read)
		if err != nil || !bytes.HasSuffix(got, content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// drip gives 50 kB every ten minutes.
type drip struct{ *bytes.Reader }

func (d *drip) Read(p []byte) (int, error) {
	time.Sleep(10 * time.Minute)
	return d.Reader.Read(p[:min(len(p), 50_000)])
}
func (*drip) Close() error                    { return nil }
func (*drip) Descriptor() registry.Descriptor { return registry.Descriptor{} }

// memoryBlob is a blob in memory.
type memoryBlob struct{ *bytes.Reader }

func (memoryBlob) Close() error                    { return nil }
func (memoryBlob) Descriptor() registry.Descriptor { return registry.Descriptor{} }

func readFull(r io.Reader, p []byte) error {
	_, err := io.ReadFull(r, p)
	return err
}

// TestCutPushKeepsWhatCame closes the connection in the middle of a PATCH; the session goes on from there.
func TestCutPushKeepsWhatCame(t *testing.T) {
	s := newServer(t, registrytest.NewMemory(), distribution.Options{})
	b := registrytest.NewBlob(1, 100_000)
	at := s.start("all")
	conn, err := net.Dial("tcp", s.url[len("http://"):])
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\n%sContent-Length: 100000\r\n\r\n%s", at, basicAll, b.Bytes[:40_000])
	_ = conn.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, conn) // until the server has answered and closed
	_ = conn.Close()
	s.want("end-13", s.do("all", "GET", at, nil), 204, "Range", "0-39999")
	s.want("end-5", s.do("all", "PATCH", at, body(b.Bytes[40_000:]), "Content-Range", "40000-99999"), 202)
	s.wantCreated("end-6", s.do("all", "PUT", at+"?digest="+b.Digest.String(), nil), "acme/app", b.Digest)
}
