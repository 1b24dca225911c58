// Package hierarchy holds the rules between a connected registry and its parent: which modes fit together, that a
// registry is not its own ancestor, and how registries are named. The rules are pure; whoever meets the other side
// asks them, the child when it learns what its parent is and the parent when a child introduces itself.
package hierarchy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Limits of the name of a connected registry (Azure Container Registry, connected registry naming rules).
const (
	MinName = 5  // bytes
	MaxName = 40 // bytes
)

// CheckModes checks that a child of that mode may stand below that parent: a ReadWrite parent takes any child, any
// other only ReadOnly children. The text is that of `az acr connected-registry create`.
//
// Errors: CONFLICT.
func CheckModes(parentName string, parent registry.Mode, childName string, child registry.Mode) error {
	if parent == registry.ReadWrite || child == registry.ReadOnly {
		return nil
	}
	return registry.ErrConflict.WithMessage("Can't create the registry '%s' with mode '%s' when the connected registry parent '%s' mode is '%s'. "+
		"For more information on connected registries please visit https://aka.ms/acr/connected-registry.", childName, child, parentName, parent)
}

// CheckAncestry checks that the registry with the instance id self does not stand above itself, which happens when
// a gateway endpoint leads back to the same machine. An empty id matches nothing.
//
// Errors: CONFLICT.
func CheckAncestry(self string, parent registry.LayerInfo) error {
	if self == "" {
		return nil
	}
	if parent.InstanceID == self {
		return registry.ErrConflict.WithMessage("the parent's gateway endpoint leads to this registry itself: set parent.gatewayEndpoint to the layer above")
	}
	if i := slices.Index(parent.Ancestors, self); i >= 0 {
		return registry.ErrConflict.WithMessage("the parent '%s' stands below this registry (%d layers further up is this one again): correct parent.gatewayEndpoint of one layer of the loop",
			displayName(parent), i+1)
	}
	return nil
}

func displayName(parent registry.LayerInfo) string {
	if parent.Name != "" {
		return parent.Name
	}
	return parent.InstanceID
}

// ParseName checks the name of a connected registry and returns it in lower case, which is how names are compared.
// A name has 5 to 40 letters and digits and starts with a letter; _ and - are accepted, as the Azure CLI does.
func ParseName(name string) (string, error) {
	if len(name) < MinName {
		return "", fmt.Errorf("connected registry name must be at least %d characters long", MinName)
	}
	if len(name) > MaxName {
		return "", fmt.Errorf("connected registry name has %d characters: want at most %d", len(name), MaxName)
	}
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		other := r >= '0' && r <= '9' || r == '_' || r == '-'
		if !letter && (i == 0 || !other) {
			return "", fmt.Errorf("connected registry name %q: want a letter and then letters, digits, _ or -", name)
		}
	}
	return strings.ToLower(name), nil
}

// SameName reports whether two names are of one connected registry.
func SameName(a, b string) bool { return strings.EqualFold(a, b) }
