package module

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

// fileTokens is the tokens file that was last in force, for a start without it.
const fileTokens = "tokens/file"

// tokens are the client tokens of all sources but the configuration. They are guarded by the module's mutex.
type tokens struct {
	file    registry.TokenSet
	relayed registry.Relay
	errs    []registry.FieldError // of the file
	changed chan struct{}         // closed when any source changes
	awaited map[string]string     // sources that were never read, by this process or one before, and why not
}

// The sources of client tokens that this machine or its twin names.
const (
	sourceConfiguration = "the configuration"
	sourceTokensFile    = "the tokens file"
)

// loadTokens reads what was kept of an earlier process.
func (m *Module) loadTokens(ctx context.Context) {
	for name, into := range map[string]any{fileTokens: &m.tokens.file, relayedTokens: &m.tokens.relayed} {
		raw, err := m.store.Document(ctx, name)
		if err == nil && raw != nil {
			err = json.Unmarshal(raw, into)
		}
		if err != nil {
			m.log.Error("client tokens of before cannot be read", "document", name, "error", err)
		}
	}
	if m.o.TokensFile == "" {
		m.tokens.file = registry.TokenSet{}
	}
}

// awaitTokens notes which sources have to be read before credentials can be called wrong: those of which nothing is
// kept of an earlier process.
func (m *Module) awaitTokens(ctx context.Context, last twin.Record) {
	m.tokens.awaited = map[string]string{}
	if named := m.o.Source != nil || m.o.ConfigFile != "" || m.hasTwin(); named && last.Raw == nil {
		m.tokens.awaited[sourceConfiguration] = ""
	}
	if raw, err := m.store.Document(ctx, fileTokens); m.o.TokensFile != "" && (err != nil || raw == nil) {
		m.tokens.awaited[sourceTokensFile] = ""
	}
	for source := range m.tokens.awaited {
		m.awaits(source, "has not been read yet")
	}
}

// awaits says why a source that was never read is not read still; "" says that it is, and that its tokens are in force.
// Clients are told why, so it names no file.
func (m *Module) awaits(source, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, awaited := m.tokens.awaited[source]; !awaited {
		return
	}
	if m.tokens.awaited[source] = why; why == "" {
		delete(m.tokens.awaited, source)
	}
	var all []string
	for _, source := range slices.Sorted(maps.Keys(m.tokens.awaited)) {
		all = append(all, source+" "+m.tokens.awaited[source])
	}
	m.auth.Await(strings.Join(all, "; "))
}

// hasError is why a document has no tokens that somebody has to mend.
const hasError = "has an error, which the status of the registry names"

// unread is why a document has no tokens, or "" for one that has.
func unread(err error, errs []registry.FieldError) string {
	var path *fs.PathError
	switch {
	case errors.As(err, &path):
		return fmt.Sprintf("cannot be read: %v", path.Err)
	case err != nil:
		return "cannot be read; the status of the registry says why"
	}
	for _, e := range errs {
		if section, _, _ := strings.Cut(e.Path, "."); section == "" || section == "clientTokens" {
			return hasError
		}
	}
	return ""
}

// applyTokens puts the tokens of all sources in force: the configuration's before the file's, and those before what the
// parent relays.
func (m *Module) applyTokens() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.auth.UpdateAll(m.tokenSources()...)
	close(m.tokens.changed)
	m.tokens.changed = make(chan struct{})
}

// tokenSources lists the token sets of this registry, the strongest first. The caller holds mu.
func (m *Module) tokenSources() []registry.TokenSet {
	own := []registry.TokenSet{{ClientTokens: m.config.ClientTokens, ScopeMaps: m.config.ScopeMaps}, m.tokens.file}
	return append(own, m.tokens.relayed.Registries[strings.ToLower(m.name)]...)
}

// TokenState is a client token that is in force, as it is shown; nothing of its passwords is in it but when they end.
type TokenState struct {
	Name      string          `json:"name"`
	Source    string          `json:"source"` // document, file or parent
	Status    string          `json:"status"` // enabled or disabled
	ScopeMap  string          `json:"scopeMap"`
	Passwords []PasswordState `json:"passwords"`
}

// PasswordState is one of the two passwords of a token.
type PasswordState struct {
	Name    string    `json:"name"` // password1 or password2
	Expiry  time.Time `json:"expiry,omitzero"`
	Expired bool      `json:"expired,omitempty"`
}

// TokenPage is a part of the client tokens in force, by name.
type TokenPage struct {
	ClientTokens []TokenState `json:"clientTokens"`
	After        string       `json:"after,omitempty"` // ask again with this for the next page
}

// methodListClientTokens returns a page of the client tokens that work here, or, with {"name": ...}, of those that are
// handed down to a connected registry below: {"name": "", "after": "token", "limit": 100}.
//
// Errors: NAME_UNKNOWN for a name that neither the configuration nor the tree below has.
func (m *Module) methodListClientTokens(ctx context.Context, payload []byte) (any, error) {
	req := struct {
		paging
		Name string `json:"name"`
	}{paging: firstPage}
	if err := parsePayload(payload, &req); err != nil {
		return nil, err
	}
	m.mu.Lock()
	sources := m.tokenSources()
	m.mu.Unlock()
	origins := []string{"document", "file"} // and all others come from above
	if req.Name != "" && !strings.EqualFold(req.Name, m.name) {
		sources, origins = m.Relay([]string{strings.ToLower(req.Name)}).Registries[strings.ToLower(req.Name)], nil
		if sources == nil && !m.knows(ctx, req.Name) {
			return nil, registry.ErrNameUnknown.WithMessage("the connected registry %q could not be found below this one", req.Name)
		}
	}
	states := map[string]TokenState{}
	for i, source := range sources {
		from := "parent"
		if i < len(origins) {
			from = origins[i]
		}
		for name, t := range source.ClientTokens {
			if _, ok := states[strings.ToLower(name)]; !ok {
				states[strings.ToLower(name)] = m.tokenState(name, from, t)
			}
		}
	}
	all := make([]TokenState, 0, len(states))
	for _, name := range slices.Sorted(maps.Keys(states)) {
		all = append(all, states[name])
	}
	var out TokenPage
	var err error
	if out.ClientTokens, out.After, err = page(req.paging, all, func(t TokenState) string { return t.Name }); err != nil {
		return nil, err
	}
	return out, nil
}

// knows reports whether a registry of that name is configured or was seen below.
func (m *Module) knows(ctx context.Context, name string) bool {
	m.mu.Lock()
	_, configured := m.config.Children[strings.ToLower(name)]
	m.mu.Unlock()
	return configured || slices.ContainsFunc(m.tree(ctx), func(n registry.TreeNode) bool { return strings.EqualFold(n.Name, name) })
}

func (m *Module) tokenState(name, from string, t registry.ClientToken) TokenState {
	s := TokenState{Name: strings.ToLower(name), Source: from, Status: "disabled", ScopeMap: t.ScopeMap, Passwords: []PasswordState{}}
	if t.Enabled {
		s.Status = "enabled"
	}
	for i, p := range t.Passwords {
		s.Passwords = append(s.Passwords, PasswordState{
			Name: fmt.Sprint("password", i+1), Expiry: p.Expiry, Expired: !p.Expiry.IsZero() && !m.clock.Now().Before(p.Expiry),
		})
	}
	return s
}

// Relay implements gateway.Relays: what the configuration gives to each of the registries, and what came from above for
// it.
func (m *Module) Relay(names []string) registry.Relay {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := registry.Relay{Registries: map[string][]registry.TokenSet{}}
	for _, name := range names {
		if strings.EqualFold(name, m.name) {
			continue
		}
		var sets []registry.TokenSet
		for _, source := range m.tokenSources() {
			if set := source.Select(m.config.Children[name].ClientTokens); len(set.ClientTokens) > 0 {
				sets = append(sets, set)
			}
		}
		if sets = append(sets, m.tokens.relayed.Registries[name]...); len(sets) > 0 {
			out.Registries[name] = sets
		}
	}
	return out
}

// RelayChanged implements gateway.Relays.
func (m *Module) RelayChanged() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tokens.changed
}

func (m *Module) relayVersion() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tokens.relayed.Version
}

// takeRelay puts what the parent relays in force, once it is durable.
func (m *Module) takeRelay(ctx context.Context, relay registry.Relay) {
	if relay.Version == m.relayVersion() {
		return
	}
	raw, err := json.Marshal(relay)
	if err == nil {
		err = m.store.PutDocument(ctx, relayedTokens, raw)
	}
	if err != nil {
		m.log.Error("the client tokens of the parent cannot be kept; those from before stay", "error", err)
		return
	}
	m.mu.Lock()
	m.tokens.relayed = relay
	own := 0
	for _, set := range relay.Registries[strings.ToLower(m.name)] {
		own += len(set.ClientTokens)
	}
	m.mu.Unlock()
	m.applyTokens()
	m.log.Info("client tokens from the parent", "version", relay.Version, "tokens", own, "registries", len(relay.Registries))
	m.audit.Audit(ctx, registry.AuditRecord{
		Category: registry.AuditConfiguration, Operation: "relayTokens", Principal: "parent", Result: registry.AuditSuccess, Detail: "version " + relay.Version,
	})
}

// watchTokens follows the tokens file. One with an error changes nothing.
func (m *Module) watchTokens(ctx context.Context) {
	if m.o.TokensFile == "" {
		return
	}
	for doc := range twin.NewFile(m.o.TokensFile, twin.FileOptions{Log: m.log, Max: twin.MaxTokens}).Watch(ctx) {
		var set registry.TokenSet
		errs := []registry.FieldError{}
		if doc.Err != nil {
			errs = append(errs, registry.FieldError{Message: doc.Err.Error()})
		} else {
			set, errs = twin.ParseTokens(doc.Raw)
		}
		m.auditConfiguration(ctx, m.o.TokensFile, doc, errs)
		if len(errs) > 0 {
			m.awaits(sourceTokensFile, cmp.Or(unread(doc.Err, nil), hasError))
		}
		m.mu.Lock()
		m.tokens.errs = errs
		if len(errs) == 0 {
			m.tokens.file = set
		}
		m.mu.Unlock()
		for _, e := range errs {
			m.log.Error("tokens file: the tokens from before stay", "file", m.o.TokensFile, "path", e.Path, "error", e.Message)
		}
		if len(errs) > 0 {
			continue
		}
		m.applyTokens()
		m.awaits(sourceTokensFile, "")
		raw, err := json.Marshal(set)
		if err == nil {
			err = m.store.PutDocument(context.WithoutCancel(ctx), fileTokens, raw)
		}
		if err != nil {
			m.log.Error("the tokens are in force but could not be kept for the next start", "error", err)
		}
		m.log.Info("tokens file", "file", m.o.TokensFile, "tokens", len(set.ClientTokens), "scopeMaps", len(set.ScopeMaps))
	}
}
