// Package linkproxy is a link between two layers that can be counted and broken: a TCP proxy on loopback that counts
// the bytes of each direction and fails as it is told, at the same byte each time.
//
// What it counts is what it has handed to the kernel for the client. Its socket buffers are small, so that this is
// close to what the client has seen: at a cut by RST at most about 32 KiB are counted and lost.
package linkproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"
)

// Fault is what the whole link does.
type Fault int

// The faults of a link. Setting one applies to the open connections as well.
const (
	None      Fault = iota
	Refuse          // the port is closed: connections are refused, open ones are reset
	Reset           // connections are accepted and reset at once, open ones too
	BlackHole       // connections are accepted, nothing is answered; open ones stand still
	Freeze          // new connections reach the target, then no byte flows; open ones stand still
)

// CutBy is how a connection ends at a cut.
type CutBy int

// FIN is an orderly end in the wrong place, RST is a reset.
const (
	FIN CutBy = iota
	RST
)

// Plan is how the link behaves from now on. The zero Plan passes everything.
type Plan struct {
	Fault Fault
	// CutAfter cuts each connection after so many bytes to the client; 0 never.
	CutAfter int64
	CutBy    CutBy
	// Cuts ends the cutting after so many cuts; 0 goes on.
	Cuts int
	// StallAfter lets each connection stand open and silent after so many bytes to the client; 0 never.
	StallAfter int64
	// BytesPerSecond bounds each direction over all connections; 0 is no bound.
	BytesPerSecond int
	// Latency is added in each direction.
	Latency time.Duration
}

// Counters are totals since the proxy started.
type Counters struct {
	Down        int64 // bytes from the target to the client
	Up          int64 // bytes from the client to the target
	Connections int   // accepted, those that were reset at once included
	Cuts        int   // made by Plan.CutAfter
}

// Proxy is one link. Its methods may be used from several goroutines.
type Proxy struct {
	target string
	addr   *net.TCPAddr
	hold   int // a bound socket that does not listen: it keeps the port while the link refuses

	mu       sync.Mutex
	plan     Plan
	changed  chan struct{} // closed and replaced with each new plan
	listener net.Listener  // nil while the link refuses
	conns    map[*link]struct{}
	count    Counters
	waiters  []waiter
	planCuts int // cuts under the plan in force
	closed   bool

	limit [2]*rate.Limiter // down, up
	ctx   context.Context
	stop  context.CancelFunc
	done  sync.WaitGroup
}

type waiter struct {
	down int64
	ch   chan struct{}
}

const (
	chunk     = 16 << 10 // bytes moved at once, and the size of the sockets' buffers
	segment   = 1460     // bytes of a TCP segment towards the client, as on Ethernet
	inFlight  = 64       // chunks on a link with latency
	dialLimit = 5 * time.Second

	burstsPerSecond = 500 // at the least, where the link is fast
)

// New listens on a free port of 127.0.0.1 and passes connections to target (host:port), which need not exist yet.
func New(target string) (*Proxy, error) { return NewAt("127.0.0.1:0", target) }

// NewAt is New on an IPv4 address and port; port 0 is a free one.
func NewAt(listen, target string) (*Proxy, error) {
	hold, addr, err := holdPort(listen)
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: target, addr: addr, hold: hold, changed: make(chan struct{}), conns: map[*link]struct{}{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	for i := range p.limit {
		p.limit[i] = rate.NewLimiter(rate.Inf, chunk)
	}
	if err := p.listen(); err != nil {
		p.stop()
		_ = syscall.Close(hold)
		return nil, err
	}
	return p, nil
}

// ReservePort returns a free address of 127.0.0.1 that is given to nobody who does not ask for it by number, until
// release is called: for a process that is started, killed and started again.
func ReservePort() (addr string, release func(), err error) {
	fd, tcp, err := holdPort("127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	return tcp.String(), func() { _ = syscall.Close(fd) }, nil
}

// holdPort binds a port without listening, so that nobody else is given it while the link refuses.
func holdPort(listen string) (int, *net.TCPAddr, error) {
	ap, err := netip.ParseAddrPort(listen)
	if err != nil || !ap.Addr().Is4() {
		return 0, nil, fmt.Errorf("%q: want an IPv4 address and a port", listen)
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("socket: %w", err)
	}
	err = errors.Join(
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1),
		syscall.Bind(fd, &syscall.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}),
	)
	sa, nameErr := syscall.Getsockname(fd)
	in4, ok := sa.(*syscall.SockaddrInet4)
	if err = errors.Join(err, nameErr); err != nil || !ok {
		_ = syscall.Close(fd)
		return 0, nil, fmt.Errorf("bind %s: %w", listen, err)
	}
	return fd, &net.TCPAddr{IP: ap.Addr().AsSlice(), Port: in4.Port}, nil
}

// Addr is where clients connect (host:port). It stays the same while the link refuses.
func (p *Proxy) Addr() string { return p.addr.String() }

// Counters returns the totals so far.
func (p *Proxy) Counters() Counters {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// Reached returns a channel that is closed once so many bytes have gone down in total.
func (p *Proxy) Reached(down int64) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := waiter{down: down, ch: make(chan struct{})}
	if p.count.Down >= down {
		close(w.ch)
	} else {
		p.waiters = append(p.waiters, w)
	}
	return w.ch
}

// Set puts a plan in force, for new connections and for open ones; their byte counts go on.
func (p *Proxy) Set(plan Plan) error {
	p.mu.Lock()
	p.plan, p.planCuts = plan, 0
	close(p.changed)
	p.changed = make(chan struct{})
	for _, l := range p.limit {
		l.SetLimit(rate.Inf)
		if plan.BytesPerSecond > 0 {
			l.SetBurst(max(chunk, plan.BytesPerSecond/burstsPerSecond)) // timers are no finer than a millisecond
			l.SetLimit(rate.Limit(plan.BytesPerSecond))
		}
	}
	var toClose net.Listener
	if plan.Fault == Refuse {
		toClose, p.listener = p.listener, nil
	}
	closed, relisten := p.closed, plan.Fault != Refuse && p.listener == nil
	p.mu.Unlock()
	if toClose != nil {
		closeListener(toClose)
	}
	if plan.Fault == Refuse || plan.Fault == Reset {
		p.CutAll(RST)
	}
	if closed || !relisten {
		return nil
	}
	return p.listen()
}

// CutAll ends the open connections now; the plan stays in force.
func (p *Proxy) CutAll(by CutBy) {
	p.mu.Lock()
	open := make([]*link, 0, len(p.conns))
	for l := range p.conns {
		open = append(open, l)
	}
	p.mu.Unlock()
	for _, l := range open {
		l.cut(by)
	}
}

// Close ends the proxy and every connection, and waits for its goroutines.
func (p *Proxy) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	ln := p.listener
	p.listener = nil
	p.mu.Unlock()
	p.stop()
	if ln != nil {
		closeListener(ln)
	}
	p.CutAll(RST)
	p.done.Wait()
	return syscall.Close(p.hold)
}

func (p *Proxy) listen() error {
	lc := net.ListenConfig{Control: smallBuffers}
	ln, err := lc.Listen(p.ctx, "tcp4", p.addr.String())
	if err != nil {
		return fmt.Errorf("link: %w", err)
	}
	p.mu.Lock()
	p.listener = ln
	p.mu.Unlock()
	p.done.Add(1)
	go p.accept(ln)
	return nil
}

// closeListener ends the listening itself before it gives up the descriptor: a process that is being started at this
// moment may hold a copy of it.
func closeListener(ln net.Listener) {
	if tcp, ok := ln.(*net.TCPListener); ok {
		if c, err := tcp.SyscallConn(); err == nil {
			_ = c.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) })
		}
	}
	_ = ln.Close()
}

// smallBuffers bounds what connections hold that is counted and not seen. Segments are small too: a whole buffer in one
// segment would wait for the client's delayed acknowledgement each time, 40 ms.
func smallBuffers(_, _ string, c syscall.RawConn) error {
	var err error
	ctlErr := c.Control(func(fd uintptr) {
		err = errors.Join(
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, chunk),
			syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, segment),
		)
	})
	return errors.Join(ctlErr, err)
}

func (p *Proxy) accept(ln net.Listener) {
	defer p.done.Done()
	for {
		c, err := ln.Accept()
		if err != nil {
			return // the listener is closed by Set or Close
		}
		conn := c.(*net.TCPConn)
		p.mu.Lock()
		p.count.Connections++
		l := &link{proxy: p, client: conn, gone: make(chan struct{})}
		refused := p.closed || p.plan.Fault == Refuse || p.plan.Fault == Reset
		if !refused {
			p.conns[l] = struct{}{}
			p.done.Add(1)
		}
		p.mu.Unlock()
		if refused {
			_ = conn.SetLinger(0)
			_ = conn.Close()
			continue
		}
		go l.run()
	}
}

// state returns the plan in force and a channel that is closed when it no longer is.
func (p *Proxy) state() (Plan, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.plan, p.changed
}

// add counts n bytes of a direction and wakes who waits for them.
func (p *Proxy) add(dir, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if dir == up {
		p.count.Up += int64(n)
		return
	}
	p.count.Down += int64(n)
	rest := p.waiters[:0]
	for _, w := range p.waiters {
		if p.count.Down < w.down {
			rest = append(rest, w)
			continue
		}
		close(w.ch)
	}
	p.waiters = rest
}

// mayCut counts a cut, unless the plan has made all of its cuts.
func (p *Proxy) mayCut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.plan.Cuts > 0 && p.planCuts >= p.plan.Cuts {
		return false
	}
	p.planCuts++
	p.count.Cuts++
	return true
}
