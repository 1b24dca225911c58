package hostile

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// http2Conn sends requests over HTTP/2 that no client library would, one at a time.
type http2Conn struct {
	conn   net.Conn
	framer *http2.Framer
	stream uint32
}

func newHTTP2(conn net.Conn) (*http2Conn, error) {
	c := &http2Conn{conn: conn, framer: http2.NewFramer(conn, conn), stream: 1}
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, err
	}
	if err := c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}); err != nil {
		return nil, err
	}
	return c, c.framer.WriteWindowUpdate(0, 1<<30)
}

// roundTrip sends a request and reads the answer.
func (c *http2Conn) roundTrip(r request) (*http.Response, error) {
	id := c.stream
	c.stream += 2
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	field := func(name, value string) { _ = enc.WriteField(hpack.HeaderField{Name: name, Value: value}) }
	field(":method", r.method)
	field(":scheme", "https")
	field(":authority", "x")
	field(":path", r.target)
	for _, h := range r.header {
		field(strings.ToLower(h[0]), h[1])
	}
	if !r.chunked || len(r.body) == 0 {
		field("content-length", strconv.Itoa(len(r.body)))
	}
	if err := c.writeHeaders(id, block.Bytes(), len(r.body) == 0); err != nil {
		return nil, err
	}
	for body := r.body; len(body) > 0; {
		n := min(len(body), 16<<10)
		if err := c.framer.WriteData(id, n == len(body), body[:n]); err != nil {
			return nil, err
		}
		body = body[n:]
	}
	return c.answer(id)
}

func (c *http2Conn) writeHeaders(id uint32, block []byte, end bool) error {
	const most = 16 << 10
	first := block[:min(len(block), most)]
	rest := block[len(first):]
	err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: end, EndHeaders: len(rest) == 0})
	for err == nil && len(rest) > 0 {
		part := rest[:min(len(rest), most)]
		rest = rest[len(part):]
		err = c.framer.WriteContinuation(id, len(rest) == 0, part)
	}
	return err
}

// answer reads frames until the stream has ended. A stream that is reset after its answer was whole is none that was
// dropped: the server did not want the rest of the body.
func (c *http2Conn) answer(id uint32) (*http.Response, error) {
	resp := &http.Response{Header: http.Header{}}
	var body bytes.Buffer
	resp.Body = io.NopCloser(&body)
	for {
		f, err := c.framer.ReadFrame()
		if err != nil {
			return nil, err
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				if err := c.framer.WriteSettingsAck(); err != nil {
					return nil, err
				}
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				if err := c.framer.WritePing(true, f.Data); err != nil {
					return nil, err
				}
			}
		case *http2.GoAwayFrame:
			resp.Close = true
			if f.LastStreamID < id {
				return nil, fmt.Errorf("GOAWAY %v %q", f.ErrCode, f.DebugData())
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return nil, fmt.Errorf("RST_STREAM %v after status %d", f.ErrCode, resp.StatusCode)
			}
		case *http2.DataFrame:
			body.Write(f.Data())
			if n := uint32(len(f.Data())); n > 0 {
				if err := c.framer.WriteWindowUpdate(0, n); err != nil {
					return nil, err
				}
			}
			if f.StreamEnded() && f.StreamID == id {
				return resp, nil
			}
		case *http2.MetaHeadersFrame:
			if f.StreamID != id {
				continue
			}
			resp.StatusCode, _ = strconv.Atoi(f.PseudoValue("status"))
			for _, h := range f.RegularFields() {
				resp.Header.Add(h.Name, h.Value)
			}
			if f.StreamEnded() {
				return resp, nil
			}
		}
	}
}
