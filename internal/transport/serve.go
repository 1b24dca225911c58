package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
)

// Serve has s, which NewServer made, answer on l until s is shut down or closed. With a config it is HTTP/1.1 and HTTP/2
// over TLS; ctx is that of the handshakes, and those that are not done end with the server. Unlike s.Serve it answers what
// net/http refuses before any handler sees it with an error body of the OCI specification and a 4xx, never a 5xx.
//
// Errors: those of http.Server.Serve; http.ErrServerClosed after a shutdown.
func Serve(ctx context.Context, s *http.Server, l net.Listener, config *tls.Config) error {
	if config == nil {
		return s.Serve(plain{l})
	}
	config = config.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	h := &handshakes{Listener: l, server: s, config: config, ctx: ctx, ready: make(chan accepted)}
	go h.run()
	return s.Serve(h)
}

// plain is a listener without TLS. Connections that are not TCP come from tests, and from this machine.
type plain struct{ net.Listener }

func (l plain) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		return &plainConn{TCPConn: tcp}, err
	}
	return c, err
}

// handshakes is a listener of connections whose handshake is done. Package net/http would do it itself on a *tls.Conn and
// on nothing else, and on a *tls.Conn what it writes is not to be seen; HTTP/2 has to have that, HTTP/1.1 gets a
// secureConn. A connection counts against the bound of the server from the moment that it is accepted.
type handshakes struct {
	net.Listener
	server *http.Server
	config *tls.Config
	ctx    context.Context // of all handshakes
	ready  chan accepted
}

// accepted is what Accept returns.
type accepted struct {
	conn net.Conn
	err  error
}

// Accept returns a connection that is ready, or an error of the listener below.
func (h *handshakes) Accept() (net.Conn, error) {
	select {
	case a := <-h.ready:
		return a.conn, a.err
	case <-h.ctx.Done():
		return nil, net.ErrClosed
	}
}

// run accepts until the listener is closed. An error waits for net/http, which pauses after some and ends with others.
func (h *handshakes) run() {
	for {
		raw, err := h.Listener.Accept()
		switch {
		case err == nil:
			h.server.ConnState(raw, http.StateNew)
			go h.shake(raw)
		case !h.hand(nil, err):
			return
		}
	}
}

// hand gives net/http something to accept, unless that does not accept any more.
func (h *handshakes) hand(c net.Conn, err error) bool {
	select {
	case h.ready <- accepted{c, err}:
		return true
	case <-h.ctx.Done():
		return false
	}
}

// shake does the handshake of a connection and hands it over, or closes it.
func (h *handshakes) shake(raw net.Conn) {
	conn, err := h.secure(raw)
	if err == nil && h.hand(conn, nil) {
		return
	}
	if err != nil {
		h.server.ErrorLog.Printf("http: TLS handshake error from %s: %v", raw.RemoteAddr(), err)
	}
	_ = raw.Close()
	h.server.ConnState(raw, http.StateClosed)
}

func (h *handshakes) secure(raw net.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(h.ctx, h.server.ReadHeaderTimeout)
	defer cancel()
	conn := tls.Server(raw, h.config)
	if err := conn.HandshakeContext(ctx); err != nil {
		// A letter begins a request and no record of TLS.
		if re := (tls.RecordHeaderError{}); errors.As(err, &re) && re.Conn != nil && re.RecordHeader[0] >= 'A' && re.RecordHeader[0] <= 'Z' {
			_, _ = raw.Write(answer(refusal(http.StatusBadRequest, "this port speaks TLS: use https"))) // fits in any buffer
		}
		return nil, err
	}
	if conn.ConnectionState().NegotiatedProtocol == "h2" {
		return conn, nil
	}
	return &secureConn{Conn: conn}, nil
}
