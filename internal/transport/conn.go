package transport

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// opening finds the answers that package net/http writes itself, to what is no request to it, and has ours sent in their
// place. It looks at the first bytes of an answer only: these are its status and header, so that content is never
// mistaken for an answer, whatever it says.
type opening struct {
	begun atomic.Bool // an answer
}

// next says that the answer is whole and out: what is written next begins another.
func (o *opening) next() { o.begun.Store(false) }

func (o *opening) write(to io.Writer, b []byte) (int, error) {
	if o.begun.Load() {
		return to.Write(b)
	}
	o.begun.Store(true)
	ours := inPlaceOf(b)
	if ours == nil {
		return to.Write(b)
	}
	if _, err := to.Write(ours); err != nil {
		return 0, err
	}
	return len(b), nil
}

// plainConn is a connection without TLS. What *net.TCPConn has stays: net/http hands files to its ReadFrom for sendfile.
type plainConn struct {
	*net.TCPConn
	opening
}

func (c *plainConn) Write(b []byte) (int, error) { return c.write(c.TCPConn, b) }

// secureConn is a connection with TLS that speaks HTTP/1.1. Its ConnectionState makes net/http set Request.TLS.
type secureConn struct {
	*tls.Conn
	opening
}

func (c *secureConn) Write(b []byte) (int, error) { return c.write(c.Conn, b) }

// theirHeader is what follows the status line in all answers that net/http writes itself. Those of handlers have a Date.
const theirHeader = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"

// refusals has what is said in place of an answer of net/http, by its status. For a transfer coding that is not known 501 is
// a SHOULD (RFC 9112, 6.1), for a version of HTTP 505 is there to be used (RFC 9110, 15.6.6). But 5xx is what operators are
// woken by, and nobody who sends nonsense is to wake one: the fault is the client's, and so is the status.
var refusals = map[string]*registry.Error{
	"400": refusal(http.StatusBadRequest, "this is no HTTP request that can be read: mend it"),
	"431": refusal(http.StatusRequestHeaderFieldsTooLarge, "the header of the request has more than %d KiB: send less of it", maxRequestHeader>>10),
	"501": refusal(http.StatusBadRequest, "the transfer coding is not known: send a Content-Length, or Transfer-Encoding: chunked and nothing else"),
	"505": refusal(http.StatusBadRequest, "the version of HTTP is not known: use HTTP/1.1, or with TLS HTTP/2"),
}

func refusal(status int, format string, args ...any) *registry.Error {
	e := registry.ErrUnsupported.WithMessage(format, args...)
	e.Status = status
	return e
}

// inPlaceOf returns the answer to send in place of one that net/http wrote itself, and nil for any other.
func inPlaceOf(b []byte) []byte {
	const version = "HTTP/1.1 "
	if len(b) <= len(version) || b[len(version)] < '4' { // nearly all
		return nil
	}
	line, _, _ := bytes.Cut(b, []byte("\r\n"))
	if !bytes.HasPrefix(b[len(line):], []byte(theirHeader)) {
		return nil
	}
	status := string(line[min(len(version), len(line)):])
	e := refusals[status[:min(3, len(status))]]
	if e == nil {
		return nil
	}
	if _, why, ok := strings.Cut(status, ": "); ok && e.Status == http.StatusBadRequest {
		e = e.WithMessage("%s (%s)", e.Message, why) // a few words of net/http's, nothing of the request
	}
	return answer(e)
}

// answer is all that is sent to a client that gets no second one on the same connection.
func answer(e *registry.Error) []byte {
	body := e.Body()
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		e.HTTPStatus(), http.StatusText(e.HTTPStatus()), len(body), body)
}
