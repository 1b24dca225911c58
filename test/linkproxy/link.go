package linkproxy

import (
	"context"
	"net"
	"sync"
	"time"
)

// The directions, as indexes of Proxy.limit.
const (
	down = iota
	up
)

// link is one connection through the proxy.
type link struct {
	proxy  *Proxy
	client *net.TCPConn
	gone   chan struct{} // closed when the link was cut, under mu

	mu     sync.Mutex
	target *net.TCPConn // nil until it is dialled
	ended  bool
}

// run connects to the target, moves bytes until both directions have ended, and forgets the connection.
func (l *link) run() {
	p := l.proxy
	defer p.done.Done()
	defer func() {
		l.end(func() {})
		_ = l.client.Close()
		p.mu.Lock()
		delete(p.conns, l)
		p.mu.Unlock()
	}()
	if !l.wait(func(plan Plan) bool { return plan.Fault != BlackHole }) {
		return
	}
	dialer := net.Dialer{Timeout: dialLimit}
	conn, err := dialer.DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		_ = l.client.SetLinger(0)
		return
	}
	target := conn.(*net.TCPConn)
	l.mu.Lock()
	l.target = target
	ended := l.ended
	l.mu.Unlock()
	if ended {
		_ = target.Close()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { l.pump(down, target, l.client) })
	both.Go(func() { l.pump(up, l.client, target) })
	both.Wait()
}

// parcel is a chunk on its way, and when it arrives.
type parcel struct {
	data []byte
	due  time.Time
}

// pump moves one direction. The reader and the writer are apart so that latency delays bytes without lowering the rate.
func (l *link) pump(dir int, src, dst *net.TCPConn) {
	line := make(chan parcel, inFlight)
	ctx, cancel := context.WithCancel(l.proxy.ctx)
	defer cancel()
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(line)
		for {
			buf := make([]byte, chunk)
			n, err := src.Read(buf)
			if n > 0 {
				plan, _ := l.proxy.state()
				select {
				case line <- parcel{buf[:n], time.Now().Add(plan.Latency)}:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	if l.deliver(ctx, dir, line, dst) {
		_ = dst.CloseWrite()
	}
	cancel() // after a cut the reader still runs, until its side is closed or its deadline passes
	reader.Wait()
}

// deliver writes what comes down the line, and reports whether the line ended in an orderly way.
func (l *link) deliver(ctx context.Context, dir int, line <-chan parcel, dst *net.TCPConn) bool {
	var sent int64
	for p := range line {
		if !sleepUntil(ctx, p.due) {
			return false
		}
		for data := p.data; len(data) > 0; {
			n, cut := len(data), false
			ok := l.wait(func(plan Plan) bool {
				n, cut = len(data), false
				if dir == down {
					n, cut = plan.bound(sent, len(data))
				}
				return n > 0 && plan.Fault == None
			})
			if !ok || l.proxy.limit[dir].WaitN(ctx, n) != nil {
				l.cut(RST)
				return false
			}
			w, err := dst.Write(data[:n])
			l.proxy.add(dir, w)
			sent += int64(w)
			data = data[w:]
			if err != nil {
				l.cut(RST)
				return false
			}
			if cut && l.proxy.mayCut() {
				plan, _ := l.proxy.state()
				l.cut(plan.CutBy)
				return false
			}
		}
	}
	return true
}

// bound returns how many of n bytes may follow those sent, and whether the connection is cut after them.
func (p Plan) bound(sent int64, n int) (int, bool) {
	if p.StallAfter > 0 && sent+int64(n) > p.StallAfter {
		n = int(max(0, p.StallAfter-sent))
	}
	if p.CutAfter > 0 && sent < p.CutAfter && sent+int64(n) >= p.CutAfter {
		return int(p.CutAfter - sent), true
	}
	return n, false
}

// wait blocks until the plan in force lets the link go on; false when the link ended meanwhile.
func (l *link) wait(pass func(Plan) bool) bool {
	for {
		plan, changed := l.proxy.state()
		select {
		case <-l.gone:
			return false
		default:
		}
		if pass(plan) {
			return true
		}
		select {
		case <-changed:
		case <-l.gone:
			return false
		case <-l.proxy.ctx.Done():
			return false
		}
	}
}

// cut ends the connection at both ends.
func (l *link) cut(by CutBy) {
	l.end(func() {
		if by == FIN {
			_ = l.client.CloseWrite() // a full close with unread bytes would be a reset
			_ = l.client.SetReadDeadline(time.Now().Add(time.Second))
			return
		}
		_ = l.client.SetLinger(0)
		_ = l.client.Close()
	})
}

// end does what ends the client's side, once, and closes the target's.
func (l *link) end(client func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	close(l.gone)
	client()
	if l.target != nil {
		_ = l.target.SetLinger(0)
		_ = l.target.Close()
	}
}

// sleepUntil waits for a moment; false when ctx ended first.
func sleepUntil(ctx context.Context, t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
