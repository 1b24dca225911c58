package twin_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

// at follows a path of keys in properties, as JSON has them.
func at(t *testing.T, p map[string]any, path string) any {
	t.Helper()
	body, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		t.Fatal(err)
	}
	for key := range strings.SplitSeq(path, ".") {
		o, _ := v.(map[string]any)
		v = o[key]
	}
	return v
}

func TestReportedNames(t *testing.T) {
	now := time.Date(2026, 11, 21, 22, 30, 45, 999, time.FixedZone("", 3600))
	s := registry.Status{
		Name: "linea", InstanceID: "0b1d", Version: "0.1.0", Mode: registry.ReadWrite, ConnectionState: registry.Online, LastActivityTime: now,
		Activation:  registry.Activation{Status: registry.Active},
		LoginServer: registry.LoginServer{Host: "edge:8000", TLS: registry.LoginServerTLS{Status: "Disabled"}},
		Parent:      registry.ParentStatus{GatewayEndpoint: "edge-l5:8000", Protocol: "https", Kind: registry.KindConnected},
		Sync: registry.SyncStatus{
			SyncTrigger: registry.TriggerInitialSync, SyncState: registry.SyncSucceeded, LastSyncStartTime: now, LastSyncEndTime: now, LastSuccessfulSyncEndTime: now,
		},
		StatusDetails: []registry.StatusDetail{{Type: "Disk", Code: "DiskError", Description: "No space left on device.", Timestamp: now, CorrelationID: "73a46395"}},
		Storage:       registry.StorageStatus{State: "ok", Repositories: 12, Tags: 40, Manifests: 50, Blobs: 210, UsedBytes: 5<<30 + 17, FreeBytes: 1<<33 + 99},
		Outbox:        &registry.OutboxStatus{Pending: 3, Bytes: 1 << 20, Oldest: now},
		Configuration: registry.ConfigStatus{Source: "twin", Applied: now},
	}
	p := twin.Reported(s, map[string]twin.Ack{
		"mode":    {Value: "ReadWrite", Code: twin.AckApplied, Version: 7},
		"storage": {Value: "0a1b2c3d", Code: twin.AckInvalid, Version: 7, Description: "storage.maxMiB: want a whole number"},
	})
	for path, want := range map[string]any{
		"connectionState": "Online", "activation.status": "Active", "mode.value": "ReadWrite", "mode.ac": 200.0, "mode.av": 7.0, "mode.ad": nil,
		"parent.gatewayEndpoint": "edge-l5:8000", "parent.kind": "connected", "parent.syncProperties.lastSyncTime": "2026-11-21T21:30:45Z",
		"registrySyncResult.syncState": "Succeeded", "registrySyncResult.syncTrigger": "InitialSync",
		"registrySyncResult.lastSyncStartTime": "2026-11-21T21:30:45Z", "registrySyncResult.lastSuccessfulSyncEndTime": "2026-11-21T21:30:45Z",
		"loginServer.host": "edge:8000", "loginServer.tls.status": "Disabled", "lastActivityTime": "2026-11-21T21:30:00Z",
		"storage.state": "ok", "storage.usedBytes": float64(5 << 30), "storage.freeBytes": float64(1 << 33), "storage.ac": 400.0,
		"storage.ad": "storage.maxMiB: want a whole number", "storage.value": "0a1b2c3d",
		"outbox.pending": 3.0, "outbox.bytes": float64(1 << 20), "version": "0.1.0", "instanceId": "0b1d", "configuration.source": "twin",
	} {
		if got := at(t, p, path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	details, _ := json.Marshal(p["statusDetails"])
	if want := `[{"code":"DiskError","correlationId":"73a46395","description":"No space left on device.","timestamp":"2026-11-21T21:30:45Z","type":"Disk"}]`; string(details) != want {
		t.Errorf("statusDetails: %s", details)
	}
	healthy := twin.Reported(registry.Status{}, nil)
	for _, absent := range []string{"statusDetails", "outbox", "activation", "loginServer"} {
		if _, ok := healthy[absent]; ok {
			t.Errorf("%s of a status without it: %v", absent, healthy[absent])
		}
	}
}

// What is too much goes in the documented order, and what is most important stays.
func TestReportedDropsListsBeforeFacts(t *testing.T) {
	s := registry.Status{Name: "linea", ConnectionState: registry.Unhealthy, Mode: registry.ReadOnly}
	for i := range 60 {
		s.StatusDetails = append(s.StatusDetails, registry.StatusDetail{Type: "Sync", Code: fmt.Sprintf("C%d", i), Description: strings.Repeat("d", 4000)})
	}
	acks := map[string]twin.Ack{"mode": {Value: "ReadOnly", Code: 200, Version: 1}}
	for _, name := range []string{"parent", "repositories", "transfer", "serve", "scopeMaps", "clientTokens", "notifications", "storage", "logging"} {
		acks[name] = twin.Ack{Value: "01234567", Code: 400, Version: 1, Description: strings.Repeat("e", 500)}
	}
	p := twin.Reported(s, acks)
	details, _ := p["statusDetails"].([]any)
	if len(details) == 0 || len(details) >= 60 {
		t.Errorf("%d details", len(details))
	}
	if at(t, p, "connectionState") != "Unhealthy" || at(t, p, "logging.ac") != 400.0 || at(t, p, "logging.value") != "01234567" || at(t, p, "logging.ad") == nil {
		t.Errorf("facts and acknowledgements went before the list: %v", p)
	}
	if first, _ := details[0].(map[string]any); first["code"] != "C0" {
		t.Errorf("the first detail is %v", first["code"])
	}
}

// Characters that JSON writes with six bytes are no reason for a report that is too large.
func TestReportedOfControlCharacters(t *testing.T) {
	long := strings.Repeat("\x00", 9000)
	s := registry.Status{
		Name: long, InstanceID: long, Version: long, ConnectionState: registry.ConnectionState(long), LoginServer: registry.LoginServer{Host: long},
		Parent: registry.ParentStatus{GatewayEndpoint: long}, Sync: registry.SyncStatus{Error: long}, Outbox: &registry.OutboxStatus{Error: long},
	}
	body, err := json.Marshal(twin.Reported(s, nil))
	if err != nil || len(body) > twin.MaxReported {
		t.Errorf("%d bytes, %v", len(body), err)
	}
	if s.Outbox.Error != long {
		t.Error("the arguments were changed")
	}
}

// Always: at most 8 KiB, the hub's rules for strings, numbers, names and arrays, and the arguments are as they were.
func TestReportedFitsAlways(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.OneOf(rapid.String(), rapid.Custom(func(t *rapid.T) string {
			return strings.Repeat(rapid.SampledFrom([]string{"a", "é", "\x00", "\"", "<", "\xff"}).Draw(t, "unit"), rapid.IntRange(0, 9000).Draw(t, "n"))
		}))
		number := rapid.OneOf(rapid.Int64(), rapid.SampledFrom([]int64{1<<53 + 1, -1 << 63, 1<<63 - 1}))
		s := registry.Status{
			Name: word.Draw(t, "name"), InstanceID: word.Draw(t, "instance"), Version: word.Draw(t, "version"), Mode: registry.Mode(word.Draw(t, "mode")),
			ConnectionState: registry.ConnectionState(word.Draw(t, "state")), Parent: registry.ParentStatus{GatewayEndpoint: word.Draw(t, "parent")},
			Sync: registry.SyncStatus{Error: word.Draw(t, "error")}, LoginServer: registry.LoginServer{Host: word.Draw(t, "host")},
			Storage: registry.StorageStatus{UsedBytes: number.Draw(t, "used"), Blobs: int(number.Draw(t, "blobs"))},
		}
		if rapid.Bool().Draw(t, "outbox") {
			s.Outbox = &registry.OutboxStatus{Bytes: number.Draw(t, "bytes"), Error: word.Draw(t, "outbox error")}
		}
		for range rapid.IntRange(0, 40).Draw(t, "details") {
			s.StatusDetails = append(s.StatusDetails, registry.StatusDetail{Type: word.Draw(t, "type"), Description: word.Draw(t, "description")})
		}
		acks := map[string]twin.Ack{}
		for i := range rapid.IntRange(0, 60).Draw(t, "acks") {
			name := rapid.OneOf(rapid.SampledFrom([]string{"mode", "parent", "storage", "logging", "a.b", "$x", "connectionState"}), rapid.Just(fmt.Sprintf("section%d", i))).Draw(t, "section")
			acks[name] = twin.Ack{Value: word.Draw(t, "value"), Code: 400, Version: number.Draw(t, "av"), Description: word.Draw(t, "ad")}
		}
		before := fmt.Sprint(acks, s)
		p := twin.Reported(s, acks)
		if fmt.Sprint(acks, s) != before {
			t.Fatal("the arguments were changed")
		}
		body, err := json.Marshal(p)
		if err != nil || len(body) > twin.MaxReported {
			t.Fatalf("%d bytes, %v", len(body), err)
		}
		var v any
		decoder := json.NewDecoder(strings.NewReader(string(body)))
		decoder.UseNumber()
		if err := decoder.Decode(&v); err != nil {
			t.Fatal(err)
		}
		valid(t, v, 0)
	})
}

// valid checks edgeHub's rules for reported properties.
func valid(t *rapid.T, v any, depth int) {
	if depth > 10 {
		t.Fatal("too deep")
	}
	switch v := v.(type) {
	case map[string]any:
		for k, inner := range v {
			if k == "" || len(k) > 1024 || strings.ContainsAny(k, ".$# \x00") {
				t.Fatalf("name %q", k)
			}
			valid(t, inner, depth+1)
		}
	case []any:
		for _, inner := range v {
			if inner == nil {
				t.Fatal("null in an array")
			}
			valid(t, inner, depth+1)
		}
	case string:
		if len(v) > 4096 {
			t.Fatalf("string of %d bytes", len(v))
		}
	case json.Number:
		n, err := v.Int64()
		if err != nil || n > 1<<52 || n < -1<<52 {
			t.Fatalf("number %s", v)
		}
	}
}

func TestAcknowledge(t *testing.T) {
	doc := twin.Document{Version: 7, Generation: "g", Raw: []byte(`{"mode":"ReadWrite","storage":{"maxMiB":-1},"logging":null,"parent":{"gatewayEndpoint":"edge-l5:8000"},"serve":{"pullThrough":false}}`)}
	c, errs := twin.Parse(doc.Raw, twin.ParseOptions{})
	acks := twin.Acknowledge(doc, c, errs)
	for name, want := range map[string]twin.Ack{
		"mode": {Value: "ReadWrite", Code: twin.AckApplied, Version: 7}, "parent": {Value: "edge-l5:8000", Code: twin.AckApplied, Version: 7},
	} {
		if acks[name] != want {
			t.Errorf("%s: %+v, want %+v", name, acks[name], want)
		}
	}
	for name, code := range map[string]int{"serve": 200, "storage": 400, "logging": 203, "repositories": 203, "clientTokens": 203} {
		a := acks[name]
		sum, ok := a.Value.(string)
		if a.Code != code || a.Version != 7 || !ok || len(sum) != 8 || (a.Description != "") != (code == 400) {
			t.Errorf("%s: %+v, want code %d", name, a, code)
		}
	}
	if !strings.HasPrefix(acks["storage"].Description, "storage.maxMiB: ") {
		t.Errorf("storage: %q", acks["storage"].Description)
	}
	if len(acks) != 12 {
		t.Errorf("%d sections", len(acks))
	}
	other, _ := twin.Parse([]byte(`{"serve":{"pullThrough":true}}`), twin.ParseOptions{})
	if twin.Acknowledge(doc, other, nil)["serve"].Value == acks["serve"].Value {
		t.Error("two different sections have one value")
	}
	broken := twin.Document{Version: 8, Raw: []byte(`{"schemaVersion":"9.0"}`)}
	c, errs = twin.Parse(broken.Raw, twin.ParseOptions{})
	for name, a := range twin.Acknowledge(broken, c, append(errs, registry.FieldError{Message: "whole"})) {
		if a.Code != 400 {
			t.Errorf("%s of a document that cannot be read: %+v", name, a)
		}
	}
}
