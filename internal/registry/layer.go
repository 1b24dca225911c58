package registry

import "time"

// What one layer's registry asks of the layer above, below /v2/_connected/v1/.

// LayerPath is the root of the API between layers. It lies below /v2/ because that is all that the API proxy of a
// layer forwards when the layer has no registry of its own.
const LayerPath = "/v2/_connected/v1/"

// Headers with which a child introduces itself on every request below LayerPath.
const (
	HeaderChildName     = "Connected-Registry-Name"
	HeaderChildInstance = "Connected-Registry-Instance"
	HeaderChildMode     = "Connected-Registry-Mode"
)

// HeaderRelay is on the answers to a child that may read a gateway: the version of what GET LayerPath+"tokens" would
// answer now. A parent without the header relays nothing, and takes nothing away. On the questions of a child it is the
// version that the child is done with, "none" where there is none: while the parent has another, no question is held.
const HeaderRelay = "Connected-Registry-Relay"

// What a parent can do for the child that asks, as LayerInfo says it; a sync token without the actions on its gateway is
// offered less.
const (
	CapabilityChanges    = "changes"    // GET changes answers
	CapabilityActivation = "activation" // PUT and DELETE activation: gateway config/write
	CapabilityTokens     = "tokens"     // GET tokens: gateway config/read
	CapabilityStatus     = "status"     // PUT status: gateway message/write
)

// LayerInfo is the answer to GET LayerPath: what the parent is.
type LayerInfo struct {
	APIVersion   string   `json:"apiVersion"` // "1"
	Name         string   `json:"name,omitempty"`
	InstanceID   string   `json:"instanceId"`
	Mode         Mode     `json:"mode"`
	Version      string   `json:"version"`
	Ancestors    []string `json:"ancestors,omitempty"`    // instance ids above, nearest first, to find loops
	Capabilities []string `json:"capabilities,omitempty"` // the Capability words
}

// ChangesRequest asks what changed since a cursor: GET LayerPath+"changes?since=...&wait=...&repository=...".
type ChangesRequest struct {
	Since string        // cursor of an earlier answer; empty asks for everything
	Wait  time.Duration // hold the answer this long until something changes; 0 answers at once
	Scope []string      // repository names or patterns; empty is all that the caller may read
}

// Changes is what changed in the content of a registry. An answer 304 stands for no change.
type Changes struct {
	Cursor  string   `json:"cursor"`
	Full    bool     `json:"full"` // Entries is everything: what is not in it does not exist
	Entries []Change `json:"entries,omitempty"`
	More    bool     `json:"more,omitempty"` // ask again with Cursor at once
}

// Change is one tag that moved or went, or one referrer that came or went. Exactly one of Tag and Subject is set.
type Change struct {
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"`
	Digest     Digest `json:"digest,omitempty"`  // empty: the tag is gone
	Subject    Digest `json:"subject,omitempty"` // Digest refers to this manifest
	Gone       bool   `json:"gone,omitempty"`    // with Subject: Digest was deleted
}

// LayerCaller is who asks a question between layers, and what that one may do.
type LayerCaller struct {
	Token      string
	MayRead    func(repo string) bool
	MayGateway func(name string, a Action) bool
	Gateways   func(a Action) []string // names, in order, on whose gateway the action is permitted
}

// ActivationRequest is PUT LayerPath+"activation": the child wants to be the one active instance of its name.
type ActivationRequest struct {
	Name       string `json:"name"`
	InstanceID string `json:"instanceId"`
	Mode       Mode   `json:"mode"`
	Version    string `json:"version,omitempty"`
	// Operator is set when a person asked for it at the child: an instance that was deactivated at the parent comes back
	// only so.
	Operator bool `json:"operator,omitempty"`
}

// Relay is the answer to GET LayerPath+"tokens": client tokens and scope maps for the child and for those below it. Of two
// token sets of one registry the first is the stronger.
type Relay struct {
	Version    string                `json:"version"`
	Registries map[string][]TokenSet `json:"connectedRegistries,omitempty"` // by name of the connected registry, lower case
}

// LayerReport is PUT LayerPath+"status": the child first, then those below it.
type LayerReport struct {
	Registries []TreeNode `json:"connectedRegistries"`
}

// MaxTree bounds the registries of one report.
const MaxTree = 1000

// TreeNode is one connected registry as `connected-registry list` shows it.
type TreeNode struct {
	Name             string          `json:"name"`
	Parent           string          `json:"parent,omitempty"` // name of the connected registry above; empty at the top
	InstanceID       string          `json:"instanceId,omitempty"`
	Mode             Mode            `json:"mode,omitempty"`
	ConnectionState  ConnectionState `json:"connectionState"`
	Activation       Activation      `json:"activation,omitzero"`
	LoginServer      LoginServer     `json:"loginServer,omitzero"`
	LastSyncTime     time.Time       `json:"lastSyncTime,omitzero"`
	LastActivityTime time.Time       `json:"lastActivityTime,omitzero"` // when the registry above heard of it last
	Schedule         string          `json:"schedule,omitempty"`
	SyncWindow       string          `json:"syncWindow,omitempty"` // ISO 8601 duration
	Version          string          `json:"version,omitempty"`
	StatusDetails    []StatusDetail  `json:"statusDetails,omitempty"`
}
