package registry

import (
	"maps"
	"path"
	"slices"
	"strings"
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
}

// TransferConfig bounds what the link carries.
type TransferConfig struct {
	MaxKiBps int // KiB per second over all transfers; 0 is no limit
	Parallel int // transfers at once
	ChunkKiB int // KiB after which a transfer may be paused, and the size of an upload's chunk
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

// RepositoryRule selects content of the parent: repository[:tag][@platform].
type RepositoryRule struct {
	Repository string // a name, or a pattern whose last part is * ("acme/*" takes every depth below acme)
	Tag        string // a glob as of path.Match; empty takes every tag
	Platform   string // os/arch[/variant]; empty takes every platform
}

// String returns the rule as it is written in the configuration.
func (r RepositoryRule) String() string {
	s := r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Platform != "" {
		s += "@" + r.Platform
	}
	return s
}

// IsPattern reports whether the rule needs the parent's catalog to find its repositories.
func (r RepositoryRule) IsPattern() bool { return strings.HasSuffix(r.Repository, "*") }

// MatchRepository reports whether the rule speaks of the repository.
func (r RepositoryRule) MatchRepository(repo string) bool {
	if prefix, ok := strings.CutSuffix(r.Repository, "*"); ok {
		return strings.HasPrefix(repo, prefix)
	}
	return r.Repository == repo
}

// MatchTag reports whether the rule takes the tag, the repository being matched already.
func (r RepositoryRule) MatchTag(tag string) bool {
	if r.Tag == "" {
		return true
	}
	ok, _ := path.Match(r.Tag, tag) // the pattern was checked when it was parsed
	return ok
}

// Scope is a list of rules; what any of them takes is in scope.
type Scope []RepositoryRule

// Scope returns the rules of all groups. Groups add up; their order has no meaning.
func (c Config) Scope() Scope {
	var all Scope
	for _, group := range slices.Sorted(maps.Keys(c.Repositories)) {
		all = append(all, c.Repositories[group]...)
	}
	return all
}

// MatchRepository reports whether anything of the repository is in scope.
func (s Scope) MatchRepository(repo string) bool {
	for _, r := range s {
		if r.MatchRepository(repo) {
			return true
		}
	}
	return false
}

// MatchTag reports whether the tag is in scope.
func (s Scope) MatchTag(repo, tag string) bool {
	for _, r := range s {
		if r.MatchRepository(repo) && r.MatchTag(tag) {
			return true
		}
	}
	return false
}

// Platforms returns which platforms of an index under the tag are wanted; nil is all of them. An empty tag, for an
// index that is asked for by digest, takes what any tag of the repository would.
func (s Scope) Platforms(repo, tag string) []string {
	var platforms []string
	for _, r := range s {
		if !r.MatchRepository(repo) || (tag != "" && !r.MatchTag(tag)) {
			continue
		}
		if r.Platform == "" {
			return nil
		}
		platforms = append(platforms, r.Platform)
	}
	return platforms
}
