package transport

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// maxConns bounds the connections of a server: one with TLS costs tens of KiB, and a device has little memory.
const maxConns = 2048

// crowd bounds the connections of a server. Where there are too many it is the one that has waited longest without a
// request that goes, so that who opens many and sends nothing keeps nobody out.
type crowd struct {
	limit int

	mu      sync.Mutex
	all     map[net.Conn]*list.Element // nil: a request is under way
	waiting list.List                  // connections without a request, the one that waits longest first
}

// state is for http.Server.ConnState.
func (c *crowd) state(conn net.Conn, s http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := c.all[conn]; at != nil {
		c.waiting.Remove(at)
	}
	switch s {
	case http.StateNew, http.StateIdle:
		if c.all == nil {
			c.all = map[net.Conn]*list.Element{}
		}
		c.all[conn] = c.waiting.PushBack(conn)
	case http.StateActive:
		c.all[conn] = nil
	default:
		delete(c.all, conn)
	}
	longest := c.waiting.Front()
	if len(c.all) <= c.limit || longest == nil {
		return
	}
	if one, ok := c.waiting.Remove(longest).(net.Conn); ok {
		delete(c.all, one)
		go func() { _ = one.Close() }() // with TLS that writes, which may take a while
	}
}
