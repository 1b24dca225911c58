package edgesim

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// Bounds of a method call's waiting times, as IoT Hub and edgeHub check them.
const (
	defaultResponse = 30 * time.Second
	minResponse     = 5 * time.Second
	maxMethodWait   = 300 * time.Second
)

// Method is a direct method call.
type Method struct {
	Name            string
	Payload         json.RawMessage // nil is null
	ResponseTimeout time.Duration   // 5 to 300 s by REST; zero is 30 s
	ConnectTimeout  time.Duration   // how long to wait for the module to be there; zero does not wait
}

// MethodResponse is the module's answer.
type MethodResponse struct {
	Status  int
	Payload json.RawMessage
}

// MethodError is edgeHub's answer instead of the module's: 404 not there, 504 no answer in time.
type MethodError struct {
	Status  int
	Message string
}

// Error is the message.
func (e *MethodError) Error() string { return fmt.Sprintf("%d: %s", e.Status, e.Message) }

// call is a method call under way.
type call struct {
	rid     string
	method  Method
	sent    chan struct{} // closed when the module has been asked
	done    chan MethodResponse
	expired bool
}

// InvokeMethod calls a module's direct method by edgeHub: at once when the module has subscribed, else as soon as it
// has and Timing.MethodHold has passed. Errors are *MethodError or ctx's.
func (d *Device) InvokeMethod(ctx context.Context, module string, m Method) (MethodResponse, error) {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	c := &call{rid: hex.EncodeToString(id), method: m, sent: make(chan struct{}), done: make(chan MethodResponse, 1)}
	defer d.forget(module, c)
	notFound := &MethodError{http.StatusNotFound, "Client " + d.opts.DeviceID + "/" + module + " not found"}

	d.mu.Lock()
	s := d.modules[module]
	if s == nil {
		d.mu.Unlock()
		return MethodResponse{}, notFound
	}
	if hasFilter(s.session, methodsFilter) && s.conn != nil && s.conn.ready {
		d.askLocked(s, c)
	} else {
		s.waiting = append(s.waiting, c)
	}
	d.mu.Unlock()

	connect := time.NewTimer(m.ConnectTimeout)
	defer connect.Stop()
	select {
	case <-c.sent:
	case <-connect.C:
		select {
		case <-c.sent: // both at once, with no waiting time
		default:
			return MethodResponse{}, notFound
		}
	case <-ctx.Done():
		return MethodResponse{}, ctx.Err()
	}
	long := m.ResponseTimeout
	if long == 0 {
		long = defaultResponse
	}
	response := time.NewTimer(long)
	defer response.Stop()
	select {
	case r := <-c.done:
		return r, nil
	case <-response.C:
		return MethodResponse{}, &MethodError{
			http.StatusGatewayTimeout, "Timed out waiting for device to respond to method request " + c.rid,
		}
	case <-ctx.Done():
		return MethodResponse{}, ctx.Err()
	case <-d.ctx.Done():
		return MethodResponse{}, d.ctx.Err()
	}
}

func (d *Device) forget(module string, c *call) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.expired = true
	delete(d.calls, c.rid)
	if s := d.modules[module]; s != nil {
		s.waiting = slices.DeleteFunc(s.waiting, func(w *call) bool { return w == c })
	}
}

// askLocked sends a method request to a module.
func (d *Device) askLocked(m *moduleState, c *call) {
	close(c.sent)
	d.calls[c.rid] = c
	if n := &d.faults.LoseMethods; *n != 0 {
		if *n > 0 {
			*n--
		}
		return
	}
	payload := c.method.Payload
	if len(payload) == 0 {
		payload = json.RawMessage("null")
	}
	d.deliverLocked(m, methodsFilter+url.PathEscape(c.method.Name)+"/?$rid="+c.rid, payload)
}

// releaseMethodsLocked sends waiting calls after the hold.
func (d *Device) releaseMethodsLocked(m *moduleState) {
	d.spawnLocked(func(ctx context.Context) {
		if !pause(ctx, d.opts.Timing.MethodHold) {
			return
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if !hasFilter(m.session, methodsFilter) || m.conn == nil || !m.conn.ready {
			return
		}
		for _, c := range m.waiting {
			if !c.expired {
				d.askLocked(m, c)
			}
		}
		m.waiting = nil
	})
}
