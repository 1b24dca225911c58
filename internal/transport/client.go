// Package transport is the only maker of http.Client and http.Server in the product. What every connection needs is
// here once: trust that is read anew on each dial, time-outs for each phase, a guard that binds a credential to one
// host, a few retries with jitter, a rate limit, and counters.
package transport

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Limits of what a server may send.
const (
	maxHeaderBytes = 64 << 10
	defaultMaxBody = 8 << 20 // bytes of an answer that is not a blob
)

// Timeouts bounds the phases of a request. Zero takes the default.
type Timeouts struct {
	Connect   time.Duration // 10 s
	Handshake time.Duration // 10 s, TLS
	Header    time.Duration // 20 s from the request to the end of the answer's header
	Idle      time.Duration // 20 s without a byte of a body
	Total     time.Duration // 5 min for the whole answer, unless it is a blob
}

func (t Timeouts) withDefaults() Timeouts {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&t.Connect, 10*time.Second)
	def(&t.Handshake, 10*time.Second)
	def(&t.Header, 20*time.Second)
	def(&t.Idle, 20*time.Second)
	def(&t.Total, 5*time.Minute)
	return t
}

// ClientOptions are the parts of a Client. The zero value makes a client that trusts the system's roots, uses no
// proxy, talks to public hosts only and sends no credential to anyone.
type ClientOptions struct {
	// Origin is the registry that the client is for, for example "https://parent:8000". A credential is sent to it and
	// to Realms only, and with an Origin nothing else is sent to any other host than a GET or HEAD that follows a
	// blob's redirect. Its host may be private or loopback.
	Origin string
	// Realms are further origins that may be given the credential: token servers.
	Realms []string
	// Data are origins that blobs may be redirected to although they have private addresses. They get no credential.
	Data []string

	Dial    func(ctx context.Context, network, addr string) (net.Conn, error) // nil: package net
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)      // nil: package net
	RootCAs func() (*x509.CertPool, error)                                    // read on each TLS dial; an error means no connection; nil: system roots
	Proxy   func(target *url.URL) (proxy *url.URL, err error)                 // nil: never through a proxy, as it must be for a gateway
	Rand    func() float64                                                    // jitter, 0 <= x < 1; nil: math/rand/v2

	Timeouts  Timeouts
	MaxBody   int64 // bytes of an answer that is not a blob; 0 is 8 MiB
	Link      *Link // limits that this client shares with others; nil: none
	UserAgent string
	Logger    *slog.Logger
}

// Client is an http.RoundTripper with the rules of this package, and what it has counted. Use HTTP to get an
// http.Client; it is safe for concurrent use.
type Client struct {
	o     ClientOptions
	log   *slog.Logger
	hosts hosts
	base  *http.Transport
	chain http.RoundTripper
	link  *Link

	requests, received, sent atomic.Int64
}

// NewClient returns a Client.
//
// Errors: an Origin, Realm or Data that is not scheme://host[:port].
func NewClient(o ClientOptions) (*Client, error) {
	o.Timeouts = o.Timeouts.withDefaults()
	if o.MaxBody <= 0 {
		o.MaxBody = defaultMaxBody
	}
	if o.UserAgent == "" {
		o.UserAgent = "connected-registry"
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Link == nil {
		o.Link = NewLink(LinkOptions{})
	}
	c := &Client{o: o, log: o.Logger, link: o.Link}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if c.hosts, err = newHosts(o.Origin, o.Realms, o.Data); err != nil {
		return nil, err
	}
	d := newDialer(o, c.hosts)
	c.base = &http.Transport{
		DialContext:            d.dial,
		DialTLSContext:         d.dialTLS,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // a digest is over the bytes as they are sent
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
	c.chain = newRetrier(o.Rand, guard{c: c, next: roundTripperFunc(c.exchange)})
	return c, nil
}

// HTTP returns an http.Client over c. It follows redirects as far as the rules allow.
func (c *Client) HTTP() *http.Client {
	return &http.Client{Transport: c, CheckRedirect: c.CheckRedirect}
}

// RoundTrip sends one request, with retries where they are harmless. Its errors are *registry.Error: UNAVAILABLE when
// there is no answer, DENIED when a rule of this package forbids the request; or the context's when the caller gave up.
func (c *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	return c.chain.RoundTrip(req)
}

// Traffic returns what went over the wire so far, retries included.
func (c *Client) Traffic() registry.Traffic {
	return registry.Traffic{Requests: c.requests.Load(), BytesReceived: c.received.Load(), BytesSent: c.sent.Load()}
}

// Close drops idle connections.
func (c *Client) Close() { c.base.CloseIdleConnections() }

type (
	blobKey    struct{}
	headerKey  struct{}
	maxBodyKey struct{}
)

// WithBlob marks requests that carry content, in either direction: their bodies have no size limit and no total time,
// they give way to what is more urgent, and there are none while a byte budget is used up. A GET or HEAD may be redirected
// to another host, which gets no credential.
func WithBlob(ctx context.Context) context.Context { return context.WithValue(ctx, blobKey{}, true) }

// WithHeaderTimeout lets the server take longer than the default until it answers, for a long poll.
func WithHeaderTimeout(ctx context.Context, d time.Duration) context.Context {
	return context.WithValue(ctx, headerKey{}, d)
}

// WithMaxBody bounds the answer's body, in bytes, in place of ClientOptions.MaxBody.
func WithMaxBody(ctx context.Context, n int64) context.Context {
	return context.WithValue(ctx, maxBodyKey{}, n)
}

func isBlob(ctx context.Context) bool { b, _ := ctx.Value(blobKey{}).(bool); return b }

// limits returns how long the header may take, how long the whole answer, and how many bytes its body may have.
func (c *Client) limits(ctx context.Context) (header, total time.Duration, body int64) {
	header, total, body = c.o.Timeouts.Header, c.o.Timeouts.Total, c.o.MaxBody
	if d, ok := ctx.Value(headerKey{}).(time.Duration); ok {
		header = d
		total += d
	}
	if n, ok := ctx.Value(maxBodyKey{}).(int64); ok {
		body = n
	}
	if ctx.Done() == nil {
		total = min(total, 30*time.Second) // regclient asks for tokens with a context that nobody can cancel
	}
	if isBlob(ctx) {
		total, body = 0, math.MaxInt64
	}
	return header, total, body
}

type roundTripperFunc func(*http.Request) (*http.Response, error)

func (f roundTripperFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// refused reports whether err is a decision of this package or of the caller, which trying again does not change.
func refused(err error) bool {
	return errors.Is(err, registry.ErrDenied) || errors.Is(err, registry.ErrBudget) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
