package transport_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

const origin = "http://parent:5000"

// pipeClient returns a client whose connections end in serve, inside a synctest bubble.
func pipeClient(t *testing.T, o transport.ClientOptions, serve func(net.Conn)) *transport.Client {
	t.Helper()
	o.Origin = origin
	var open sync.WaitGroup
	t.Cleanup(open.Wait)
	o.Dial = func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		open.Go(func() {
			defer far.Close()
			serve(far)
		})
		return near, nil
	}
	return newClient(t, o)
}

// hear reads one request.
func hear(c net.Conn) bool {
	_, err := http.ReadRequest(bufio.NewReader(c))
	return err == nil
}

// hold blocks until the other side goes away.
func hold(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func TestTimeouts(t *testing.T) {
	tests := []struct {
		name  string
		serve func(net.Conn)
		ctx   func(context.Context) context.Context
		cause error
		after time.Duration
	}{
		{"black hole: it reads nothing", func(net.Conn) { time.Sleep(time.Hour) }, nil, transport.ErrNoAnswer, 20 * time.Second},
		{"black hole: it never answers", hold, nil, transport.ErrNoAnswer, 20 * time.Second},
		{"header without an end", func(c net.Conn) {
			if !hear(c) {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-A: ")
			for {
				if _, err := io.WriteString(c, "a"); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, nil, transport.ErrNoAnswer, 20 * time.Second},
		{"long poll waits longer", hold, func(ctx context.Context) context.Context {
			return transport.WithHeaderTimeout(ctx, 75*time.Second)
		}, transport.ErrNoAnswer, 75 * time.Second},
		{"stall after one byte", func(c net.Conn) {
			if hear(c) {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
				hold(c)
			}
		}, nil, transport.ErrStalled, 20 * time.Second},
		{"stall in a blob", func(c net.Conn) {
			if hear(c) {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
				hold(c)
			}
		}, transport.WithBlob, transport.ErrStalled, 20 * time.Second},
		{"a byte now and then", func(c net.Conn) {
			if !hear(c) {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
			for {
				if _, err := io.WriteString(c, "x"); err != nil {
					return
				}
				time.Sleep(19 * time.Second)
			}
		}, nil, transport.ErrTooSlow, 5 * time.Minute},
		{"a request that nobody can cancel", func(c net.Conn) {
			if !hear(c) {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
			for {
				if _, err := io.WriteString(c, "x"); err != nil {
					return
				}
				time.Sleep(10 * time.Second)
			}
		}, func(context.Context) context.Context { return context.Background() }, transport.ErrTooSlow, 30 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := pipeClient(t, transport.ClientOptions{}, tt.serve)
				ctx := t.Context()
				if tt.ctx != nil {
					ctx = tt.ctx(ctx)
				}
				start := time.Now()
				_, _, err := get(c, request(t, ctx, "GET", origin, nil))
				if !errors.Is(err, tt.cause) || !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), "parent:5000") {
					t.Errorf("error %v, want %v", err, tt.cause)
				}
				if took := time.Since(start); took != tt.after {
					t.Errorf("after %v, want %v", took, tt.after)
				}
				if n := c.Traffic().Requests; n != 1 {
					t.Errorf("%d requests: what was slow is not asked again", n)
				}
			})
		})
	}
}

func TestConnectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, transport.ClientOptions{Origin: origin, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		start := time.Now()
		_, _, err := get(c, request(t, t.Context(), "GET", origin, nil))
		if !errors.Is(err, registry.ErrUnavailable) || time.Since(start) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestHandshakeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, transport.ClientOptions{Origin: "https://parent:5000", Dial: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			go hold(far)
			return near, nil
		}})
		start := time.Now()
		_, _, err := get(c, request(t, t.Context(), "GET", "https://parent:5000", nil))
		if !errors.Is(err, registry.ErrUnavailable) || time.Since(start) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestSlowBodyThatAdvancesIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := pipeClient(t, transport.ClientOptions{}, func(c net.Conn) {
			if !hear(c) {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
			for range 100 {
				time.Sleep(19 * time.Second)
				_, _ = io.WriteString(c, "x")
			}
			hold(c)
		})
		_, body, err := get(c, request(t, transport.WithBlob(t.Context()), "GET", origin, nil))
		if err != nil || len(body) != 100 {
			t.Errorf("%d bytes, %v", len(body), err)
		}
	})
}

func TestSlowReaderIsNotAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := pipeClient(t, transport.ClientOptions{}, func(c net.Conn) {
			if hear(c) {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx")
				time.Sleep(90 * time.Minute)
				_, _ = io.WriteString(c, "y")
				hold(c)
			}
		})
		resp, err := c.HTTP().Do(request(t, transport.WithBlob(t.Context()), "GET", origin, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		buf := make([]byte, 1)
		for range 2 {
			time.Sleep(time.Hour)
			if _, err := io.ReadFull(resp.Body, buf); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// The end of the request comes after the answer: the time for the answer is over by then.
func TestAnswerBeforeTheEndOfTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := pipeClient(t, transport.ClientOptions{}, func(c net.Conn) {
			br := bufio.NewReader(c)
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx")
			time.Sleep(time.Second)
			_, _ = io.Copy(io.Discard, req.Body)
			time.Sleep(90 * time.Minute)
			_, _ = io.WriteString(c, "y")
			hold(c)
		})
		resp, err := c.HTTP().Do(request(t, transport.WithBlob(t.Context()), "POST", origin, io.LimitReader(zeros{}, 1<<20)))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		buf := make([]byte, 1)
		for range 2 {
			time.Sleep(time.Hour)
			if _, err := io.ReadFull(resp.Body, buf); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestCancelIsTheCallersOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := pipeClient(t, transport.ClientOptions{}, hold)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, _, err := get(c, request(t, ctx, "GET", origin, nil))
		if !errors.Is(err, context.Canceled) || errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("cancel: %v", err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _, err = get(c, request(t, ctx, "GET", origin, nil))
		if !errors.Is(err, registry.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("deadline: %v", err)
		}
	})
}

func TestCutBodyIsUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := pipeClient(t, transport.ClientOptions{}, func(c net.Conn) {
			if hear(c) {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
			}
		})
		_, body, err := get(c, request(t, t.Context(), "GET", origin, nil))
		if body != "half" || !errors.Is(err, registry.ErrUnavailable) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q, %v", body, err)
		}
	})
}

func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 1 << 20
		link := transport.NewLink(transport.LinkOptions{})
		limit := func(kibps int) { link.Configure(registry.TransferConfig{MaxKiBps: kibps}) }
		limit(64)
		c := pipeClient(t, transport.ClientOptions{Link: link}, func(c net.Conn) {
			for hear(c) {
				_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
				_, _ = c.Write(make([]byte, size))
			}
		})
		timed := func() time.Duration {
			start := time.Now()
			if _, body, err := get(c, request(t, transport.WithBlob(t.Context()), "GET", origin, nil)); err != nil || len(body) != size {
				t.Fatalf("%d bytes, %v", len(body), err)
			}
			return time.Since(start)
		}
		if took := timed(); took < 15*time.Second || took > 17*time.Second {
			t.Errorf("1 MiB at 64 KiB/s took %v", took)
		}
		time.AfterFunc(4*time.Second, func() { limit(256) })
		if took := timed(); took < 6*time.Second || took > 8*time.Second {
			t.Errorf("with a limit that is raised after 4 s it took %v", took)
		}
		limit(0)
		if took := timed(); took > 10*time.Millisecond {
			t.Errorf("without a limit it took %v", took)
		}
		limit(1) // the burst is larger than a second's worth
		if took := timed(); took < 15*time.Minute || took > 18*time.Minute {
			t.Errorf("1 MiB at 1 KiB/s took %v", took)
		}
	})
}

func TestRetry(t *testing.T) {
	answer := func(header ...string) func(net.Conn) {
		return func(c net.Conn) {
			for hear(c) {
				_, _ = io.WriteString(c, "HTTP/1.1 "+strings.Join(header, "\r\n")+"\r\nContent-Length: 0\r\n\r\n")
			}
		}
	}
	tests := []struct {
		name     string
		serve    func(net.Conn)
		method   string
		status   int
		requests int64
		wait     time.Duration // at most, with jitter 1
	}{
		{"good", answer("200 OK"), "GET", 200, 1, 0},
		{"not found", answer("404 Not Found"), "GET", 404, 1, 0},
		{"fault", answer("500 Internal Server Error"), "GET", 500, 1, 0},
		{"gateway stumbles", answer("502 Bad Gateway"), "GET", 502, 2, 200 * time.Millisecond},
		{"gateway stumbles, head", answer("504 Gateway Timeout"), "HEAD", 504, 2, 200 * time.Millisecond},
		{"gateway stumbles, post", answer("502 Bad Gateway"), "POST", 502, 1, 0},
		{"gateway stumbles, put of nothing", answer("502 Bad Gateway"), "PUT", 502, 1, 0},
		{"no answer, connection ends, delete", func(c net.Conn) { hear(c) }, "DELETE", 0, 1, 0},
		{"asked to wait a little", answer("503 Service Unavailable", "Retry-After: 3"), "GET", 503, 2, 3 * time.Second},
		{"asked to wait a year", answer("503 Service Unavailable", "Retry-After: 31536000"), "GET", 503, 1, 0},
		{"too many, for a year", answer("429 Too Many Requests", "Retry-After: 31536000"), "GET", 429, 1, 0},
		{"no answer, connection ends", func(c net.Conn) { hear(c) }, "GET", 0, 2, 200 * time.Millisecond},
		{"no answer, connection ends, post", func(c net.Conn) { hear(c) }, "POST", 0, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := pipeClient(t, transport.ClientOptions{Rand: func() float64 { return 1 }}, tt.serve)
				var body io.Reader
				if tt.method == "POST" {
					body = strings.NewReader("x")
				}
				start := time.Now()
				status, _, err := get(c, request(t, t.Context(), tt.method, origin, body))
				if status != tt.status || (status == 0) != errors.Is(err, registry.ErrUnavailable) {
					t.Errorf("status %d, error %v", status, err)
				}
				if n := c.Traffic().Requests; n != tt.requests {
					t.Errorf("%d requests, want %d", n, tt.requests)
				}
				if took := time.Since(start); took != tt.wait {
					t.Errorf("waited %v, want %v", took, tt.wait)
				}
			})
		})
	}
}

func TestRetryRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		c := pipeClient(t, transport.ClientOptions{}, func(c net.Conn) {
			n++
			if hear(c) && n > 1 {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				hold(c)
			}
		})
		if _, body, err := get(c, request(t, t.Context(), "GET", origin, nil)); err != nil || body != "ok" {
			t.Errorf("%q, %v", body, err)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	date := "Mon, 02 Jan 2006 15:04:05 GMT"
	tests := []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0},
		{"0", "", 0},
		{"7", "", 7 * time.Second},
		{" 7 ", "", 7 * time.Second},
		{"31536000", "", transport.MaxRetryAfter},
		{"99999999999999999999999", "", transport.MaxRetryAfter},
		{"-5", "", 0},
		{"1e9", "", 0},
		{"Mon, 02 Jan 2006 15:05:05 GMT", date, time.Minute},
		{"Mon, 02 Jan 2106 15:05:05 GMT", date, transport.MaxRetryAfter},
		{"Mon, 02 Jan 2006 15:00:05 GMT", date, 0},
		{"Mon, 02 Jan 2006 15:05:05 GMT", "", 0},
		{"soon", date, 0},
	}
	for _, tt := range tests {
		h := http.Header{}
		h.Set("Retry-After", tt.value)
		h.Set("Date", tt.date)
		if got := transport.RetryAfter(h); got != tt.want {
			t.Errorf("%q at %q: %v, want %v", tt.value, tt.date, got, tt.want)
		}
	}
}
