package module

import (
	"context"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// activation is where it is kept that the registry was deactivated, or that it was activated again and the parent does
// not know yet; it holds across restarts.
const activation = "activation"

// methodDeactivate ends the work with the parent: no iteration, no pull-through, no question. What is here is served on.
// Another instance can take the registry's place then, without two that use one sync token. With {"name": "..."} it
// frees the name of a registry below instead: its instance stops, and another one can take its place.
func (m *Module) methodDeactivate(ctx context.Context, payload []byte) (any, error) {
	var req struct {
		Name string `json:"name"`
	}
	if err := parsePayload(payload, &req); err != nil {
		return nil, err
	}
	if req.Name == "" || hierarchy.SameName(req.Name, m.name) {
		return m.setActivation(ctx, registry.Inactive)
	}
	if err := m.children.Deactivate(ctx, req.Name, ""); err != nil {
		return nil, err
	}
	return m.Status(ctx), nil
}

// methodActivate undoes methodDeactivate.
func (m *Module) methodActivate(ctx context.Context, _ []byte) (any, error) {
	return m.setActivation(ctx, registry.Active)
}

func (m *Module) setActivation(ctx context.Context, to registry.ActivationStatus) (any, error) {
	if err := m.store.PutDocument(ctx, activation, []byte(to)); err != nil {
		return nil, err
	}
	m.log.Info("activation changed by the operator", "activation", to)
	if to == registry.Inactive {
		m.sayFarewell(ctx)
	}
	m.mu.Lock()
	m.deactivated, m.comesBack = to == registry.Inactive, to == registry.Active
	m.parentKey = "" // the parent is made anew, or not at all
	config, status := m.config, m.source
	m.mu.Unlock()
	m.apply(config, status)
	return m.Status(ctx), nil
}

// sayFarewell tells the parent that this instance goes. A parent that is away is told by its own operator.
func (m *Module) sayFarewell(ctx context.Context) {
	m.mu.Lock()
	parent := m.parent
	m.mu.Unlock()
	if parent == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	if err := parent.Deactivate(ctx); err != nil {
		m.log.Warn("the parent was not told; where it is a connected registry, deactivate this one there too before another instance takes its place", "error", err)
	}
}

// cameBack notes that the parent knows of the operator's activation.
func (m *Module) cameBack(ctx context.Context) {
	m.mu.Lock()
	m.comesBack = false
	m.mu.Unlock()
	if err := m.store.PutDocument(ctx, activation, nil); err != nil {
		m.log.Warn("the activation could not be kept", "error", err)
	}
}

// loadActivation reads what was kept.
func (m *Module) loadActivation(ctx context.Context) {
	raw, err := m.store.Document(ctx, activation)
	if err != nil {
		m.log.Error("the activation cannot be read; the registry counts as active", "error", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deactivated = registry.ActivationStatus(raw) == registry.Inactive
	m.comesBack = registry.ActivationStatus(raw) == registry.Active
}
