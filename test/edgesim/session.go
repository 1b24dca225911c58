package edgesim

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// connection is one MQTT connection of a module. Device.mu guards what changes.
type connection struct {
	cl      *mqtt.Client
	module  string
	product string // DeviceClientType
	over    string // tls or wss
	expiry  time.Time
	clean   bool
	out     chan outbound

	present bool // the session was there before
	ready   bool // messages may be queued
}

// outbound is a message to a module.
type outbound struct {
	topic   string
	payload []byte
	qos     byte
}

// cut closes the connection without a farewell, as MQTT 3.1.1 has none for servers.
func (c *connection) cut(why error) { c.cl.Stop(why) }

func (d *Device) countConnect(clientID string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, id, _ := strings.Cut(clientID, "/")
	if m := d.modules[id]; m != nil {
		m.connects++
		d.bumpLocked()
	}
}

// attach registers an admitted connection under a name of its own.
func (d *Device) attach(cl *mqtt.Client, c *connection) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seq++
	cl.ID = cl.ID + "#" + strconv.Itoa(d.seq)
	d.conns[cl.ID] = c
}

func (d *Device) connection(name string) *connection {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conns[name]
}

func (d *Device) sessionPresent(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.conns[name]
	return c != nil && c.present
}

// takeOver makes c the module's connection.
func (d *Device) takeOver(name string) {
	d.mu.Lock()
	c := d.conns[name]
	var m *moduleState
	if c != nil {
		m = d.modules[c.module]
	}
	if m == nil {
		d.mu.Unlock()
		return
	}
	old := m.conn
	m.conn = c
	if c.clean {
		m.session = map[string]byte{}
	}
	c.present = len(m.session) > 0
	c.ready = true
	if hasFilter(m.session, methodsFilter) {
		d.releaseMethodsLocked(m)
	}
	d.bumpLocked()
	d.mu.Unlock()
	if old != nil {
		old.cut(errors.New("another connection of the same identity"))
	}
}

func (d *Device) startWriting(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.conns[name]; c != nil {
		d.spawnLocked(func(ctx context.Context) { d.write(ctx, c) })
	}
}

// write sends what is queued for a connection, in order.
func (d *Device) write(ctx context.Context, c *connection) {
	defer c.cl.Stop(nil)
	for {
		select {
		case <-ctx.Done():
			return
		case o, ok := <-c.out:
			if !ok {
				return
			}
			pk := packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: o.qos},
				TopicName:   o.topic, Payload: o.payload, Created: time.Now().Unix(),
			}
			if o.qos > 0 {
				id, err := c.cl.NextPacketID()
				if err != nil {
					return
				}
				pk.PacketID = uint16(id)
				c.cl.State.Inflight.Set(pk)
			}
			if c.cl.WritePacket(pk) != nil {
				return
			}
			if o.qos > 0 && d.Faults().Duplicate {
				pk.FixedHeader.Dup = true
				if c.cl.WritePacket(pk) != nil {
					return
				}
			}
		}
	}
}

// detach forgets the connection over a network connection that has ended.
func (d *Device) detach(over net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, c := range d.conns {
		if c.cl.Net.Conn != over {
			continue
		}
		delete(d.conns, name)
		close(c.out)
		c.ready = false
		if m := d.modules[c.module]; m != nil && m.conn == c {
			m.conn = nil
			if c.clean {
				m.session = map[string]byte{}
			}
		}
		d.bumpLocked()
		return
	}
}

func (d *Device) subscribed(name string, granted map[string]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.conns[name]
	if c == nil {
		return
	}
	m := d.modules[c.module]
	if m == nil || m.conn != c {
		return
	}
	maps.Copy(m.session, granted)
	if hasFilter(granted, methodsFilter) {
		d.releaseMethodsLocked(m)
	}
	d.bumpLocked()
}

func (d *Device) unsubscribed(name, filter string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.conns[name]
	if c == nil {
		return
	}
	if m := d.modules[c.module]; m != nil && m.conn == c {
		delete(m.session, filter)
		d.bumpLocked()
	}
}

// deliverLocked queues a message for a module that is present and has subscribed; else nothing happens.
func (d *Device) deliverLocked(m *moduleState, topic string, payload []byte) bool {
	c := m.conn
	if c == nil || !c.ready {
		return false
	}
	qos, ok := match(m.session, topic)
	if !ok {
		return false
	}
	select {
	case c.out <- outbound{topic, payload, qos}:
		return true
	default: // a client that reads nothing
		c.cut(errors.New("too many messages are waiting"))
		return false
	}
}

// hasFilter reports whether a filter with that prefix is among the subscriptions, as edgeHub recognises them.
func hasFilter(subscriptions map[string]byte, prefix string) bool {
	for f := range subscriptions {
		if strings.HasPrefix(f, prefix) {
			return true
		}
	}
	return false
}

// match returns the highest QoS at which the subscriptions want a topic.
func match(subscriptions map[string]byte, topic string) (qos byte, ok bool) {
	for f, q := range subscriptions {
		if matches(strings.Split(f, "/"), strings.Split(topic, "/")) {
			qos, ok = max(qos, q), true
		}
	}
	return qos, ok
}

func matches(filter, topic []string) bool {
	for i, f := range filter {
		switch {
		case f == "#":
			return i > 0 || !strings.HasPrefix(topic[0], "$")
		case i >= len(topic):
			return false
		case f == "+" && (i > 0 || !strings.HasPrefix(topic[0], "$")):
		case f != topic[i]:
			return false
		}
	}
	return len(filter) == len(topic)
}

// Kick cuts a module's connection; it is false when there is none.
func (d *Device) Kick(module string) bool {
	d.mu.Lock()
	var c *connection
	if m := d.modules[module]; m != nil {
		c = m.conn
	}
	d.mu.Unlock()
	if c == nil {
		return false
	}
	c.cut(errKicked)
	return true
}

// Status is what edgeHub knows of a module's connection.
type Status struct {
	Connected     bool
	Over          string // tls or wss
	Product       string // DeviceClientType of the user name
	TokenExpiry   time.Time
	Subscriptions []string
	Connects      int // CONNECT packets so far, refused ones too
	TwinGets      int // twin requests so far
	Patches       int // desired patches sent so far
}

// Status returns a module's; the zero Status when there is no such module.
func (d *Device) Status(module string) Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.modules[module]
	if m == nil {
		return Status{}
	}
	s := Status{
		Subscriptions: slices.Sorted(maps.Keys(m.session)), Connects: m.connects, TwinGets: m.twinGets, Patches: m.patches,
	}
	if c := m.conn; c != nil && c.ready {
		s.Connected, s.Over, s.Product, s.TokenExpiry = true, c.over, c.product, c.expiry
	}
	return s
}

// Connected reports whether a module is connected to edgeHub.
func (d *Device) Connected(module string) bool { return d.Status(module).Connected }
