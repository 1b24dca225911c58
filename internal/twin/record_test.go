package twin_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/twin"
)

func record(generation string, version int64, raw string) twin.Record {
	r := twin.Record{Generation: generation, Version: version}
	if raw != "" {
		r.Raw = json.RawMessage(raw)
	}
	return r
}

func TestAccept(t *testing.T) {
	for _, tt := range []struct {
		name      string
		last, got twin.Record
		stale     string
	}{
		{"the first", record("", 0, ""), record("g1", 1, `{"mode":"ReadOnly"}`), ""},
		{"newer", record("g1", 4, `{}`), record("g1", 5, `{"a":1}`), ""},
		{"the same", record("g1", 5, `{"a":1}`), record("g1", 5, `{"a":1}`), ""},
		{"newer by many", record("g1", 5, `{"a":1}`), record("g1", 500, `{"a":1}`), ""},
		{"older, same module", record("g1", 5, `{"a":1}`), record("g1", 4, `{"a":2}`), "version 4 is older than version 5"},
		{"older, module made anew", record("g1", 5, `{"a":1}`), record("g2", 1, `{"a":2}`), ""},
		{"after a file", record("", 0, `{"a":1}`), record("g1", 1, `{"a":2}`), ""},
		{"no version", record("g1", 5, `{"a":1}`), record("g1", 0, `{"a":2}`), "no version"},
		{"no version, module made anew", record("g1", 5, `{"a":1}`), record("g2", 0, `{"a":2}`), "no version"},
		{"empty, without version", record("g1", 5, `{"a":1}`), record("g1", 0, ""), "no version"},
		{"empty, with version", record("g1", 5, `{"a":1}`), record("g1", 6, ""), "no desired properties"},
		{"empty, module made anew", record("g1", 5, `{"a":1}`), record("g2", 1, ""), "no desired properties"},
		{"nothing before, nothing now", record("", 0, ""), record("g1", 0, ""), "no version"},
		{"a negative version", record("g1", 5, `{"a":1}`), record("g2", -1, `{"a":1}`), "no version"},
	} {
		err := twin.Accept(tt.last, tt.got)
		if tt.stale == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if !errors.Is(err, twin.ErrStale) || !strings.Contains(err.Error(), tt.stale) {
			t.Errorf("%s: %v, want stale with %q", tt.name, err, tt.stale)
		}
	}
}

func TestParseTwin(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		version    int64
		raw        string
		reported   map[string]any
		wrong      string
	}{
		{
			name: "a twin", body: `{"desired":{"mode":"ReadOnly","storage":{"maxMiB":1.50},"$version":7,"$metadata":{"$lastUpdated":"x"}},"reported":{"connectionState":"Online","$version":3}}`,
			version: 7, raw: `{"mode":"ReadOnly","storage":{"maxMiB":1.50}}`, reported: map[string]any{"connectionState": "Online"},
		},
		{name: "edgeHub without a cloud", body: `{"desired":{},"reported":{}}`, reported: map[string]any{}},
		{name: "only a version", body: `{"desired":{"$version":1},"reported":{"$version":1}}`, version: 1, reported: map[string]any{}},
		{name: "null is as good as absent", body: `{"desired":{"mode":null,"$version":2}}`, version: 2},
		{name: "null twin", body: `null`},
		{name: "large version", body: `{"desired":{"a":1,"$version":9007199254740993}}`, version: 9007199254740993, raw: `{"a":1}`},
		{name: "no JSON", body: `twin`, wrong: "twin: "},
		{name: "empty", body: ``, wrong: "twin: "},
		{name: "an array", body: `{"desired":[]}`, wrong: "twin: "},
		{name: "version of text", body: `{"desired":{"$version":"7"}}`, wrong: "$version"},
		{name: "version of a fraction", body: `{"desired":{"$version":7.5}}`, wrong: "$version"},
	} {
		r, reported, err := twin.ParseTwin([]byte(tt.body), "g1")
		if tt.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("%s: %v, want an error with %q", tt.name, err, tt.wrong)
			}
			continue
		}
		if err != nil || r.Version != tt.version || r.Generation != "g1" || string(r.Raw) != tt.raw || !reflect.DeepEqual(reported, tt.reported) {
			t.Errorf("%s: %+v (%s), %v, %v", tt.name, r, r.Raw, reported, err)
		}
	}
}

func TestRecordIsKept(t *testing.T) {
	for _, r := range []twin.Record{record("g1", 7, `{"mode":"ReadOnly"}`), record("", 0, `{"schemaVersion":"1.0","x":[1,null]}`)} {
		body, err := twin.EncodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		back, err := twin.DecodeRecord(body)
		if err != nil || !reflect.DeepEqual(back, r) {
			t.Errorf("%s: back %+v, %v", body, back, err)
		}
	}
	bare := `{"schemaVersion": "1.0", "mode": "ReadWrite"}`
	if r, err := twin.DecodeRecord([]byte(bare)); err != nil || string(r.Raw) != bare || r.Version != 0 || r.Generation != "" {
		t.Errorf("a document of an earlier version: %+v, %v", r, err)
	}
	if _, err := twin.DecodeRecord([]byte(`{"raw":`)); err == nil {
		t.Error("half a record is read")
	}
	if _, err := twin.EncodeRecord(twin.Record{Raw: json.RawMessage(`{`)}); err == nil {
		t.Error("what is no JSON is kept")
	}
	d := twin.Document{Raw: []byte(`{"a":1}`), Version: 3, Generation: "g"}
	if got := twin.RecordOf(d); !reflect.DeepEqual(got, record("g", 3, `{"a":1}`)) {
		t.Errorf("RecordOf: %+v", got)
	}
}
