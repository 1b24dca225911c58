package twin

import (
	"strings"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// ParseTokens reads a file of tokens: the sections scopeMaps and clientTokens of the document by themselves, for more of
// them than a twin can carry. It is in force as a whole or not at all.
func ParseTokens(doc []byte) (registry.TokenSet, []registry.FieldError) {
	p := &problems{maxText: maxTokensText}
	root, err := readTree(doc, MaxTokens, MaxTokens)
	if err != nil {
		p.add("", "%s", err)
		return registry.TokenSet{}, p.errors()
	}
	top, _ := record(p, "", root, "schemaVersion", "scopeMaps", "clientTokens")
	top.text("schemaVersion", checkSchemaVersion)
	c := registry.Config{ScopeMaps: map[string]registry.ScopeMap{}, ClientTokens: map[string]registry.ClientToken{}}
	r := reader{problems: p}
	if v, ok := top.find("scopeMaps"); ok {
		readScopeMaps(r, v, &c)
	}
	if v, ok := top.find("clientTokens"); ok {
		readClientTokens(r, v, &c)
	}
	if p.count > 0 {
		return registry.TokenSet{}, p.errors()
	}
	return registry.TokenSet{ScopeMaps: c.ScopeMaps, ClientTokens: c.ClientTokens}, nil
}

// readChildren reads which client tokens work at the registries below. A name that is no token here is left out when
// tokens are relayed: it may be one that comes from above.
func readChildren(r reader, v value, c *registry.Config) {
	entries(r.problems, "connectedRegistries", v, func(path, key string, v value) {
		name, err := hierarchy.ParseName(key)
		if err != nil {
			r.add(path, "%s", err)
			return
		}
		if _, ok := c.Children[name]; ok {
			r.add(path, "stands here twice: names of connected registries do not differ in case")
			return
		}
		o, _ := record(r.problems, path, v, "clientTokens")
		var child registry.ChildConfig
		if v, ok := o.find("clientTokens"); ok {
			words(r.problems, o.at("clientTokens"), v, func(_ string, list []string) {
				for _, name := range list {
					child.ClientTokens = append(child.ClientTokens, strings.ToLower(name))
				}
			})
		}
		c.Children[name] = child
	})
}
