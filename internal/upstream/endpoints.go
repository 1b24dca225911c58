package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// failuresToMove is how many requests in a row an endpoint has to fail before the next one is asked.
	failuresToMove = 2
	// returnAfter is how long another endpoint is used before the first is tried again.
	returnAfter = 10 * time.Minute
)

// endpoints are the addresses of one registry, in order of preference: its own, then those of its replicas in other
// regions. One is in use. What regclient asks the first for is asked the one in use; content is the same at all of
// them, since a digest is, so that what has arrived of a blob is kept.
type endpoints struct {
	next   http.RoundTripper
	clock  clock.Clock
	log    *slog.Logger
	scheme string
	hosts  []string // host[:port]

	mu       sync.Mutex
	active   int
	failures int       // in a row, of the active one
	moved    time.Time // when it became the active one
}

// inUse returns the endpoint that is asked now. After a while the first gets another chance: one failure is enough to
// leave it again.
func (e *endpoints) inUse() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.active != 0 && e.clock.Now().Sub(e.moved).Abs() >= returnAfter {
		e.active, e.failures = 0, failuresToMove-1
	}
	return e.hosts[e.active]
}

// owns reports whether an address is of one of the endpoints.
func (e *endpoints) owns(u *url.URL) bool {
	if u.Scheme != e.scheme {
		return false
	}
	for _, h := range e.hosts {
		if strings.EqualFold(u.Host, h) {
			return true
		}
	}
	return false
}

// RoundTrip implements http.RoundTripper.
func (e *endpoints) RoundTrip(req *http.Request) (*http.Response, error) {
	if len(e.hosts) == 1 || !e.owns(req.URL) {
		return e.next.RoundTrip(req)
	}
	host := e.inUse()
	if req.URL.Host != host {
		req = req.Clone(req.Context())
		req.URL.Host, req.Host = host, ""
	}
	resp, err := e.next.RoundTrip(req)
	e.note(req.Context(), host, resp, err)
	return resp, err
}

// note counts a failure of the endpoint that was asked: no answer, or one that says that it cannot answer. What it
// refuses, every other one would.
func (e *endpoints) note(ctx context.Context, host string, resp *http.Response, err error) {
	failed := err != nil && errors.Is(err, registry.ErrUnavailable)
	if err == nil && resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented {
		failed = true
	}
	if err != nil && !failed || ctx.Err() != nil {
		return // refused here, or given up by the caller
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if host != e.hosts[e.active] {
		return // somebody else has moved on
	}
	if !failed {
		e.failures = 0
		return
	}
	if e.failures++; e.failures < failuresToMove {
		return
	}
	e.active, e.failures, e.moved = (e.active+1)%len(e.hosts), 0, e.clock.Now()
	e.log.Warn("the parent's endpoint does not answer; the next one is asked", "endpoint", host, "next", e.hosts[e.active])
}
