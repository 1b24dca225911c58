package transport_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/transport"
)

// breath is how long a transfer stands still for a client.
const breath = 2 * time.Millisecond

// piecewise reads a body of size bytes by what is taken at once, and calls between before each piece. It returns how many
// pieces there were.
func piecewise(ctx context.Context, t *testing.T, c *transport.Client, between func()) (pieces int) {
	t.Helper()
	resp, err := c.HTTP().Do(request(t, transport.WithBlob(ctx), "GET", origin, nil))
	if err != nil {
		t.Error(err)
		return 0
	}
	defer resp.Body.Close()
	for buf := make([]byte, mib); ; pieces++ {
		between()
		if _, err = resp.Body.Read(buf); err != nil {
			break
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	return pieces
}

// TestClientsGoAhead: while clients ask, one piece of a background transfer goes between two breaths, however many they are;
// a client that hangs for hours costs one breath, and what a client waits for costs none.
func TestClientsGoAhead(t *testing.T) {
	for _, test := range []struct {
		name  string
		alone bool
		class transport.Class
		ask   func(before func(), pieces int) // before a piece
		want  func(pieces int) time.Duration
	}{
		{"nobody asks", false, transport.Background, func(func(), int) {}, func(int) time.Duration { return 0 }},
		{"a hundred ask before each piece", false, transport.First, func(ask func(), _ int) {
			for range 100 {
				ask()
			}
		}, func(pieces int) time.Duration { return time.Duration(pieces+1) * breath }}, // the last look finds the end
		{"one asks once", false, transport.Background, func(ask func(), n int) {
			if n == 3 {
				ask()
			}
		}, func(int) time.Duration { return breath }},
		{"nobody asks, on one processor", true, transport.Background, func(func(), int) {}, func(pieces int) time.Duration {
			return time.Duration(pieces) * 100 * time.Microsecond
		}},
		{"a client waits for the transfer", true, transport.Waiting, func(ask func(), _ int) { ask() }, func(int) time.Duration { return 0 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				processors := 2
				if test.alone {
					processors = 1
				}
				var mu sync.Mutex
				var busy []bool
				link := transport.NewLink(transport.LinkOptions{Processors: processors, Busy: func(b bool) {
					mu.Lock()
					defer mu.Unlock()
					busy = append(busy, b)
				}})
				told := func(want ...bool) {
					t.Helper()
					synctest.Wait()
					mu.Lock()
					defer mu.Unlock()
					if !slices.Equal(busy, want) {
						t.Errorf("told %v, want %v", busy, want)
					}
				}
				client := link.Ahead(http.NotFoundHandler())
				hang := make(chan struct{})
				defer close(hang)
				go link.Ahead(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang })).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/v2/", nil))
				synctest.Wait() // it came before the transfer
				c := pipeClient(t, transport.ClientOptions{Link: link}, sender(4*mib))
				n, began := 0, time.Now()
				pieces := piecewise(transport.WithClass(t.Context(), test.class), t, c, func() {
					test.ask(func() { client.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/v2/", nil)) }, n)
					n++
				})
				if took, want := time.Since(began), test.want(pieces); pieces < 8 || took != want {
					t.Errorf("%d pieces in %v, want %v", pieces, took, want)
				}
				time.Sleep(2*time.Second - 3*breath)
				told(true)
				time.Sleep(3 * breath)
				told(true, false)
				piecewise(transport.WithClass(t.Context(), test.class), t, c, func() {})
				told(true, false, true)
			})
		})
	}
}

// TestOneProcessorIsLeft runs transfers on three processors: two work at a time, who waits for the link lets another work
// at once, and who stays away with a turn loses it to who has waited for it. What clients wait for is not counted.
func TestOneProcessorIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := transport.NewLink(transport.LinkOptions{Processors: 3})
		silent := func(c net.Conn) {
			if hear(c) {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1")
				hold(c)
			}
		}
		var working atomic.Int32
		start := func(class transport.Class, end <-chan struct{}) {
			ctx, cancel := context.WithCancel(transport.WithClass(t.Context(), class))
			defer cancel()
			resp, err := pipeClient(t, transport.ClientOptions{Link: link}, silent).HTTP().Do(request(t, transport.WithBlob(ctx), "GET", origin, nil))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if _, err := resp.Body.Read(make([]byte, 9)); err != nil {
				t.Error(err)
			}
			working.Add(1)
			<-end
			working.Add(-1)
			time.AfterFunc(time.Hour, cancel)
			_, _ = resp.Body.Read(make([]byte, 9)) // it waits for the link
		}
		want := func(n int32, when string) {
			t.Helper()
			synctest.Wait()
			if got := working.Load(); got != n {
				t.Errorf("%s: %d work, want %d", when, got, n)
			}
		}
		first, second, third := make(chan struct{}), make(chan struct{}), make(chan struct{})
		for range 2 {
			go start(transport.Background, first)
		}
		want(2, "two transfers")
		for range 3 {
			go start(transport.Background, second)
		}
		want(2, "five")
		time.Sleep(breath)
		want(4, "the first two stay away")
		first <- struct{}{}
		want(3, "one comes back and has no turn to give")
		time.Sleep(breath)
		want(4, "the two others stay away too")
		close(second)
		want(1, "they wait for the link")
		for range 3 {
			go start(transport.Background, third)
		}
		want(3, "of three that come two work at once")
		go start(transport.Waiting, third)
		want(4, "and one that a client waits for")
		close(first)
		close(third)
		want(0, "the end")
	})
}
