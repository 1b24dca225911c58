package linkproxy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/test/linkproxy"
)

const size = 1 << 20

// start serves size bytes behind a proxy with the plan, and returns the proxy and a client that keeps no connection.
func start(t *testing.T, plan linkproxy.Plan) (*linkproxy.Proxy, func(context.Context) ([]byte, error)) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(bytes.Repeat([]byte{7}, size))
	}))
	t.Cleanup(srv.Close)
	p, err := linkproxy.New(strings.TrimPrefix(srv.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := p.Set(plan); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return p, func(ctx context.Context) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Addr(), nil)
		if err != nil {
			return nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		return io.ReadAll(resp.Body)
	}
}

func TestPassesAndCounts(t *testing.T) {
	p, get := start(t, linkproxy.Plan{})
	reached := p.Reached(size)
	body, err := get(t.Context())
	if err != nil || len(body) != size {
		t.Fatalf("got %d bytes, %v", len(body), err)
	}
	<-reached
	c := p.Counters()
	if c.Down < size || c.Down > size+1024 || c.Up < 20 || c.Up > 1024 || c.Connections != 1 || c.Cuts != 0 {
		t.Errorf("counters %+v do not fit one response of %d bytes", c, size)
	}
}

func TestCut(t *testing.T) {
	const after = 300_000
	for name, by := range map[string]linkproxy.CutBy{"FIN": linkproxy.FIN, "RST": linkproxy.RST} {
		t.Run(name, func(t *testing.T) {
			p, get := start(t, linkproxy.Plan{CutAfter: after, CutBy: by, Cuts: 2})
			want := error(syscall.ECONNRESET)
			if by == linkproxy.FIN {
				want = io.ErrUnexpectedEOF
			}
			for i := range 2 {
				body, err := get(t.Context())
				if !errors.Is(err, want) {
					t.Errorf("cut %d: got %v, want %v", i, err, want)
				}
				if lost := after - len(body); lost < 0 || lost > 64<<10 {
					t.Errorf("cut %d: the client has %d bytes of %d: more than the sockets hold are lost", i, len(body), after)
				}
				if c := p.Counters(); c.Down != int64(after*(i+1)) || c.Cuts != i+1 {
					t.Errorf("cut %d: counters %+v", i, c)
				}
			}
			if body, err := get(t.Context()); err != nil || len(body) != size {
				t.Errorf("after the last cut: got %d bytes, %v", len(body), err)
			}
		})
	}
}

func TestStallThenHeal(t *testing.T) {
	const after = 100_000
	p, get := start(t, linkproxy.Plan{StallAfter: after})
	done := make(chan error, 1)
	go func() {
		body, err := get(t.Context())
		if err == nil && len(body) != size {
			err = errors.New("short body")
		}
		done <- err
	}()
	<-p.Reached(after)
	select {
	case err := <-done:
		t.Fatalf("answered in spite of the stall: %v", err)
	case <-time.After(50 * time.Millisecond): // silence has no event to wait for
	}
	if c := p.Counters(); c.Down != after {
		t.Errorf("down is %d, want %d", c.Down, after)
	}
	if err := p.Set(linkproxy.Plan{}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		fault linkproxy.Fault
		want  error
	}{
		"refuse":     {linkproxy.Refuse, syscall.ECONNREFUSED},
		"reset":      {linkproxy.Reset, syscall.ECONNRESET},
		"black hole": {linkproxy.BlackHole, context.DeadlineExceeded},
		"freeze":     {linkproxy.Freeze, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			p, get := start(t, linkproxy.Plan{Fault: tc.fault})
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := get(ctx)
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if c := p.Counters(); c.Down != 0 {
				t.Errorf("down is %d, want 0", c.Down)
			}
			for range 3 { // the port stays ours
				if err := errors.Join(p.Set(linkproxy.Plan{Fault: linkproxy.Refuse}), p.Set(linkproxy.Plan{})); err != nil {
					t.Fatal(err)
				}
			}
			if body, err := get(t.Context()); err != nil || len(body) != size {
				t.Errorf("healed: got %d bytes, %v", len(body), err)
			}
		})
	}
}

// TestRefusesWhileProcessesStart takes turns with forks, each of which holds a copy of every descriptor for a moment.
func TestRefusesWhileProcessesStart(t *testing.T) {
	p, _ := start(t, linkproxy.Plan{})
	ctx, cancel := context.WithCancel(t.Context())
	var forks sync.WaitGroup
	for range 4 {
		forks.Go(func() {
			for ctx.Err() == nil {
				_ = exec.CommandContext(ctx, "/bin/true").Run() // that it starts is enough
			}
		})
	}
	defer forks.Wait()
	defer cancel()
	for range 200 {
		if err := p.Set(linkproxy.Plan{Fault: linkproxy.Refuse}); err != nil {
			t.Fatal(err)
		}
		if conn, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("refusing: %v, %v", conn, err)
		}
		if err := p.Set(linkproxy.Plan{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenConnectionEnds(t *testing.T) {
	for name, fault := range map[string]linkproxy.Fault{"refuse": linkproxy.Refuse, "reset": linkproxy.Reset} {
		t.Run(name, func(t *testing.T) {
			p, get := start(t, linkproxy.Plan{StallAfter: 1000})
			done := make(chan error, 1)
			go func() { _, err := get(t.Context()); done <- err }()
			<-p.Reached(1000)
			if err := p.Set(linkproxy.Plan{Fault: fault}); err != nil {
				t.Fatal(err)
			}
			if err := <-done; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %v, want a reset", err)
			}
		})
	}
}

func TestRateAndLatency(t *testing.T) {
	p, get := start(t, linkproxy.Plan{BytesPerSecond: 4 * size, Latency: 20 * time.Millisecond})
	begin := time.Now()
	if _, err := get(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 240*time.Millisecond { // 1/4 s at the rate, less its burst, and 2 x 20 ms
		t.Errorf("%d bytes at %d bytes/s took %v", size, 4*size, took)
	}
	if err := p.Set(linkproxy.Plan{}); err != nil {
		t.Fatal(err)
	}
}

func TestTargetAbsent(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := ln.Addr().String()
	_ = ln.Close()
	p, err := linkproxy.New(target)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", p.Addr())
	if err == nil { // else the reset came before the dialler looked
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after Close: %v, want refused", err)
	}
}

func TestReservedPortCanBeListenedOn(t *testing.T) {
	addr, release, err := linkproxy.ReservePort()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for range 2 {
		if conn, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("reserved, nobody listens: %v, %v", conn, err)
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Close(), ln.Close()
	}
}

func TestListensWhereItIsTold(t *testing.T) {
	p, err := linkproxy.NewAt("127.9.8.7:0", "127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if !strings.HasPrefix(p.Addr(), "127.9.8.7:") {
		t.Errorf("it listens on %s", p.Addr())
	}
	if other, err := linkproxy.NewAt(p.Addr(), "127.0.0.1:1"); err == nil {
		t.Errorf("a second link on %s", other.Addr())
	}
	for _, bad := range []string{"", "localhost:80", "[::1]:0", "127.0.0.1"} {
		if _, err := linkproxy.NewAt(bad, "127.0.0.1:1"); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
