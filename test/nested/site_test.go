package nested

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// patience bounds a test; none comes near it.
const patience = 50 * time.Second

// site is a chain of registries below a cloud.
type site struct {
	t      *testing.T
	ctx    context.Context
	cloud  string             // host:port
	links  []*linkproxy.Proxy // links[i] is above layers[i]
	layers []*node
}

// newSite prepares so many layers below the cloud, top first; none runs yet. They keep what scope names.
func newSite(t *testing.T, cloud string, layers int, scope string) *site {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), patience, fmt.Errorf("the test took longer than %v", patience))
	t.Cleanup(cancel)
	s := &site{t: t, ctx: ctx, cloud: cloud}
	target := cloud
	for i := range layers {
		link := newLink(t, target)
		l := newNode(t, fmt.Sprintf("layer%d", 5-i), link.Addr())
		l.doc["repositories"] = map[string]string{"all": scope}
		s.links, s.layers, target = append(s.links, link), append(s.layers, l), l.addr
	}
	return s
}

func newLink(t *testing.T, target string) *linkproxy.Proxy {
	t.Helper()
	link, err := linkproxy.New(target)
	must(t, err)
	t.Cleanup(func() { must(t, link.Close()) })
	return link
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start runs all layers, top first.
func (s *site) start() {
	s.t.Helper()
	for _, l := range s.layers {
		l.start()
	}
}

// bottom is the last layer.
func (s *site) bottom() *node { return s.layers[len(s.layers)-1] }

// cut puts the plan in force on every link.
func (s *site) cut(plan linkproxy.Plan) {
	s.t.Helper()
	for _, link := range s.links {
		must(s.t, link.Set(plan))
	}
}

// down is how many bytes have come down each link.
func (s *site) down() []int64 {
	var all []int64
	for _, link := range s.links {
		all = append(all, link.Counters().Down)
	}
	return all
}

// node is one registry in this process.
type node struct {
	t       *testing.T
	name    string
	addr    string // host:port, the same after each start
	dir     string
	doc     map[string]any // configuration document, written by configure and before each start
	options func(*module.Options)

	mu     sync.Mutex
	levels []string // logging.logLevel as put in force
	stop   func()   // nil while it does not run
}

// newNode prepares a registry below parent (host:port; empty is none).
func newNode(t *testing.T, name, parent string) *node {
	t.Helper()
	addr, release, err := linkproxy.ReservePort()
	must(t, err)
	l := &node{t: t, name: name, addr: addr, dir: t.TempDir(), doc: map[string]any{"schemaVersion": "1.0", "mode": "ReadOnly"}}
	if parent != "" {
		l.doc["parent"] = map[string]any{"gatewayEndpoint": parent, "protocol": "http", "syncProperties": map[string]any{"schedule": "* * * * *"}}
	}
	t.Cleanup(func() {
		l.end()
		release()
	})
	return l
}

// schedule sets when the layer syncs.
func (l *node) schedule(cron, window string) {
	l.doc["parent"].(map[string]any)["syncProperties"] = map[string]any{"schedule": cron, "syncWindow": window}
}

func (l *node) configFile() string { return filepath.Join(l.dir, "config", "config.json") }

// configure writes the configuration document in one step; a running registry sees it.
func (l *node) configure() {
	l.t.Helper()
	if l.doc["mode"] == "ReadWrite" {
		layer.Admit(l.doc)
	}
	body, err := json.Marshal(l.doc)
	must(l.t, err)
	l.write(body)
}

// write puts a configuration file in its place, whatever it says.
func (l *node) write(body []byte) {
	l.t.Helper()
	must(l.t, os.MkdirAll(filepath.Dir(l.configFile()), 0o700))
	tmp := filepath.Join(l.dir, "config.new")
	must(l.t, os.WriteFile(tmp, body, 0o600))
	must(l.t, os.Rename(tmp, l.configFile()))
}

// start writes the configuration and runs the registry; it returns when requests are answered from the store.
func (l *node) start() {
	l.t.Helper()
	l.configure()
	l.run()
}

// run is start with the configuration file as it is.
func (l *node) run() {
	l.t.Helper()
	ready := make(chan struct{})
	o := module.Options{
		DataDir: filepath.Join(l.dir, "data"), ConfigFile: l.configFile(), Listen: l.addr, Name: l.name, Version: "test",
		AnonymousPull: true, AllowInsecureParent: true,
		Ready: func(string) { close(ready) },
		SetLevel: func(level string) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.levels = append(l.levels, level)
		},
	}
	if parent, ok := l.doc["parent"].(map[string]any); ok && l.doc["mode"] == "ReadWrite" { // what it sends up takes a token too
		o.Lookup = func(name string) (string, bool) {
			if name != "ACR_REGISTRY_CONNECTION_STRING" {
				return "", false
			}
			return layer.Below(l.name, parent["gatewayEndpoint"].(string)), true
		}
	}
	if l.options != nil {
		l.options(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- module.Run(ctx, o) }()
	l.stop = func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("%s: %v", l.name, err)
		}
	}
	select {
	case <-ready:
	case err := <-done:
		cancel()
		l.stop = nil
		l.t.Fatalf("%s ended: %v", l.name, err)
	case <-time.After(patience):
		l.t.Fatalf("%s does not start", l.name)
	}
}

// end stops the registry if it runs.
func (l *node) end() {
	if l.stop != nil {
		l.stop()
		l.stop = nil
	}
}

// level is the log level in force.
func (l *node) level() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.levels) == 0 {
		return ""
	}
	return l.levels[len(l.levels)-1]
}

// status asks over the control socket, as "connected-registry status" does.
func (l *node) status() registry.Status {
	l.t.Helper()
	var s registry.Status
	l.until("it has a control socket", func() bool {
		return module.Control(l.t.Context(), filepath.Join(l.dir, "data"), http.MethodGet, "/status", nil, &s) == nil
	})
	return s
}

// sync runs an iteration now and returns the status after it.
func (l *node) sync() (registry.Status, error) {
	l.t.Helper()
	l.status() // the socket is there
	var s registry.Status
	err := module.Control(l.t.Context(), filepath.Join(l.dir, "data"), http.MethodPost, "/methods/sync", nil, &s)
	return s, err
}

// until asks again and again until cond is true.
func (l *node) until(what string, cond func() bool) {
	l.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			var s registry.Status
			_ = module.Control(context.Background(), filepath.Join(l.dir, "data"), http.MethodGet, "/status", nil, &s)
			text, _ := json.MarshalIndent(s, "", "  ")
			l.t.Fatalf("%s: waited %v until %s\n%s", l.name, patience, what, text)
		}
	}
}

// untilStatus waits for a status.
func (l *node) untilStatus(what string, cond func(registry.Status) bool) registry.Status {
	l.t.Helper()
	var s registry.Status
	l.until(what, func() bool {
		s = l.status()
		return cond(s)
	})
	return s
}

// has waits until the tag is here with the digest. It looks at the list first, which asks nobody: a question for the
// manifest would be a reason to fetch it.
func (l *node) has(repo, tag, digest string) {
	l.t.Helper()
	l.until(repo+":"+tag+" is "+digest, func() bool {
		return slices.Contains(l.tags(repo), tag) && l.ask(http.MethodHead, "/v2/"+repo+"/manifests/"+tag).header.Get("Docker-Content-Digest") == digest
	})
}

// tags are those that the registry lists.
func (l *node) tags(repo string) []string {
	l.t.Helper()
	var list struct{ Tags []string }
	if a := l.ask(http.MethodGet, "/v2/"+repo+"/tags/list"); a.status == http.StatusOK {
		must(l.t, json.Unmarshal(a.body, &list))
	}
	return list.Tags
}

// answer is what a registry said.
type answer struct {
	status int
	header http.Header
	body   []byte
	took   time.Duration
}

// ask sends a request without a body.
func (l *node) ask(method, path string) answer {
	l.t.Helper()
	return ask(l.t, l.addr, method, path, nil)
}

// accept is what a client that knows every kind of manifest sends.
var accept = strings.Join([]string{
	"application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json",
	"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
}, ", ")

// ask sends one request over a connection of its own.
func ask(t *testing.T, addr, method, path string, header map[string]string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, http.NoBody)
	must(t, err)
	req.Header.Set("Accept", accept)
	for k, v := range header {
		req.Header.Set(k, v)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	began := time.Now()
	resp, err := client.Do(req)
	must(t, err)
	body, err := io.ReadAll(resp.Body)
	took := time.Since(began)
	must(t, err)
	must(t, resp.Body.Close())
	return answer{resp.StatusCode, resp.Header, body, took}
}

// manifestParts is what a manifest of any kind points at.
type manifestParts struct {
	Config    *registry.Descriptor
	Layers    []registry.Descriptor
	Manifests []registry.Descriptor
}

// content reads all below repository:tag at a registry and returns "media type size" by digest; each is hashed.
func content(t *testing.T, addr, repo, ref string) map[string]string {
	t.Helper()
	all := map[string]string{}
	addContent(t, addr, repo, ref, all)
	return all
}

func addContent(t *testing.T, addr, repo, ref string, all map[string]string) {
	t.Helper()
	m := ask(t, addr, http.MethodGet, "/v2/"+repo+"/manifests/"+ref, nil)
	if m.status != http.StatusOK {
		t.Fatalf("%s/%s:%s answers %d: %s", addr, repo, ref, m.status, m.body)
	}
	d := sum(m.body)
	if got := m.header.Get("Docker-Content-Digest"); got != d.String() {
		t.Errorf("%s/%s:%s says %s and sends %s", addr, repo, ref, got, d)
	}
	all[d.String()] = fmt.Sprint(m.header.Get("Content-Type"), " ", len(m.body))
	var parts manifestParts
	must(t, json.Unmarshal(m.body, &parts))
	for _, child := range parts.Manifests {
		addContent(t, addr, repo, child.Digest.String(), all)
	}
	blobs := parts.Layers
	if parts.Config != nil {
		blobs = append(blobs, *parts.Config)
	}
	for _, b := range blobs {
		got := ask(t, addr, http.MethodGet, "/v2/"+repo+"/blobs/"+b.Digest.String(), nil)
		if d := sum(got.body); got.status != http.StatusOK || d != b.Digest || int64(len(got.body)) != b.Size {
			t.Fatalf("%s/%s blob %s answers %d with %d bytes of %s", addr, repo, b.Digest, got.status, len(got.body), d)
		}
		all[b.Digest.String()] = fmt.Sprint("blob ", b.Size)
	}
}

// same compares all below repository:tag at two registries.
func same(t *testing.T, at, want string, refs ...string) {
	t.Helper()
	for _, ref := range refs {
		repo, tag, _ := strings.Cut(ref, ":")
		a, b := content(t, at, repo, tag), content(t, want, repo, tag)
		if !maps.Equal(a, b) {
			t.Errorf("%s at %s is %v\nat %s it is %v", ref, at, slices.Sorted(maps.Keys(a)), want, slices.Sorted(maps.Keys(b)))
		}
	}
}

// detail returns the description of a status detail of the code; empty when there is none.
func detail(s registry.Status, code string) string {
	for _, d := range s.StatusDetails {
		if d.Code == code {
			return d.Description
		}
	}
	return ""
}

// sum is the digest of bytes.
func sum(body []byte) registry.Digest {
	s := sha256.Sum256(body)
	return registry.Digest("sha256:" + hex.EncodeToString(s[:]))
}
