package hostile

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

const (
	slowClients = 300
	slowLimit   = 10 * time.Second // until the last of them is gone
)

// TestSlowHeaders has clients that open connections, send next to nothing, and hold them: each is gone in time, and
// others are served meanwhile.
func TestSlowHeaders(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for name, protocol := range map[string]string{"http": "", "TLS": "http/1.1"} {
		t.Run(name, func(t *testing.T) {
			s := *s
			s.t = t
			held := make(chan time.Duration, slowClients)
			var ready sync.WaitGroup
			ready.Add(slowClients)
			begin := time.Now()
			for i := range slowClients {
				go func() { held <- s.hold(i, protocol, ready.Done) }()
			}
			ready.Wait()
			var slowest time.Duration
			for range 50 {
				asked := time.Now()
				s.want(200, "GET", "/v2/acme/app/manifests/v1", "", nil)
				slowest = max(slowest, time.Since(asked))
			}
			var all []time.Duration
			for range slowClients {
				all = append(all, <-held)
			}
			slices.Sort(all)
			t.Logf("%d connections held from %.1f to %.1f s; the slowest of 50 pulls meanwhile took %v", slowClients, all[0].Seconds(), all[len(all)-1].Seconds(), slowest)
			if last := time.Since(begin); last > slowLimit {
				t.Errorf("the last connection was gone after %v, want at most %v", last, slowLimit)
			}
			if slowest > time.Second {
				t.Errorf("a pull took %v meanwhile", slowest)
			}
		})
	}
}

// hold opens a connection, sends a part of a header, one more byte each second or nothing at all, and returns how long
// the connection lived.
func (s *site) hold(i int, protocol string, ready func()) time.Duration {
	begin := time.Now()
	d := net.Dialer{Timeout: patience}
	var conn net.Conn
	var err error
	if protocol != "" && i%3 == 0 { // not even a handshake
		conn, err = d.DialContext(s.ctx, "tcp", s.secure[0])
	} else {
		conn, err = s.dial(0, protocol)
	}
	ready()
	if err != nil {
		s.t.Error(err)
		return 0
	}
	defer conn.Close()
	if i%3 != 0 {
		_, _ = io.WriteString(conn, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX: ")
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	if i%3 == 2 {
		go trickle(ctx, conn)
	}
	_ = conn.SetReadDeadline(begin.Add(2 * slowLimit))
	_, _ = io.Copy(io.Discard, conn) // a 408 may come before the end
	return time.Since(begin)
}

func trickle(ctx context.Context, w io.Writer) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, err := io.WriteString(w, "x"); err != nil {
				return
			}
		}
	}
}

// TestSlowPush sends 50 MiB, the first part of it with 2 kB/s: longer than the header may take, and in the long run
// than three of the deadlines that move with the bytes. That all of it may come so slowly is shown with a clock of its
// own where the deadlines are, in internal/distribution.
func TestSlowPush(t *testing.T) {
	t.Parallel()
	slow := 12 * time.Second
	if os.Getenv("CHAOS") == "long" {
		slow = 200 * time.Second
	}
	s := newSite(t)
	b := registrytest.NewBlob(99, 50<<20)
	for _, protocol := range []string{"", "http/1.1"} {
		t.Run(map[string]string{"": "http", "http/1.1": "TLS"}[protocol], func(t *testing.T) {
			t.Parallel()
			conn, err := s.dial(0, protocol)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, err = fmt.Fprintf(conn, "POST /v2/hostile/%s/blobs/uploads/?digest=%s HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nContent-Length: %d\r\n\r\n",
				"slow"+protocol[:min(len(protocol), 4)], b.Digest, basic(mallory, mallory), b.Size)
			if err != nil {
				t.Fatal(err)
			}
			begin, at := time.Now(), 0
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for time.Since(begin) < slow {
				<-tick.C
				if _, err := conn.Write(b.Bytes[at : at+2048]); err != nil {
					t.Fatalf("after %d bytes, %v: %v", at, time.Since(begin), err)
				}
				at += 2048
			}
			if _, err := conn.Write(b.Bytes[at:]); err != nil {
				t.Fatal(err)
			}
			resp, err := read(bufio.NewReader(conn), http.MethodPost)
			if err != nil || resp.StatusCode != http.StatusCreated {
				t.Fatalf("%+v, %v", resp, err)
			}
			t.Logf("%d bytes in %v, then the other %d", at, time.Since(begin).Round(time.Second), len(b.Bytes)-at)
		})
	}
}
