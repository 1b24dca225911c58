package edgesim

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"reflect"
	"strings"
	"time"
)

// Twin is a module's twin. Numbers are json.Number. Version 0 is a twin that nobody has stored.
type Twin struct {
	Desired         map[string]any
	DesiredVersion  int64
	Reported        map[string]any
	ReportedVersion int64
}

func (t Twin) clone() Twin {
	t.Desired, t.Reported = cloneObject(t.Desired), cloneObject(t.Reported)
	return t
}

// document renders a twin as edgeHub answers a GET: $version only where there is one.
func (t Twin) document() []byte {
	doc, err := json.Marshal(map[string]any{
		"desired":  withVersion(t.Desired, t.DesiredVersion),
		"reported": withVersion(t.Reported, t.ReportedVersion),
	})
	if err != nil { // a twin is made of decoded JSON
		return []byte(`{"desired":{},"reported":{}}`)
	}
	return doc
}

func withVersion(properties map[string]any, version int64) map[string]any {
	out := map[string]any{}
	maps.Copy(out, properties)
	if version > 0 {
		out["$version"] = version
	}
	return out
}

// mergePatch applies a patch as IoT Hub does: null deletes, objects merge, all else (arrays too) is replaced. Names
// that begin with $ are the service's and ignored.
func mergePatch(doc, patch map[string]any) map[string]any {
	out := cloneObject(doc)
	for k, v := range patch {
		if strings.HasPrefix(k, "$") {
			continue
		}
		switch v := v.(type) {
		case nil:
			delete(out, k)
		case map[string]any:
			below, _ := out[k].(map[string]any)
			out[k] = mergePatch(below, v)
		default:
			out[k] = cloneValue(v)
		}
	}
	return out
}

// diffPatch returns the patch that makes to of from.
func diffPatch(from, to map[string]any) map[string]any {
	patch := map[string]any{}
	for k, v := range to {
		was, ok := from[k]
		a, isObject := was.(map[string]any)
		b, becomesObject := v.(map[string]any)
		switch {
		case ok && isObject && becomesObject:
			if below := diffPatch(a, b); len(below) > 0 {
				patch[k] = below
			}
		case !ok || !reflect.DeepEqual(was, v):
			patch[k] = cloneValue(v)
		}
	}
	for k := range from {
		if _, ok := to[k]; !ok {
			patch[k] = nil
		}
	}
	return patch
}

func cloneObject(o map[string]any) map[string]any {
	out := make(map[string]any, len(o))
	for k, v := range o {
		out[k] = cloneValue(v)
	}
	return out
}

func cloneValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		return cloneObject(v)
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = cloneValue(item)
		}
		return out
	default:
		return v
	}
}

// decodeObject reads one JSON object and keeps numbers as they are written.
func decodeObject(doc []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var o map[string]any
	if err := d.Decode(&o); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	if o == nil {
		return nil, errors.New("not a JSON object")
	}
	return o, nil
}

// toObject turns any value that renders as a JSON object into one with json.Number.
func toObject(v any) (map[string]any, error) {
	if raw, ok := v.(json.RawMessage); ok {
		return decodeObject(raw)
	}
	doc, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return decodeObject(doc)
}

// cloudTwin is a twin in IoT Hub.
type cloudTwin struct {
	Twin
	tags map[string]any
	etag int
}

// cachedTwin is what edgeHub has stored of a twin.
type cachedTwin struct {
	Twin
	synced time.Time // when it was last fetched from the cloud; zero when never
}
