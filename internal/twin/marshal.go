package twin

import (
	"encoding/hex"
	"encoding/json"
	"strconv"
	"time"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/schedule"
)

// document is the configuration as JSON, in the order in which it is documented.
type document struct {
	SchemaVersion     string                       `json:"schemaVersion"`
	Mode              registry.Mode                `json:"mode"`
	Parent            parentDocument               `json:"parent"`
	Repositories      map[string]any               `json:"repositories"`
	Transfer          transferDocument             `json:"transfer"`
	Serve             serveDocument                `json:"serve"`
	ScopeMaps         map[string]any               `json:"scopeMaps"`
	ClientTokens      map[string]map[string]string `json:"clientTokens"`
	Children          map[string]map[string]any    `json:"connectedRegistries,omitempty"`
	Notifications     map[string]string            `json:"notifications"`
	GarbageCollection collectionDocument           `json:"garbageCollection"`
	Storage           storageDocument              `json:"storage"`
	Logging           loggingDocument              `json:"logging"`
}

type parentDocument struct {
	GatewayEndpoint string       `json:"gatewayEndpoint"`
	Protocol        string       `json:"protocol"`
	SyncProperties  syncDocument `json:"syncProperties"`
}

type syncDocument struct {
	Schedule   string `json:"schedule"`
	SyncWindow string `json:"syncWindow,omitempty"`
	MessageTTL string `json:"messageTtl"`
	Conflict   string `json:"conflict"`
}

type transferDocument struct {
	MaxKiBps int `json:"maxKiBps"`
	Parallel int `json:"parallel"`
	ChunkKiB int `json:"chunkKiB"`

	Rates  map[string]string `json:"rates,omitempty"`
	Budget budgetDocument    `json:"budget,omitzero"`
}

type budgetDocument struct {
	HourMiB  int `json:"hourMiB"`
	DayMiB   int `json:"dayMiB"`
	MonthMiB int `json:"monthMiB"`
}

type serveDocument struct {
	PullThrough bool `json:"pullThrough"`
}

type collectionDocument struct {
	Enabled  bool   `json:"enabled"`
	Schedule string `json:"schedule"`
}

type storageDocument struct {
	MaxMiB     int `json:"maxMiB"`
	ReserveMiB int `json:"reserveMiB"`
}

type loggingDocument struct {
	LogLevel       string `json:"logLevel"`
	AuditLogStatus string `json:"auditLogStatus"`
}

// Marshal returns the document of a configuration: Parse of it gives the configuration again. Expanded environment
// variables stay expanded, so what was received is what to keep, and this is what to show.
func Marshal(c registry.Config) ([]byte, error) {
	d := document{
		SchemaVersion: c.SchemaVersion,
		Mode:          c.Mode,
		Parent: parentDocument{
			GatewayEndpoint: c.Parent.GatewayEndpoint,
			Protocol:        c.Parent.Protocol,
			SyncProperties: syncDocument{
				Schedule:   c.Parent.SyncProperties.Schedule,
				MessageTTL: schedule.FormatDuration(c.Parent.SyncProperties.MessageTTL),
				Conflict:   string(c.Parent.SyncProperties.Conflict),
			},
		},
		Repositories:      map[string]any{},
		Transfer:          marshalTransfer(c.Transfer),
		Serve:             serveDocument(c.Serve),
		ScopeMaps:         map[string]any{},
		ClientTokens:      map[string]map[string]string{},
		Notifications:     c.Notifications,
		GarbageCollection: collectionDocument(c.GarbageCollection),
		Storage:           storageDocument(c.Storage),
		Logging:           loggingDocument(c.Logging),
	}
	if w := c.Parent.SyncProperties.SyncWindow; w > 0 {
		d.Parent.SyncProperties.SyncWindow = schedule.FormatDuration(w)
	}
	for group, scope := range c.Repositories {
		rules := make([]string, len(scope))
		for i, rule := range scope {
			rules[i] = rule.String()
		}
		d.Repositories[group] = hierarchy.Words(rules)
	}
	for name, actions := range c.ScopeMaps {
		d.ScopeMaps[name] = hierarchy.Words(actions)
	}
	for name, child := range c.Children {
		if d.Children == nil {
			d.Children = map[string]map[string]any{}
		}
		d.Children[name] = map[string]any{"clientTokens": hierarchy.Words(child.ClientTokens)}
	}
	for name, token := range c.ClientTokens {
		d.ClientTokens[name] = marshalToken(token)
	}
	return json.MarshalIndent(d, "", "  ")
}

func marshalTransfer(c registry.TransferConfig) transferDocument {
	d := transferDocument{MaxKiBps: c.MaxKiBps, Parallel: c.Parallel, ChunkKiB: c.ChunkKiB, Budget: budgetDocument(c.Budget)}
	for name, w := range c.Rates {
		if d.Rates == nil {
			d.Rates = map[string]string{}
		}
		d.Rates[name] = w.String()
	}
	return d
}

func marshalToken(t registry.ClientToken) map[string]string {
	m := map[string]string{"scopeMap": t.ScopeMap, "status": "disabled"}
	if t.Enabled {
		m["status"] = "enabled"
	}
	for i, p := range t.Passwords {
		n := strconv.Itoa(i + 1)
		m["password"+n] = "sha256:" + hex.EncodeToString(p.SHA256[:])
		if !p.Expiry.IsZero() {
			m["expiry"+n] = p.Expiry.UTC().Format(time.RFC3339Nano)
		}
	}
	return m
}
