package edgesim

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// maxRequestBody bounds a request on the HTTPS port; a method's payload may be 128 KB.
const maxRequestBody = 256 << 10

// actorHeader names the module that calls a method of another module.
const actorHeader = "X-Ms-Edge-Moduleid"

// routes serves the HTTPS port: edgeHub's own part and the hub's service API side by side.
func (d *Device) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/$iothub/websocket", d.webSocket)
	mux.HandleFunc("POST /twins/{device}/modules/{module}/methods", d.methodRequest)
	for pattern, handle := range d.serviceRoutes() {
		mux.HandleFunc(pattern, d.service(handle))
	}
	return mux
}

// webSocket is MQTT over WebSocket, subprotocol mqtt.
func (d *Device) webSocket(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{
		Subprotocols: []string{"mqtt"},
		CheckOrigin:  func(*http.Request) bool { return true },
	}
	if !strings.Contains(r.Header.Get("Sec-WebSocket-Protocol"), "mqtt") {
		http.Error(w, "subprotocol mqtt is required", http.StatusBadRequest)
		return
	}
	c, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	conn := &wsConn{Conn: c.NetConn(), ws: c}
	_ = conn.SetDeadline(time.Now().Add(d.opts.Timing.Handshake)) // for the CONNECT packet
	d.hub.establish("wss", conn)
}

// wsConn is a WebSocket as a stream of bytes.
type wsConn struct {
	net.Conn
	ws *websocket.Conn
	r  io.Reader
}

func (c *wsConn) Read(p []byte) (int, error) {
	for {
		if c.r == nil {
			kind, r, err := c.ws.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("not a binary message")
			}
			c.r = r
		}
		n, err := c.r.Read(p)
		if errors.Is(err, io.EOF) {
			c.r, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write is called by one goroutine at a time: the broker holds a lock around it.
func (c *wsConn) Write(p []byte) (int, error) {
	if err := c.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close closes the TCP connection without a farewell.
func (c *wsConn) Close() error {
	if t, ok := c.Conn.(*tls.Conn); ok {
		return t.NetConn().Close()
	}
	return c.Conn.Close()
}

// methodBody is a method call by REST. The npm package adds members of its own.
type methodBody struct {
	Name     string          `json:"methodName"`
	Payload  json.RawMessage `json:"payload"`
	Response *int            `json:"responseTimeoutInSeconds"`
	Connect  *int            `json:"connectTimeoutInSeconds"`
}

func (b methodBody) method() (Method, error) {
	m := Method{Name: b.Name, Payload: b.Payload, ResponseTimeout: defaultResponse}
	if b.Name == "" || len(b.Name) > 100 {
		return m, errors.New("method name must have 1 to 100 characters")
	}
	if b.Response != nil {
		m.ResponseTimeout = time.Duration(*b.Response) * time.Second
		if m.ResponseTimeout < minResponse || m.ResponseTimeout > maxMethodWait {
			return m, errors.New("responseTimeoutInSeconds must be 5 to 300")
		}
	}
	if b.Connect != nil {
		m.ConnectTimeout = time.Duration(*b.Connect) * time.Second
		if m.ConnectTimeout < 0 || m.ConnectTimeout > maxMethodWait {
			return m, errors.New("connectTimeoutInSeconds must be 0 to 300")
		}
	}
	return m, nil
}

// methodRequest serves one path for two callers: a module by edgeHub, told by its header, and an operator by the hub.
func (d *Device) methodRequest(w http.ResponseWriter, r *http.Request) {
	actor := r.Header.Get(actorHeader)
	if actor == "" && strings.Contains(r.Header.Get("Authorization"), "skn=") {
		d.service(d.serviceInvoke)(w, r)
		return
	}
	device, module, ok := strings.Cut(actor, "/")
	if !ok || module == "" {
		writeMethodError(w, http.StatusBadRequest, "Invalid header value for x-ms-edge-moduleId")
		return
	}
	if device != d.opts.DeviceID {
		writeMethodError(w, http.StatusUnauthorized, "Only modules on the same device can invoke DirectMethods")
		return
	}
	if _, err := d.checkModuleToken(device, module, r.Header.Get("Authorization")); err != nil {
		writeMethodError(w, http.StatusUnauthorized, "Unable to authenticate device with Id "+actor+" - "+err.Error())
		return
	}
	m, err := readMethod(r)
	if err != nil {
		writeMethodError(w, http.StatusBadRequest, err.Error())
		return
	}
	if r.PathValue("device") != d.opts.DeviceID {
		writeMethodError(w, http.StatusNotFound, "Client "+r.PathValue("device")+" not found")
		return
	}
	result, err := d.InvokeMethod(r.Context(), r.PathValue("module"), m)
	if e := new(MethodError); errors.As(err, &e) {
		writeMethodError(w, e.Status, e.Message)
		return
	}
	if err != nil {
		return
	}
	writeJSON(w, http.StatusOK, result.document())
}

func readMethod(r *http.Request) (Method, error) {
	var b methodBody
	if err := json.NewDecoder(io.LimitReader(r.Body, maxRequestBody)).Decode(&b); err != nil {
		return Method{}, err
	}
	return b.method()
}

// document is the answer of both APIs; an empty or broken payload is null.
func (r MethodResponse) document() map[string]any {
	payload := r.Payload
	if !json.Valid(payload) {
		payload = json.RawMessage("null")
	}
	return map[string]any{"status": r.Status, "payload": payload}
}

func writeMethodError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, map[string]string{"message": message})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	doc, err := json.Marshal(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(doc)
}
