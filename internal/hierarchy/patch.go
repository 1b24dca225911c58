package hierarchy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Patch is what changes in the module twin of one connected registry, or, with an empty Registry, what is to be done at
// the cloud registry.
type Patch struct {
	Registry   string         `json:"connectedRegistry,omitempty"`
	Properties map[string]any `json:"desired,omitempty"`  // desired properties to merge; null takes one away
	Commands   []string       `json:"commands,omitempty"` // of the Azure CLI
}

// Patches lists what a change of the tree changes in the twins, top first: a sync token and its scope map stand in the
// twin of the registry above, what a registry syncs in its own, and which client tokens work at it in those of all above.
func Patches(before, after Tree) []Patch {
	p := patcher{before: before, after: after, twins: map[string]map[string]any{}}
	var order []string
	for _, n := range append(after.Nodes(), before.Nodes()...) {
		if !slices.Contains(order, n.Name) {
			order = append(order, n.Name)
			p.node(n.Name)
		}
	}
	var out []Patch
	if len(p.commands) > 0 {
		out = append(out, Patch{Commands: p.commands})
	}
	for _, name := range order {
		if len(p.twins[name]) > 0 {
			out = append(out, Patch{Registry: name, Properties: p.twins[name]})
		}
	}
	return out
}

type patcher struct {
	before, after Tree
	twins         map[string]map[string]any
	commands      []string
}

// set puts section.key of a twin in place.
func (p *patcher) set(twin, section, key string, value any) {
	if p.twins[twin] == nil {
		p.twins[twin] = map[string]any{}
	}
	s, ok := p.twins[twin][section].(map[string]any)
	if !ok {
		s = map[string]any{}
		p.twins[twin][section] = s
	}
	s[key] = value
}

func (p *patcher) node(name string) {
	old, was := p.before.nodes[name]
	n, is := p.after.nodes[name]
	if !is {
		p.gone(old)
		return
	}
	p.own(n, old, was)
	if !slices.Equal(n.Scope, old.Scope) || !was {
		p.scope(n, old)
	}
	if n.Parent != "" && (n.Passwords != old.Passwords || !was) {
		token := map[string]any{"scopeMap": name, "status": "enabled"}
		for i, password := range n.Passwords {
			if password != "" {
				token[fmt.Sprintf("password%d", i+1)] = password
			}
		}
		p.set(n.Parent, "clientTokens", name, token)
	}
	if !slices.Equal(n.ClientTokens, old.ClientTokens) {
		for _, a := range p.after.Ancestors(name) {
			p.set(a.Name, "connectedRegistries", name, map[string]any{"clientTokens": strings.Join(n.ClientTokens, " ")})
		}
	}
}

// own is what stands in the registry's own twin.
func (p *patcher) own(n, old Node, was bool) {
	if repos := n.Repositories(); !was || !slices.Equal(repos, old.Repositories()) {
		var list any
		if len(repos) > 0 {
			list = strings.Join(repos, " ")
		}
		p.set(n.Name, "repositories", n.Name, list)
	}
	if was && n.Mode == old.Mode && n.Endpoint == old.Endpoint && n.Protocol == old.Protocol && n.Schedule == old.Schedule && n.Window == old.Window && n.MessageTTL == old.MessageTTL {
		return
	}
	sync := map[string]any{}
	for key, value := range map[string]string{"schedule": n.Schedule, "syncWindow": n.Window, "messageTtl": n.MessageTTL} {
		if value != "" {
			sync[key] = value
		}
	}
	parent := map[string]any{"syncProperties": sync}
	if n.Endpoint != "" {
		parent["gatewayEndpoint"], parent["protocol"] = n.Endpoint, n.Protocol
	}
	if p.twins[n.Name] == nil {
		p.twins[n.Name] = map[string]any{}
	}
	p.twins[n.Name]["mode"], p.twins[n.Name]["parent"] = string(n.Mode), parent
}

// scope is the scope map of the sync token, at the registry above or in the cloud.
func (p *patcher) scope(n, old Node) {
	if n.Parent != "" {
		p.set(n.Parent, "scopeMaps", n.Name, strings.Join(n.Scope, " "))
		return
	}
	if old.Name == "" {
		p.commands = append(p.commands, azScope("create", n.Name, "--", n.Scope), "az acr token create --registry <registry> --name "+n.Name+" --scope-map "+n.Name+" --no-passwords")
		return
	}
	for _, part := range []struct {
		prefix string
		lines  registry.ScopeMap
	}{{"--add-", without(n.Scope, old.Scope)}, {"--remove-", without(old.Scope, n.Scope)}} {
		if len(part.lines) > 0 {
			p.commands = append(p.commands, azScope("update", n.Name, part.prefix, part.lines))
		}
	}
}

func without(lines, other registry.ScopeMap) registry.ScopeMap {
	return remove(lines, func(l string) bool { return slices.Contains(other, l) })
}

// azScope is the command that makes or changes a scope map of Azure Container Registry.
func azScope(verb, name, prefix string, lines registry.ScopeMap) string {
	flags := map[string][]string{}
	for _, l := range lines {
		if q, err := registry.ParsePermission(l); err == nil {
			kind := map[string]string{registry.ResourceRepositories: "repository", registry.ResourceGateway: "gateway"}[q.Resource]
			flag := prefix + kind + " " + q.Name
			flags[flag] = append(flags[flag], string(q.Action))
		}
	}
	words := []string{"az acr scope-map", verb, "--registry <registry> --name", name}
	for _, flag := range slices.Sorted(maps.Keys(flags)) {
		words = append(append(words, flag), flags[flag]...)
	}
	return strings.Join(words, " ")
}

// gone takes a registry's token away where it stood.
func (p *patcher) gone(old Node) {
	if old.Parent == "" {
		p.commands = append(p.commands, "az acr token delete --registry <registry> --name "+old.Name, "az acr scope-map delete --registry <registry> --name "+old.Name)
	} else {
		p.set(old.Parent, "clientTokens", old.Name, nil)
		p.set(old.Parent, "scopeMaps", old.Name, nil)
	}
	for _, a := range p.before.Ancestors(old.Name) {
		p.set(a.Name, "connectedRegistries", old.Name, nil)
	}
}
