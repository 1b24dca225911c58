package transport

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// ServerOptions are the parts of a server; the zero value works.
type ServerOptions struct {
	Logger      *slog.Logger
	BaseContext context.Context // of all requests; nil: package net/http's
	IdleTimeout time.Duration   // of a kept connection; 0 is 2 min
}

// NewServer returns a server that a slow or greedy client cannot hold for ever: 5 s for a request's header, 32 KiB of
// it. Bodies have no total time, since a layer over a thin link takes hours: handlers set rolling deadlines.
func NewServer(h http.Handler, o ServerOptions) *http.Server {
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = 2 * time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       o.IdleTimeout,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug), // scanners fill it
	}
	if o.BaseContext != nil {
		s.BaseContext = func(net.Listener) context.Context { return o.BaseContext }
	}
	return s
}
