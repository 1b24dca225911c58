package upstream

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// What a registry is as the child of a parent of its own kind.

// Activate asks to be the one active instance of this registry's name. operator says that a person wants it.
//
// Errors: ALREADY_ACTIVATED, CONFLICT when the two do not fit together or the parent deactivated this instance;
// UNSUPPORTED for a parent that knows no activation; otherwise as Probe.
func (p *Parent) Activate(ctx context.Context, version string, operator bool) error {
	body, err := json.Marshal(registry.ActivationRequest{
		Name: p.o.Name, InstanceID: p.o.InstanceID, Mode: p.o.Mode, Version: version, Operator: operator,
	})
	if err != nil {
		return err
	}
	_, err = p.layer(ctx, http.MethodPut, "activation", nil, body)
	return err
}

// Deactivate tells the parent that this instance is not the active one any more.
func (p *Parent) Deactivate(ctx context.Context) error {
	_, err := p.layer(ctx, http.MethodDelete, "activation", nil, nil)
	return err
}

// RelayVersion returns the version of the tokens that the parent has for this registry, as of its last answer; ok is
// false for a parent that relays none.
func (p *Parent) RelayVersion() (version string, ok bool) {
	v := p.relay.Load()
	if v == nil {
		return "", false
	}
	return *v, true
}

// SettleRelay says that the version of the tokens is done with: a question is not held back by a parent that has
// another one. What was heard of but not taken, because the question was cancelled, is told of again at once.
func (p *Parent) SettleRelay(version string) { p.settled.Store(&version) }

func (p *Parent) settledRelay() string {
	if v := p.settled.Load(); v != nil {
		return *v
	}
	return "none"
}

// Relayed returns the tokens that the parent has for this registry and for those below it.
func (p *Parent) Relayed(ctx context.Context) (registry.Relay, error) {
	var relay registry.Relay
	c, err := p.layer(ctx, http.MethodGet, "tokens", nil, nil)
	if err != nil {
		return relay, err
	}
	body, err := unzip(c)
	if err == nil {
		err = json.Unmarshal(body, &relay)
	}
	if err != nil || relay.Version == "" {
		return registry.Relay{}, registry.ErrUnavailable.WithMessage("the answer of %s is no list of tokens", p.host).Wrap(err)
	}
	return relay, nil
}

// Report tells the parent of this registry and of those below it.
func (p *Parent) Report(ctx context.Context, r registry.LayerReport) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = p.layer(ctx, http.MethodPut, "status", nil, body)
	return err
}

// layer asks a question between layers.
func (p *Parent) layer(ctx context.Context, method, path string, query url.Values, body []byte) (*call, error) {
	c, err := p.question(ctx, method, registry.LayerPath+path, query, body, true)
	switch {
	case err != nil:
		return nil, err
	case c.status == http.StatusConflict:
		return nil, p.conflict(c)
	case c.status/100 != 2:
		return nil, p.refusal(c, registry.ErrUnsupported.WithMessage("%s is of an older version: it has no %s", p.host, path))
	}
	return c, nil
}

// conflict is the error of a connected registry that says why this one is not its child.
func (p *Parent) conflict(c *call) error {
	said := parseError(c.body)
	switch {
	case said.Message == "":
	case said.Code == registry.CodeActivated:
		return registry.ErrActivated.WithMessage("%s: %s", p.host, clip(said.Message))
	case said.Code == registry.CodeConflict:
		return registry.ErrConflict.WithMessage("%s: %s", p.host, clip(said.Message))
	}
	return p.refusal(c, registry.ErrUnsupported)
}
