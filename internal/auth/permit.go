package auth

import (
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// actionBit gives every action of a scope map a bit.
var actionBit = func() map[registry.Action]uint16 {
	bits := map[registry.Action]uint16{}
	for _, a := range []registry.Action{
		registry.ContentRead, registry.ContentWrite, registry.ContentDelete, registry.MetadataRead, registry.MetadataWrite,
		registry.ConfigRead, registry.ConfigWrite, registry.MessageRead, registry.MessageWrite,
	} {
		bits[a] = 1 << len(bits)
	}
	return bits
}()

// place is what lines of a scope map are about: a resource and its name, or the path above a wildcard.
type place struct{ resource, name string }

// permit is a scope map made ready to be asked: the time of an answer grows with the depth of the name and not with the
// number of lines. Lines add up. The zero value permits nothing. It is never changed, and shared by tokens.
type permit struct {
	exact map[place]uint16
	below map[place]uint16 // by the path before the *: "" or "acme/"
}

func newPermit(lines []registry.Permission) *permit {
	p := &permit{exact: map[place]uint16{}, below: map[place]uint16{}}
	for _, l := range lines {
		into, name := p.exact, l.Name
		if prefix, ok := strings.CutSuffix(name, "*"); ok {
			into, name = p.below, prefix
		}
		into[place{l.Resource, name}] |= actionBit[l.Action]
	}
	return p
}

// allows reports whether any line permits the action on the named resource.
func (p *permit) allows(resource, name string, action registry.Action) bool {
	bit := actionBit[action]
	if p == nil || bit == 0 {
		return false
	}
	if p.exact[place{resource, name}]&bit != 0 {
		return true
	}
	if len(p.below) == 0 {
		return false
	}
	if p.below[place{resource, ""}]&bit != 0 {
		return true
	}
	for i := range len(name) {
		if name[i] == '/' && p.below[place{resource, name[:i+1]}]&bit != 0 {
			return true
		}
	}
	return false
}

// gateways lists the connected registries, in order, on whose gateway the action is permitted.
func (p *permit) gateways(action registry.Action) []string {
	if p == nil {
		return nil
	}
	var names []string
	for at, bits := range p.exact {
		if at.resource == registry.ResourceGateway && bits&actionBit[action] != 0 {
			names = append(names, at.name)
		}
	}
	slices.Sort(names)
	return names
}
