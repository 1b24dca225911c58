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

// LayerInfo is the answer to GET LayerPath: what the parent is.
type LayerInfo struct {
	APIVersion   string   `json:"apiVersion"` // "1"
	Name         string   `json:"name,omitempty"`
	InstanceID   string   `json:"instanceId"`
	Mode         Mode     `json:"mode"`
	Version      string   `json:"version"`
	Ancestors    []string `json:"ancestors,omitempty"`    // instance ids above, nearest first, to find loops
	Capabilities []string `json:"capabilities,omitempty"` // "changes": GET changes answers
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

// Change is one tag that moved or went, or one referrer that came. Exactly one of Tag and Subject is set.
type Change struct {
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"`
	Digest     Digest `json:"digest,omitempty"`  // empty: the tag is gone
	Subject    Digest `json:"subject,omitempty"` // Digest refers to this manifest
}
