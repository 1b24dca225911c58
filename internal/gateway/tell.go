package gateway

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	maxActivation = 16 << 10 // bytes of a request
	maxReport     = 4 << 20
)

// read decodes a body of at most limit bytes. Fields that are not known are a later version's.
func read(q question, limit int64, into any) error {
	if err := json.NewDecoder(http.MaxBytesReader(q.w, q.r.Body, limit)).Decode(into); err != nil {
		e := registry.ErrUnsupported.WithMessage("the body is no JSON of this question, of at most %d bytes", limit)
		e.Status = http.StatusBadRequest
		return e
	}
	return nil
}

func (g *gateway) audit(q question, operation, name string, err error) {
	g.o.Children.o.Audit.Audit(q.r.Context(), registry.AuditRecord{
		Category: registry.AuditHierarchy, Operation: operation, Principal: q.caller.Token, From: registry.RequestOrigin(q.r), Detail: name,
	}.End(err))
}

// activate makes the child the active instance of its name.
func (g *gateway) activate(q question) error {
	if g.o.Children == nil {
		return registry.ErrUnsupported
	}
	var in registry.ActivationRequest
	if err := read(q, maxActivation, &in); err != nil {
		return err
	}
	name, err := hierarchy.ParseName(in.Name)
	if err != nil {
		return registry.ErrNameInvalid.WithMessage("%v", err)
	}
	if !q.caller.MayGateway(name, registry.ConfigWrite) {
		err = errNoGateway(registry.ConfigWrite)
	} else if in.InstanceID == "" || len(in.InstanceID) > maxNote {
		err = registry.ErrNameInvalid.WithMessage("instanceId: want 1 to %d bytes", maxNote)
	} else if in.Mode, err = registry.ParseMode(string(in.Mode)); err != nil {
		err = registry.ErrConflict.WithMessage("%v", err)
	} else if err = g.fitsInto(name, in); err == nil {
		err = g.o.Children.Activate(q.r.Context(), in)
	}
	g.audit(q, "activate", name, err)
	if err != nil {
		return err
	}
	g.tellRelay(q)
	return reply(q.w, q.r, registry.Activation{Status: registry.Active})
}

// fitsInto checks the rules of the hierarchy for a child.
func (g *gateway) fitsInto(name string, in registry.ActivationRequest) error {
	info := g.o.Info()
	if hierarchy.SameName(name, info.Name) {
		return registry.ErrConflict.WithMessage("the connected registry '%s' has the name of its parent: names are unique in a hierarchy", name)
	}
	if err := hierarchy.CheckModes(info.Name, info.Mode, name, in.Mode); err != nil {
		return err
	}
	return hierarchy.CheckAncestry(in.InstanceID, info)
}

// deactivate frees the name of the child that asks.
func (g *gateway) deactivate(q question) error {
	instance := q.r.Header.Get(registry.HeaderChildInstance)
	switch {
	case g.o.Children == nil:
		return registry.ErrUnsupported
	case q.child == "" || !q.caller.MayGateway(q.child, registry.ConfigWrite):
		return errNoGateway(registry.ConfigWrite)
	case instance == "":
		return registry.ErrNameInvalid.WithMessage("%s is missing", registry.HeaderChildInstance)
	}
	err := g.o.Children.Deactivate(q.r.Context(), q.child, instance)
	g.audit(q, "deactivate", q.child, err)
	if err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

// status takes what a child tells of itself and of those below it. What its token may not speak for is left out.
func (g *gateway) status(q question) error {
	if g.o.Children == nil {
		return registry.ErrUnsupported
	}
	if err := g.active(q); err != nil {
		return err
	}
	var in registry.LayerReport
	if err := read(q, maxReport, &in); err != nil {
		return err
	}
	if len(in.Registries) == 0 || len(in.Registries) > registry.MaxTree {
		return registry.ErrSizeInvalid.WithMessage("connectedRegistries: %d, want 1 to %d, the child first", len(in.Registries), registry.MaxTree)
	}
	own := g.o.Info().Name
	first := strings.ToLower(in.Registries[0].Name)
	if first != q.child || !q.caller.MayGateway(first, registry.MessageWrite) {
		return errNoGateway(registry.MessageWrite)
	}
	for i := range in.Registries {
		in.Registries[i] = tidy(in.Registries[i])
	}
	in.Registries = slices.DeleteFunc(in.Registries, func(n registry.TreeNode) bool {
		return hierarchy.SameName(n.Name, own) || !q.caller.MayGateway(n.Name, registry.MessageWrite)
	})
	if len(in.Registries) == 0 {
		return registry.ErrConflict.WithMessage("the connected registry '%s' has the name of its parent: names are unique in a hierarchy", first)
	}
	if err := g.o.Children.Report(q.r.Context(), in.Registries); err != nil {
		return err
	}
	g.tellRelay(q)
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

// tidy bounds what a child made up.
func tidy(n registry.TreeNode) registry.TreeNode {
	n.Name, n.Parent = strings.ToLower(n.Name), clip(strings.ToLower(n.Parent))
	n.InstanceID, n.Version, n.Schedule, n.SyncWindow = clip(n.InstanceID), clip(n.Version), clip(n.Schedule), clip(n.SyncWindow)
	n.LoginServer.Host = clip(n.LoginServer.Host)
	n.LoginServer.TLS = registry.LoginServerTLS{Status: clip(n.LoginServer.TLS.Status)}
	n.Mode, n.ConnectionState, n.Activation.Status = registry.Mode(clip(string(n.Mode))), registry.ConnectionState(clip(string(n.ConnectionState))), registry.ActivationStatus(clip(string(n.Activation.Status)))
	n.StatusDetails = n.StatusDetails[:min(len(n.StatusDetails), maxDetails)]
	for i, d := range n.StatusDetails {
		n.StatusDetails[i] = registry.StatusDetail{Type: clip(d.Type), Code: clip(d.Code), Description: clip(d.Description), Timestamp: d.Timestamp}
	}
	return n
}
