package auth

import (
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Limits of what one request for a token may name.
const (
	maxScopes      = 100  // scope parameters, or parts of one
	maxScopeLength = 1024 // bytes of one scope
)

// Types of resources in a scope (Docker registry token specification, "Scope").
const (
	typeRepository = "repository"
	typeRegistry   = "registry"
	typeGateway    = "gateway"
)

// entry is one element of a token's access claim: what the token is for. It is no grant: what the scope map does not
// permit at the moment of use is refused all the same.
type entry struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// scopeActions is what the words of a scope stand for. pull includes listing tags, because the call that ACR documents
// for that asks for pull; every is the word *.
var scopeActions = map[string]map[string][]registry.Action{
	typeRepository: {
		"pull":           {registry.ContentRead, registry.MetadataRead},
		"push":           {registry.ContentWrite},
		"delete":         {registry.ContentDelete},
		"metadata_read":  {registry.MetadataRead},
		"metadata_write": {registry.MetadataWrite},
	},
	typeGateway: {
		"config_read":   {registry.ConfigRead},
		"config_write":  {registry.ConfigWrite},
		"message_read":  {registry.MessageRead},
		"message_write": {registry.MessageWrite},
	},
}

// parseScopes reads scope parameters, each with one scope or several between spaces, and merges those of the same
// resource. What is no scope, or speaks of what this registry does not have, is left out: the token then does not have
// it (Docker registry token specification, "Requesting a Token").
//
// Errors: UNSUPPORTED with status 400 for more than 100 scopes.
func parseScopes(parameters []string) ([]entry, error) {
	var list []entry
	n := 0
	for _, p := range parameters {
		for text := range strings.FieldsSeq(p) {
			if n++; n > maxScopes {
				return nil, badRequest("more than %d scopes", maxScopes)
			}
			if e, ok := parseScope(text); ok {
				list = mergeEntry(list, e)
			}
		}
	}
	return list, nil
}

// parseScope reads "<type>:<name>:<action>[,<action>]". The name of a repository may hold a host with a port, which is
// why actions are found from the right; a class in parentheses behind the type has no meaning here.
func parseScope(text string) (entry, bool) {
	if len(text) > maxScopeLength {
		return entry{}, false
	}
	kind, rest, ok := strings.Cut(text, ":")
	i := strings.LastIndexByte(rest, ':')
	if !ok || i < 0 {
		return entry{}, false
	}
	if at := strings.IndexByte(kind, '('); at > 0 && strings.HasSuffix(kind, ")") {
		kind = kind[:at]
	}
	e := entry{Type: kind, Name: rest[:i]}
	words := strings.Split(rest[i+1:], ",")
	switch kind {
	case typeRegistry:
		e.Actions = []string{"*"}
		return e, e.Name == "catalog" && slices.Contains(words, "*")
	case typeRepository:
		if registry.ValidateRepository(e.Name) != nil {
			return entry{}, false
		}
	case typeGateway:
		e.Name = strings.ToLower(e.Name)
		if _, err := registry.ParsePermission(registry.ResourceGateway + "/" + e.Name + "/" + string(registry.ConfigRead)); err != nil {
			return entry{}, false
		}
	default:
		return entry{}, false
	}
	for _, w := range words {
		_, known := scopeActions[kind][w]
		if known || w == "*" {
			e.Actions = append(e.Actions, w)
		}
	}
	return e, len(e.Actions) > 0
}

// mergeEntry adds an entry to those of other resources.
func mergeEntry(list []entry, e entry) []entry {
	for i := range list {
		if list[i].Type == e.Type && list[i].Name == e.Name {
			for _, a := range e.Actions {
				if !slices.Contains(list[i].Actions, a) {
					list[i].Actions = append(list[i].Actions, a)
				}
			}
			return list
		}
	}
	return append(list, entry{Type: e.Type, Name: e.Name, Actions: slices.Compact(e.Actions)})
}

// intersect returns what of the entries the identity may do, word by word: a word stays when the scope map permits any
// of what it stands for, and * becomes the words that stay.
func (i Identity) intersect(list []entry) []entry {
	granted := []entry{}
	for _, e := range list {
		if e.Type == typeRegistry {
			granted = append(granted, e)
			continue
		}
		resource := registry.ResourceRepositories
		if e.Type == typeGateway {
			resource = registry.ResourceGateway
		}
		var words []string
		for word, actions := range scopeActions[e.Type] {
			asked := slices.Contains(e.Actions, word) || slices.Contains(e.Actions, "*")
			if asked && slices.ContainsFunc(actions, func(a registry.Action) bool { return i.allowed(resource, e.Name, a) }) {
				words = append(words, word)
			}
		}
		if len(words) > 0 {
			slices.Sort(words)
			granted = append(granted, entry{Type: e.Type, Name: e.Name, Actions: words})
		}
	}
	return granted
}

// covers reports whether the entries are for the action on the resource.
func covers(list []entry, resource, name string, action registry.Action) bool {
	kind := typeRepository
	if resource == registry.ResourceGateway {
		kind = typeGateway
	}
	for _, e := range list {
		if e.Type != kind || e.Name != name {
			continue
		}
		for _, word := range e.Actions {
			if slices.Contains(scopeActions[kind][word], action) {
				return true
			}
		}
	}
	return false
}

// coversCatalog reports whether the entries are for the list of repositories.
func coversCatalog(list []entry) bool {
	return slices.ContainsFunc(list, func(e entry) bool { return e.Type == typeRegistry && e.Name == "catalog" })
}

// scopeFor is the scope that a challenge asks the client to come back with; empty where none is needed.
func scopeFor(repo string, action registry.Action) string {
	words := map[registry.Action]string{
		registry.ContentRead: "pull", registry.ContentWrite: "pull,push", registry.ContentDelete: "delete",
		registry.MetadataRead: "metadata_read", registry.MetadataWrite: "metadata_write",
	}
	switch {
	case action == registry.CatalogList:
		return "registry:catalog:*"
	case words[action] == "" || repo == "":
		return ""
	}
	return typeRepository + ":" + repo + ":" + words[action]
}
