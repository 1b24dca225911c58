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
	all     map[net.Conn]*list.Element // by the connection below TLS; nil: a request is under way
	waiting list.List                  // connections without a request, the one that waits longest first
}

// state is for http.Server.ConnState.
func (c *crowd) state(conn net.Conn, s http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := below(conn)
	if at := c.all[key]; at != nil {
		c.waiting.Remove(at)
	}
	switch s {
	case http.StateNew, http.StateIdle:
		if c.all == nil {
			c.all = map[net.Conn]*list.Element{}
		}
		c.all[key] = c.waiting.PushBack(conn)
	case http.StateActive:
		c.all[key] = nil
	default:
		delete(c.all, key)
	}
	longest := c.waiting.Front()
	if len(c.all) <= c.limit || longest == nil {
		return
	}
	if one, ok := c.waiting.Remove(longest).(net.Conn); ok {
		delete(c.all, below(one))
		go func() { _ = one.Close() }() // with TLS that writes, which may take a while
	}
}

// below returns the connection under TLS: one and the same from its handshake to its end.
func below(conn net.Conn) net.Conn {
	if c, ok := conn.(interface{ NetConn() net.Conn }); ok {
		return c.NetConn()
	}
	return conn
}
