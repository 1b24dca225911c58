package transport

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// maxRequestHeader bounds a request's header, in bytes.
const maxRequestHeader = 32 << 10

// ServerOptions are the parts of a server; the zero value works.
type ServerOptions struct {
	Logger      *slog.Logger
	BaseContext context.Context // of all requests; nil: package net/http's
	IdleTimeout time.Duration   // of a kept connection; 0 is 2 min
	MaxConns    int             // at once; 0 is 2048. Beyond it the one that waits longest without a request is closed
}

// NewServer returns a server, for Serve, that slow or greedy clients cannot hold for ever: 5 s for a handshake and for a
// request's header, 32 KiB of it, 100 requests at once over one connection of HTTP/2, and a bound to the connections. Bodies
// have no total time, since a layer over a thin link takes hours: handlers set rolling deadlines.
func NewServer(h http.Handler, o ServerOptions) *http.Server {
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = 2 * time.Minute
	}
	if o.MaxConns <= 0 {
		o.MaxConns = maxConns
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	conns := &crowd{limit: o.MaxConns}
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       o.IdleTimeout,
		MaxHeaderBytes:    maxRequestHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 100},
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug), // scanners fill it
	}
	s.ConnState = func(c net.Conn, state http.ConnState) {
		conns.state(c, state)
		if o, ok := c.(interface{ next() }); ok && state == http.StateIdle { // which it is when an answer is out
			o.next()
		}
	}
	if o.BaseContext != nil {
		s.BaseContext = func(net.Listener) context.Context { return o.BaseContext }
	}
	return s
}
