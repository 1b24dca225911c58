package registry

import "time"

// Status is the one model of how a registry is. The command line, the control socket, the reported properties of
// the twin and the status page all render this; nothing of it has to be read from a log.
type Status struct {
	Name             string            `json:"name,omitempty"` // connected registry name
	InstanceID       string            `json:"instanceId"`     // made once for a data volume
	Version          string            `json:"version"`
	Mode             Mode              `json:"mode"`
	ConnectionState  ConnectionState   `json:"connectionState"`
	LastActivityTime time.Time         `json:"lastActivityTime,omitzero"` // last answer of the parent
	Parent           ParentStatus      `json:"parent"`
	Sync             SyncStatus        `json:"registrySyncResult"`
	Activation       Activation        `json:"activation,omitzero"`
	LoginServer      LoginServer       `json:"loginServer,omitzero"`
	StatusDetails    []StatusDetail    `json:"statusDetails,omitempty"` // empty is healthy
	Transfers        []TransferStatus  `json:"transfers,omitempty"`     // under way now
	Traffic          Traffic           `json:"traffic"`
	Budgets          []BudgetStatus    `json:"budgets,omitempty"` // of bytes over the link, those that are configured
	Storage          StorageStatus     `json:"storage"`
	Outbox           *OutboxStatus     `json:"outbox,omitempty"` // nil where nothing climbs
	Configuration    ConfigStatus      `json:"configuration"`
	Repositories     []RepositoryState `json:"repositories,omitempty"`
	History          []SyncIteration   `json:"history,omitempty"` // the last iterations that did something or failed, newest first
}

// ParentStatus is what is known of the parent.
type ParentStatus struct {
	GatewayEndpoint string     `json:"gatewayEndpoint,omitempty"`
	Endpoint        string     `json:"endpoint,omitempty"` // that is asked now, where there are several
	Protocol        string     `json:"protocol,omitempty"`
	Kind            ParentKind `json:"kind,omitempty"`
	Mode            Mode       `json:"mode,omitempty"`
	InstanceID      string     `json:"instanceId,omitempty"`
}

// SyncStatus is the last sync iteration, or the one under way (ARM registrySyncResult).
type SyncStatus struct {
	SyncTrigger               SyncTrigger `json:"syncTrigger,omitempty"`
	SyncState                 SyncState   `json:"syncState,omitempty"`
	LastSyncStartTime         time.Time   `json:"lastSyncStartTime,omitzero"`
	LastSyncEndTime           time.Time   `json:"lastSyncEndTime,omitzero"`
	LastSuccessfulSyncEndTime time.Time   `json:"lastSuccessfulSyncEndTime,omitzero"`
	NextSyncTime              time.Time   `json:"nextSyncTime,omitzero"`
	Requests                  int64       `json:"requests"`      // made to the parent in that iteration
	BytesReceived             int64       `json:"bytesReceived"` // in that iteration, bodies
	TagsMoved                 int         `json:"tagsMoved"`
	TagsRemoved               int         `json:"tagsRemoved"`
	TagsFailed                int         `json:"tagsFailed,omitempty"`
	Error                     string      `json:"error,omitempty"`
	BytesBehind               int64       `json:"bytesBehind,omitempty"`     // still to come, as far as known
	BytesPerSecond            int64       `json:"bytesPerSecond,omitempty"`  // of the link: measured, or the configured limit; 0 is not known
	EstimatedEndTime          time.Time   `json:"estimatedEndTime,omitzero"` // of the iteration under way
}

// SyncIteration is one iteration that is over.
type SyncIteration struct {
	Trigger       SyncTrigger `json:"trigger,omitempty"`
	State         SyncState   `json:"state"`
	StartTime     time.Time   `json:"startTime"`
	EndTime       time.Time   `json:"endTime"`
	Requests      int64       `json:"requests"`
	BytesReceived int64       `json:"bytesReceived"`
	TagsMoved     int         `json:"tagsMoved"`
	TagsRemoved   int         `json:"tagsRemoved"`
	TagsFailed    int         `json:"tagsFailed,omitempty"`
	Error         string      `json:"error,omitempty"`
}

// SpeedSource says where an expected speed is from.
type SpeedSource string

// What the speed of the link is taken from.
const (
	SpeedMeasured   SpeedSource = "measured"   // over the last seconds in which bytes moved
	SpeedConfigured SpeedSource = "configured" // the limit in force
	SpeedUnknown    SpeedSource = "unknown"
)

// SyncPreview is what an iteration would do now.
type SyncPreview struct {
	Images         []PreviewImage   `json:"images"`            // in the order in which they would come
	Removed        []PreviewRemoval `json:"removed,omitempty"` // tags that would go
	Bytes          int64            `json:"bytes"`             // of all images; what they share counts once
	BytesPerSecond int64            `json:"bytesPerSecond"`
	SpeedSource    SpeedSource      `json:"speedSource"`
	Seconds        int64            `json:"seconds"` // that the link would take; 0 while its speed is not known
	FreeBytes      int64            `json:"freeBytes,omitempty"`
	Budgets        []BudgetStatus   `json:"budgets,omitempty"`
	NotListed      string           `json:"notListed,omitempty"` // why a part of the parent could not be listed
}

// PreviewImage is one image that would be fetched.
type PreviewImage struct {
	Repository string   `json:"repository"`
	Tags       []string `json:"tags"`
	Digest     Digest   `json:"digest"`
	Bytes      int64    `json:"bytes"` // that are not here; what it shares with an image before it is not counted
	Error      string   `json:"error,omitempty"`
}

// PreviewRemoval is the tags of one repository that would be removed.
type PreviewRemoval struct {
	Repository string   `json:"repository"`
	Tags       []string `json:"tags"`
}

// ActivationStatus says whether the registry works with its parent (ARM connectedRegistries, activation.status).
type ActivationStatus string

// Active from the first time that the parent answered; Inactive before, and after it was deactivated.
const (
	Active   ActivationStatus = "Active"
	Inactive ActivationStatus = "Inactive"
)

// Activation has ARM's shape.
type Activation struct {
	Status ActivationStatus `json:"status"`
}

// LoginServer is how clients reach the registry, with ARM's shape.
type LoginServer struct {
	Host string         `json:"host,omitempty"` // host[:port]; empty is any
	TLS  LoginServerTLS `json:"tls,omitzero"`
}

// LoginServerTLS says whether the registry itself speaks TLS; behind an API proxy it does not have to.
type LoginServerTLS struct {
	Status      string                 `json:"status"` // Enabled, Disabled
	Certificate LoginServerCertificate `json:"certificate,omitzero"`
}

// LoginServerCertificate is where the certificate comes from.
type LoginServerCertificate struct {
	Type     string    `json:"type"` // LocalDirectory; WorkloadAPI where IoT Edge makes it
	Location string    `json:"location,omitempty"`
	NotAfter time.Time `json:"notAfter,omitzero"`
}

// OutboxStatus is what was pushed here and is not at the parent yet.
type OutboxStatus struct {
	Pending   int       `json:"pending"`             // entries that wait
	Delivered int       `json:"delivered,omitempty"` // of these: the parent has answered for them, and is asked once more
	Expired   int       `json:"expired,omitempty"`   // entries older than messageTtl, kept
	Refused   int       `json:"refused,omitempty"`   // entries that the parent refused for good, kept
	Bytes     int64     `json:"bytes"`               // that the parent lacks, as far as known
	Oldest    time.Time `json:"oldest,omitzero"`     // when the first of them was pushed
	Error     string    `json:"error,omitempty"`     // of the last attempt
	Held      bool      `json:"held,omitempty"`      // Error keeps all that waits, and not the one entry that was tried
	NextTry   time.Time `json:"nextTry,omitzero"`    // of what is held

	Conflicts []OutboxConflict `json:"conflicts,omitempty"` // the last that were decided
}

// StatusDetail is one thing that is wrong now, with ACR's fields.
type StatusDetail struct {
	Type          string    `json:"type"` // Disk, Parent, Sync, Configuration, Storage
	Code          string    `json:"code"`
	Description   string    `json:"description"` // what is wrong and what to do
	Timestamp     time.Time `json:"timestamp"`
	CorrelationID string    `json:"correlationId,omitempty"`
}

// TransferStatus is one blob on its way.
type TransferStatus struct {
	Repository string `json:"repository"`
	Digest     Digest `json:"digest"`
	Size       int64  `json:"size"`         // bytes; 0 while unknown
	Received   int64  `json:"received"`     // bytes here, those of earlier runs included
	Before     int64  `json:"before"`       // bytes of earlier runs
	Waiting    bool   `json:"waiting"`      // between two attempts
	Up         bool   `json:"up,omitempty"` // on its way to the parent, which has Received of it
}

// Traffic counts the link to the parent since the process started.
type Traffic struct {
	Requests      int64 `json:"requests"`
	BytesReceived int64 `json:"bytesReceived"` // response bodies
	BytesSent     int64 `json:"bytesSent"`     // request bodies
}

// StorageStatus is the data volume.
type StorageStatus struct {
	State        string `json:"state"` // ok, recovering, unavailable
	Repositories int    `json:"repositories"`
	Tags         int    `json:"tags"`
	Manifests    int    `json:"manifests"`
	Blobs        int    `json:"blobs"`
	UsedBytes    int64  `json:"usedBytes"`
	FreeBytes    int64  `json:"freeBytes"`
}

// ConfigStatus is which document is in force.
type ConfigStatus struct {
	Source  string       `json:"source"` // file, twin, last-good, default
	Applied time.Time    `json:"applied,omitzero"`
	Errors  []FieldError `json:"errors,omitempty"`
}

// FieldError is one field of the configuration document that is not in force, and why.
type FieldError struct {
	Path    string `json:"path"`    // for example parent.syncProperties.schedule
	Message string `json:"message"` // what is wrong and what is accepted
}

// Error returns path and message, or the message alone where it is about the document as a whole.
func (e FieldError) Error() string {
	if e.Path == "" {
		return e.Message
	}
	return e.Path + ": " + e.Message
}

// RepositoryState is one repository in scope: which tags stand as at the parent, and which do not and why.
type RepositoryState struct {
	Repository  string     `json:"repository"`
	Tags        int        `json:"tags"`
	BytesBehind int64      `json:"bytesBehind,omitempty"` // that its tags still need, as far as known
	Behind      []TagState `json:"behind,omitempty"`      // every other tag is in sync
}

// TagState is one tag that is not in sync.
type TagState struct {
	Tag    string `json:"tag"`
	Digest Digest `json:"digest,omitempty"` // the parent's
	Bytes  int64  `json:"bytes,omitempty"`  // that are not here yet, once known
	Error  string `json:"error,omitempty"`

	NextAttempt time.Time `json:"nextAttempt,omitzero"` // of a tag that failed; zero is with the next iteration
}
