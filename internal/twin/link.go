package twin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// ErrNotConnected is returned while there is no link to edgeHub. Nothing was sent.
var ErrNotConnected = errors.New("edgeHub: not connected")

// HubError is an answer of edgeHub that is no success.
type HubError struct {
	Call string // get, report
	Code int    // 400 is a request that is not valid, 429 too many, 5xx trouble there
}

// Error returns call and code.
func (e *HubError) Error() string {
	return fmt.Sprintf("edgeHub: %s: answered with %d", e.Call, e.Code)
}

// link is one connection to edgeHub, from its handshake to its end. It never reconnects: what was on its way when it
// ended fails, and the next link is a new one.
type link interface {
	// get returns the twin.
	get(ctx context.Context) ([]byte, error)
	// report changes reported properties.
	report(ctx context.Context, body []byte) error
	// output sends a message; nil is that edgeHub has it.
	output(ctx context.Context, name string, body []byte) error
	// lost is closed when the link has ended.
	lost() <-chan struct{}
	// close ends the link and leaves nothing of it behind. It returns within a second.
	close()
}

// receiver is what a link calls; none of it blocks on the link.
type receiver struct {
	patched func(version int64)
	method  func(name string, payload []byte) (status int, body []byte)
}

// answerCode finds the code in the library's error, which is only a text.
var answerCode = registry.Pattern(`^request failed with (\d+) response code$`)

// hubError gives the library's errors a type.
func hubError(call string, err error) error {
	if err == nil {
		return nil
	}
	if m := answerCode().FindStringSubmatch(err.Error()); m != nil {
		code, _ := strconv.Atoi(m[1])
		return &HubError{Call: call, Code: code}
	}
	return fmt.Errorf("edgeHub: %s: %w", call, err)
}

// dialer opens connections to edgeHub: never through a proxy, always verified.
type dialer struct {
	open    func(ctx context.Context, network, addr string) (net.Conn, error)
	roots   *x509.CertPool
	now     func() time.Time
	timeout time.Duration // of the connection and the handshakes together
}

// mqtt connects to MQTT over TLS, port 8883.
func (d dialer) mqtt(ctx context.Context, host string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	return d.secure(ctx, "tcp", net.JoinHostPort(host, "8883"))
}

// secure connects and runs the TLS handshake.
func (d dialer) secure(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := d.open(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(addr)
	if err == nil {
		tc := tls.Client(conn, &tls.Config{ServerName: host, RootCAs: d.roots, MinVersion: tls.VersionTLS12, Time: d.now})
		if err = tc.HandshakeContext(ctx); err == nil {
			return tc, nil
		}
	}
	_ = conn.Close()
	return nil, err
}

// webSocket connects to MQTT over WebSocket, port 443.
func (d dialer) webSocket(ctx context.Context, host string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	ws := websocket.Dialer{NetDialTLSContext: d.secure, Subprotocols: []string{"mqtt"}} // no Proxy: none is asked for
	conn, resp, err := ws.DialContext(ctx, "wss://"+net.JoinHostPort(host, "443")+"/$iothub/websocket", http.Header{})
	if err != nil {
		if resp != nil {
			_ = resp.Body.Close() // the beginning of it is in memory; the connection is closed
			return nil, fmt.Errorf("WebSocket handshake: it answers %s", resp.Status)
		}
		return nil, err
	}
	conn.SetReadLimit(maxFrame)
	return &webSocketConn{Conn: conn}, nil
}

// maxFrame bounds one WebSocket message; edgeHub's largest MQTT packet is a quarter of it.
const maxFrame = 1 << 20

// webSocketConn is the stream of bytes in the binary messages of a WebSocket.
type webSocketConn struct {
	*websocket.Conn
	reader io.Reader  // of the message that is being read; only the reading goroutine uses it
	mu     sync.Mutex // the package allows one writer at a time
}

// Read reads on, over the ends of messages.
func (c *webSocketConn) Read(p []byte) (int, error) {
	for {
		if c.reader == nil {
			var err error
			if _, c.reader, err = c.NextReader(); err != nil {
				return 0, err
			}
		}
		n, err := c.reader.Read(p)
		if errors.Is(err, io.EOF) {
			c.reader, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write sends p as one message.
func (c *webSocketConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SetDeadline sets the deadlines of reading and writing.
func (c *webSocketConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// endedConn tells when it is closed, by either side.
type endedConn struct {
	net.Conn
	once  sync.Once
	ended chan struct{}
}

// Close closes the connection and says so.
func (c *endedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.ended) })
	return err
}
