package twin

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Limits of reported properties. edgeHub allows more (32 KB); a report goes over a link that is paid for.
const (
	MaxReported    = 8 << 10 // bytes of JSON
	maxDescription = 512     // bytes of a text that a person reads
	maxInteger     = 1 << 52 // IoT Hub's limit; a number is a double there
)

// Codes of an Ack, those of IoT Plug and Play's writable properties.
const (
	AckApplied  = 200
	AckPending  = 202 // accepted and in progress
	AckDefault  = 203 // the document does not have it; the default is in force
	AckInvalid  = 400 // the old value stays in force
	AckConflict = 409 // does not fit the parent; the old value stays in force
)

// Ack acknowledges a section of the document.
type Ack struct {
	Value       any    // in force: a string, a number or a flag
	Code        int    // ac
	Version     int64  // av, $version of the desired properties that it answers
	Description string // ad; empty when all is well
}

func (a Ack) properties() map[string]any {
	p := map[string]any{"ac": a.Code, "av": a.Version}
	if a.Value != nil {
		p["value"] = a.Value
	}
	if a.Description != "" {
		p["ad"] = a.Description
	}
	return p
}

// Acknowledge makes the acknowledgements of a document that Parse has read: 200 for a section that applies, 203 for one
// that the document leaves out, 400 for one with errors, whose old value is in c. The value of mode is the mode, of
// parent its endpoint, of any other section the first 8 hexadecimal digits of the SHA-256 of what is in force, so that
// two registries can be compared.
func Acknowledge(d Document, c registry.Config, errs []registry.FieldError) map[string]Ack {
	var given, inForce map[string]json.RawMessage
	_ = json.Unmarshal(d.Raw, &given) // a document that is no JSON has its error in errs
	if body, err := Marshal(c); err == nil {
		_ = json.Unmarshal(body, &inForce) // our own JSON
	}
	acks := map[string]Ack{}
	for _, s := range sections {
		sum := sha256.Sum256(inForce[s.name])
		a := Ack{Value: hex.EncodeToString(sum[:4]), Code: AckDefault, Version: d.Version}
		switch s.name {
		case "mode":
			a.Value = string(c.Mode)
		case "parent":
			a.Value = c.Parent.GatewayEndpoint
		}
		if raw, ok := given[s.name]; ok && string(raw) != "null" {
			a.Code = AckApplied
		}
		for _, e := range errs {
			if e.Path != "" && e.Path != s.name && !strings.HasPrefix(e.Path, s.name+".") {
				continue
			}
			a.Code = AckInvalid
			if a.Description != "" {
				a.Description += "; "
			}
			a.Description += e.Error()
		}
		acks[s.name] = a
	}
	return acks
}

// Reported makes the reported properties of a status, with ACR's names, and of the acknowledgements by section. It has
// at most MaxReported bytes as JSON and keeps the hub's rules: strings of at most 4096 bytes, whole numbers within
// 2^52, no null in an array. What does not fit goes in this order: the details of what is wrong from the last to the
// first, the texts of the acknowledgements, their values, the ends of the longest facts.
//
// Figures that change with every request are rounded, so that traffic alone makes no report.
func Reported(status registry.Status, acks map[string]Ack) map[string]any {
	details := make([]any, 0, len(status.StatusDetails))
	for _, d := range status.StatusDetails {
		details = append(details, filled(map[string]any{
			"type": text(d.Type, 64), "code": text(d.Code, 64), "description": text(d.Description, maxDescription),
			"timestamp": moment(d.Timestamp, time.Second), "correlationId": text(d.CorrelationID, 64),
		}))
	}
	bounded := map[string]Ack{}
	for name, a := range acks {
		if s, ok := a.Value.(string); ok {
			a.Value = text(s, maxDescription)
		}
		a.Description = text(a.Description, maxDescription)
		a.Version = whole(a.Version)
		if keyPattern().MatchString(name) {
			bounded[name] = a
		}
	}
	for {
		p := facts(status)
		if len(details) > 0 {
			p["statusDetails"] = details
		}
		addAcks(p, bounded)
		if size(p) <= MaxReported || !shrink(&details, bounded) && !shorten(&status) {
			return p
		}
	}
}

// shorten cuts the texts that are longest among the facts, whose characters JSON may write with six bytes each, and reports
// whether there was one to cut.
func shorten(s *registry.Status) bool {
	long := []*string{&s.Sync.Error, &s.LoginServer.Host, &s.Parent.GatewayEndpoint}
	if s.Outbox != nil {
		outbox := *s.Outbox // the caller's stays as it is
		s.Outbox = &outbox
		long = append(long, &outbox.Error)
	}
	cut := false
	for _, t := range long {
		if len(*t) > 64 {
			*t, cut = text(*t, 64), true
		}
	}
	return cut
}

// shrink makes the report smaller by one step, and reports whether there was one.
func shrink(details *[]any, acks map[string]Ack) bool {
	if n := len(*details); n > 1 { // one detail says at least that something is wrong
		*details = (*details)[:n-1]
		return true
	}
	names := sortedKeys(acks)
	slices.SortStableFunc(names, func(a, b string) int { return len(acks[b].Description) - len(acks[a].Description) })
	for _, name := range names {
		a := acks[name]
		switch {
		case len(a.Description) > 64:
			a.Description = text(a.Description, 64)
		case a.Description != "":
			a.Description = ""
		default:
			continue
		}
		acks[name] = a
		return true
	}
	for _, name := range sortedKeys(acks) {
		if a := acks[name]; a.Value != nil {
			a.Value = nil
			acks[name] = a
			return true
		}
	}
	for _, name := range slices.Backward(sortedKeys(acks)) { // more sections than there are: not ours
		delete(acks, name)
		return true
	}
	if len(*details) == 1 {
		*details = nil
		return true
	}
	return false
}

// addAcks puts the acknowledgements in place, beside the facts where a section and a fact share their name.
func addAcks(p map[string]any, acks map[string]Ack) {
	for name, a := range acks {
		o, ok := p[name].(map[string]any)
		if !ok {
			o = map[string]any{}
			p[name] = o
		}
		for k, v := range a.properties() {
			o[k] = v
		}
	}
}

// facts are the properties that are always there.
func facts(s registry.Status) map[string]any {
	p := map[string]any{
		"schemaVersion":    SchemaVersion,
		"name":             text(s.Name, 64),
		"version":          text(s.Version, 64),
		"instanceId":       text(s.InstanceID, 64),
		"connectionState":  text(string(s.ConnectionState), 64),
		"lastActivityTime": moment(s.LastActivityTime, time.Minute),
		"mode":             map[string]any{"value": text(string(s.Mode), 64)},
		"activation":       filled(map[string]any{"status": text(string(s.Activation.Status), 64)}),
		"loginServer": filled(map[string]any{
			"host": text(s.LoginServer.Host, 256), "tls": filled(map[string]any{"status": text(s.LoginServer.TLS.Status, 64)}),
		}),
		"parent": filled(map[string]any{
			"gatewayEndpoint": text(s.Parent.GatewayEndpoint, 256), "protocol": text(s.Parent.Protocol, 64),
			"kind": text(string(s.Parent.Kind), 64), "mode": text(string(s.Parent.Mode), 64), "instanceId": text(s.Parent.InstanceID, 64),
			"syncProperties": filled(map[string]any{"lastSyncTime": moment(s.Sync.LastSuccessfulSyncEndTime, time.Second)}),
		}),
		"registrySyncResult": filled(map[string]any{
			"syncTrigger": text(string(s.Sync.SyncTrigger), 64), "syncState": text(string(s.Sync.SyncState), 64),
			"lastSyncStartTime": moment(s.Sync.LastSyncStartTime, time.Second), "lastSyncEndTime": moment(s.Sync.LastSyncEndTime, time.Second),
			"lastSuccessfulSyncEndTime": moment(s.Sync.LastSuccessfulSyncEndTime, time.Second), "error": text(s.Sync.Error, maxDescription),
		}),
		"storage": filled(map[string]any{
			"state": text(s.Storage.State, 64), "repositories": whole(int64(s.Storage.Repositories)), "tags": whole(int64(s.Storage.Tags)),
			"manifests": whole(int64(s.Storage.Manifests)), "blobs": whole(int64(s.Storage.Blobs)),
			"usedBytes": whole(s.Storage.UsedBytes &^ (1<<20 - 1)), "freeBytes": whole(s.Storage.FreeBytes &^ (1<<26 - 1)),
		}),
		"configuration": filled(map[string]any{
			"source": text(s.Configuration.Source, 64), "applied": moment(s.Configuration.Applied, time.Second),
			"errors": whole(int64(len(s.Configuration.Errors))),
		}),
	}
	if o := s.Outbox; o != nil {
		p["outbox"] = filled(map[string]any{
			"pending": whole(int64(o.Pending)), "bytes": whole(o.Bytes), "oldest": moment(o.Oldest, time.Second), "error": text(o.Error, maxDescription),
		})
	}
	return filled(p)
}

// filled leaves out what is empty: an absent property says as much, and takes no room.
func filled(p map[string]any) map[string]any {
	for k, v := range p {
		switch v := v.(type) {
		case string:
			if v == "" {
				delete(p, k)
			}
		case map[string]any:
			if len(v) == 0 {
				delete(p, k)
			}
		}
	}
	return p
}

// text bounds a string.
func text(s string, limit int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit-3], "") + "..."
}

// moment is a time as a string; none is empty.
func moment(t time.Time, precision time.Duration) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Truncate(precision).Format(time.RFC3339)
}

// whole bounds a number.
func whole(n int64) int64 { return max(-maxInteger, min(maxInteger, n)) }

// size is how many bytes p has as JSON.
func size(p map[string]any) int {
	body, err := json.Marshal(p)
	if err != nil { // a value of an Ack that is no JSON, such as a channel
		return math.MaxInt
	}
	return len(body)
}
