package edgesim

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// serviceHandler answers a request of the hub's service API by a JSON document.
type serviceHandler func(*http.Request) (any, error)

// serviceError is the hub's way to fail: an HTTP status and a code of its own, which begins with the status.
type serviceError struct {
	status  int
	code    int
	message string
}

func (e *serviceError) Error() string { return e.message }

var (
	errDeviceUnknown = &serviceError{http.StatusNotFound, 404001, "DeviceNotFound"}
	errModuleUnknown = &serviceError{http.StatusNotFound, 404010, "ModuleNotFound"}
	errNotOnline     = &serviceError{
		http.StatusNotFound, 404103,
		"The operation failed because the requested device isn't online or hasn't registered the direct method callback.",
	}
	errPrecondition = &serviceError{http.StatusPreconditionFailed, 412001, "PreconditionFailed"}
)

func (d *Device) serviceRoutes() map[string]serviceHandler {
	return map[string]serviceHandler{
		"GET /devices":                           d.listDevices,
		"GET /devices/{device}":                  d.getDevice,
		"GET /devices/{device}/modules":          d.listModules,
		"GET /devices/{device}/modules/{module}": d.getModule,
		"GET /twins/{device}":                    d.getDeviceTwin,
		"GET /twins/{device}/modules/{module}":   d.getModuleTwin,
		"PATCH /twins/{device}/modules/{module}": d.updateModuleTwin,
		"PUT /twins/{device}/modules/{module}":   d.updateModuleTwin,
		"POST /twins/{device}/methods":           d.deviceMethod,
	}
}

// service checks the token and the version and writes what the handler returns.
func (d *Device) service(handle serviceHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxRequestBody)
		if err := d.checkServiceToken(r.Header.Get("Authorization")); err != nil {
			writeServiceError(w, &serviceError{http.StatusUnauthorized, 401003, err.Error()})
			return
		}
		if r.URL.Query().Get("api-version") == "" {
			writeServiceError(w, &serviceError{http.StatusBadRequest, 400001, "api-version is missing"})
			return
		}
		if device := r.PathValue("device"); device != "" && device != d.opts.DeviceID {
			writeServiceError(w, errDeviceUnknown)
			return
		}
		body, err := handle(r)
		if err != nil {
			writeServiceError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, body)
	}
}

func writeServiceError(w http.ResponseWriter, err error) {
	e := new(serviceError)
	if !errors.As(err, &e) {
		e = &serviceError{http.StatusBadRequest, 400004, err.Error()}
	}
	inner, merr := json.Marshal(map[string]any{
		"errorCode": e.code, "trackingId": "edgesim", "message": e.message, "timestampUtc": time.Now().UTC().Format(time.RFC3339),
	})
	if merr != nil {
		inner = []byte(e.message)
	}
	w.Header().Set("Iothub-Errorcode", strings.TrimSpace(e.message))
	writeJSON(w, e.status, map[string]string{"Message": string(inner), "ExceptionMessage": ""})
}

func (d *Device) listDevices(r *http.Request) (any, error) {
	one, err := d.getDevice(r)
	return []any{one}, err
}

func (d *Device) getDevice(*http.Request) (any, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return map[string]any{
		"deviceId": d.opts.DeviceID, "generationId": "1", "etag": "MQ==", "status": "enabled", "statusReason": nil,
		"connectionState": connectionState(d.online && !d.faults.HubDown), "cloudToDeviceMessageCount": 0,
		"capabilities":   map[string]bool{"iotEdge": true},
		"authentication": map[string]any{"type": "sas", "symmetricKey": map[string]any{"primaryKey": nil, "secondaryKey": nil}},
	}, nil
}

func connectionState(connected bool) string {
	if connected {
		return "Connected"
	}
	return "Disconnected"
}

func (d *Device) listModules(*http.Request) (any, error) {
	all := []any{}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.modules {
		all = append(all, d.identityLocked(m))
	}
	return all, nil
}

func (d *Device) getModule(r *http.Request) (any, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.modules[r.PathValue("module")]
	if m == nil {
		return nil, errModuleUnknown
	}
	return d.identityLocked(m), nil
}

func (d *Device) identityLocked(m *moduleState) map[string]any {
	key := base64.StdEncoding.EncodeToString(m.key)
	return map[string]any{
		"deviceId": d.opts.DeviceID, "moduleId": m.ID, "managedBy": "iotEdge", "generationId": m.generation, "etag": "MQ==",
		"connectionState":           connectionState(d.online && m.conn != nil && m.conn.ready),
		"cloudToDeviceMessageCount": 0,
		"authentication":            map[string]any{"type": "sas", "symmetricKey": map[string]string{"primaryKey": key, "secondaryKey": key}},
	}
}

func (d *Device) getDeviceTwin(*http.Request) (any, error) {
	empty := map[string]any{"$version": 1, "$metadata": map[string]any{}}
	return map[string]any{
		"deviceId": d.opts.DeviceID, "etag": "AAAAAAAAAAE=", "version": 1, "status": "enabled", "authenticationType": "sas",
		"capabilities": map[string]bool{"iotEdge": true}, "tags": map[string]any{},
		"properties": map[string]any{"desired": empty, "reported": empty},
	}, nil
}

func (d *Device) getModuleTwin(r *http.Request) (any, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.modules[r.PathValue("module")]
	if m == nil {
		return nil, errModuleUnknown
	}
	return d.twinLocked(m), nil
}

func (d *Device) twinLocked(m *moduleState) map[string]any {
	properties := func(p map[string]any, version int64) map[string]any {
		out := withVersion(p, version)
		out["$metadata"] = map[string]any{"$lastUpdated": d.opts.Now().UTC().Format(time.RFC3339)}
		return out
	}
	return map[string]any{
		"deviceId": d.opts.DeviceID, "moduleId": m.ID, "etag": m.cloud.etagString(), "version": m.cloud.etag,
		"status": "enabled", "authenticationType": "sas",
		"connectionState": connectionState(d.online && m.conn != nil && m.conn.ready), "cloudToDeviceMessageCount": 0,
		"x509Thumbprint": map[string]any{"primaryThumbprint": nil, "secondaryThumbprint": nil},
		"tags":           m.cloud.tags,
		"properties": map[string]any{
			"desired":  properties(m.cloud.Desired, m.cloud.DesiredVersion),
			"reported": properties(m.cloud.Reported, m.cloud.ReportedVersion),
		},
	}
}

// updateModuleTwin merges (PATCH) or replaces (PUT) desired properties and tags.
func (d *Device) updateModuleTwin(r *http.Request) (any, error) {
	doc, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	change, err := decodeObject(doc)
	if err != nil {
		return nil, err
	}
	id := r.PathValue("module")
	etag := strings.Trim(r.Header.Get("If-Match"), `"`)
	merge := r.Method == http.MethodPatch
	if err := d.changeTags(id, change["tags"], etag, merge); err != nil {
		return nil, serviceErr(err)
	}
	properties, _ := change["properties"].(map[string]any)
	desired, ok := properties["desired"].(map[string]any)
	if ok {
		if change["tags"] != nil {
			etag = "" // the tags have changed it
		}
		if _, err := d.changeDesired(id, desired, etag, merge); err != nil {
			return nil, serviceErr(err)
		}
	}
	return d.getModuleTwin(r)
}

func serviceErr(err error) error {
	switch {
	case errors.Is(err, errNoModule):
		return errModuleUnknown
	case errors.Is(err, errETag):
		return errPrecondition
	}
	return err
}

func (d *Device) changeTags(module string, tags any, etag string, merge bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.modules[module]
	if m == nil {
		return errNoModule
	}
	if !m.cloud.allows(etag) {
		return errETag
	}
	t, ok := tags.(map[string]any)
	if !ok {
		return nil
	}
	base := m.cloud.tags
	if !merge {
		base = nil
	}
	m.cloud.tags = mergePatch(base, t)
	m.cloud.etag++
	d.bumpLocked()
	return nil
}

func (d *Device) deviceMethod(*http.Request) (any, error) { return nil, errNotOnline }

// serviceInvoke calls a module's method from the cloud; the cloud says 404103 while edgeHub is away.
func (d *Device) serviceInvoke(r *http.Request) (any, error) {
	m, err := readMethod(r)
	if err != nil {
		return nil, err
	}
	if _, ok := d.module(r.PathValue("module")); !ok {
		return nil, errModuleUnknown
	}
	d.mu.Lock()
	reachable := d.online && !d.faults.CloudHang && !d.faults.HubDown
	d.mu.Unlock()
	if !reachable {
		return nil, errNotOnline
	}
	result, err := d.InvokeMethod(r.Context(), r.PathValue("module"), m)
	if e := new(MethodError); errors.As(err, &e) {
		if e.Status == http.StatusNotFound {
			return nil, errNotOnline
		}
		return nil, &serviceError{http.StatusGatewayTimeout, 504101, "GatewayTimeout"}
	}
	if err != nil {
		return nil, err
	}
	return result.document(), nil
}
