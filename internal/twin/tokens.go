package twin

import (
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
