package hostile

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// patience bounds the time to one answer.
const patience = 30 * time.Second

// seeds of a run; each sends its share of the requests.
var seeds = []uint64{1, 28, 2026}

// TestHostile is the attack. It says how to repeat a run that failed.
func TestHostile(t *testing.T) {
	total, list := 21_000, seeds
	if os.Getenv("CHAOS") == "long" {
		total = 600_000
	}
	if n, err := strconv.Atoi(os.Getenv("HOSTILE_REQUESTS")); err == nil {
		total = n
	}
	if n, err := strconv.ParseUint(os.Getenv("HOSTILE_SEED"), 10, 64); err == nil {
		list = []uint64{n}
	}
	for _, seed := range list {
		n := total / len(list)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("again: cd test && HOSTILE_SEED=%d HOSTILE_REQUESTS=%d go test -count=1 -run '^TestHostile$' ./chaos/hostile", seed, n)
				}
			})
			attack(t, seed, n)
		})
	}
}

// attack sends n requests over each way into each registry.
func attack(t *testing.T, seed uint64, n int) {
	s := newSite(t)
	type lane struct {
		layer    int
		protocol string // of TLS; empty is none
	}
	lanes := []lane{{0, ""}, {0, "http/1.1"}, {0, "h2"}, {1, ""}, {1, "http/1.1"}, {1, "h2"}}
	var tally tally
	var wg sync.WaitGroup
	begin := time.Now()
	for w, l := range lanes {
		a := &attacker{site: s, generator: newGenerator(seed, w, s), layer: l.layer, protocol: l.protocol, tally: &tally}
		wg.Go(func() {
			for i := range n / len(lanes) {
				if err := a.one(); err != nil {
					t.Errorf("seed %d, lane %d (layer %d, %q), request %d: %v", seed, w, l.layer, l.protocol, i, err)
					return
				}
			}
			a.hangUp()
		})
	}
	wg.Wait()
	took := time.Since(begin)
	s.unchanged()
	for _, l := range s.layers {
		rss, peak := l.RSS()
		t.Logf("%s: %d MiB of memory, peak %d MiB", l.Name, rss>>20, peak>>20)
	}
	t.Logf("%d requests in %.0f s: %s", n, took.Seconds(), &tally)
}

// tally counts answers by status; 0 is a connection that was ended without one, where HTTP allows none.
type tally struct {
	mu       sync.Mutex
	statuses map[int]int
}

func (c *tally) add(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.statuses == nil {
		c.statuses = map[int]int{}
	}
	c.statuses[status]++
}

func (c *tally) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var keys []int
	for k := range c.statuses {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	text := ""
	for _, k := range keys {
		text += fmt.Sprintf("%d x %d, ", k, c.statuses[k])
	}
	return text + "(0: ended, where HTTP allows no answer)"
}

// attacker sends requests one after the other.
type attacker struct {
	*site
	*generator
	layer    int
	protocol string
	tally    *tally

	conn net.Conn
	in   *bufio.Reader
	h2   *http2Conn

	learned int
}

func (a *attacker) hangUp() {
	if a.conn != nil {
		_ = a.conn.Close()
	}
	a.conn, a.in, a.h2 = nil, nil, nil
}

// one sends a request and judges the answer.
func (a *attacker) one() error {
	if a.protocol != "h2" && a.IntN(20) == 0 {
		return a.bad()
	}
	r := a.next()
	fail := func(err error) error { return fmt.Errorf("%w: %.600q", err, r.http1()) }
	if a.conn == nil {
		conn, err := a.dial(a.layer, a.protocol)
		if err != nil {
			return fail(err)
		}
		a.conn, a.in = conn, bufio.NewReader(conn)
		if a.protocol == "h2" {
			if a.h2, err = newHTTP2(conn); err != nil {
				return fail(err)
			}
		}
	}
	_ = a.conn.SetDeadline(time.Now().Add(patience))
	var resp *http.Response
	var err error
	if a.protocol == "h2" {
		resp, err = a.h2.roundTrip(r)
	} else {
		resp, err = a.roundTrip(r)
	}
	if err != nil {
		return fail(fmt.Errorf("dropped: %w", err))
	}
	a.tally.add(resp.StatusCode)
	if resp.StatusCode >= 500 {
		return fail(fmt.Errorf("status %d", resp.StatusCode))
	}
	a.learn(resp)
	if resp.Close {
		a.hangUp()
	}
	return nil
}

func (a *attacker) roundTrip(r request) (*http.Response, error) {
	if _, err := a.conn.Write(r.http1()); err != nil {
		return nil, err
	}
	return read(a.in, r.method)
}

// read reads one answer to its end.
func read(in *bufio.Reader, method string) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(body))
		if err != nil || resp.StatusCode >= 200 {
			return resp, err
		}
	}
}

// learn keeps what later requests may use.
func (a *attacker) learn(resp *http.Response) {
	if id := resp.Header.Get("Docker-Upload-Uuid"); id != "" {
		a.learned++
		a.ids[a.learned%len(a.ids)] = id
	}
	var tokens struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	if json.NewDecoder(resp.Body).Decode(&tokens) == nil {
		for _, token := range []string{tokens.Access, tokens.Refresh} {
			if token != "" {
				a.learned++
				a.tokens[a.learned%len(a.tokens)] = token
			}
		}
	}
}

// bad sends what is no request. Where it is refused that is with 4xx and an error body, also before it got to a handler.
func (a *attacker) bad() error {
	raw, answered, ends := a.malformed()
	fail := func(err error) error { return fmt.Errorf("%w: %d bytes, %.600q", err, len(raw), raw) }
	conn, err := a.dial(a.layer, a.protocol)
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	// The registry may answer before it has read all, and then end the connection under the sender.
	if _, err := conn.Write(raw); err != nil && !answered {
		a.tally.add(0)
		return nil
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok && ends {
		_ = half.CloseWrite()
	}
	resp, err := read(bufio.NewReader(conn), http.MethodGet)
	var timeout net.Error
	switch {
	case err == nil && (resp.StatusCode >= 500 || resp.StatusCode >= 400 && resp.Header.Get("Content-Type") != "application/json"):
		return fail(fmt.Errorf("status %d, %q", resp.StatusCode, resp.Header.Get("Content-Type")))
	case err == nil:
		a.tally.add(resp.StatusCode)
	case answered, errors.As(err, &timeout) && timeout.Timeout():
		return fail(fmt.Errorf("no answer: %w", err))
	default:
		a.tally.add(0)
	}
	return nil
}
