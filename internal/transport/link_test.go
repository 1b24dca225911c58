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
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

const mib = 1 << 20

// sender answers each request with size bytes.
func sender(size int) func(c net.Conn) {
	return func(c net.Conn) {
		for hear(c) {
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
			_, _ = c.Write(make([]byte, size))
		}
	}
}

// TestRateOfTheHour lets the clock run into a window with a lower rate.
func TestRateOfTheHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the bubble begins at midnight UTC, on a Saturday
		link := transport.NewLink(transport.LinkOptions{Now: time.Now})
		w, err := registry.ParseRateWindow("00:01-06:00 sat 32")
		if err != nil {
			t.Fatal(err)
		}
		link.Configure(registry.TransferConfig{MaxKiBps: 128, Rates: map[string]registry.RateWindow{"night": w}})
		c := pipeClient(t, transport.ClientOptions{Link: link}, sender(9*mib))
		start := time.Now()
		if _, _, err := get(c, request(t, transport.WithBlob(t.Context()), "GET", origin, nil)); err != nil {
			t.Fatal(err)
		}
		// 60 s at 128 KiB/s are 7.5 MiB, the other 1.5 MiB take 48 s.
		if took := time.Since(start); took < 105*time.Second || took > 112*time.Second {
			t.Errorf("it took %v, want about 108 s", took)
		}
		if speed, limit := link.Speed(); speed < 28<<10 || speed > 40<<10 || limit != 32<<10 {
			t.Errorf("speed %d, limit %d", speed, limit)
		}
	})
}

// TestRateThatComesMeanwhile sets a rate while a transfer waits for bytes that it asked for without one.
func TestRateThatComesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := transport.NewLink(transport.LinkOptions{})
		link.Configure(registry.TransferConfig{})
		comes := make(chan struct{})
		c := pipeClient(t, transport.ClientOptions{Link: link}, func(c net.Conn) {
			if hear(c) {
				_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", mib)
				<-comes
				_, _ = c.Write(make([]byte, mib))
				hold(c)
			}
		})
		go func() {
			synctest.Wait()
			link.Configure(registry.TransferConfig{MaxKiBps: 64})
			close(comes)
		}()
		start := time.Now()
		resp, err := c.HTTP().Do(request(t, transport.WithBlob(t.Context()), "GET", origin, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body := make([]byte, mib)
		n, err := io.ReadFull(resp.Body, body)
		if took := time.Since(start); err != nil || took < 15*time.Second || took > 17*time.Second {
			t.Errorf("%d bytes in %v, want 1 MiB at 64 KiB/s: %v", n, took, err)
		}
	})
}

// TestUrgentGoesFirst starts a request that somebody waits for beside a background one: the background stands until two
// seconds after it, and loses nothing.
func TestUrgentGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := transport.NewLink(transport.LinkOptions{Now: time.Now})
		link.Configure(registry.TransferConfig{MaxKiBps: 256, ChunkKiB: 64})
		c := pipeClient(t, transport.ClientOptions{Link: link}, sender(4*mib))
		fetch := func(ctx context.Context) <-chan time.Duration {
			done := make(chan time.Duration, 1)
			start := time.Now()
			go func() {
				_, body, err := get(c, request(t, transport.WithBlob(ctx), "GET", origin, nil))
				if err != nil || len(body) != 4*mib {
					t.Errorf("%d bytes, %v", len(body), err)
				}
				done <- time.Since(start)
			}()
			return done
		}
		late := &transport.Urgency{}
		background := fetch(t.Context())
		time.Sleep(4 * time.Second)
		raised := fetch(transport.WithUrgency(t.Context(), late))
		time.Sleep(time.Second)
		late.Raise(transport.Waiting) // a client came for it
		if took := <-raised; took > 19*time.Second {
			t.Errorf("4 MiB at 256 KiB/s that somebody waits for took %v beside a background transfer", took)
		}
		if took := <-background; took < 32*time.Second || took > 36*time.Second {
			t.Errorf("the background took %v, want its own 16 s, the other's, and two of grace", took)
		}
	})
}

// TestBudget uses up the budget of an hour: content stops with an error that says until when, questions do not, and the
// next hour goes on. What was kept is never less than what was used, and keeping it is rare.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept []byte
		keeps := 0
		options := func() transport.LinkOptions {
			return transport.LinkOptions{Now: time.Now, Kept: kept, Keep: func(b []byte) error { kept, keeps = b, keeps+1; return nil }}
		}
		config := registry.TransferConfig{Budget: registry.BudgetConfig{HourMiB: 4, DayMiB: 100}}
		link := transport.NewLink(options())
		link.Configure(config)
		c := pipeClient(t, transport.ClientOptions{Link: link}, sender(3*mib))
		blob := func() (int, error) {
			_, body, err := get(c, request(t, transport.WithBlob(t.Context()), "GET", origin, nil))
			return len(body), err
		}
		if n, err := blob(); err != nil || n != 3*mib {
			t.Fatalf("%d bytes, %v", n, err)
		}
		used := link.Budgets()[0].Used
		if used < 3*mib || used > 3*mib+4096 {
			t.Errorf("3 MiB and a header are counted as %d bytes", used)
		}
		n, err := blob()
		var e *registry.Error
		if !errors.Is(err, registry.ErrUnavailable) || !errors.Is(err, registry.ErrBudget) || n > mib+64<<10 || n < mib-64<<10 {
			t.Errorf("beyond the budget: %d bytes, %v", n, err)
		}
		if errors.As(err, &e); !strings.Contains(e.Message, "hour, 4 MiB (transfer.budget.hourMiB), is used up until 2000-01-01 01:00 UTC") || e.RetryAfter != transport.MaxRetryAfter {
			t.Errorf("%q, Retry-After %v", e.Message, e.RetryAfter)
		}
		if _, body, err := get(c, request(t, t.Context(), "GET", origin, nil)); err != nil || len(body) != 3*mib {
			t.Errorf("a question: %d bytes, %v", len(body), err)
		}
		if keeps > 2*64+2 {
			t.Errorf("what was used was kept %d times", keeps)
		}

		killed := transport.NewLink(options()) // without a Close of the first
		killed.Configure(config)
		before, after := link.Budgets(), killed.Budgets()
		for i := range before {
			if after[i].Used < before[i].Used || after[i].Used > before[i].Used+4*mib/64+64<<10 {
				t.Errorf("%s: %d bytes were used, %d after the restart", before[i].Period, before[i].Used, after[i].Used)
			}
		}
		if killed.Spent() == nil {
			t.Error("a restart brings the budget back")
		}
		link.Close()
		closed := transport.NewLink(options())
		closed.Configure(config)
		if got := closed.Budgets()[0].Used; got != before[0].Used {
			t.Errorf("%d bytes were used, %d after an orderly restart", before[0].Used, got)
		}
		time.Sleep(time.Hour)
		if n, err := blob(); err != nil || n != 3*mib {
			t.Errorf("in the next hour: %d bytes, %v", n, err)
		}
		if day := link.Budgets()[1]; day.Used < 9*mib || day.Left != 100*mib-day.Used {
			t.Errorf("the day: %+v", day)
		}
		link.Configure(registry.TransferConfig{})
		if link.Budgets() != nil || link.Spent() != nil {
			t.Error("a budget that was taken away is still in force")
		}
	})
}

// TestKeptByNobody reads what no Link wrote.
func TestKeptByNobody(t *testing.T) {
	for _, kept := range []string{"{", "null", `{"hour": 1}`, `{"hour": {"begin": "2000-01-01T00:00:00Z", "used": -5}}`, strings.Repeat("x", 1000)} {
		link := transport.NewLink(transport.LinkOptions{Kept: []byte(kept)})
		link.Configure(registry.TransferConfig{Budget: registry.BudgetConfig{HourMiB: 1}})
		if b := link.Budgets(); len(b) != 1 || b[0].Used != 0 {
			t.Errorf("%q: %+v", kept, b)
		}
	}
}

// TestSlowUpload sends a body for longer than an answer may take: what moves is not given up.
func TestSlowUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := transport.NewLink(transport.LinkOptions{})
		link.Configure(registry.TransferConfig{MaxKiBps: 8})
		c := pipeClient(t, transport.ClientOptions{Link: link, Origin: origin}, func(c net.Conn) {
			req, err := http.ReadRequest(bufio.NewReader(c))
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
			}
		})
		req := request(t, t.Context(), "PATCH", origin, strings.NewReader(strings.Repeat("x", 4*mib)))
		start := time.Now()
		resp, err := c.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if took := time.Since(start); resp.StatusCode != http.StatusAccepted || took < 8*time.Minute || took > 9*time.Minute {
			t.Errorf("4 MiB at 8 KiB/s: %d after %v", resp.StatusCode, took)
		}
	})
}
