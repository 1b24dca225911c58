//go:build interop

package apiproxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/layer"
)

// patience bounds a test; a poll that is held alone takes 50 s.
const patience = 90 * time.Second

// binary is the product, as it is released.
var binary string

func TestMain(m *testing.M) { os.Exit(layer.Main(m.Run, &binary)) }

// What clients sign in with. A layer's own token has its name.
const (
	reader = "line-a"  // pulls
	writer = "builder" // does everything with repositories
)

// site is a chain of devices below a cloud registry, each with its API proxy.
type site struct {
	t      *testing.T
	ctx    context.Context
	root   *Authority
	port   int
	cloud  *cloud.Cloud
	secret map[string]string // password of each token
	layers []*stratum        // top first
}

// stratum is one device.
type stratum struct {
	name     string
	host     string
	proxy    *Proxy
	registry *device // nil: there is none
}

// newSite prepares three devices; nothing runs yet. registries says which of them, top first, have a registry. The top
// one is ReadWrite and may be pushed to.
func newSite(t *testing.T, registries ...bool) *site {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), patience, fmt.Errorf("the test took longer than %v", patience))
	t.Cleanup(cancel)
	s := &site{t: t, ctx: ctx, port: freePort(t), secret: map[string]string{}}
	t.Cleanup(s.audit) // when all have stopped
	var err error
	s.root, err = NewAuthority("root of " + t.Name())
	must(t, err)
	s.cloud, err = cloud.Start("")
	must(t, err)
	t.Cleanup(func() { must(t, s.cloud.Close()) })
	for _, token := range []string{reader, writer, "layer4", "layer3"} {
		s.secret[token] = rand.Text() + "=" // as Azure's end
	}
	above := ""
	for i, host := range []string{host5, host4, host3} {
		l := &stratum{name: fmt.Sprintf("layer%d", 5-i), host: host}
		o := Options{Host: host, Port: s.port, Parent: above}
		if registries[i] {
			l.registry = s.newDevice(l.name, above)
			o.Registry = l.registry.addr
		}
		l.proxy = newProxy(t, s.root, o)
		s.layers, above = append(s.layers, l), host
	}
	return s
}

// newDevice prepares the registry of a device, set up as the deployment manifests do.
func (s *site) newDevice(name, above string) *device {
	d := newDevice(s.t, s.ctx, name)
	token := func(name, scopeMap string) map[string]string { return layer.Token(scopeMap, s.secret[name]) }
	d.doc = map[string]any{
		"schemaVersion": "1.0", "mode": registry.ReadOnly,
		"repositories": map[string]string{"all": "acme/*"},
		"parent":       map[string]any{"syncProperties": map[string]string{"schedule": "* * * * *"}},
		"scopeMaps": map[string]string{
			"pull": layer.Reads("*"), "all": layer.Everything("*"), "layer4": layer.Child("layer4"), "layer3": layer.Child("layer3"),
		},
		"clientTokens": map[string]any{
			reader: token(reader, "pull"), writer: token(writer, "all"), "layer4": token("layer4", "layer4"), "layer3": token("layer3", "layer3"),
		},
	}
	if above == "" {
		d.doc["mode"] = registry.ReadWrite
		d.doc["repositories"] = map[string]string{"all": "acme/app acme/asked acme/tools/probe"} // the cloud here has no catalog
		d.doc["parent"] = map[string]any{"gatewayEndpoint": s.cloud.Addr, "protocol": "http"}
		d.args = []string{"--name", name, "--allow-insecure-parent"}
		return d
	}
	d.env = []string{
		"IOTEDGE_PARENTHOSTNAME=" + above,
		layer.ConnectionString(name, s.secret[name], fmt.Sprintf("$IOTEDGE_PARENTHOSTNAME:%d", s.port), "https"),
	}
	d.trust(s.root.Bundle())
	return d
}

// start runs everything, top first.
func (s *site) start() {
	s.t.Helper()
	for _, l := range s.layers {
		must(s.t, l.proxy.Start(s.ctx))
		if l.registry != nil {
			l.registry.start()
		}
	}
}

func (s *site) top() *stratum    { return s.layers[0] }
func (s *site) middle() *stratum { return s.layers[1] }
func (s *site) bottom() *stratum { return s.layers[2] }

// audit holds the access logs of all hops against what everything between layers has to keep to.
func (s *site) audit() {
	for _, l := range s.layers {
		log, err := l.proxy.Log()
		must(s.t, err)
		for _, a := range log {
			product := strings.HasPrefix(a.Agent, "connected-registry")
			switch {
			case product && !strings.HasPrefix(a.URI, "/v2/"):
				s.t.Errorf("%s: a layer asks for %s %s, which is not below /v2/", l.name, a.Method, a.URI)
			case product && a.Version != "":
				s.t.Errorf("%s: a layer sends x-ms-version", l.name)
			case a.TLS != "TLSv1.2":
				s.t.Errorf("%s: %s by %q", l.name, a.TLS, a.Agent)
			case a.Location != "" && !strings.HasPrefix(a.Location, "/v2/"):
				s.t.Errorf("%s: %s %s answers with Location %q", l.name, a.Method, a.URI, a.Location)
			case a.Challenge != "" && !strings.HasPrefix(a.Challenge, "Basic "):
				s.t.Errorf("%s: %s %s answers with the challenge %q", l.name, a.Method, a.URI, a.Challenge)
			}
		}
	}
}

// log is the access log of a device's proxy.
func (s *site) log(l *stratum) []Access {
	s.t.Helper()
	log, err := l.proxy.Log()
	must(s.t, err)
	return log
}

// transport is that of a client on the plant floor.
func (s *site) transport() *http.Transport {
	return &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: s.root.Pool(), MinVersion: tls.VersionTLS12}, DisableKeepAlives: true, DisableCompression: true,
	}
}

// as are the options of go-containerregistry for who signs in with a token.
func (s *site) as(token string) []remote.Option {
	return []remote.Option{
		remote.WithContext(s.ctx), remote.WithTransport(s.transport()),
		remote.WithAuth(&authn.Basic{Username: token, Password: s.secret[token]}),
	}
}

// ref is repository:tag at a device, by way of its proxy.
func (s *site) ref(l *stratum, text string) name.Reference {
	s.t.Helper()
	r, err := name.ParseReference(l.proxy.Addr() + "/" + text)
	must(s.t, err)
	return r
}

// digest returns what a tag points at on a device; empty when it is not there. A device is asked for what it lists, so
// that nothing is fetched by asking for it.
func (s *site) digest(l *stratum, text string) string {
	repo, tag, _ := strings.Cut(text, ":")
	if !slices.Contains(s.tags(l, repo), tag) {
		return ""
	}
	d, err := remote.Head(s.ref(l, text), s.as(reader)...)
	if err != nil {
		return ""
	}
	return d.Digest.String()
}

// synced waits until the registry of a device holds so many tags and is in step with its parent.
func (s *site) synced(l *stratum, tags int) {
	s.t.Helper()
	l.registry.until(fmt.Sprintf("it holds %d tags", tags), func(st registry.Status) bool {
		for _, r := range st.Repositories {
			if len(r.Behind) > 0 {
				return false
			}
		}
		return st.Storage.Tags == tags && st.Sync.SyncState == registry.SyncSucceeded && st.ConnectionState == registry.Online
	})
}

// chains runs a test on both chains: every layer has a registry; the middle one has none and forwards.
func chains(t *testing.T, test func(t *testing.T, s *site)) {
	for name, registries := range map[string][]bool{
		"every layer has a registry": {true, true, true},
		"the middle layer forwards":  {true, false, true},
	} {
		t.Run(name, func(t *testing.T) { test(t, newSite(t, registries...)) })
	}
}
