package registry

import (
	"fmt"
	"strings"
)

// Mode says whether clients may change content here.
type Mode string

// The modes of a connected registry.
const (
	ReadOnly  Mode = "ReadOnly"
	ReadWrite Mode = "ReadWrite"
)

// ParseMode accepts the two modes in any case and their old names Mirror and Registry.
func ParseMode(s string) (Mode, error) {
	switch strings.ToLower(s) {
	case "readonly", "mirror":
		return ReadOnly, nil
	case "readwrite", "registry":
		return ReadWrite, nil
	}
	return "", fmt.Errorf("mode %q: want ReadOnly or ReadWrite", clip(s))
}

// ConnectionState is how the registry stands towards its parent (ARM connectedRegistries, connectionState).
type ConnectionState string

// Online is connected and healthy; Syncing is Online with a sync iteration under way; Offline has no parent;
// Unhealthy is connected with critical errors, see Status.StatusDetails.
const (
	Online    ConnectionState = "Online"
	Offline   ConnectionState = "Offline"
	Syncing   ConnectionState = "Syncing"
	Unhealthy ConnectionState = "Unhealthy"
)

// SyncState is the result of a sync iteration (ARM registrySyncResult.syncState).
type SyncState string

// The sync states.
const (
	SyncNotActivated SyncState = "NotActivated"
	SyncPending      SyncState = "Pending"
	SyncSyncing      SyncState = "Syncing"
	SyncSucceeded    SyncState = "Succeeded"
	SyncFailed       SyncState = "Failed"
	SyncTimedOut     SyncState = "TimedOut"
)

// SyncTrigger is why a sync iteration ran (ARM registrySyncResult.syncTrigger).
type SyncTrigger string

// The sync triggers. An iteration that the schedule started has none of ARM's; it leaves the field out.
const (
	TriggerInitialSync     SyncTrigger = "InitialSync"
	TriggerManualResync    SyncTrigger = "ManualResync"
	TriggerSyncTokenUpdate SyncTrigger = "SyncTokenUpdate"
	TriggerRecoveryService SyncTrigger = "RecoveryService"
)

// ParentKind is what kind of registry the parent turned out to be.
type ParentKind string

// The kinds of parent. They are found out by asking, never configured.
const (
	KindUnknown   ParentKind = ""
	KindConnected ParentKind = "connected" // one of ours: /v2/_connected/v1/ answers
	KindACR       ParentKind = "acr"       // Azure Container Registry: /acr/v1 answers
	KindOCI       ParentKind = "oci"       // any other registry
)
