package edgesim

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
)

const (
	portMQTT = iota
	portHTTPS
	ports
)

// maxMessage is the largest MQTT packet's remaining length that edgeHub reads.
const maxMessage = 262144

// maxClients is how many clients edgeHub admits.
const maxClients = 100

var (
	errKicked  = errors.New("cut by the test")
	errRemoved = errors.New("module removed")
)

// edgeHub is the broker and its two ports.
type edgeHub struct {
	d      *Device
	broker *mqtt.Server

	mu     sync.Mutex
	wanted [ports]string // host:port, fixed by the first listen
	open   [ports]*gatedListener
	https  *http.Server
	wg     sync.WaitGroup
}

func newEdgeHub(d *Device) (*edgeHub, error) {
	capabilities := mqtt.NewDefaultServerCapabilities()
	capabilities.MaximumClients = maxClients
	capabilities.MaximumPacketSize = maxMessage + 1
	capabilities.MaximumQos = 1
	capabilities.MinimumProtocolVersion = 4
	capabilities.SharedSubAvailable = 0
	h := &edgeHub{d: d, broker: mqtt.New(&mqtt.Options{
		Capabilities: capabilities,
		Logger:       slog.New(quiet{d.log.Handler()}),
	})}
	for i, p := range []int{d.opts.MQTTPort, d.opts.HTTPSPort} {
		h.wanted[i] = net.JoinHostPort(d.opts.Address, strconv.Itoa(p))
	}
	if err := h.broker.AddHook(&hook{d: d}, nil); err != nil {
		return nil, err
	}
	return h, h.broker.Serve()
}

func (h *edgeHub) addr(i int) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wanted[i]
}

// listen opens both ports; a port that was free by choice keeps its number.
func (h *edgeHub) listen() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range ports {
		if h.open[i] != nil {
			continue
		}
		var lc net.ListenConfig
		l, err := lc.Listen(h.d.ctx, "tcp", h.wanted[i])
		if err != nil {
			return err
		}
		h.wanted[i] = l.Addr().String()
		g := newGatedListener(l, h.d.hole)
		h.open[i] = g
		if i == portMQTT {
			h.wg.Go(func() { h.serveMQTT(g) })
			continue
		}
		srv := &http.Server{
			Handler:           h.d.routes(),
			ReadHeaderTimeout: h.d.opts.Timing.Handshake,
			ErrorLog:          slog.NewLogLogger(quiet{h.d.log.Handler()}, slog.LevelDebug),
		}
		h.https = srv
		h.wg.Go(func() { _ = srv.Serve(tls.NewListener(g, h.tls())) })
	}
	return nil
}

func (h *edgeHub) tls() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: h.d.certificate,
		NextProtos:     []string{"http/1.1"},
	}
}

// serveMQTT accepts connections until the listener is closed.
func (h *edgeHub) serveMQTT(l *gatedListener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		g, ok := c.(*gatedConn)
		if !ok {
			_ = c.Close()
			continue
		}
		h.wg.Go(func() { h.handshake(g) })
	}
}

func (h *edgeHub) handshake(g *gatedConn) {
	config := h.tls()
	config.NextProtos = nil // MQTT clients of edgeHub ask for none
	t := tls.Server(g, config)
	_ = t.SetDeadline(time.Now().Add(h.d.opts.Timing.Handshake))
	if err := t.HandshakeContext(h.d.ctx); err != nil {
		h.d.log.Debug("TLS handshake failed", "error", err)
		_ = g.Close()
		return
	}
	h.establish("tls", mqttConn{t, g})
}

// establish serves an MQTT connection until it ends.
func (h *edgeHub) establish(listener string, c net.Conn) {
	if err := h.broker.EstablishConnection(listener, c); err != nil {
		h.d.log.Debug("connection ended", "error", err)
	}
	h.d.detach(c)
	_ = c.Close()
}

// stopListening closes both ports; connections stay.
func (h *edgeHub) stopListening() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, l := range h.open {
		if l != nil {
			_ = l.Close()
			l.cut()
			h.open[i] = nil
		}
	}
}

// cutAll closes all connections, MQTT and HTTPS.
func (h *edgeHub) cutAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.open {
		if l != nil {
			l.cut()
		}
	}
}

func (h *edgeHub) close() {
	h.stopListening()
	h.mu.Lock()
	if h.https != nil {
		_ = h.https.Close()
	}
	h.mu.Unlock()
	h.wg.Wait()
	_ = h.broker.Close()
}
