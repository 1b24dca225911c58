package hierarchy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// MaxDepth bounds how many connected registries stand above each other.
const MaxDepth = 16

// Node is one connected registry of a tree, as an operator configures it.
type Node struct {
	Name   string        `json:"name"` // lower case
	Mode   registry.Mode `json:"mode"`
	Parent string        `json:"parent,omitempty"` // empty: directly below the cloud registry
	// Scope is the scope map of its sync token: its own gateway and repositories, and those of all below it.
	Scope registry.ScopeMap `json:"scopeMap"`

	Endpoint     string    `json:"parentGatewayEndpoint,omitempty"` // of the parent, as this one sees it
	Protocol     string    `json:"parentEndpointProtocol,omitempty"`
	Schedule     string    `json:"syncSchedule,omitempty"`
	Window       string    `json:"syncWindow,omitempty"`
	MessageTTL   string    `json:"syncMessageTtl,omitempty"`
	ClientTokens []string  `json:"clientTokens,omitempty"`
	Passwords    [2]string `json:"passwords"`           // of the sync token, sha256:<hex>; empty for none
	SyncToken    string    `json:"syncToken,omitempty"` // one that was there before, whose scope map is its owner's; empty: one is made, named as the registry
	Identity     string    `json:"identity,omitempty"`  // client ID of a managed identity, in place of a sync token

	LogLevel      string   `json:"logLevel,omitempty"`
	Notifications []string `json:"notifications,omitempty"`
	GCEnabled     *bool    `json:"gcEnabled,omitempty"` // nil: as is the default
	GCSchedule    string   `json:"gcSchedule,omitempty"`
}

// TokenName is the name of its sync token, in lower case as all names of tokens.
func (n Node) TokenName() string { return strings.ToLower(cmp.Or(n.SyncToken, n.Name)) }

// makesToken reports whether sync token and scope map are made for this registry, so that they are changed with it.
func (n Node) makesToken() bool { return n.SyncToken == "" && n.Identity == "" }

// Repositories lists what it pulls: the repositories of its scope that it may read.
func (n Node) Repositories() []string {
	var names []string
	for _, line := range n.Scope {
		p, err := registry.ParsePermission(line)
		if err == nil && p.Resource == registry.ResourceRepositories && p.Action == registry.ContentRead {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Tree is the connected registries below one cloud registry. It is never changed: what changes it returns another one.
// The zero value is an empty tree.
type Tree struct{ nodes map[string]Node }

// NewTree checks nodes that were kept: names are good and unique, parents are there, nobody stands above itself, no
// branch is too deep, and the modes fit.
func NewTree(nodes []Node) (Tree, error) {
	t := Tree{nodes: map[string]Node{}}
	for _, n := range nodes {
		name, err := ParseName(n.Name)
		if err != nil {
			return Tree{}, err
		}
		if _, ok := t.nodes[name]; ok {
			return Tree{}, errTaken(name)
		}
		n.Name, n.Parent = name, strings.ToLower(n.Parent)
		t.nodes[name] = n
	}
	for _, n := range t.nodes {
		if err := t.check(n); err != nil {
			return Tree{}, err
		}
	}
	return t, nil
}

func errTaken(name string) error {
	return registry.ErrConflict.WithMessage("the connected registry '%s' exists already: names are unique in a hierarchy", name)
}

// check checks a node against those above it.
func (t Tree) check(n Node) error {
	if n.Mode != registry.ReadOnly && n.Mode != registry.ReadWrite {
		return registry.ErrConflict.WithMessage("usage error: --mode supports only 'ReadWrite' and 'ReadOnly' values.")
	}
	if n.Parent == n.Name {
		return registry.ErrConflict.WithMessage("the connected registry '%s' cannot be its own parent", n.Name)
	}
	depth := 1
	for at := n; at.Parent != ""; depth++ {
		parent, ok := t.nodes[at.Parent]
		switch {
		case !ok:
			return registry.ErrNameUnknown.WithMessage("The parent connected registry '%s' could not be found.", at.Parent)
		case parent.Name == n.Name:
			return registry.ErrConflict.WithMessage("the connected registry '%s' stands above itself: its parents lead back to it", n.Name)
		case depth >= MaxDepth:
			return registry.ErrConflict.WithMessage("the connected registry '%s' has %d or more above it: at most %d layers", n.Name, MaxDepth, MaxDepth)
		}
		at = parent
	}
	if n.Parent == "" {
		return nil
	}
	return CheckModes(n.Parent, t.nodes[n.Parent].Mode, n.Name, n.Mode)
}

// Get returns a node by name in any case. Errors: NAME_UNKNOWN.
func (t Tree) Get(name string) (Node, error) {
	n, ok := t.nodes[strings.ToLower(name)]
	if !ok {
		return Node{}, registry.ErrNameUnknown.WithMessage("The connected registry '%s' could not be found.", name)
	}
	return n, nil
}

// Ancestors lists those above, nearest first.
func (t Tree) Ancestors(name string) []Node {
	var list []Node
	at := t.nodes[strings.ToLower(name)]
	for len(list) <= len(t.nodes) {
		parent, ok := t.nodes[at.Parent]
		if !ok {
			break
		}
		list = append(list, parent)
		at = parent
	}
	return list
}

// Descendants lists all below, of every branch, parents before children and siblings by name.
func (t Tree) Descendants(name string) []Node { return t.below(strings.ToLower(name)) }

func (t Tree) below(name string) []Node {
	var children, list []Node
	for _, n := range t.nodes {
		if n.Parent == name {
			children = append(children, n)
		}
	}
	slices.SortFunc(children, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	for _, c := range children {
		list = append(append(list, c), t.below(c.Name)...)
	}
	return list
}

// Nodes lists all, parents before children.
func (t Tree) Nodes() []Node { return t.below("") }

// with returns the tree with other nodes in place of those of their names.
func (t Tree) with(nodes ...Node) Tree {
	out := Tree{nodes: maps.Clone(t.nodes)}
	if out.nodes == nil {
		out.nodes = map[string]Node{}
	}
	for _, n := range nodes {
		out.nodes[n.Name] = n
	}
	return out
}

// ScopeOf is what a sync token of a mode may do with repositories, and on the gateway of its name when that is given.
//
// Errors: a repository that is none.
func ScopeOf(name string, mode registry.Mode, repositories []string) (registry.ScopeMap, error) {
	var lines registry.ScopeMap
	for _, repo := range repositories {
		for _, action := range registry.ActionsOf(mode) {
			p, err := registry.ParsePermission(registry.ResourceRepositories + "/" + repo + "/" + string(action))
			if err != nil {
				return nil, fmt.Errorf("repository %q: %w", repo, err)
			}
			lines = append(lines, p.String())
		}
	}
	if name != "" {
		for _, action := range []registry.Action{registry.ConfigRead, registry.ConfigWrite, registry.MessageRead, registry.MessageWrite} {
			lines = append(lines, registry.Permission{Resource: registry.ResourceGateway, Name: strings.ToLower(name), Action: action}.String())
		}
	}
	return lines, nil
}

// add and remove return a scope map with other lines, in order.
func add(scope, lines registry.ScopeMap) registry.ScopeMap {
	all := append(slices.Clone(scope), lines...)
	slices.Sort(all)
	return slices.Compact(all)
}

func remove(scope registry.ScopeMap, gone func(line string) bool) registry.ScopeMap {
	return slices.DeleteFunc(slices.Clone(scope), gone)
}

// Add adds a connected registry that syncs the repositories: every ancestor's scope grows by its gateway and by its
// repositories in its mode, because the parent speaks for it with its own sync token.
//
// Errors: CONFLICT, NAME_UNKNOWN as the rules say; a name or a repository that is none.
func (t Tree) Add(n Node, repositories []string) (Tree, error) {
	name, err := ParseName(n.Name)
	if err != nil {
		return t, registry.ErrNameInvalid.WithMessage("argument error: %v", err)
	}
	n.Name, n.Parent = name, strings.ToLower(n.Parent)
	if _, ok := t.nodes[name]; ok {
		return t, errTaken(name)
	}
	if err := t.check(n); err != nil {
		return t, err
	}
	lines, err := ScopeOf(name, n.Mode, repositories)
	if err != nil {
		return t, err
	}
	n.Scope = add(n.Scope, lines)
	return t.with(n).grow(name, n.Scope), nil
}

// grow adds lines to all above.
func (t Tree) grow(name string, lines registry.ScopeMap) Tree {
	var changed []Node
	for _, a := range t.Ancestors(name) {
		a.Scope = add(a.Scope, lines)
		changed = append(changed, a)
	}
	return t.with(changed...)
}

// Update changes the repositories of a connected registry. What is added is added to it and to all above in its mode; of
// what is removed all five actions are taken from it and from all below, and from nobody above.
//
// Errors: NAME_UNKNOWN; CONFLICT for a repository that is in both lists; one that is none.
func (t Tree) Update(name string, added, removed []string) (Tree, error) {
	n, err := t.Get(name)
	if err != nil {
		return t, err
	}
	gone := map[string]bool{}
	for _, repo := range removed {
		if slices.ContainsFunc(added, func(s string) bool { return strings.EqualFold(s, repo) }) {
			return t, registry.ErrConflict.WithMessage("Update ambiguity. Duplicate repository names were provided with --add and --remove arguments.")
		}
		lines, err := ScopeOf("", registry.ReadWrite, []string{repo})
		if err != nil {
			return t, err
		}
		for _, l := range lines {
			gone[l] = true
		}
	}
	lines, err := ScopeOf("", n.Mode, added)
	if err != nil {
		return t, err
	}
	changed := append([]Node{n}, t.Descendants(n.Name)...)
	for i := range changed {
		changed[i].Scope = remove(changed[i].Scope, func(l string) bool { return gone[l] })
	}
	changed[0].Scope = add(changed[0].Scope, lines)
	return t.with(changed...).grow(n.Name, lines), nil
}

// Set replaces what of a connected registry is neither its place nor its scope.
//
// Errors: NAME_UNKNOWN.
func (t Tree) Set(name string, change func(n *Node)) (Tree, error) {
	n, err := t.Get(name)
	if err != nil {
		return t, err
	}
	made := n
	change(&made)
	made.Name, made.Parent, made.Mode, made.Scope = n.Name, n.Parent, n.Mode, n.Scope
	return t.with(made), nil
}

// Delete takes a connected registry away, and its gateway from all above; their repositories stay, as others may need
// them.
//
// Errors: NAME_UNKNOWN; CONFLICT while there are others below it.
func (t Tree) Delete(name string) (Tree, error) {
	n, err := t.Get(name)
	if err != nil {
		return t, err
	}
	if list := t.Descendants(n.Name); len(list) > 0 {
		return t, registry.ErrConflict.WithMessage("the connected registry '%s' has others below it, '%s' first: delete them before", n.Name, list[0].Name)
	}
	var changed []Node
	for _, a := range t.Ancestors(n.Name) {
		a.Scope = remove(a.Scope, func(l string) bool { return strings.HasPrefix(l, registry.ResourceGateway+"/"+n.Name+"/") })
		changed = append(changed, a)
	}
	out := t.with(changed...)
	delete(out.nodes, n.Name)
	return out, nil
}
