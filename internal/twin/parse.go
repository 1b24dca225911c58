package twin

import (
	"fmt"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/schedule"
)

// SchemaVersion is the version of the document that this package reads and writes.
const SchemaVersion = "1.0"

// Limits of the sync properties, those of Azure Container Registry.
const (
	MinSyncWindow = time.Hour
	MaxSyncWindow = 7 * schedule.Day
	MinMessageTTL = schedule.Day
	MaxMessageTTL = 90 * schedule.Day
)

// ParseOptions is what Parse needs besides the document.
type ParseOptions struct {
	// Env looks up environment variables, for a gatewayEndpoint such as $IOTEDGE_PARENTHOSTNAME:8000. Without it no
	// variable is set.
	Env func(name string) (string, bool)
	// Base is the configuration in force, of which bad sections keep their value. The zero value stands for Defaults.
	Base registry.Config
}

// Defaults is the configuration of an empty document: ReadOnly, no parent, no repositories, continuous
// synchronisation with a message TTL of two days, pull-through and daily garbage collection.
func Defaults() registry.Config {
	return registry.Config{
		SchemaVersion: SchemaVersion,
		Mode:          registry.ReadOnly,
		Parent: registry.ParentConfig{
			Protocol:       "https",
			SyncProperties: registry.SyncProperties{Schedule: schedule.Everything, MessageTTL: 2 * schedule.Day, Conflict: registry.NewestWins},
		},
		Repositories:      map[string]registry.Scope{},
		Transfer:          registry.TransferConfig{Parallel: 3, ChunkKiB: 512},
		Serve:             registry.ServeConfig{PullThrough: true},
		ScopeMaps:         map[string]registry.ScopeMap{},
		ClientTokens:      map[string]registry.ClientToken{},
		Children:          map[string]registry.ChildConfig{},
		Notifications:     map[string]string{},
		GarbageCollection: registry.GarbageCollectionConfig{Enabled: true, Schedule: "0 5 * * *"},
		Storage:           registry.StorageConfig{ReserveMiB: 64},
		Logging:           registry.LoggingConfig{LogLevel: "Information", AuditLogStatus: "Disabled"},
	}
}

// section is a top-level property: what is applied or kept as one.
type section struct {
	name string
	read func(r reader, v value, c *registry.Config)
	keep func(c *registry.Config, base registry.Config)
}

// sections in the order in which they are read: client tokens need the scope maps that will be in force.
var sections = []section{
	{"mode", readMode, func(c *registry.Config, b registry.Config) { c.Mode = b.Mode }},
	{"parent", readParent, func(c *registry.Config, b registry.Config) { c.Parent = b.Parent }},
	{"repositories", readRepositories, func(c *registry.Config, b registry.Config) { c.Repositories = b.Repositories }},
	{"transfer", readTransfer, func(c *registry.Config, b registry.Config) { c.Transfer = b.Transfer }},
	{"serve", readServe, func(c *registry.Config, b registry.Config) { c.Serve = b.Serve }},
	{"scopeMaps", readScopeMaps, func(c *registry.Config, b registry.Config) { c.ScopeMaps = b.ScopeMaps }},
	{"clientTokens", readClientTokens, func(c *registry.Config, b registry.Config) { c.ClientTokens = b.ClientTokens }},
	{"connectedRegistries", readChildren, func(c *registry.Config, b registry.Config) { c.Children = b.Children }},
	{"notifications", readNotifications, func(c *registry.Config, b registry.Config) { c.Notifications = b.Notifications }},
	{"garbageCollection", readGarbageCollection, func(c *registry.Config, b registry.Config) { c.GarbageCollection = b.GarbageCollection }},
	{"storage", readStorage, func(c *registry.Config, b registry.Config) { c.Storage = b.Storage }},
	{"logging", readLogging, func(c *registry.Config, b registry.Config) { c.Logging = b.Logging }},
}

// reader is what the sections read with.
type reader struct {
	*problems
	env func(string) (string, bool)
}

// Parse reads a document. It always returns a configuration that can be used: o.Base for a document that cannot be
// read at all (syntax, size, another schema version, nothing in it), otherwise the document's sections, where those
// with an error are o.Base's. Sections that are absent or null have their defaults.
//
// An error about the document as a whole has an empty path. No error text holds the value of a password field.
func Parse(doc []byte, o ParseOptions) (registry.Config, []registry.FieldError) {
	base := o.Base
	if base.SchemaVersion == "" {
		base = Defaults()
	}
	p := &problems{}
	root, err := readTree(doc, MaxRaw, MaxDocument)
	if err != nil {
		p.add("", "%s; the configuration in force stays", err)
		return base, p.errors()
	}
	if len(root.members) == 0 { // an edge hub that never met its cloud answers with an empty twin
		p.add("", "document has no properties; the configuration in force stays")
		return base, p.errors()
	}
	known := []string{"schemaVersion"}
	for _, s := range sections {
		known = append(known, s.name)
	}
	top, _ := record(p, "", root, known...)
	before := p.count
	top.text("schemaVersion", checkSchemaVersion)
	if p.count > before {
		return base, p.errors()
	}
	c := Defaults()
	r := reader{problems: p, env: o.Env}
	for _, s := range sections {
		readSection(r, top, s, &c, base)
	}
	return c, p.errors()
}

// readSection applies one section, or keeps base's.
func readSection(r reader, root object, s section, c *registry.Config, base registry.Config) {
	before := r.count
	repeated := false
	for _, m := range root.members {
		repeated = repeated || m.key == s.name && m.repeated
	}
	if v, ok := root.find(s.name); ok {
		s.read(r, v, c)
	}
	if !repeated && r.count == before {
		return
	}
	s.keep(c, base)
	if s.name == "clientTokens" {
		reportLostScopeMaps(r, c)
	}
}

// reportLostScopeMaps tells of tokens that were kept although the document took their scope map away. They have no
// rights until the section is repaired: a right that was withdrawn must not live on because of another error.
func reportLostScopeMaps(r reader, c *registry.Config) {
	for _, name := range sortedKeys(c.ClientTokens) {
		if _, ok := c.ScopeMaps[c.ClientTokens[name].ScopeMap]; !ok {
			r.add("clientTokens."+name+".scopeMap", "the token is kept from before, but its scope map %q is gone: it may do nothing", c.ClientTokens[name].ScopeMap)
		}
	}
}

// checkSchemaVersion accepts every minor version of ours: what it adds is reported as unknown.
func checkSchemaVersion(s string) error {
	if major, _, _ := strings.Cut(s, "."); major != "1" {
		return fmt.Errorf("%q: want %q; the configuration in force stays", clip(s), SchemaVersion)
	}
	return nil
}
