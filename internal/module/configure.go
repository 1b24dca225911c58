package module

import (
	"context"
	"fmt"
	"maps"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/schedule"
	"github.com/connected-registry/connected-registry/internal/syncer"
	"github.com/connected-registry/connected-registry/internal/twin"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

// restore puts the last good document in force, before any source is asked.
func (m *Module) restore(record twin.Record) {
	status := registry.ConfigStatus{Source: "default", Applied: m.clock.Now()}
	config := twin.Defaults()
	if record.Raw != nil {
		config, status.Errors = twin.Parse(record.Raw, twin.ParseOptions{Env: m.o.Lookup})
		status.Source = "last-good"
	}
	m.apply(config, status)
}

// take puts a document in force: its good sections at once, its bad ones not at all.
func (m *Module) take(ctx context.Context, from string, doc twin.Document) {
	if doc.Err != nil {
		m.unavailable(from, doc.Err)
		m.awaits(sourceConfiguration, unread(doc.Err, nil))
		return
	}
	m.clear("source")
	m.mu.Lock()
	base := m.config
	m.mu.Unlock()
	config, errs := twin.Parse(doc.Raw, twin.ParseOptions{Env: m.o.Lookup, Base: base})
	for _, e := range errs {
		m.log.Error("configuration: the section keeps its old value", "source", m.sourceName(from), "path", e.Path, "error", e.Message)
	}
	on := config.Logging.AuditLogStatus == enabled
	if on { // a document that switches the log on is in it, and so is one that switches it off
		m.audit.Enable(ctx, true)
	}
	m.auditConfiguration(ctx, m.sourceName(from), doc, errs)
	m.audit.Enable(ctx, on)
	m.apply(config, registry.ConfigStatus{Source: from, Applied: m.clock.Now(), Errors: errs})
	m.awaits(sourceConfiguration, unread(nil, errs))
	m.acknowledge(doc, config, errs)
	if len(errs) == 0 {
		m.keep(ctx, doc)
	}
}

// acknowledge keeps what is reported for each section of a document: what is in force, with what the environment adds.
func (m *Module) acknowledge(doc twin.Document, c registry.Config, errs []registry.FieldError) {
	c.Parent = m.env.Parent(c.Parent)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.acks = twin.Acknowledge(doc, c, errs)
}

// sourceName is a source as a person finds it: the file by its path.
func (m *Module) sourceName(source string) string {
	if source == "file" {
		return m.o.ConfigFile
	}
	return source
}

// apply puts a configuration in force. What did not change is left alone: transfers go on under a new log level.
func (m *Module) apply(c registry.Config, status registry.ConfigStatus) {
	c.Parent = m.env.Parent(c.Parent)
	m.mode.Store(c.Mode)
	m.queueChanges(context.Background(), c)
	m.store.SetLimits(int64(c.Storage.MaxMiB)<<20, int64(c.Storage.ReserveMiB)<<20)
	if m.o.SetLevel != nil {
		m.o.SetLevel(c.Logging.LogLevel)
	}
	parent, old := m.parentFor(c)
	m.link.Configure(c.Transfer)
	if parent != nil {
		parent.SetChunk(c.Transfer.ChunkKiB)
	}
	set := syncer.Settings{
		ParentName: c.Parent.GatewayEndpoint, Mode: c.Mode, Scope: c.Scope(), First: c.Repositories["bootstrap"],
		Parallel: c.Transfer.Parallel, PullThrough: c.Serve.PullThrough,
		MessageTTL: c.Parent.SyncProperties.MessageTTL, Conflict: c.Parent.SyncProperties.Conflict,
	}
	if parent != nil { // a nil *Parent in the interface would not be nil
		set.Parent = parent
	}
	cron, err := schedule.Parse(c.Parent.SyncProperties.Schedule)
	if err != nil {
		m.log.Error("schedule", "error", err) // twin.Parse has checked it
	}
	set.Schedule = schedule.Plan{Schedule: cron, Window: c.Parent.SyncProperties.SyncWindow}
	m.mu.Lock()
	m.config, m.source = c, status
	m.mu.Unlock()
	m.applyTokens()
	m.syncer.Update(set)
	if old != nil {
		old.Close()
	}
	for _, other := range []chan struct{}{m.gcChanged, m.tellChanged} {
		select {
		case other <- struct{}{}:
		default:
		}
	}
}

// parentFor returns the parent of the configuration: the one in use where endpoint, protocol and mode are the same, a
// new one otherwise, none where there is none or it may not be used. old is one to close.
func (m *Module) parentFor(c registry.Config) (parent, old *above) {
	key := fmt.Sprint(c.Parent.GatewayEndpoint, " ", c.Parent.Protocol, " ", c.Mode)
	m.mu.Lock()
	current, currentKey, deactivated := m.parent, m.parentKey, m.deactivated
	m.mu.Unlock()
	if deactivated {
		m.wrong("parent", registry.StatusDetail{
			Type: "Parent", Code: "Deactivated",
			Description: "the registry was deactivated: it serves what it has and does not use its parent; activate it to go on",
		})
		m.mu.Lock()
		defer m.mu.Unlock()
		m.parent = nil
		return nil, current
	}
	if current != nil && key == currentKey {
		return current, nil
	}
	parent, err := m.newParent(c)
	if err != nil {
		m.wrong("parent", registry.StatusDetail{Type: "Parent", Code: "ParentConfiguration", Description: describe(err)})
		m.log.Error("the parent of the configuration is not used", "error", err)
	} else {
		m.clear("parent")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.parent, m.parentKey = parent, key
	return parent, current
}

// newParent makes the parent. A credential is good for one host: when the configuration names another parent than the
// connection string, it stays at home.
func (m *Module) newParent(c registry.Config) (*above, error) {
	if c.Parent.GatewayEndpoint == "" {
		return nil, nil
	}
	conn := m.env.Connection
	same := conn.ParentGatewayEndpoint == "" || conn.ParentGatewayEndpoint == c.Parent.GatewayEndpoint
	consent := m.o.AllowInsecureParent || (same && conn.ParentEndpointProtocol == "http")
	if c.Parent.Protocol == "http" && !consent {
		return nil, registry.ErrDenied.WithMessage("parent.protocol: http needs consent on this machine: start with --allow-insecure-parent, or set https")
	}
	o := upstream.Options{
		Endpoint: twin.LoginServer(c.Parent.GatewayEndpoint), Protocol: c.Parent.Protocol,
		Name: m.name, InstanceID: m.store.InstanceID(), Mode: c.Mode, Clock: m.clock, Logger: m.log,
	}
	o.Transport.RootCAs = m.parentRoots
	if err := m.signIn(&o, c, same); err != nil {
		return nil, err
	}
	o.Transport.Rand = m.o.Rand
	o.Transport.Link = m.link
	o.Transport.Dial, o.Transport.Timeouts, o.Transport.Proxy = m.o.Dial, m.o.Timeouts, m.proxyFor(c.Parent.GatewayEndpoint)
	parent, err := upstream.New(o)
	if err != nil {
		return nil, err
	}
	return &above{Parent: parent, m: m}, nil
}

func (m *Module) takeParent() *above {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.parent
	m.parent = nil
	return p
}

// Status returns how the registry is.
func (m *Module) Status(ctx context.Context) registry.Status {
	out := registry.Status{Name: m.name, Version: m.o.Version, Mode: m.mode.Load().(registry.Mode), ConnectionState: registry.Offline}
	m.mu.Lock()
	out.Configuration = m.source
	endpoint, protocol := m.config.Parent.GatewayEndpoint, m.config.Parent.Protocol
	details, scope, parent := maps.Clone(m.details), m.config.Scope(), m.parent
	m.mu.Unlock()
	out.Activation.Status = registry.Inactive
	out.LoginServer = registry.LoginServer{Host: m.env.LoginServer, TLS: registry.LoginServerTLS{Status: "Disabled"}}
	if m.certs != nil {
		out.LoginServer.TLS = registry.LoginServerTLS{Status: "Enabled", Certificate: m.certs.describe()}
	}
	for _, what := range []string{"storage", "certificate", "source", "parent", "credential"} {
		if d, ok := details[what]; ok {
			out.StatusDetails = append(out.StatusDetails, d)
		}
	}
	out.StatusDetails = append(out.StatusDetails, m.auditTrouble()...)
	invalid := func(where string, errs []registry.FieldError) {
		for _, e := range errs {
			out.StatusDetails = append(out.StatusDetails, registry.StatusDetail{
				Type: "Configuration", Code: "InvalidConfiguration", Description: where + ": " + e.Error(), Timestamp: out.Configuration.Applied,
			})
		}
	}
	invalid(m.sourceName(out.Configuration.Source), out.Configuration.Errors)
	invalid("environment", m.envErrs)
	if m.edge.Present() {
		out.StatusDetails = append(out.StatusDetails, proxyTrouble(scope, out.Configuration.Applied)...)
	}
	m.mu.Lock()
	fileErrs := m.tokens.errs
	m.mu.Unlock()
	invalid(m.o.TokensFile, fileErrs)
	select {
	case <-m.opened:
	default:
		out.Storage.State = "unavailable"
		return out
	}
	out.InstanceID = m.store.InstanceID()
	if usage, err := m.store.Usage(ctx); err == nil {
		out.Storage = usage
	}
	out.StatusDetails = append(out.StatusDetails, m.damage(ctx)...)
	out.StatusDetails = append(out.StatusDetails, m.droppedEvents(ctx)...)
	m.syncer.Describe(&out)
	out.Parent.GatewayEndpoint, out.Parent.Protocol = endpoint, protocol
	if parent != nil && len(m.env.Alternates) > 0 {
		out.Parent.Endpoint = parent.Endpoint()
	}
	m.mu.Lock()
	active := !m.deactivated && !m.refused && !out.LastActivityTime.IsZero()
	m.mu.Unlock()
	if active {
		out.Activation.Status = registry.Active
	}
	return out
}
