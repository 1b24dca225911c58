package nested

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
)

// family is three layers that sign in to each other with sync tokens; nobody does anything without a token.
type family struct {
	top, middle, bottom *node
	away                *time.Duration // what all clocks are ahead
}

// hash is how a password stands in a document.
func hash(password string) string {
	return "sha256:" + strings.TrimPrefix(sum([]byte(password)).String(), "sha256:")
}

// syncScope is the scope map of a sync token for the gateways of all that its holder speaks for.
func syncScope(names ...string) string {
	lines := []string{"repositories/*/content/read", "repositories/*/metadata/read"}
	for _, n := range names {
		for _, a := range []string{"config/read", "config/write", "message/read", "message/write"} {
			lines = append(lines, "gateway/"+n+"/"+a)
		}
	}
	return strings.Join(lines, " ")
}

func newFamily(t *testing.T) *family {
	t.Helper()
	ahead := time.Duration(0)
	f := &family{away: &ahead, top: newNode(t, "layer5", "")}
	f.middle = newNode(t, "layer4", f.top.addr)
	f.bottom = newNode(t, "layer3", f.middle.addr)
	token := func(scope, password string) map[string]any {
		return map[string]any{"scopeMap": scope, "password1": hash(password)}
	}
	f.top.doc["scopeMaps"] = map[string]any{"layer4": syncScope("layer4", "layer3"), "pull": "repositories/*/content/read repositories/*/metadata/read"}
	f.top.doc["clientTokens"] = map[string]any{"layer4": token("layer4", "sync4"), "dev": token("pull", "one"), "guest": token("pull", "guest")}
	f.top.doc["connectedRegistries"] = map[string]any{"layer3": map[string]any{"clientTokens": "dev guest"}}
	f.middle.doc["scopeMaps"] = map[string]any{"layer3": syncScope("layer3")}
	f.middle.doc["clientTokens"] = map[string]any{"layer3": token("layer3", "sync3")}
	for _, l := range []*node{f.top, f.middle, f.bottom} {
		l.doc["repositories"] = map[string]string{"all": "acme/app"}
		l.options = func(o *module.Options) {
			o.AnonymousPull, o.Version = false, "1.2.3"
			now := *f.away // of this start
			o.Clock = clock.Func(func() time.Time { return time.Now().Add(now) })
			parent, _ := l.doc["parent"].(map[string]any)
			o.Lookup = func(name string) (string, bool) {
				if name == "ACR_REGISTRY_LOGIN_SERVER" {
					return l.name + ".example:8000", true
				}
				if name != "ACR_REGISTRY_CONNECTION_STRING" || parent == nil {
					return "", false
				}
				return fmt.Sprintf("ConnectedRegistryName=%s;SyncTokenName=%[1]s;SyncTokenPassword=sync%s;ParentGatewayEndpoint=%s;ParentEndpointProtocol=http",
					l.name, strings.TrimPrefix(l.name, "layer"), parent["gatewayEndpoint"]), true
			}
		}
	}
	return f
}

// login is the status of GET /v2/ with a name and a password.
func (l *node) login(name, password string) int {
	l.t.Helper()
	return ask(l.t, l.addr, http.MethodGet, "/v2/", map[string]string{"Authorization": basicAuth(name, password)}).status
}

func basicAuth(name, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
}

// tree asks over the control socket, as "connected-registry list" does.
func (l *node) tree() []registry.TreeNode {
	l.t.Helper()
	l.status()
	var r registry.LayerReport
	must(l.t, module.Control(l.t.Context(), filepath.Join(l.dir, "data"), http.MethodPost, "/methods/list", nil, &r))
	return r.Registries
}

// text is the tree in a line: name, parent, mode, state, version.
func treeText(nodes []registry.TreeNode) string {
	var lines []string
	for _, n := range nodes {
		lines = append(lines, strings.Join([]string{n.Name, n.Parent, string(n.Mode), string(n.ConnectionState), n.Version}, " "))
	}
	return strings.Join(lines, "; ")
}

func (l *node) command(method string, payload any) error {
	l.t.Helper()
	l.status()
	var out any
	return module.Control(l.t.Context(), filepath.Join(l.dir, "data"), http.MethodPost, "/methods/"+method, payload, &out)
}

// TestTokensAreRelayedThroughThreeLayers: a token of the top works at the bottom; with the middle away for a day it goes
// on to, also after a restart; and a rotation and a withdrawal of that day arrive when the middle is back.
func TestTokensAreRelayedThroughThreeLayers(t *testing.T) {
	f := newFamily(t)
	for _, l := range []*node{f.top, f.middle, f.bottom} {
		l.start()
	}
	f.bottom.until("the token of the top works", func() bool { return f.bottom.login("dev", "one") == http.StatusOK })
	if s := f.bottom.login("dev", "two"); s != http.StatusUnauthorized {
		t.Errorf("a wrong password: %d", s)
	}
	if s := f.middle.login("dev", "one"); s != http.StatusUnauthorized {
		t.Errorf("a token that is only for layer3 at layer4: %d", s)
	}
	// The sync token of a child is a pull credential at the parent.
	if s := f.middle.login("layer3", "sync3"); s != http.StatusOK {
		t.Errorf("the child's sync token at its parent: %d", s)
	}

	f.middle.end()
	f.bottom.end()
	*f.away = 25 * time.Hour
	f.bottom.start()
	if s := f.bottom.login("dev", "one"); s != http.StatusOK {
		t.Errorf("after a day without the parent and a restart: %d", s)
	}
	f.bottom.end()
	*f.away = 200 * 24 * time.Hour
	f.bottom.start()
	if s := f.bottom.login("dev", "one"); s != http.StatusOK {
		t.Errorf("after months without the parent and a restart: %d", s)
	}
	// The first password is rotated without a gap, and the guest goes.
	f.top.doc["clientTokens"] = map[string]any{
		"layer4": f.top.doc["clientTokens"].(map[string]any)["layer4"],
		"dev":    map[string]any{"scopeMap": "pull", "password1": hash("three"), "password2": hash("one")},
	}
	f.top.configure()
	f.top.until("the rotation is in force above", func() bool { return f.top.login("dev", "three") == http.StatusOK })
	if a, b := f.bottom.login("dev", "one"), f.bottom.login("guest", "guest"); a != http.StatusOK || b != http.StatusOK {
		t.Errorf("while the middle is away: %d, %d", a, b)
	}
	f.middle.start()
	f.bottom.until("the rotation arrives", func() bool { return f.bottom.login("dev", "three") == http.StatusOK })
	if a, b := f.bottom.login("dev", "one"), f.bottom.login("guest", "guest"); a != http.StatusOK || b != http.StatusUnauthorized {
		t.Errorf("the other password answers %d, the token that was taken away %d", a, b)
	}
}

// TestTree: each layer shows itself and what stands below it.
func TestTree(t *testing.T) {
	f := newFamily(t)
	for _, l := range []*node{f.top, f.middle, f.bottom} {
		l.start()
	}
	const three = "layer5  ReadOnly Offline 1.2.3; layer4 layer5 ReadOnly Online 1.2.3; layer3 layer4 ReadOnly Online 1.2.3"
	var tree []registry.TreeNode
	f.top.until("the top sees three layers, and what the last one says of itself", func() bool {
		tree = f.top.tree()
		return treeText(tree) == three && tree[2].Schedule != ""
	})
	const two = "layer4  ReadOnly Online 1.2.3; layer3 layer4 ReadOnly Online 1.2.3"
	f.middle.until("the middle sees two", func() bool { return treeText(f.middle.tree()) == two })
	bottom := tree[2]
	if bottom.LoginServer.Host != "layer3.example:8000" || bottom.Schedule != "* * * * *" || bottom.LastSyncTime.IsZero() || bottom.LastActivityTime.IsZero() || bottom.Activation.Status != registry.Active || bottom.InstanceID == "" {
		t.Errorf("%+v", bottom)
	}
	f.middle.end()
	f.top.end()
	*f.away = 10 * time.Minute
	f.top.start() // what it was told is durable
	if got, want := treeText(f.top.tree()), strings.ReplaceAll(three, "Online", "Offline"); got != want {
		t.Errorf("with the middle away: %s\nwant %s", got, want)
	}
}

// TestOneActiveInstance: a second device with the same sync token is refused in ACR's words and serves what it has; when
// the first one is deactivated at the parent the second takes its place by itself, and the first comes back only with a
// person's word.
func TestOneActiveInstance(t *testing.T) {
	f := newFamily(t)
	f.top.start()
	f.middle.start()
	f.middle.untilStatus("it is active", func(s registry.Status) bool { return s.Activation.Status == registry.Active })

	second := newNode(t, "layer4", f.top.addr)
	second.doc, second.options = f.middle.doc, f.middle.options
	second.start()
	const original = "Failed to activate the connected registry as it is already activated by another instance. Only one instance is supported at any time."
	s := second.untilStatus("it is refused", func(s registry.Status) bool { return detail(s, "ALREADY_ACTIVATED") != "" })
	if !strings.Contains(detail(s, "ALREADY_ACTIVATED"), original) || s.Activation.Status != registry.Inactive {
		t.Errorf("%+v", s)
	}
	if got := f.middle.status(); len(got.StatusDetails) > 0 || got.Activation.Status != registry.Active {
		t.Errorf("the first instance: %+v", got.StatusDetails)
	}

	if err := f.top.command("deactivate", map[string]string{"name": "nobody"}); err == nil {
		t.Error("a name that nobody has is deactivated")
	}
	must(t, f.top.command("deactivate", map[string]string{"name": "Layer4"}))
	_, _ = second.sync()
	second.untilStatus("it takes the place", func(s registry.Status) bool {
		return s.Activation.Status == registry.Active && len(s.StatusDetails) == 0
	})
	f.middle.untilStatus("the first one is refused", func(s registry.Status) bool { return strings.Contains(detail(s, "ALREADY_ACTIVATED"), original) })

	// The second one goes in order; the first was deactivated by a person and comes back by one.
	must(t, second.command("deactivate", nil))
	must(t, f.middle.command("activate", nil))
	f.middle.untilStatus("it is active again", func(s registry.Status) bool {
		return s.Activation.Status == registry.Active && len(s.StatusDetails) == 0
	})
}

// TestChildPullsAtItsParent: with its sync token a child's device pulls at the parent before it has a registry of its
// own, every byte; nobody does without one, and the token does not push.
func TestChildPullsAtItsParent(t *testing.T) {
	above := startOlareg(t)
	digest := push(t, above, "acme/app:1", image(t, 50_000, "a", "b"))
	f := newFamily(t)
	f.top.doc["parent"] = map[string]any{"gatewayEndpoint": above, "protocol": "http", "syncProperties": map[string]any{"schedule": "* * * * *"}}
	f.top.start()
	f.middle.start()
	who := remote.WithAuth(&authn.Basic{Username: "layer3", Password: "sync3"})
	f.middle.untilStatus("it has the tag", func(s registry.Status) bool { return s.Storage.Tags == 1 })
	got, err := cloud.Pull(t.Context(), f.middle.addr, "acme/app:1", who)
	if err != nil || got.Digest.String() != digest || got.Bytes < 100_000 {
		t.Errorf("%+v, %v; want %s", got, err, digest)
	}
	for what, options := range map[string][]remote.Option{
		"anonymously": nil, "with a wrong password": {remote.WithAuth(&authn.Basic{Username: "layer3", Password: "sync4"})},
	} {
		if _, err := cloud.Pull(t.Context(), f.middle.addr, "acme/app:1", options...); err == nil || !strings.Contains(err.Error(), "UNAUTHORIZED") {
			t.Errorf("%s: %v", what, err)
		}
	}
	header := map[string]string{"Authorization": basicAuth("layer3", "sync3")}
	if a := ask(t, f.middle.addr, http.MethodPost, "/v2/acme/app/blobs/uploads/", header); a.status != http.StatusForbidden {
		t.Errorf("a push with it: %d %s", a.status, a.body)
	}
}

// TestWithoutRepositories: a registry that syncs nothing activates at its parent, gets the tokens and is in the tree.
func TestWithoutRepositories(t *testing.T) {
	f := newFamily(t)
	delete(f.bottom.doc, "repositories")
	for _, l := range []*node{f.top, f.middle, f.bottom} {
		l.start()
	}
	f.bottom.until("the token of the top works", func() bool { return f.bottom.login("dev", "one") == http.StatusOK })
	f.top.until("the top sees it", func() bool {
		return strings.Contains(treeText(f.top.tree()), "layer3 layer4 ReadOnly Online 1.2.3")
	})
	if tree := f.top.tree(); tree[2].Activation.Status != registry.Active {
		t.Errorf("%+v", tree[2])
	}
}
