package edgesim

import (
	"crypto/tls"
	"net"
	"os"
	"sync"
	"time"
)

// blackHole is a valve in all connections of edgeHub. While it is shut bytes wait, as they do when the network loses
// packets: TCP sends them again when it is back.
type blackHole struct {
	mu   sync.Mutex
	open chan struct{} // closed while bytes flow
}

func newBlackHole() *blackHole {
	h := &blackHole{open: make(chan struct{})}
	close(h.open)
	return h
}

func (h *blackHole) set(shut bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.open:
		if shut {
			h.open = make(chan struct{})
		}
	default:
		if !shut {
			close(h.open)
		}
	}
}

func (h *blackHole) passage() chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open
}

// gatedConn is a TCP connection with the valve in it.
type gatedConn struct {
	net.Conn
	hole   *blackHole
	once   sync.Once
	closed chan struct{}
	forget func(*gatedConn)

	mu             sync.Mutex
	readBy, sendBy time.Time
}

// wait holds until the valve is open; deadlines hold there too.
func (c *gatedConn) wait(deadline func() time.Time) error {
	select {
	case <-c.hole.passage():
		return nil
	default:
	}
	var expired <-chan time.Time
	if at := deadline(); !at.IsZero() {
		t := time.NewTimer(time.Until(at))
		defer t.Stop()
		expired = t.C
	}
	select {
	case <-c.hole.passage():
		return nil
	case <-c.closed:
		return net.ErrClosed
	case <-expired:
		return os.ErrDeadlineExceeded
	}
}

func (c *gatedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if werr := c.wait(func() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.readBy }); werr != nil {
		return 0, werr
	}
	return n, err
}

func (c *gatedConn) Write(p []byte) (int, error) {
	if err := c.wait(func() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.sendBy }); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

func (c *gatedConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	c.readBy, c.sendBy = t, t
	c.mu.Unlock()
	return c.Conn.SetDeadline(t)
}

func (c *gatedConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.readBy = t
	c.mu.Unlock()
	return c.Conn.SetReadDeadline(t)
}

func (c *gatedConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.sendBy = t
	c.mu.Unlock()
	return c.Conn.SetWriteDeadline(t)
}

func (c *gatedConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.forget(c)
	})
	return c.Conn.Close()
}

// mqttConn is a TLS connection that closes without a farewell, so that a close never waits for a silent peer.
type mqttConn struct {
	*tls.Conn
	raw *gatedConn
}

func (c mqttConn) Close() error { return c.raw.Close() }

// gatedListener accepts gated connections and knows those that are open.
type gatedListener struct {
	net.Listener
	hole *blackHole

	mu    sync.Mutex
	conns map[*gatedConn]struct{}
}

func newGatedListener(l net.Listener, hole *blackHole) *gatedListener {
	return &gatedListener{Listener: l, hole: hole, conns: map[*gatedConn]struct{}{}}
}

func (l *gatedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g := &gatedConn{Conn: c, hole: l.hole, closed: make(chan struct{}), forget: l.forget}
	l.mu.Lock()
	l.conns[g] = struct{}{}
	l.mu.Unlock()
	return g, nil
}

func (l *gatedListener) forget(c *gatedConn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

// cut closes all connections.
func (l *gatedListener) cut() {
	l.mu.Lock()
	open := make([]*gatedConn, 0, len(l.conns))
	for c := range l.conns {
		open = append(open, c)
	}
	l.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}
