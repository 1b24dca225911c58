package gateway

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// Where what is known of the children is kept.
	activationsDocument = "gateway/activations"
	reportsDocument     = "gateway/reports"

	// silence is how long after it was heard of last a child counts as connected: one with a continuous schedule asks at
	// least every minute.
	silence = 3 * time.Minute
	// keepEvery is how often reports are stored of which only times are other ones.
	keepEvery = 15 * time.Minute
	// maxNote bounds texts of a report, in bytes, and maxDetails its status details.
	maxNote    = 300
	maxDetails = 10
)

// activation is which instance of a connected registry is the one.
type activation struct {
	InstanceID string        `json:"instanceId,omitempty"` // empty: the name is free
	Released   string        `json:"released,omitempty"`   // was deactivated here, the last one
	Mode       registry.Mode `json:"mode,omitempty"`
	Version    string        `json:"version,omitempty"`
	Time       time.Time     `json:"time"`
}

// report is what a child told last.
type report struct {
	Nodes    []registry.TreeNode `json:"connectedRegistries"`
	Received time.Time           `json:"received"`
}

// contact is when a child asked anything last, and who it said it was.
type contact struct {
	at       time.Time
	instance string
	mode     registry.Mode
}

// ChildrenOptions are the parts of Children; the zero value works.
type ChildrenOptions struct {
	Name   string // of this registry
	Clock  clock.Clock
	Logger *slog.Logger
	Audit  registry.Auditor
}

// Children is what a registry knows of those below it: which instance of a name is active, and what they tell of
// themselves. It is durable, and safe for concurrent use.
type Children struct {
	docs registry.Documents
	o    ChildrenOptions

	mu       sync.Mutex
	active   map[string]activation // by name, lower case
	reports  map[string]report     // by name of the direct child
	contacts map[string]contact
	kept     time.Time // when reports were stored last
}

// NewChildren reads what was kept. What cannot be read is told to the log, and begins anew.
func NewChildren(ctx context.Context, docs registry.Documents, o ChildrenOptions) *Children {
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Audit == nil {
		o.Audit = registry.NoAudit{}
	}
	c := &Children{docs: docs, o: o, active: map[string]activation{}, reports: map[string]report{}, contacts: map[string]contact{}}
	for name, into := range map[string]any{activationsDocument: &c.active, reportsDocument: &c.reports} {
		raw, err := docs.Document(ctx, name)
		if err == nil && raw != nil {
			err = json.Unmarshal(raw, into)
		}
		if err != nil {
			o.Logger.Error("what is known of the children cannot be read", "document", name, "error", err)
		}
	}
	return c
}

// met notes that a child asked something.
func (c *Children) met(name string, h http.Header) {
	mode, _ := registry.ParseMode(h.Get(registry.HeaderChildMode))
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.contacts) >= registry.MaxTree {
		clear(c.contacts)
	}
	c.contacts[name] = contact{at: c.o.Clock.Now(), instance: h.Get(registry.HeaderChildInstance), mode: mode}
}

// errDeactivated is for an instance that was deactivated here: only a person at it brings it back.
func errDeactivated(name string) error {
	return registry.ErrConflict.WithMessage("the connected registry '%s' was deactivated at its parent: run `connected-registry activate` on it to use the parent again", name)
}

// errActive is ACR's answer to a second instance, with what to do.
func errActive(name string, a activation) error {
	return registry.ErrActivated.WithDetail(map[string]string{
		"connectedRegistry": name, "activatedAt": a.Time.UTC().Format(time.RFC3339),
		"action": "when that instance is gone for good, run `connected-registry deactivate --name " + name + "` at the parent",
	})
}

// check refuses an instance that is not the active one. A name that nobody activated, as with children of older versions,
// is open to all instances.
func (c *Children) check(name, instance string) error {
	c.mu.Lock()
	a := c.active[name]
	c.mu.Unlock()
	switch {
	case instance == "":
		return nil
	case a.InstanceID != "" && a.InstanceID != instance:
		return errActive(name, a)
	case a.InstanceID == "" && a.Released == instance:
		return errDeactivated(name)
	}
	return nil
}

// Activate makes an instance the active one of its name. It is idempotent.
//
// Errors: ALREADY_ACTIVATED while another instance is; CONFLICT for one that was deactivated here and comes back without
// a person's word.
func (c *Children) Activate(ctx context.Context, r registry.ActivationRequest) error {
	name := strings.ToLower(r.Name)
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.active[name]
	switch {
	case old.InstanceID == r.InstanceID && old.Mode == r.Mode && old.Version == r.Version:
		return nil
	case old.InstanceID != "" && old.InstanceID != r.InstanceID:
		return errActive(name, old)
	case old.InstanceID == "" && old.Released == r.InstanceID && !r.Operator:
		return errDeactivated(name)
	}
	made := activation{InstanceID: r.InstanceID, Mode: r.Mode, Version: clip(r.Version), Time: old.Time}
	if old.Released != r.InstanceID {
		made.Released = old.Released
	}
	if old.InstanceID != r.InstanceID {
		made.Time = c.o.Clock.Now()
		c.o.Logger.Info("a child was activated", "name", name, "instance", r.InstanceID, "before", old.Released)
	}
	return c.putActive(ctx, name, old, made)
}

// Deactivate frees a name. With an instance it is that instance which goes, and does nothing when another one is active;
// without, it is the operator here, and the instance that was active does not come back by itself.
//
// Errors: NAME_UNKNOWN when nobody is active.
func (c *Children) Deactivate(ctx context.Context, name, instance string) error {
	name = strings.ToLower(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.active[name]
	switch {
	case instance != "" && old.InstanceID != instance:
		return nil
	case old.InstanceID == "":
		return registry.ErrNameUnknown.WithMessage("no connected registry '%s' is activated here", name)
	}
	made := activation{Time: c.o.Clock.Now(), Released: old.Released}
	if instance == "" {
		made.Released = old.InstanceID
	}
	c.o.Logger.Info("a child was deactivated", "name", name, "instance", old.InstanceID, "byOperator", instance == "")
	return c.putActive(ctx, name, old, made)
}

// putActive stores a record; it counts only when it is durable. The caller holds mu.
func (c *Children) putActive(ctx context.Context, name string, old, made activation) error {
	c.active[name] = made
	raw, err := json.Marshal(c.active)
	if err == nil {
		err = c.docs.PutDocument(ctx, activationsDocument, raw)
	}
	if err != nil {
		c.active[name] = old
		return err
	}
	return nil
}

// Report takes what a child tells of itself and of those below it.
func (c *Children) Report(ctx context.Context, nodes []registry.TreeNode) error {
	child := nodes[0].Name
	now := c.o.Clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.reports[child]
	c.reports[child] = report{Nodes: nodes, Received: now}
	if sameTree(old.Nodes, nodes) && now.Sub(c.kept).Abs() < keepEvery {
		return nil
	}
	raw, err := json.Marshal(c.reports)
	if err == nil {
		err = c.docs.PutDocument(ctx, reportsDocument, raw)
	}
	if err == nil {
		c.kept = now
	}
	return err
}

// sameTree reports whether two reports differ in nothing but times.
func sameTree(a, b []registry.TreeNode) bool {
	timeless := func(n registry.TreeNode) string {
		n.LastActivityTime, n.LastSyncTime = time.Time{}, time.Time{}
		n.StatusDetails = slices.Clone(n.StatusDetails)
		for i := range n.StatusDetails {
			n.StatusDetails[i].Timestamp = time.Time{}
		}
		raw, _ := json.Marshal(n) // nothing in it can fail
		return string(raw)
	}
	return slices.EqualFunc(a, b, func(x, y registry.TreeNode) bool { return timeless(x) == timeless(y) })
}

// Tree lists those below this registry, parents before children, siblings by name. One that was not heard of for three
// minutes is Offline, and so is all below it.
func (c *Children) Tree() []registry.TreeNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.o.Clock.Now()
	names := map[string]bool{}
	for name := range c.reports {
		names[name] = true
	}
	for name := range c.active {
		names[name] = true
	}
	for name := range c.contacts {
		names[name] = true
	}
	var out []registry.TreeNode
	for _, name := range slices.Sorted(maps.Keys(names)) {
		list := c.branch(name, now)
		for i := range list {
			if i == 0 || !names[list[i].Name] { // a direct child is itself the authority on where it stands
				out = append(out, list[i])
			}
		}
	}
	return out
}

// branch is one direct child with those below it. The caller holds mu.
func (c *Children) branch(name string, now time.Time) []registry.TreeNode {
	said, met, active := c.reports[name], c.contacts[name], c.active[name]
	list := slices.Clone(said.Nodes)
	if len(list) == 0 {
		list = []registry.TreeNode{{Name: name, ConnectionState: registry.Online, Mode: met.mode, InstanceID: met.instance, Version: active.Version}}
		if list[0].Mode == "" {
			list[0].Mode = active.Mode
		}
	}
	child := &list[0]
	child.Parent = c.o.Name
	child.LastActivityTime = said.Received
	if met.at.After(said.Received) {
		child.LastActivityTime = met.at
	}
	child.Activation.Status = registry.Inactive
	if active.InstanceID != "" {
		child.Activation.Status, child.InstanceID = registry.Active, active.InstanceID
	}
	if now.Sub(child.LastActivityTime).Abs() > silence {
		for i := range list {
			list[i].ConnectionState = registry.Offline
		}
	}
	return list
}

// clip bounds a text that a child made up.
func clip(s string) string {
	if len(s) > maxNote {
		return strings.ToValidUTF8(s[:maxNote], "") + "..."
	}
	return s
}
