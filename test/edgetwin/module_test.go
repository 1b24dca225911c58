package edgetwin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/upstream"
	"github.com/connected-registry/connected-registry/test/edgesim"
	"github.com/connected-registry/connected-registry/test/layer"
)

// running is the product's module on an emulated device.
type running struct {
	t    *testing.T
	d    *edgesim.Device
	addr string // of the service listener
	tls  string // of the TLS listener
	log  *logText
	stop func()
}

// run starts the module as edgeAgent does, with its environment and no configuration file.
func run(t *testing.T, d *edgesim.Device, dir string, change ...func(*module.Options)) *running {
	t.Helper()
	env := d.Env(id)
	r := &running{t: t, d: d, log: &logText{}}
	ready := make(chan string, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	addrs := make(chan string, 2)
	o := module.Options{
		DataDir: dir, Listen: "service", ListenTLS: "tls", AnonymousPull: true, Version: "test",
		Lookup: func(name string) (string, bool) { s, ok := env[name]; return s, ok },
		Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Ready:  func(addr string) { ready <- addr },
		ListenNet: func(ctx context.Context, network, _ string) (net.Listener, error) {
			l, err := (&net.ListenConfig{}).Listen(ctx, network, "127.0.0.1:0")
			if err == nil {
				addrs <- l.Addr().String()
			}
			return l, err
		},
		DialEdgeHub: func(ctx context.Context, network, addr string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(addr)
			to := map[string]string{"8883": d.MQTTAddr(), "443": d.HTTPSAddr()}[port]
			return (&net.Dialer{}).DialContext(ctx, network, to)
		},
	}
	for _, c := range change {
		c(&o)
	}
	go func() { done <- module.Run(ctx, o) }()
	r.addr, r.tls = <-addrs, <-addrs
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.stop = func() {}
	}
	t.Cleanup(func() { r.stop() })
	select {
	case <-ready:
	case <-time.After(patience):
		t.Fatalf("the module is not ready:\n%s", r.log)
	}
	return r
}

func newDevice(t *testing.T, desired map[string]any) *edgesim.Device {
	t.Helper()
	layer.Admit(desired)
	d, err := edgesim.New(edgesim.Options{
		DeviceID: "l4", Hostname: "edge-l4", MQTTPort: -1, HTTPSPort: -1, Timing: edgesim.Scaled(60),
		Modules: []edgesim.Module{{ID: id, Desired: desired}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// until asks again until it is so.
func (r *running) until(what string, so func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not within %v: %s\n%s", patience, what, r.log)
		}
	}
}

// method invokes a direct method as the service does.
func (r *running) method(name, payload string) edgesim.MethodResponse {
	r.t.Helper()
	m := edgesim.Method{Name: name, ConnectTimeout: patience}
	if payload != "" {
		m.Payload = json.RawMessage(payload)
	}
	resp, err := r.d.InvokeMethod(r.t.Context(), id, m)
	if err != nil {
		r.t.Fatalf("%s: %v", name, err)
	}
	return resp
}

// reported is the JSON of the reported properties at the cloud.
func (r *running) reported() string {
	t, err := json.Marshal(r.d.Twin(id))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(t)
}

func (r *running) serves() bool {
	resp, err := http.Get("http://" + r.addr + "/v2/")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (r *running) push(repo, tag string, img registrytest.Image) {
	r.t.Helper()
	for _, b := range img.Blobs {
		r.send(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+b.Digest.String(), "application/octet-stream", b.Bytes, http.StatusCreated)
	}
	r.send(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, img.MediaType, img.Bytes, http.StatusCreated)
}

// send is one request that changes something.
func (r *running) send(method, path, media string, body []byte, want int) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://"+r.addr+path, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", media)
	req.SetBasicAuth(layer.User, layer.Password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != want {
		r.t.Fatalf("%s %s: %v %v", method, path, resp, err)
	}
	_ = resp.Body.Close()
}

// TestModuleTakesItsTwin: mode and notifications come from the twin, a bad section keeps its old value and is
// acknowledged with 400 and the field's path, and what is reported has ACR's names.
func TestModuleTakesItsTwin(t *testing.T) {
	d := newDevice(t, map[string]any{"schemaVersion": "1.0", "mode": "ReadWrite"})
	r := run(t, d, t.TempDir())
	r.until("the mode is acknowledged", func() bool { return strings.Contains(r.reported(), `"mode":{"ac":200`) })
	version, err := d.UpdateDesired(id, map[string]any{"mode": "Sideways", "logging": map[string]any{"logLevel": "Warning"}})
	if err != nil {
		t.Fatal(err)
	}
	r.until("the bad mode is refused, the good section applies", func() bool {
		s := r.reported()
		return strings.Contains(s, `"ac":400`) && strings.Contains(s, "ReadOnly or ReadWrite") && strings.Contains(s, `"logging":{"ac":200`)
	})
	var st registry.Status
	if err := json.Unmarshal(r.method("getStatus", "").Payload, &st); err != nil || st.Mode != registry.ReadWrite || st.Configuration.Source != "twin" {
		t.Errorf("after version %d: mode %s from %s, %v; want the old ReadWrite", version, st.Mode, st.Configuration.Source, err)
	}
	for _, name := range []string{"connectionState", "activation", "statusDetails", "loginServer", "storage"} {
		if !strings.Contains(r.reported(), `"`+name+`"`) {
			t.Errorf("%s is not reported: %s", name, r.reported())
		}
	}
}

// TestModuleWithoutEdgeHub: no hub and no workload API at the start, a clock of 1970: it serves, with the last good
// document, and takes the twin when the hub is there.
func TestModuleWithoutEdgeHub(t *testing.T) {
	dir := t.TempDir()
	d := newDevice(t, map[string]any{"schemaVersion": "1.0", "mode": "ReadWrite"})
	r := run(t, d, dir)
	r.until("the twin is in force", func() bool { return strings.Contains(r.reported(), `"mode":{"ac":200`) })
	img := registrytest.NewImage(1, 1000)
	r.push("acme/tool", "1", img)
	r.stop()
	d.SetFaults(func(f *edgesim.Faults) { f.HubDown, f.WorkloadDown = true, true })
	r = run(t, d, dir)
	if !r.serves() {
		t.Fatalf("without its hub it does not serve:\n%s", r.log)
	}
	r.push("acme/tool", "2", registrytest.NewImage(2, 1000)) // ReadWrite is the last good mode
	d.SetFaults(func(f *edgesim.Faults) { f.HubDown, f.WorkloadDown = false, false })
	if _, err := d.UpdateDesired(id, map[string]any{"mode": "ReadOnly"}); err != nil {
		t.Fatal(err)
	}
	r.until("the new mode is acknowledged", func() bool { return strings.Contains(r.reported(), `"value":"ReadOnly"`) })
	if !r.serves() {
		t.Error("it does not serve any more")
	}
}

func TestModuleAnswersMethods(t *testing.T) {
	d := newDevice(t, map[string]any{"schemaVersion": "1.0", "mode": "ReadWrite"})
	r := run(t, d, t.TempDir())
	r.until("the twin is in force", func() bool { return strings.Contains(r.reported(), `"mode":{"ac":200`) })
	img := registrytest.NewImage(1, 1000)
	r.push("acme/tool", "1", img)
	manifest := `{"manifest":{"modulesContent":{"$edgeAgent":{"properties.desired":{"systemModules":{},"modules":{"tool":{"settings":{"image":"$upstream:8000/acme/tool:1"}}}}}}}}`
	for _, tt := range []struct {
		name, payload string
		status        int
		want          string
	}{
		{"getStatus", "", 200, `"mode":"ReadWrite"`},
		{"listRepositories", `{"limit":10}`, 200, `"repositories"`},
		{"listRepositories", `{"limit":0}`, 400, "limit"},
		{"listRepositories", `{"page":1}`, 400, "page"},
		{"gc", `{"dryRun":true}`, 200, "Blobs"},
		{"getReadiness", `{"images":["acme/tool:1"]}`, 200, `"ready":true`},
		{"getReadiness", manifest, 200, `"ready":true`},
		{"getReadiness", `{"images":["acme/other:1"]}`, 200, `"ready":false`},
		{"getReadiness", `{}`, 400, "images"},
		{"sync", "", 503, "no parent is configured"},
		{"deactivate", "", 200, `"status":"Inactive"`},
		{"activate", "", 200, `"activation"`},
		{"reboot", "", 404, "reboot"},
	} {
		resp := r.method(tt.name, tt.payload)
		if resp.Status != tt.status || !strings.Contains(string(resp.Payload), tt.want) {
			t.Errorf("%s %s: %d %s, want %d with %s", tt.name, tt.payload, resp.Status, resp.Payload, tt.status, tt.want)
		}
	}
}

// TestModuleSendsEvents: a tag that a pattern selects is told of, also after edgeHub was away and the module restarted.
func TestModuleSendsEvents(t *testing.T) {
	dir := t.TempDir()
	d := newDevice(t, map[string]any{"schemaVersion": "1.0", "mode": "ReadWrite", "notifications": map[string]any{"tools": "acme/tool:*:*"}})
	r := run(t, d, dir)
	r.until("the twin is in force", func() bool { return strings.Contains(r.reported(), `"notifications":{"ac":200`) })
	r.push("acme/tool", "1", registrytest.NewImage(1, 100))
	r.until("the event arrives", func() bool { return len(r.events()) > 0 })
	r.push("acme/silent", "1", registrytest.NewImage(2, 100))
	d.SetFaults(func(f *edgesim.Faults) { f.HubDown = true })
	r.push("acme/tool", "2", registrytest.NewImage(3, 100))
	r.stop()
	r = run(t, d, dir)
	d.SetFaults(func(f *edgesim.Faults) { f.HubDown = false })
	r.until("the event that waited arrives", func() bool { return slices.Contains(r.events(), "push acme/tool:2") })
	if all := strings.Join(r.events(), "\n"); strings.Contains(all, "silent") || !strings.Contains(all, "push acme/tool:1") {
		t.Errorf("events:\n%s", all)
	}
}

// delete asks for the removal of a tag or, by digest, of a manifest.
func (r *running) delete(repo, ref string) {
	r.t.Helper()
	r.send(http.MethodDelete, "/v2/"+repo+"/manifests/"+ref, "", nil, http.StatusAccepted)
}

// TestModuleSendsEveryEvent: while edgeHub is away one tag moves again and again, a manifest is pushed by digest alone,
// a tag and a manifest are deleted. Each of these is told of afterwards, in order, with its digest.
func TestModuleSendsEveryEvent(t *testing.T) {
	d := newDevice(t, map[string]any{
		"schemaVersion": "1.0", "mode": "ReadWrite", "notifications": map[string]any{"all": "*:*"},
	})
	r := run(t, d, t.TempDir())
	r.until("the twin is in force", func() bool { return strings.Contains(r.reported(), `"notifications":{"ac":200`) })
	d.SetFaults(func(f *edgesim.Faults) { f.HubDown = true })
	var want []string
	note := func(action, tag string, img registrytest.Image) {
		want = append(want, fmt.Sprintf("%s %q %s %d", action, tag, img.Digest, img.Size))
	}
	var images []registrytest.Image
	for n := range uint64(5) {
		images = append(images, registrytest.NewImage(n+1, 100))
		r.push("acme/tool", "latest", images[n])
		note("push", "latest", images[n])
	}
	alone := registrytest.NewImage(9, 100)
	r.push("acme/tool", alone.Digest.String(), alone)
	note("push", "", alone)
	r.delete("acme/tool", "latest")
	note("delete", "latest", images[4])
	r.push("acme/tool", "v1", images[2])
	note("push", "v1", images[2])
	r.delete("acme/tool", images[2].Digest.String())
	note("delete", "v1", images[2])
	note("delete", "", images[2])
	d.SetFaults(func(f *edgesim.Faults) { f.HubDown = false })
	told := func() (list []string) {
		seen := map[string]bool{}
		for _, e := range r.sent() {
			if !seen[e.ID] { // one that was sent again has its id
				list = append(list, fmt.Sprintf("%s %q %s %d", e.Action, e.Tag, e.Target.Digest, e.Target.Size))
			}
			seen[e.ID] = true
		}
		return list
	}
	r.until("the last event arrives", func() bool { return len(told()) >= len(want) })
	if got := told(); !slices.Equal(got, want) {
		t.Errorf("events:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// events are what came out of the module's output, as action and subject.
func (r *running) events() []string {
	var list []string
	for _, e := range r.sent() {
		list = append(list, string(e.Action)+" "+e.Subject())
	}
	return list
}

// sent are the events that came out of the module's output.
func (r *running) sent() []registry.Event {
	var list []registry.Event
	for _, m := range r.d.Messages(id) {
		if m.Output != "registryEvents" {
			continue
		}
		var e registry.Event
		if err := json.Unmarshal(m.Payload, &e); err != nil {
			r.t.Fatalf("%s: %v", m.Payload, err)
		}
		list = append(list, e)
	}
	return list
}

// TestModuleSpeaksTLS: its certificate is made by the workload API, and a child that trusts the bundle trusts it.
func TestModuleSpeaksTLS(t *testing.T) {
	d := newDevice(t, map[string]any{"schemaVersion": "1.0", "mode": "ReadWrite"})
	r := run(t, d, t.TempDir())
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(d.TrustBundle()) {
		t.Fatal("the device has no trust bundle")
	}
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: pool, ServerName: "edge-l4"}}).DialContext(t.Context(), "tcp", r.tls)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	_, err = (&tls.Dialer{Config: &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "edge-l4"}}).DialContext(t.Context(), "tcp", r.tls)
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		t.Errorf("without the bundle: %v", err)
	}
	p, err := upstream.New(upstream.Options{Endpoint: r.addr, Protocol: "http"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if st, _, err := p.Probe(t.Context()); err != nil || st.Kind != registry.KindConnected {
		t.Errorf("probe: %+v %v", st, err)
	}
}
