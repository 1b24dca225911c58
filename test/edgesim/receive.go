package edgesim

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Topics of edgeHub.
const (
	twinGetTopic      = "$iothub/twin/GET/"
	reportedTopic     = "$iothub/twin/PATCH/properties/reported/"
	twinResponse      = "$iothub/twin/res/"
	patchFilter       = "$iothub/twin/PATCH/properties/desired/"
	methodsFilter     = "$iothub/methods/POST/"
	methodResultTopic = "$iothub/methods/res/"
)

// Message is telemetry that a module sent.
type Message struct {
	Output     string // of the property $.on; empty for plain telemetry
	Properties map[string]string
	Payload    []byte
	QoS        byte
	At         time.Time // of the device's clock
}

// received handles a message of a module. An error ends the connection, which is edgeHub's answer to what it cannot
// make sense of.
func (d *Device) received(c *connection, pk packets.Packet) error {
	topic := pk.TopicName
	switch {
	case strings.HasPrefix(topic, twinGetTopic):
		rid := requestID(topic)
		if rid == "" {
			return errors.New("correlation id is missing or empty")
		}
		d.spawn(func(ctx context.Context) { d.answerTwinGet(ctx, c, rid) })
		return nil
	case strings.HasPrefix(topic, reportedTopic):
		rid, payload := requestID(topic), append([]byte{}, pk.Payload...)
		d.spawn(func(ctx context.Context) { d.answerReported(ctx, c, rid, payload) })
		return nil
	case strings.HasPrefix(topic, methodResultTopic):
		return d.methodAnswered(topic, pk.Payload)
	}
	return d.telemetry(c, topic, pk)
}

// telemetry records a message to devices/{device}/modules/{module}/messages/events/{properties}.
func (d *Device) telemetry(c *connection, topic string, pk packets.Packet) error {
	prefix := "devices/" + d.opts.DeviceID + "/modules/" + c.module + "/messages/events"
	rest, ok := strings.CutPrefix(topic, prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return fmt.Errorf("topic %q", topic)
	}
	m := Message{
		Properties: map[string]string{}, Payload: append([]byte{}, pk.Payload...), QoS: pk.FixedHeader.Qos, At: d.now(),
	}
	for part := range strings.SplitSeq(strings.Trim(rest, "/"), "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		n, err := url.PathUnescape(name)
		if err != nil {
			return fmt.Errorf("property %q", part)
		}
		v, err := url.PathUnescape(value)
		if err != nil {
			return fmt.Errorf("property %q", part)
		}
		if n == "$.on" {
			m.Output = v
		} else {
			m.Properties[n] = v
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.modules[c.module]; s != nil {
		s.messages = append(s.messages, m)
		d.bumpLocked()
	}
	return nil
}

// Messages returns what a module has sent, oldest first.
func (d *Device) Messages(module string) []Message {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.modules[module]; m != nil {
		return append([]Message{}, m.messages...)
	}
	return nil
}

// requestID takes $rid out of the query of a topic.
func requestID(topic string) string {
	_, query, _ := strings.Cut(topic, "?")
	for part := range strings.SplitSeq(query, "&") {
		if v, ok := strings.CutPrefix(part, "$rid="); ok {
			return v
		}
	}
	return ""
}

// methodAnswered takes $iothub/methods/res/{status}/?$rid={id}.
func (d *Device) methodAnswered(topic string, payload []byte) error {
	status, _, _ := strings.Cut(strings.TrimPrefix(topic, methodResultTopic), "/")
	code, err := strconv.Atoi(status)
	if err != nil {
		code = 400000 // edgeHub's generic bad request
		payload = nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	rid := strings.ToLower(requestID(topic))
	if c := d.calls[rid]; c != nil {
		delete(d.calls, rid)
		c.done <- MethodResponse{Status: code, Payload: append([]byte{}, payload...)}
	}
	return nil
}
