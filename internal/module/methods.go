package module

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/store"
)

// maxPayload bounds what a method is given, in bytes: that of a direct method.
const maxPayload = 128 << 10

// method is one thing that the operator can ask of a running module: by the command line over the control socket, or
// by a direct method of IoT Hub. It returns what is sent back as JSON.
type method func(m *Module, ctx context.Context, payload []byte) (any, error)

// methods are the methods by name.
var methods = map[string]method{
	"sync":             (*Module).methodSync,
	"getStatus":        (*Module).methodGetStatus,
	"listRepositories": (*Module).methodListRepositories,
	"listClientTokens": (*Module).methodListClientTokens,
	"gc":               (*Module).methodGC,
	"getReadiness":     (*Module).methodGetReadiness,
	"deactivate":       (*Module).methodDeactivate,
	"activate":         (*Module).methodActivate,
	"list":             (*Module).methodList,
	"outboxList":       (*Module).methodOutboxList,
	"outboxRetry":      (*Module).methodOutboxRetry,
	"outboxDrop":       (*Module).methodOutboxDrop,
}

// Invoke runs a method. Errors: NAME_UNKNOWN for a method that there is not, MANIFEST_INVALID for a payload that is
// not of the method's form, UNAVAILABLE while the data volume is not open.
func (m *Module) Invoke(ctx context.Context, name string, payload []byte) (any, error) {
	f, ok := methods[name]
	if !ok {
		return nil, registry.ErrNameUnknown.WithMessage("there is no method %q", name)
	}
	select {
	case <-m.opened:
	default:
		if name != "getStatus" {
			return nil, registry.ErrUnavailable.WithMessage("the data volume is not open yet")
		}
	}
	out, err := f(m, ctx, payload)
	m.auditMethod(ctx, name, err)
	return out, err
}

// parsePayload reads a method's payload; nothing and null stand for the zero value.
func parsePayload(payload []byte, into any) error {
	if payload = bytes.TrimSpace(payload); len(payload) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return badPayload("payload: %v", err)
	}
	return nil
}

func badPayload(format string, args ...any) error {
	e := registry.ErrUnsupported.WithMessage(format, args...)
	e.Status = http.StatusBadRequest
	return e
}

// methodSync runs an iteration and returns the status after it, or with {"dryRun": true} what one would do.
func (m *Module) methodSync(ctx context.Context, payload []byte) (any, error) {
	var req struct {
		DryRun bool `json:"dryRun"`
	}
	if err := parsePayload(payload, &req); err != nil {
		return nil, err
	}
	if req.DryRun {
		return m.syncer.Preview(ctx)
	}
	if err := m.syncer.Sync(ctx); err != nil {
		return nil, registry.ErrUnavailable.WithMessage("%s", describe(err)).Wrap(err)
	}
	return m.Status(ctx), nil
}

func (m *Module) methodGetStatus(ctx context.Context, _ []byte) (any, error) {
	return m.Status(ctx), nil
}

// paging is the part of a method's payload that says which page of a list is wanted.
type paging struct {
	After string `json:"after"` // the name that the page before ended with
	Limit int    `json:"limit"` // 1 to registry.MaxPage
}

// firstPage is what is answered where nothing else is asked for.
var firstPage = paging{Limit: 100}

// page returns those of all, which are in order of their names, that are asked for, and the name to go on after; it is
// empty with the last page. It is never nil.
func page[T any](p paging, all []T, name func(T) string) (items []T, after string, err error) {
	if p.Limit < 1 || p.Limit > registry.MaxPage {
		return nil, "", badPayload("limit: %d, want 1 to %d", p.Limit, registry.MaxPage)
	}
	first := slices.IndexFunc(all, func(item T) bool { return name(item) > p.After })
	if first < 0 {
		return []T{}, "", nil
	}
	if items = all[first:]; len(items) > p.Limit {
		items = items[:p.Limit]
		after = name(items[p.Limit-1])
	}
	return items, after, nil
}

// methodListRepositories returns a page of repositories with their state: {"after": "name", "limit": 100}.
func (m *Module) methodListRepositories(ctx context.Context, payload []byte) (any, error) {
	req := firstPage
	if err := parsePayload(payload, &req); err != nil {
		return nil, err
	}
	var out struct {
		Repositories []registry.RepositoryState `json:"repositories"`
		After        string                     `json:"after,omitempty"` // ask again with this for the next page
	}
	var err error
	out.Repositories, out.After, err = page(req, m.Status(ctx).Repositories, func(r registry.RepositoryState) string { return r.Repository })
	if err != nil {
		return nil, err
	}
	return out, nil
}

// GCResult is what a collection freed, or would free.
type GCResult = store.GCResult

// methodGC collects garbage now: {"dryRun": true} only counts.
func (m *Module) methodGC(ctx context.Context, payload []byte) (any, error) {
	var req struct {
		DryRun bool `json:"dryRun"`
	}
	if err := parsePayload(payload, &req); err != nil {
		return nil, err
	}
	return m.store.GC(ctx, store.GCOptions{DryRun: req.DryRun})
}

// methodGetReadiness answers for a deployment manifest, {"manifest": {...}}, or a list, {"images": [...]}.
func (m *Module) methodGetReadiness(ctx context.Context, payload []byte) (any, error) {
	var req struct {
		Images   []string        `json:"images"`
		Manifest json.RawMessage `json:"manifest"`
	}
	if err := parsePayload(payload, &req); err != nil {
		return nil, err
	}
	if req.Manifest != nil {
		images, err := manifestImages(req.Manifest)
		if err != nil {
			return nil, err
		}
		req.Images = append(req.Images, images...)
	}
	if len(req.Images) == 0 {
		return nil, badPayload("payload: want images, a list of references, or manifest, a deployment manifest with modules")
	}
	usage, err := m.store.Usage(ctx)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	reserve := int64(m.config.Storage.ReserveMiB) << 20
	m.mu.Unlock()
	return m.syncer.Readiness(ctx, req.Images, max(usage.FreeBytes-reserve, 0)), nil
}

// manifestImages returns the images of the modules of an IoT Edge deployment manifest, system modules first.
func manifestImages(raw []byte) ([]string, error) {
	type modules map[string]struct {
		Settings struct {
			Image string `json:"image"`
		} `json:"settings"`
	}
	var doc struct {
		Content *map[string]struct {
			Desired struct {
				SystemModules modules `json:"systemModules"`
				Modules       modules `json:"modules"`
			} `json:"properties.desired"`
		} `json:"modulesContent"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, badPayload("manifest: %v", err)
	}
	if doc.Content == nil {
		return nil, badPayload("manifest: it has no modulesContent; want an IoT Edge deployment manifest")
	}
	agent := (*doc.Content)["$edgeAgent"].Desired
	var images []string
	for _, list := range []modules{agent.SystemModules, agent.Modules} {
		for _, name := range slices.Sorted(maps.Keys(list)) {
			if image := strings.TrimSpace(list[name].Settings.Image); image != "" {
				images = append(images, image)
			}
		}
	}
	return images, nil
}

// serveMethod runs the method that the path names, for the control socket.
func (m *Module) serveMethod(w http.ResponseWriter, r *http.Request) {
	payload, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPayload))
	if err != nil {
		badPayloadError(err).WriteHTTP(w)
		return
	}
	out, err := m.Invoke(r.Context(), r.PathValue("name"), payload)
	if err != nil {
		registry.AsError(err).WriteHTTP(w)
		return
	}
	writeJSON(w, out)
}

func badPayloadError(err error) *registry.Error {
	return registry.AsError(badPayload("payload: %v; at most %d bytes", err, maxPayload))
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the reader is gone
}
