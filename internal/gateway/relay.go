package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"sync"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxCached bounds the versions that are remembered: one for each set of names that a token may read.
const maxCached = 1000

// relayCache remembers versions, so that a question without news does not hash ten thousand tokens.
type relayCache struct {
	mu       sync.Mutex
	changed  <-chan struct{} // what versions were made before it was closed
	versions map[string]string
}

// version returns the version of what is relayed to the names, and a channel that is closed when it may be another.
func (g *gateway) version(names []string) (string, <-chan struct{}) {
	changed := g.o.Relays.RelayChanged() // before the question, so that no change falls between the two
	key := strings.Join(names, ",")
	c := &g.relays
	c.mu.Lock()
	if c.changed != changed || len(c.versions) >= maxCached {
		c.changed, c.versions = changed, map[string]string{}
	}
	v, ok := c.versions[key]
	c.mu.Unlock()
	if ok {
		return v, changed
	}
	v = g.relay(names).Version
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed == changed {
		c.versions[key] = v
	}
	return v, changed
}

// relay returns what is relayed, with its version: the hash of it.
func (g *gateway) relay(names []string) registry.Relay {
	out := g.o.Relays.Relay(names)
	body, err := json.Marshal(out.Registries)
	if err != nil {
		g.o.Logger.Error("tokens cannot be relayed", "error", err)
		return registry.Relay{}
	}
	sum := sha256.Sum256(body)
	out.Version = hex.EncodeToString(sum[:8])
	return out
}

// tellRelay puts the version on the answer to a child that may have it. The channel is nil for others.
func (g *gateway) tellRelay(q question) <-chan struct{} {
	if g.o.Relays == nil || q.child == "" {
		return nil
	}
	names := q.caller.Gateways(registry.ConfigRead)
	if len(names) == 0 {
		return nil
	}
	v, changed := g.version(names)
	q.w.Header().Set(registry.HeaderRelay, v)
	return changed
}

// retellRelay is tellRelay after a change, and whether the version is another one now.
func (g *gateway) retellRelay(q question) (changed <-chan struct{}, other bool) {
	before := q.w.Header().Get(registry.HeaderRelay)
	changed = g.tellRelay(q)
	return changed, q.w.Header().Get(registry.HeaderRelay) != before
}

// tokens answers the client tokens and scope maps for those whose configuration the caller may read: itself and, since a
// sync token has the gateways of all that stand below, every registry whose messages it forwards.
func (g *gateway) tokens(q question) error {
	names := q.caller.Gateways(registry.ConfigRead)
	if g.o.Relays == nil || len(names) == 0 {
		return errNoGateway(registry.ConfigRead)
	}
	if err := g.active(q); err != nil {
		return err
	}
	relay := g.relay(names)
	q.w.Header().Set(registry.HeaderRelay, relay.Version)
	if since := q.r.URL.Query().Get("since"); since != "" && since == relay.Version {
		q.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return reply(q.w, q.r, relay)
}

func errNoGateway(action registry.Action) error {
	return registry.ErrDenied.WithMessage("Insufficient scopes to perform the operation: the token needs gateway/<name>/%s", action)
}
