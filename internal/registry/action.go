package registry

import (
	"slices"
	"strings"
)

// Action is what a scope map allows: the last two parts of a line such as "repositories/acme/*/content/read".
type Action string

// The actions on a repository: pull, push, delete a manifest, list tags, and change attributes or untag (ACR,
// "Repository-scoped permissions").
const (
	ContentRead   Action = "content/read"
	ContentWrite  Action = "content/write"
	ContentDelete Action = "content/delete"
	MetadataRead  Action = "metadata/read"
	MetadataWrite Action = "metadata/write"
)

// The actions that a child's sync token has on its own gateway.
const (
	ConfigRead   Action = "config/read"
	ConfigWrite  Action = "config/write"
	MessageRead  Action = "message/read"
	MessageWrite Action = "message/write"
)

// CatalogList is the list of repositories. It stands in no scope map: everybody may ask, and sees what they may read. An
// access token has to be for it.
const CatalogList Action = "catalog/list"

// The resources that a permission can be about.
const (
	ResourceRepositories = "repositories"
	ResourceGateway      = "gateway"
)

// actions lists what can be done with each resource.
var actions = map[string][]Action{
	ResourceRepositories: {ContentRead, ContentWrite, ContentDelete, MetadataRead, MetadataWrite},
	ResourceGateway:      {ConfigRead, ConfigWrite, MessageRead, MessageWrite},
}

// gatewayPattern is the name of a connected registry in lower case (ARM connectedRegistries, name; the command line
// also takes _ and -).
var gatewayPattern = Pattern(`^[a-z0-9_-]{1,64}$`)

// Permission is one line of a scope map: an action on a repository, on all repositories below a path, or on the
// gateway of one connected registry.
type Permission struct {
	Resource string // ResourceRepositories or ResourceGateway
	Name     string // lower case; of a repository it may be "*" or end in "/*"
	Action   Action
}

// ParsePermission reads "repositories/<name>/<action>" or "gateway/<name>/<action>", in any case. The only wildcard is
// one * that stands alone or as the last part of a repository name: "*" is every repository, "acme/*" all below acme
// and not acme itself (ACR, "Repository-scoped permissions", wildcards). The error says what is wrong with the line.
func ParsePermission(s string) (Permission, error) {
	invalid := func(format string, args ...any) (Permission, error) {
		return Permission{}, ErrUnsupported.WithMessage("action %q: "+format, append([]any{clip(s)}, args...)...)
	}
	resource, rest, ok := strings.Cut(strings.ToLower(s), "/")
	known, isResource := actions[resource]
	if !ok || !isResource {
		return invalid("want repositories/<name>/<action> or gateway/<name>/<action>")
	}
	for _, a := range known {
		name, found := strings.CutSuffix(rest, "/"+string(a))
		if !found {
			continue
		}
		p := Permission{Resource: resource, Name: name, Action: a}
		if resource == ResourceGateway {
			if !gatewayPattern().MatchString(name) {
				return invalid("%q is not the name of a connected registry", clip(name))
			}
			return p, nil
		}
		literal := strings.TrimSuffix(name, "/*")
		if name == "*" || ValidateRepository(literal) == nil {
			return p, nil
		}
		if strings.Contains(literal, "*") {
			return invalid("the only wildcard is * alone or /* at the end of the name")
		}
		return invalid("%q is not a repository name", clip(literal))
	}
	return invalid("want it to end in one of %v", known)
}

// Allows reports whether the line permits the action on the named resource; name is in lower case.
func (p Permission) Allows(resource, name string, a Action) bool {
	if p.Resource != resource || p.Action != a {
		return false
	}
	if prefix, ok := strings.CutSuffix(p.Name, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return p.Name == name
}

// String returns the line as it stands in a scope map.
func (p Permission) String() string {
	return p.Resource + "/" + p.Name + "/" + string(p.Action)
}

// ActionsOf returns the actions that a mode leaves to a sync token on repositories (ACR, scope maps of connected
// registries): reading in ReadOnly mode, all five in ReadWrite mode.
func ActionsOf(m Mode) []Action {
	if m == ReadWrite {
		return slices.Clone(actions[ResourceRepositories])
	}
	return []Action{ContentRead, MetadataRead}
}
