package sim

import (
	"io"
	"strings"
	"syscall"
	"time"
)

// linkMode is how a link treats what is on it.
type linkMode int

const (
	linkUp     linkMode = iota
	linkRefuse          // connections are reset, and new ones are refused
	linkHole            // nothing arrives and nobody is told
)

// link is what lies between two hosts. What is on its way when the link becomes a hole arrives when it is up again.
type link struct {
	mode     linkMode
	latency  time.Duration
	rate     int          // bytes a second in each direction; 0 is no limit
	cutAfter [2]int64     // bytes to arrive in each direction until the connection that carries the last of them breaks; 0 never
	cutBy    error        // what it breaks with; nil is an early end
	busy     [2]time.Time // until when each direction sends what it was given
	moved    chan struct{}
	hold     time.Duration // the next manifest that is put under a tag arrives so much later; 0 for none

	faults int // times that it was broken
	down   int64
	up     int64
	blobs  map[string]int64 // bytes that came down for a GET of a blob, by digest
	gets   map[string]int   // and how often it was asked for
	puts   map[string]int   // PUT of manifests, by path, and of blobs, by digest
}

// link returns the link from one host to another; it is made when it is asked for first.
func (n *network) link(from, to string) *link {
	key := from + " " + to
	l := n.links[key]
	if l == nil {
		l = &link{latency: 200 * time.Microsecond, moved: make(chan struct{}), blobs: map[string]int64{}, gets: map[string]int{}, puts: map[string]int{}}
		n.links[key] = l
	}
	return l
}

// change runs do on a link, and wakes who waits for it.
func (n *network) change(from, to string, do func(*link)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(from, to)
	do(l)
	close(l.moved)
	l.moved = make(chan struct{})
	if l.mode == linkRefuse {
		n.breakLink(l, syscall.ECONNRESET)
	}
}

// reset breaks every connection of a link.
func (n *network) reset(from, to string, by error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.breakLink(n.link(from, to), by)
}

// isHeld reports whether a link is to hold a manifest, and whether one is on its way that nobody waits for any more.
func (n *network) isHeld(from, to string) (armed, late bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.conns {
		h := &p.half[up]
		late = late || p.late && h.ended && len(h.queue) > 0 && (from == "" || p.from == from && p.to == to)
	}
	return from != "" && n.link(from, to).hold > 0, late
}

// dropLate loses what a host sent and does not wait for any more.
func (n *network) dropLate(from string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.conns {
		if p.late && p.from == from {
			p.fail(syscall.ECONNRESET)
		}
	}
}

func (n *network) breakLink(l *link, by error) {
	for p := range n.conns {
		if p.link == l {
			p.fail(by)
		}
	}
}

// arrived counts what came in a direction, and breaks the connection when the plan of the link says so.
func (p *pair) arrived(dir, n int) {
	l := p.link
	if dir == down {
		l.down += int64(n)
		if p.blob != "" {
			l.blobs[p.blob] += int64(n)
		}
	}
	if l.cutAfter[dir] == 0 {
		return
	}
	if l.cutAfter[dir] -= int64(n); l.cutAfter[dir] <= 0 {
		l.cutAfter[dir] = 0
		l.faults++
		by := l.cutBy
		if by == nil {
			by = io.EOF
		}
		p.fail(by)
	}
}

// note reads the first line of a request.
func (c *conn) note(p []byte) {
	line, _, ok := strings.Cut(string(p[:min(len(p), 512)]), " HTTP/1.1\r\n")
	method, path, found := strings.Cut(line, " ")
	if !ok || !found || strings.ToUpper(method) != method || !strings.HasPrefix(path, "/") {
		return
	}
	l := c.link
	c.blob, c.put = "", ""
	if _, digest, is := strings.Cut(path, "/blobs/sha256:"); is && method == "GET" {
		c.blob = "sha256:" + digest
		l.gets[c.blob]++
	}
	if method == "PUT" && strings.Contains(path, "/manifests/") {
		l.puts[path]++
		c.put = path
		if l.hold > 0 && !strings.Contains(path, "/sha256:") {
			c.half[up].last, c.late, l.hold = time.Now().Add(l.hold), true, 0
		}
	}
	if _, digest, is := strings.Cut(path, "digest=sha256"); is && method == "PUT" {
		l.puts["sha256:"+strings.TrimLeft(digest, ":%3A")]++
	}
}
