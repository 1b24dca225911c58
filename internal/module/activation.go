package module

import (
	"context"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// activation is where it is kept that the registry was deactivated; it holds across restarts.
const activation = "activation"

// methodDeactivate ends the work with the parent: no iteration, no pull-through, no question. What is here is served on.
// Another instance can take the registry's place then, without two that use one sync token.
func (m *Module) methodDeactivate(ctx context.Context, _ []byte) (any, error) {
	return m.setActivation(ctx, registry.Inactive)
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
	m.mu.Lock()
	m.deactivated = to == registry.Inactive
	m.parentKey = "" // the parent is made anew, or not at all
	config, status := m.config, m.source
	m.mu.Unlock()
	m.apply(config, status)
	return m.Status(ctx), nil
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
}
