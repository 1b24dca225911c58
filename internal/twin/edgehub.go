package twin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
)

const (
	tokenLife       = time.Hour
	tokenRenew      = 0.80 // of its life: a quiet moment is looked for from here
	tokenLatest     = 0.95 // and here it is renewed in any case
	quiet           = 2 * time.Second
	refreshEvery    = time.Hour
	refreshSettle   = 200 * time.Millisecond // patches come in bursts
	refreshFloor    = 2 * time.Second        // between two requests for a twin that should be newer
	refreshCap      = 5 * time.Minute
	reconnectFloor  = time.Second
	reconnectCap    = time.Minute
	settled         = time.Minute // a link that lived this long was good: the next pause is short again
	answerTimeout   = 70 * time.Second
	connectTimeout  = 20 * time.Second
	methodsAtOnce   = 16
	maxMethodAnswer = 128 << 10 // bytes, IoT Hub's limit
)

// EdgeHubOptions are the options of an EdgeHub. The zero value works.
type EdgeHubOptions struct {
	// Last is the last good document, as the store kept it; a twin that is older is not taken.
	Last Record
	// Methods answers a direct method: the HTTP-like status and a JSON body of at most 128 KiB, nil for none. Status 0
	// is a method that it does not know; the caller gets 404. payload is any JSON value, or empty. It may take its time,
	// and a call may be delivered twice. ctx ends with that of Watch.
	Methods func(ctx context.Context, name string, payload []byte) (status int, body []byte)
	// Connected is told of each new link, with the reported properties that edgeHub has, nil while it could not say.
	// It must not block.
	Connected func(reported map[string]any)
	Product   string // name/version that edgeHub tells the cloud of this client
	Clock     clock.Clock
	// Dial opens connections; nil is the machine's, and none goes through a proxy.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Rand func() float64 // in [0, 1), for jitter
	Log  *slog.Logger
	// AnswerTimeout is how long edgeHub may take to answer, 0 is 70 s: it asks the cloud for up to 50 s first.
	// ConnectTimeout is for each step of a connection, 0 is 20 s.
	AnswerTimeout, ConnectTimeout time.Duration
	// TokenLife is how long a token is good, 0 is 1 h; RefreshEvery how often the twin is asked for without a sign of
	// change, 0 is 1 h.
	TokenLife, RefreshEvery time.Duration
}

// EdgeHub is the module's twin at the hub of its IoT Edge device, and the way for what the module has to say: reported
// properties, outputs, answers to direct methods. It connects for ever, over MQTT on port 8883 or, where that does not
// work, over WebSocket on port 443. Each link is made from nothing: a new token, the trust bundle as it is now.
type EdgeHub struct {
	edge  Edge
	o     EdgeHubOptions
	open  func(ctx context.Context, webSocket bool, r receiver) (link, error)
	calls chan struct{}
	busy  atomic.Int64 // what is on its way
	used  atomic.Int64 // when something was last on its way, Unix nanoseconds

	mu   sync.Mutex
	link link   // that has proven that it works; nil while there is none
	err  error  // why there is none
	told string // the trouble that was logged last, since the last link
}

// NewEdgeHub returns the source for the module that edge describes.
func NewEdgeHub(edge Edge, w *Workload, o EdgeHubOptions) *EdgeHub {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.AnswerTimeout, answerTimeout)
	def(&o.ConnectTimeout, connectTimeout)
	def(&o.TokenLife, tokenLife)
	def(&o.RefreshEvery, refreshEvery)
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &EdgeHub{edge: edge, o: o, calls: make(chan struct{}, methodsAtOnce), err: ErrNotConnected}
	h.open = func(ctx context.Context, webSocket bool, r receiver) (link, error) {
		return h.dial(ctx, w, webSocket, r)
	}
	return h
}

// Name returns "twin".
func (h *EdgeHub) Name() string { return "twin" }

// Connected returns nil while there is a link, and why there is none otherwise.
func (h *EdgeHub) Connected() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.link != nil {
		return nil
	}
	return h.err
}

// Report changes reported properties: those given, null removes one. nil is that edgeHub has it, which keeps it until
// the cloud can be reached. Errors: ErrNotConnected, *HubError.
func (h *EdgeHub) Report(ctx context.Context, properties map[string]any) error {
	body, err := json.Marshal(properties)
	if err != nil {
		return fmt.Errorf("reported properties: %w", err)
	}
	return h.with(ctx, func(ctx context.Context, l link) error { return l.report(ctx, body) })
}

// Output sends a JSON message to an output of the module. nil is that edgeHub has it, which keeps it until its routes
// are done with it; after an error it may be there all the same. Errors: ErrNotConnected, and texts about a name that
// is not 1 to 64 letters, digits, _ or -, or a message over IoT Hub's 262144 bytes: those do not go away.
func (h *EdgeHub) Output(ctx context.Context, name string, body []byte) error {
	switch {
	case !outputPattern().MatchString(name):
		return fmt.Errorf("output %q: want 1 to 64 letters, digits, _ or -", clip(name))
	case len(body)+h.outputTopic(name) > maxPacket:
		return fmt.Errorf("output %s: message has %d bytes: want at most %d", name, len(body), maxPacket-h.outputTopic(name))
	case !json.Valid(body):
		return fmt.Errorf("output %s: message is not JSON", name)
	}
	return h.with(ctx, func(ctx context.Context, l link) error { return l.output(ctx, name, body) })
}

// outputTopic is how many bytes of a packet a message needs beside its body.
func (h *EdgeHub) outputTopic(name string) int {
	const lengths = 4 // of the topic, and the packet's number
	return len("devices//modules//messages/events/%24.ce=utf-8&%24.ct=application%2Fjson&%24.on=") + len(h.edge.DeviceID) + len(h.edge.ModuleID) + len(name) + lengths
}

// with runs f on the link there is.
func (h *EdgeHub) with(ctx context.Context, f func(context.Context, link) error) error {
	h.mu.Lock()
	l := h.link
	h.mu.Unlock()
	if l == nil {
		return ErrNotConnected
	}
	defer h.begin()()
	ctx, cancel := context.WithTimeout(ctx, h.o.AnswerTimeout)
	defer cancel()
	return f(ctx, l)
}

// begin notes that something is on its way until the function that it returns is called.
func (h *EdgeHub) begin() (end func()) {
	h.busy.Add(1)
	return func() {
		h.used.Store(h.o.Clock.Now().UnixNano())
		h.busy.Add(-1)
	}
}

// isQuiet reports whether nothing is on its way, nor was a moment ago.
func (h *EdgeHub) isQuiet() bool {
	since := h.o.Clock.Now().UnixNano() - h.used.Load()
	return h.busy.Load() == 0 && (since < 0 || since >= int64(quiet))
}

// method answers a direct method. The caller waits in the cloud, so there is always an answer.
func (h *EdgeHub) method(ctx context.Context, name string, payload []byte) (int, []byte) {
	select {
	case h.calls <- struct{}{}:
		defer func() { <-h.calls }()
	default:
		return methodError(429, "%d methods are running; try again", methodsAtOnce)
	}
	defer h.begin()()
	if h.o.Methods == nil {
		return methodError(404, "unknown method %q", clip(name))
	}
	status, body := h.o.Methods(ctx, name, payload)
	switch {
	case status == 0:
		return methodError(404, "unknown method %q", clip(name))
	case len(body) == 0:
		return status, []byte("null")
	case len(body) > maxMethodAnswer:
		return methodError(500, "the answer has %d bytes, more than %d: ask for less", len(body), maxMethodAnswer)
	case !json.Valid(body):
		return methodError(500, "the answer is not JSON")
	}
	return status, body
}

func methodError(status int, format string, args ...any) (int, []byte) {
	body, _ := json.Marshal(map[string]string{"message": fmt.Sprintf(format, args...)}) // strings cannot fail
	return status, body
}

// Watch implements Source. It connects and keeps connecting until ctx ends; call it once. Until there has been a twin,
// the first failure is sent as an error; later ones are told by Connected alone, since the twin that was received holds.
func (h *EdgeHub) Watch(ctx context.Context) <-chan Document {
	slot, out := make(chan Document), make(chan Document)
	go func() {
		defer close(slot)
		h.run(ctx, slot)
	}()
	go newest(slot, out)
	return out
}

// newest hands on what comes in slot; what nobody has taken when a newer one comes is dropped. It closes out when slot
// is closed.
func newest(slot <-chan Document, out chan<- Document) {
	defer close(out)
	for d := range slot {
		for sent := false; !sent; {
			select {
			case out <- d:
				sent = true
			case newer, ok := <-slot:
				if !ok {
					return
				}
				d = newer
			}
		}
	}
}

// run makes one link after another.
func (h *EdgeHub) run(ctx context.Context, slot chan<- Document) {
	t := &taker{last: h.o.Last, slot: slot}
	webSocket := h.edge.WebSocket
	pause := reconnectFloor
	for ctx.Err() == nil {
		s := &session{hub: h, taker: t, hints: make(chan struct{}, 1)}
		l, err := h.open(ctx, webSocket, receiver{patched: s.hint, method: func(name string, payload []byte) (int, []byte) {
			return h.method(ctx, name, payload)
		}})
		began := h.o.Clock.Now()
		if err == nil {
			s.link = l
			err = s.serve(ctx)
			h.set(nil, err)
			l.close()
		}
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errRenew) {
			h.o.Log.Debug("edgeHub: the token is renewed")
			continue
		}
		h.failed(ctx, err)
		t.failed(err)
		if !s.proven {
			webSocket = !webSocket
		} else if h.o.Clock.Now().Sub(began) >= settled {
			pause = reconnectFloor
		}
		if clock.Wait(ctx, pause/2+time.Duration(h.o.Rand()*float64(pause))) != nil {
			break
		}
		pause = min(2*pause, reconnectCap)
	}
	h.set(nil, ErrNotConnected)
}

// dial makes a link from nothing.
func (h *EdgeHub) dial(ctx context.Context, w *Workload, webSocket bool, r receiver) (link, error) {
	login, err := sign(ctx, w, h.edge, h.o.Product, h.o.Clock.Now().Add(h.o.TokenLife))
	if err != nil {
		return nil, err
	}
	roots, err := w.Roots(ctx, false)
	if err != nil {
		return nil, err
	}
	d := dialer{open: h.o.Dial, roots: roots, now: h.o.Clock.Now, timeout: h.o.ConnectTimeout}
	connect := d.mqtt
	if webSocket {
		connect = d.webSocket
	}
	conn, err := connect(ctx, h.edge.GatewayHostname)
	if err != nil {
		return nil, fmt.Errorf("edgeHub: %w", err)
	}
	return openLink(ctx, conn, h.edge, login, r, h.o.ConnectTimeout, h.o.Log)
}

// set puts the link in place that Report and Output use, or none and why.
func (h *EdgeHub) set(l link, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.link, h.err = l, err
	if l != nil {
		h.told = ""
	}
}

// failed notes and logs why there is no link; the same trouble again is no news.
func (h *EdgeHub) failed(ctx context.Context, err error) {
	level := slog.LevelWarn
	h.mu.Lock()
	if h.told == err.Error() {
		level = slog.LevelDebug
	}
	h.err, h.told = err, err.Error()
	h.mu.Unlock()
	h.o.Log.Log(ctx, level, "edgeHub: no connection; what is here is served, and it is tried again", "error", err)
}
