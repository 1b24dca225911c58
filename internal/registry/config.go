package registry

import (
	"maps"
	"slices"
	"time"
)

// Config is the configuration document after validation: the desired properties of the module twin, or the same
// JSON in a file. Every default is filled in; package twin parses it.
type Config struct {
	SchemaVersion     string
	Mode              Mode
	Parent            ParentConfig
	Repositories      map[string]Scope // group name -> rules; a group is what one layered deployment adds
	Transfer          TransferConfig
	Serve             ServeConfig
	ScopeMaps         map[string]ScopeMap
	ClientTokens      map[string]ClientToken // by token name, lower case
	Children          map[string]ChildConfig // connectedRegistries, by name, lower case
	Notifications     map[string]string
	GarbageCollection GarbageCollectionConfig
	Storage           StorageConfig
	Logging           LoggingConfig
}

// ParentConfig says where content comes from. An empty GatewayEndpoint is a registry without a parent.
type ParentConfig struct {
	GatewayEndpoint string // host[:port], environment variables expanded
	Protocol        string // "https" or "http"
	SyncProperties  SyncProperties
}

// SyncProperties has ACR's names and limits.
type SyncProperties struct {
	Schedule   string        // five cron fields in UTC; "* * * * *" is continuous
	SyncWindow time.Duration // 1 h to 7 days; 0 with a continuous schedule
	MessageTTL time.Duration // 1 to 90 days
	Conflict   Conflict      // who keeps a tag that moved at the parent while a push waited to climb
}

// ServeConfig says how clients are served.
type ServeConfig struct {
	PullThrough bool // fetch at once what a client asks for, is in scope and is not here yet
}

// GarbageCollectionConfig has ACR's names.
type GarbageCollectionConfig struct {
	Enabled  bool
	Schedule string
}

// StorageConfig bounds the data volume.
type StorageConfig struct {
	MaxMiB     int // 0 is no quota
	ReserveMiB int // kept free on the file system
}

// LoggingConfig has ACR's names.
type LoggingConfig struct {
	LogLevel       string // Debug, Information, Warning, Error, None
	AuditLogStatus string // Enabled, Disabled
}

// ScopeMap is a set of actions such as "repositories/acme/*/content/read".
type ScopeMap []string

// ClientToken is a user of the registry. Passwords stand in the document only as their SHA-256.
type ClientToken struct {
	ScopeMap  string // name of a scope map
	Enabled   bool
	Passwords []TokenPassword // at most two, so that one can be rotated while the other works
}

// TokenPassword is the SHA-256 of a machine-made password, and when it ends (zero: never).
type TokenPassword struct {
	SHA256 [32]byte
	Expiry time.Time
}

// Scope returns the rules of all groups. Groups add up; their order has no meaning.
func (c Config) Scope() Scope {
	var all Scope
	for _, group := range slices.Sorted(maps.Keys(c.Repositories)) {
		all = append(all, c.Repositories[group]...)
	}
	return all
}

// ChildConfig is what a registry knows of one below it, direct or not.
type ChildConfig struct {
	ClientTokens []string // names of the client tokens that work there too; "*" is all
}
