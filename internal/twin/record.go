package twin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// ErrStale is in the error of a Document whose twin is not to be used: it is older than what is in force, or empty.
var ErrStale = errors.New("the twin is not the newest")

// Record is the last good document with what tells a newer twin from an older one. It is kept in the store, and is what
// a start without network uses.
type Record struct {
	Generation string          `json:"generation,omitempty"` // of the module's identity; empty for a file
	Version    int64           `json:"version,omitempty"`    // $version of the desired properties; 0 for a file
	Raw        json.RawMessage `json:"raw"`
}

// EncodeRecord returns the record as it is kept. Raw must be JSON.
func EncodeRecord(r Record) ([]byte, error) { return json.Marshal(r) }

// DecodeRecord reads what EncodeRecord wrote. A bare document, as earlier versions kept it, is a record without version.
func DecodeRecord(body []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(body, &r); err != nil {
		return Record{}, err
	}
	if r.Raw == nil {
		return Record{Raw: bytes.Clone(body)}, nil
	}
	return r, nil
}

// RecordOf returns the record of a document.
func RecordOf(d Document) Record {
	return Record{Generation: d.Generation, Version: d.Version, Raw: d.Raw}
}

// ParseTwin reads what edgeHub answers to a request for the twin. Properties whose name starts with $ belong to the
// twin's service: $version is the record's, the others are left out. reported is what the cloud, or edgeHub's memory,
// has of our reported properties.
func ParseTwin(body []byte, generation string) (r Record, reported map[string]any, err error) {
	var in struct {
		Desired  map[string]json.RawMessage `json:"desired"`
		Reported map[string]any             `json:"reported"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return Record{}, nil, fmt.Errorf("twin: %w", err)
	}
	r.Generation = generation
	if raw, ok := in.Desired["$version"]; ok {
		if err := json.Unmarshal(raw, &r.Version); err != nil {
			return Record{}, nil, errors.New("twin: desired.$version is not a whole number")
		}
	}
	for key, raw := range in.Desired {
		if strings.HasPrefix(key, "$") || string(raw) == "null" {
			delete(in.Desired, key)
		}
	}
	for key := range in.Reported {
		if strings.HasPrefix(key, "$") {
			delete(in.Reported, key)
		}
	}
	if len(in.Desired) > 0 {
		r.Raw, err = json.Marshal(in.Desired)
	}
	return r, in.Reported, err
}

// Accept decides whether a twin replaces the last good document. nil is yes; an error says why not, and is ErrStale.
//
// An edgeHub that never met its cloud answers with an empty twin without version, and one that lost its link with what
// it remembers, so neither may be taken for an order to delete everything. A lower version is such a memory, unless the
// module was made anew: then versions begin again.
func Accept(last, got Record) error {
	stale := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrStale, fmt.Sprintf(format, args...))
	}
	switch {
	case got.Version <= 0:
		return stale("it has no version: edgeHub has not reached the cloud yet")
	case len(got.Raw) == 0:
		return stale("version %d has no desired properties", got.Version)
	case got.Generation == last.Generation && got.Version < last.Version:
		return stale("version %d is older than version %d, which is in force: edgeHub answers from its memory", got.Version, last.Version)
	}
	return nil
}
