package module

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/schedule"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

const (
	// relayedTokens is what the parent relayed last; it holds for as long as the parent is away.
	relayedTokens = "tokens/relayed"
	// tellEvery is how often it is looked at whether there is something to tell the parent, tellAgain how often that is
	// told of which nothing but times changed, and inTouch how fresh the last answer of the parent has to be for it:
	// outside the windows of the schedule nothing is sent.
	tellEvery = 5 * time.Second
	tellAgain = 10 * time.Minute
	inTouch   = time.Minute
	// farewell bounds how long the parent is waited for when this registry is deactivated.
	farewell = 5 * time.Second
)

// above is the parent as a registry of its own kind is to its child: this registry activates before it asks for anything,
// and takes the client tokens that come with the answers.
type above struct {
	*upstream.Parent
	m *Module

	mu     sync.Mutex
	active string // instance of the parent at which this one is the active instance of its name
	offers []string
}

// Probe also activates this registry, where the parent knows activation.
//
// Errors: also ALREADY_ACTIVATED.
func (a *above) Probe(ctx context.Context) (registry.ParentStatus, registry.LayerInfo, error) {
	status, info, err := a.Parent.Probe(ctx)
	if err != nil {
		return status, info, err
	}
	a.mu.Lock()
	a.offers = info.Capabilities
	done := a.active == info.InstanceID
	a.mu.Unlock()
	if status.Kind != registry.KindConnected {
		a.m.takeRelay(ctx, registry.Relay{}) // what an earlier parent relayed ends with it
		return status, info, nil
	}
	if !done && slices.Contains(info.Capabilities, registry.CapabilityActivation) {
		if err := a.activate(ctx, info.InstanceID); err != nil {
			return status, info, err
		}
	}
	a.tokens(ctx)
	return status, info, nil
}

func (a *above) activate(ctx context.Context, parent string) error {
	a.m.mu.Lock()
	byOperator := a.m.comesBack
	a.m.mu.Unlock()
	err := a.Activate(ctx, a.m.o.Version, byOperator)
	refused := errors.Is(err, registry.ErrActivated) || errors.Is(err, registry.ErrConflict)
	a.m.mu.Lock()
	a.m.refused = refused
	a.m.mu.Unlock()
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.active = parent
	a.mu.Unlock()
	if byOperator {
		a.m.cameBack(ctx)
	}
	return nil
}

// Changes also takes the tokens of which the answer says that they are other ones.
func (a *above) Changes(ctx context.Context, req registry.ChangesRequest) (registry.Changes, error) {
	c, err := a.Parent.Changes(ctx, req)
	switch {
	case err == nil:
		a.tokens(ctx)
	case errors.Is(err, registry.ErrConflict), errors.Is(err, registry.ErrActivated):
		a.mu.Lock()
		a.active = "" // asked for again with the next probe
		a.mu.Unlock()
	}
	return c, err
}

// tokens asks for the client tokens when the parent has other ones than are known. That they cannot be had now is no
// reason not to sync.
func (a *above) tokens(ctx context.Context) {
	version, ok := a.RelayVersion()
	if !ok {
		return
	}
	if version != a.m.relayVersion() {
		relay, err := a.Relayed(ctx)
		if err == nil {
			a.m.takeRelay(ctx, relay)
		} else {
			a.m.log.Warn("the client tokens of the parent could not be fetched; those from before stay", "error", err)
		}
	}
	if ctx.Err() == nil { // after a failure it is asked again with the next answer, and not in a circle
		a.SettleRelay(version)
	}
}

func (a *above) offersStatus() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Contains(a.offers, registry.CapabilityStatus)
}

// tellParent keeps the parent informed of this registry and of those below it.
func (m *Module) tellParent(ctx context.Context) {
	var told []registry.TreeNode
	var at time.Time
	ticker := time.NewTicker(tellEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		m.mu.Lock()
		parent := m.parent
		m.mu.Unlock()
		if parent == nil || !parent.offersStatus() {
			continue
		}
		tree := m.tree(ctx)
		now := m.clock.Now()
		if now.Sub(tree[0].LastActivityTime).Abs() > inTouch || sameNews(told, tree) && now.Sub(at).Abs() < tellAgain {
			continue
		}
		if err := parent.Report(ctx, registry.LayerReport{Registries: tree}); err != nil {
			m.log.Debug("the parent could not be told of this registry", "error", err)
			continue
		}
		told, at = tree, now
	}
}

// sameNews reports whether two trees differ in nothing but times and in whether a registry is syncing just now.
func sameNews(a, b []registry.TreeNode) bool {
	plain := func(n registry.TreeNode) string {
		n.LastActivityTime, n.LastSyncTime = time.Time{}, time.Time{}
		if n.ConnectionState == registry.Syncing {
			n.ConnectionState = registry.Online
		}
		n.StatusDetails = slices.Clone(n.StatusDetails)
		for i := range n.StatusDetails {
			n.StatusDetails[i].Timestamp, n.StatusDetails[i].Description = time.Time{}, ""
		}
		raw, _ := json.Marshal(n) // nothing in it can fail
		return string(raw)
	}
	return slices.EqualFunc(a, b, func(x, y registry.TreeNode) bool { return plain(x) == plain(y) })
}

// tree is this registry and all that is known below it, parents before children.
func (m *Module) tree(ctx context.Context) []registry.TreeNode {
	s := m.Status(ctx)
	m.mu.Lock()
	sync := m.config.Parent.SyncProperties
	m.mu.Unlock()
	self := registry.TreeNode{
		Name: s.Name, InstanceID: s.InstanceID, Mode: s.Mode, ConnectionState: s.ConnectionState, Activation: s.Activation,
		LoginServer: s.LoginServer, LastSyncTime: s.Sync.LastSuccessfulSyncEndTime, LastActivityTime: s.LastActivityTime,
		Schedule: sync.Schedule, Version: s.Version, StatusDetails: s.StatusDetails,
	}
	if sync.SyncWindow > 0 {
		self.SyncWindow = schedule.FormatDuration(sync.SyncWindow)
	}
	return append([]registry.TreeNode{self}, m.children.Tree()...)
}

// methodList returns the tree of registries from this one down.
func (m *Module) methodList(ctx context.Context, _ []byte) (any, error) {
	return registry.LayerReport{Registries: m.tree(ctx)}, nil
}
