package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// window is how many bytes of one direction of a connection may be on their way, as a socket's buffers bound it.
const window = 64 << 10

// persistence is for how long a system goes on to send what it was given.
const persistence = 15 * time.Minute

// packet bounds what arrives at once.
const packet = 8 << 10

// network connects hosts by name, in memory and in simulated time. One lock guards all of it: what it does is short,
// and whoever waits in it waits on a channel, so that a bubble knows that it waits.
type network struct {
	mu    sync.Mutex
	hosts map[string]*listener
	links map[string]*link // by "from to"
	conns map[*pair]struct{}
	next  int
}

func newNetwork() *network {
	return &network{hosts: map[string]*listener{}, links: map[string]*link{}, conns: map[*pair]struct{}{}}
}

// kill takes a host off the network with its control socket: what was on its way to and from it is lost.
func (n *network) kill(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, l := range n.hosts {
		if name == host || strings.HasPrefix(name, host+"-") {
			l.end()
		}
	}
	for p := range n.conns {
		if p.from == host || p.to == host || strings.HasPrefix(p.to, host+"-") {
			p.fail(syscall.ECONNRESET)
		}
	}
}

// listener is a host's.
type listener struct {
	n      *network
	name   string
	queue  chan *conn
	closed chan struct{}
}

func (n *network) listen(name string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts[name] != nil {
		return nil, fmt.Errorf("listen %s: %w", name, syscall.EADDRINUSE)
	}
	l := &listener{n: n, name: name, queue: make(chan *conn, 128), closed: make(chan struct{})}
	n.hosts[name] = l
	return l, nil
}

// end closes the listener; the caller holds the lock.
func (l *listener) end() {
	if l.n.hosts[l.name] == l {
		delete(l.n.hosts, l.name)
		close(l.closed)
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	l.end()
	return nil
}

func (l *listener) Addr() net.Addr { return address(l.name) }

type address string

func (address) Network() string  { return "sim" }
func (a address) String() string { return string(a) }

// dialer returns how a host opens connections.
func (n *network) dialer(from string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		to, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		return n.dial(ctx, from, to)
	}
}

// dial takes a round trip.
func (n *network) dial(ctx context.Context, from, to string) (net.Conn, error) {
	for {
		n.mu.Lock()
		l := n.link(from, to)
		mode, wait, moved := l.mode, 2*l.latency, l.moved
		n.mu.Unlock()
		var timer *time.Timer
		var arrived <-chan time.Time
		if mode != linkHole {
			timer = time.NewTimer(wait)
			arrived = timer.C
		}
		select {
		case <-ctx.Done():
			stop(timer)
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: address(to), Err: ctx.Err()}
		case <-moved:
			stop(timer)
			continue
		case <-arrived:
		}
		if c := n.connect(from, to); c != nil {
			return c, nil
		}
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: address(to), Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
}

func stop(t *time.Timer) {
	if t != nil {
		t.Stop()
	}
}

// connect makes both ends; nil when nobody listens.
func (n *network) connect(from, to string) net.Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	l, host := n.link(from, to), n.hosts[to]
	if host == nil || l.mode == linkRefuse {
		return nil
	}
	n.next++
	p := &pair{n: n, link: l, from: from, to: to, id: n.next}
	for i := range p.half {
		p.half[i].moved = make(chan struct{})
	}
	client, server := &conn{pair: p, dir: up}, &conn{pair: p, dir: down}
	select {
	case host.queue <- server:
	default:
		return nil
	}
	n.conns[p] = struct{}{}
	return client
}

// Directions of a connection, seen from who dialled.
const (
	up   = 0
	down = 1
)

// pair is a connection.
type pair struct {
	n        *network
	link     *link
	from, to string
	id       int
	half     [2]half
	err      error  // both ends fail with it
	blob     string // digest of the blob that was asked for last
	put      string // path of the manifest that was put last
	late     bool   // a request on it was held
}

// half is one direction.
type half struct {
	queue   []segment
	size    int
	ended   bool      // nothing is written any more
	gone    bool      // nobody reads any more
	endAt   time.Time // when the end arrives
	last    time.Time // when the last segment arrives
	moved   chan struct{}
	readBy  time.Time
	writeBy time.Time
}

type segment struct {
	data []byte
	at   time.Time
}

func (h *half) wake() {
	close(h.moved)
	h.moved = make(chan struct{})
}

// fail breaks the connection; the caller holds the lock.
func (p *pair) fail(by error) {
	if p.err != nil {
		return
	}
	p.err = by
	delete(p.n.conns, p)
	for i := range p.half {
		p.half[i].queue, p.half[i].size = nil, 0
		p.half[i].wake()
	}
}

// conn is one end: it writes to dir and reads from the other direction.
type conn struct {
	*pair
	dir  int
	once sync.Once
}

func (c *conn) opError(op string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	h := &c.half[1-c.dir]
	for {
		c.n.mu.Lock()
		now := time.Now()
		n, wait, err := c.take(h, p, now)
		moved, opened := h.moved, c.link.moved
		c.n.mu.Unlock()
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		pauseUntil(now, wait, moved, opened)
	}
}

// take reads what has arrived; or says how long to wait: for ever when it is zero.
func (c *conn) take(h *half, p []byte, now time.Time) (n int, wait time.Time, err error) {
	switch {
	case c.err != nil:
		if errors.Is(c.err, io.EOF) {
			return 0, wait, io.EOF
		}
		return 0, wait, c.opError("read", os.NewSyscallError("read", c.err))
	case h.gone:
		return 0, wait, c.opError("read", net.ErrClosed)
	case !h.readBy.IsZero() && !now.Before(h.readBy):
		return 0, wait, os.ErrDeadlineExceeded
	}
	wait = h.readBy
	if c.link.mode == linkHole {
		return 0, wait, nil
	}
	if len(h.queue) == 0 {
		if h.ended && !now.Before(h.endAt) {
			return 0, wait, io.EOF
		}
		if h.ended {
			wait = earlier(wait, h.endAt)
		}
		return 0, wait, nil
	}
	s := &h.queue[0]
	if now.Before(s.at) {
		return 0, earlier(wait, s.at), nil
	}
	if now.Sub(s.at) > persistence {
		c.fail(syscall.ETIMEDOUT)
		return 0, wait, c.opError("read", os.NewSyscallError("read", c.err))
	}
	n = copy(p, s.data)
	s.data = s.data[n:]
	if len(s.data) == 0 {
		h.queue = h.queue[1:]
	}
	h.size -= n
	h.wake()
	c.arrived(1-c.dir, n)
	return n, wait, nil
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// pauseUntil waits for a time, or for a sign.
func pauseUntil(now, until time.Time, signs ...<-chan struct{}) {
	var timer *time.Timer
	var arrived <-chan time.Time
	if !until.IsZero() {
		timer = time.NewTimer(until.Sub(now))
		arrived = timer.C
		defer timer.Stop()
	}
	select {
	case <-arrived:
	case <-signs[0]:
	case <-signs[1]:
	}
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (total int, err error) {
	h := &c.half[c.dir]
	c.n.mu.Lock()
	if c.dir == up {
		c.note(p)
	} else if c.put != "" && strings.HasPrefix(string(p[:min(len(p), 16)]), "HTTP/1.1 412 ") {
		c.link.puts[c.put]-- // somebody else had moved the tag since it was asked for: nothing was changed
	}
	c.n.mu.Unlock()
	for len(p) > 0 {
		c.n.mu.Lock()
		now := time.Now()
		switch {
		case c.err != nil || h.gone:
			err = c.opError("write", os.NewSyscallError("write", syscall.EPIPE))
		case h.ended:
			err = c.opError("write", net.ErrClosed)
		case !h.writeBy.IsZero() && !now.Before(h.writeBy):
			err = os.ErrDeadlineExceeded
		}
		if err != nil {
			c.n.mu.Unlock()
			return total, err
		}
		n := min(len(p), packet, window-h.size)
		if n > 0 {
			c.send(h, p[:n], now)
		}
		moved, opened, wait := h.moved, c.link.moved, h.writeBy
		c.n.mu.Unlock()
		total += n
		p = p[n:]
		if n == 0 {
			pauseUntil(now, wait, moved, opened)
		}
	}
	return total, nil
}

// send puts bytes on the way.
func (c *conn) send(h *half, p []byte, now time.Time) {
	l := c.link
	start := now
	if l.busy[c.dir].After(start) {
		start = l.busy[c.dir]
	}
	if l.rate > 0 {
		start = start.Add(time.Duration(len(p)) * time.Second / time.Duration(l.rate))
		l.busy[c.dir] = start
	}
	at := start.Add(l.latency)
	if at.Before(h.last) {
		at = h.last
	}
	h.last = at
	h.queue = append(h.queue, segment{data: append([]byte{}, p...), at: at})
	h.size += len(p)
	if c.dir == up {
		l.up += int64(len(p))
	}
	h.wake()
}

// Close implements net.Conn: what was written still arrives.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.n.mu.Lock()
		defer c.n.mu.Unlock()
		out, in := &c.half[c.dir], &c.half[1-c.dir]
		out.ended, in.gone = true, true
		out.endAt = time.Now().Add(c.link.latency)
		if out.endAt.Before(out.last) {
			out.endAt = out.last
		}
		in.queue, in.size = nil, 0
		out.wake()
		in.wake()
		if in.ended && out.gone {
			delete(c.n.conns, c.pair)
		}
	})
	return nil
}

func (c *conn) LocalAddr() net.Addr {
	return address(fmt.Sprintf("%s:%d", []string{c.from, c.to}[c.dir], c.id))
}

func (c *conn) RemoteAddr() net.Addr {
	return address(fmt.Sprintf("%s:%d", []string{c.to, c.from}[c.dir], c.id))
}

// deadline sets a time limit of one direction.
func (c *conn) deadline(dir int, set func(*half)) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	set(&c.half[dir])
	c.half[dir].wake()
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	return c.deadline(1-c.dir, func(h *half) { h.readBy = t })
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.deadline(c.dir, func(h *half) { h.writeBy = t })
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
