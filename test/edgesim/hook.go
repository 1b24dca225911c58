package edgesim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// maxKeepalive is the longest keepalive that edgeHub grants, in seconds.
const maxKeepalive = 600

// notAuthorised is the CONNACK return code for each reason to refuse an identity.
const notAuthorised = 5

// hook makes edgeHub of the broker. The broker does the protocol of one connection; who is who, sessions, delivery
// and every answer are the device's: each connection has a name of its own in the broker, so that the broker's own
// idea of sessions and of subscribers never comes into play.
type hook struct {
	mqtt.HookBase
	d *Device
}

// ID names the hook.
func (h *hook) ID() string { return "edgehub" }

// Provides says which events the broker is to pass.
func (h *hook) Provides(event byte) bool {
	return slices.Contains([]byte{
		mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished,
		mqtt.OnPublish, mqtt.OnPacketRead, mqtt.OnPacketEncode, mqtt.OnSubscribed, mqtt.OnUnsubscribe,
	}, event)
}

// OnConnect checks the identity and sends the CONNACK of a refusal itself, since the broker knows one code only.
func (h *hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	d := h.d
	id := pk.Connect.ClientIdentifier
	d.countConnect(id)
	if d.strike(func(f *Faults) *int { return &f.DropConnects }) {
		return errKicked
	}
	f := d.Faults()
	if !pause(d.ctx, f.ConnackDelay) {
		return context.Canceled
	}
	if f.Refuse != 0 {
		return h.refuse(cl, f.Refuse, fmt.Errorf("refused by a switch"))
	}
	if pk.ProtocolVersion != 4 {
		return h.refuse(cl, 1, fmt.Errorf("protocol version %d", pk.ProtocolVersion))
	}
	module, expiry, err := d.authenticate(id, string(pk.Connect.Username), string(pk.Connect.Password))
	if err != nil {
		return h.refuse(cl, notAuthorised, err)
	}
	if cl.State.Keepalive == 0 || cl.State.Keepalive > maxKeepalive {
		cl.State.Keepalive = maxKeepalive
	}
	info, _ := parseUsername(string(pk.Connect.Username))
	d.attach(cl, &connection{
		cl: cl, module: module, expiry: expiry, product: info.product, clean: pk.Connect.Clean,
		over: cl.Net.Listener, out: make(chan outbound, 4096),
	})
	cl.Properties.Clean = true // the session is ours
	cl.Properties.Will = mqtt.Will{}
	return nil
}

func (h *hook) refuse(cl *mqtt.Client, code byte, why error) error {
	h.d.log.Info("connection refused", "client", cl.ID, "code", code, "error", why)
	return errors.Join(why, h.d.hub.broker.SendConnack(cl, packets.Code{Code: code}, false, nil))
}

// OnConnectAuthenticate is true: OnConnect has done it.
func (h *hook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

// OnACLCheck grants every subscription but those on the broker's own topics, as edgeHub does with what it does not
// know. A false becomes 0x80 in the SUBACK.
func (h *hook) OnACLCheck(_ *mqtt.Client, topic string, write bool) bool {
	if write {
		return true
	}
	return !strings.HasPrefix(topic, "$SYS") && !h.d.Faults().RefuseSubscribe
}

// OnSessionEstablish closes the module's earlier connection: one connection per identity.
func (h *hook) OnSessionEstablish(cl *mqtt.Client, _ packets.Packet) { h.d.takeOver(cl.ID) }

// OnSessionEstablished comes after the CONNACK: what has been queued since goes out.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) { h.d.startWriting(cl.ID) }

// OnPacketEncode puts our session's state into the CONNACK.
func (h *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if pk.FixedHeader.Type == packets.Connack && pk.ReasonCode == 0 {
		pk.SessionPresent = h.d.sessionPresent(cl.ID)
	}
	return pk
}

// OnPublish takes every message; the broker forwards none.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := h.d.connection(cl.ID)
	if c == nil {
		return pk, packets.ErrRejectPacket
	}
	if err := h.d.received(c, pk); err != nil {
		h.d.log.Info("connection dropped", "module", c.module, "topic", pk.TopicName, "error", err)
		c.cut(err)
		return pk, packets.ErrRejectPacket
	}
	return pk, packets.CodeSuccessIgnore
}

// OnPacketRead ends connections that publish with QoS 2, which the broker would lower.
func (h *hook) OnPacketRead(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Qos > 1 {
		return pk, packets.ErrRejectPacket
	}
	return pk, nil
}

// OnSubscribed notes what was granted, just before the SUBACK is written.
func (h *hook) OnSubscribed(cl *mqtt.Client, pk packets.Packet, codes []byte) {
	granted := map[string]byte{}
	for i, f := range pk.Filters {
		if codes[i] < packets.ErrUnspecifiedError.Code {
			granted[f.Filter] = min(f.Qos, 1)
		}
	}
	h.d.subscribed(cl.ID, granted)
}

// OnUnsubscribe notes what a module no longer wants.
func (h *hook) OnUnsubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	for _, f := range pk.Filters {
		h.d.unsubscribed(cl.ID, f.Filter)
	}
	return pk
}

// reauthenticate drops connections whose token has ended, each period as edgeHub does.
func (d *Device) reauthenticate(ctx context.Context) {
	t := time.NewTicker(d.opts.Timing.Reauthenticate)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := d.now()
		d.mu.Lock()
		var ended []*connection
		for _, c := range d.conns {
			if !now.Before(c.expiry) {
				ended = append(ended, c)
			}
		}
		d.mu.Unlock()
		for _, c := range ended {
			c.cut(fmt.Errorf("token of %s ended", c.module))
		}
	}
}

// quiet passes the broker's records on at debug level at most, without their packets, which hold tokens.
type quiet struct{ slog.Handler }

// Handle drops the attribute that holds the packet.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if !q.Handler.Enabled(ctx, slog.LevelDebug) {
		return nil
	}
	out := slog.NewRecord(r.Time, slog.LevelDebug, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != "pk" && a.Key != "packet" {
			out.AddAttrs(a)
		}
		return true
	})
	return q.Handler.Handle(ctx, out)
}

// WithAttrs keeps the wrapping.
func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }

// WithGroup keeps the wrapping.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
