package hierarchy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// MaxString is how long a string of a module twin may be, in bytes (IoT Hub, "Understand and use module twins").
const MaxString = 4096

// Patch is what changes in the module twin of one connected registry, or, with an empty Registry, what is to be done at
// the cloud registry.
type Patch struct {
	Registry   string         `json:"connectedRegistry,omitempty"`
	Properties map[string]any `json:"desired,omitempty"`  // desired properties to merge; null takes one away
	Commands   []string       `json:"commands,omitempty"` // of the Azure CLI; <registry> stands for the cloud registry's name
}

// Patches lists what a change of the tree changes, top first: what is to be done at the cloud registry, and what in the
// twins of those that are still there.
func Patches(before, after Tree) []Patch {
	var commands []string
	var out []Patch
	for _, n := range after.Nodes() {
		old, was := before.nodes[n.Name]
		commands = append(commands, cloudCommands(n, old, was)...)
		have, want := Desired(before, n.Name), Desired(after, n.Name)
		for section, v := range have { // what others have put beside ours stays: entries go one by one
			if _, ok := v.(map[string]any); ok && want[section] == nil {
				want[section] = map[string]any{}
			}
		}
		if change := difference(have, want); len(change) > 0 {
			out = append(out, Patch{Registry: n.Name, Properties: change})
		}
	}
	for _, old := range before.Nodes() {
		if _, is := after.nodes[old.Name]; !is && old.Parent == "" && old.makesToken() {
			commands = append(commands, "az acr token delete --registry <registry> --name "+old.Name, "az acr scope-map delete --registry <registry> --name "+old.Name)
		}
	}
	if len(commands) > 0 {
		out = slices.Insert(out, 0, Patch{Commands: commands})
	}
	return out
}

// Desired is what the tree puts into the twin of a connected registry: what it syncs and how, the sync tokens of those
// directly below it, and which client tokens work at those that are anywhere below. It is empty for one that is not there.
func Desired(t Tree, name string) map[string]any {
	n, ok := t.nodes[name]
	if !ok {
		return map[string]any{}
	}
	d := own(n)
	put := func(section, key string, value any) {
		entries, ok := d[section].(map[string]any)
		if !ok {
			entries = map[string]any{}
			d[section] = entries
		}
		entries[key] = value
	}
	if repos := n.Repositories(); len(repos) > 0 {
		put("repositories", n.Name, Words(repos))
	}
	for _, pattern := range n.Notifications {
		sum := sha256.Sum256([]byte(pattern)) // a name that stays when others come and go
		put("notifications", hex.EncodeToString(sum[:4]), pattern)
	}
	for _, c := range t.Descendants(n.Name) {
		if len(c.ClientTokens) > 0 {
			put("connectedRegistries", c.Name, map[string]any{"clientTokens": Words(c.ClientTokens)})
		}
		if c.Parent != n.Name {
			continue
		}
		if c.makesToken() {
			put("clientTokens", c.Name, syncToken(c))
			put("scopeMaps", c.Name, Words(c.Scope))
		}
	}
	return d
}

// own is what of a registry's twin has one value.
func own(n Node) map[string]any {
	sync := nonEmpty(map[string]any{"schedule": n.Schedule, "syncWindow": n.Window, "messageTtl": n.MessageTTL})
	parent := nonEmpty(map[string]any{"gatewayEndpoint": n.Endpoint, "protocol": n.Protocol})
	parent["syncProperties"] = sync
	d := map[string]any{"mode": string(n.Mode), "parent": parent}
	collection := nonEmpty(map[string]any{"schedule": n.GCSchedule})
	if n.GCEnabled != nil {
		collection["enabled"] = *n.GCEnabled
	}
	if len(collection) > 0 {
		d["garbageCollection"] = collection
	}
	if n.LogLevel != "" {
		d["logging"] = map[string]any{"logLevel": n.LogLevel}
	}
	return d
}

func nonEmpty(m map[string]any) map[string]any {
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == "" })
	return m
}

// syncToken is a child's sync token as it stands in the twin of its parent.
func syncToken(c Node) map[string]any {
	token := map[string]any{"scopeMap": c.Name, "status": "enabled"}
	for i, password := range c.Passwords {
		if password != "" {
			token[fmt.Sprintf("password%d", i+1)] = password
		}
	}
	return token
}

// Words is a list as a property of a twin: one string with blanks between, or, where no twin would take that, an object of
// several.
func Words(list []string) any {
	var parts []string
	for _, word := range list {
		if last := len(parts) - 1; last >= 0 && len(parts[last])+1+len(word) <= MaxString {
			parts[last] += " " + word
		} else {
			parts = append(parts, word)
		}
	}
	if len(parts) < 2 {
		return strings.Join(parts, "")
	}
	m := map[string]any{}
	for i, part := range parts {
		m[fmt.Sprintf("part%d", i+1)] = part
	}
	return m
}

// difference is what to merge into old to have new: null takes a property away (JSON merge patch, RFC 7396, which is how
// twins are patched).
func difference(old, new map[string]any) map[string]any {
	out := map[string]any{}
	for key, v := range new {
		was, inOld := old[key]
		if reflect.DeepEqual(was, v) {
			continue
		}
		from, wasObject := was.(map[string]any)
		to, isObject := v.(map[string]any)
		if inOld && wasObject && isObject {
			v = difference(from, to)
		}
		out[key] = v
	}
	for key := range old {
		if _, ok := new[key]; !ok {
			out[key] = nil
		}
	}
	return out
}

// cloudCommands are what makes or changes the sync token of a registry directly below the cloud registry.
func cloudCommands(n, old Node, was bool) []string {
	if n.Parent != "" || !n.makesToken() {
		return nil
	}
	if !was {
		return []string{azScope("create", n.Name, "--", n.Scope), "az acr token create --registry <registry> --name " + n.Name + " --scope-map " + n.Name + " --no-passwords"}
	}
	var commands []string
	for _, part := range []struct {
		prefix string
		lines  registry.ScopeMap
	}{{"--add-", without(n.Scope, old.Scope)}, {"--remove-", without(old.Scope, n.Scope)}} {
		if len(part.lines) > 0 {
			commands = append(commands, azScope("update", n.Name, part.prefix, part.lines))
		}
	}
	return commands
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
