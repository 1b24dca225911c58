package access

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// TestBeforeTheFirstConfiguration: who has a right password is not told that it is wrong while nobody knows which are
// right, but to come back, and why.
func TestBeforeTheFirstConfiguration(t *testing.T) {
	dir := t.TempDir()
	config, tokens := filepath.Join(dir, "config.json"), filepath.Join(dir, "tokens.json")
	write := func(path string, doc any) {
		t.Helper()
		raw, ok := doc.(string)
		if !ok {
			body, err := json.Marshal(doc)
			must(t, err)
			raw = string(body)
		}
		must(t, os.WriteFile(path+".new", []byte(raw), 0o600))
		must(t, os.Rename(path+".new", path))
	}
	named := func(o *module.Options) {
		o.DataDir, o.ConfigFile, o.TokensFile = filepath.Join(dir, "data"), config, tokens
	}
	login := func(s *site, password string) answer {
		return s.ask(request{method: "GET", path: "/v2/", user: "all", password: password})
	}
	t.Run("first start", func(t *testing.T) {
		s := start(t, nil, named)
		waits := func(what, why string) {
			t.Helper()
			s.until(what, func() bool { return strings.Contains(login(s, "pw-all").body, why) })
			for _, r := range []request{
				{method: "GET", path: "/v2/"},
				{method: "GET", path: "/v2/acme/app/manifests/1"},
				{method: "GET", path: "/acr/v1/_catalog"},
				{method: "GET", path: "/acr/oauth2/token?service=x"},
				{method: "GET", path: "/v2/_connected/v1/"},
			} {
				if a := s.ask(r); a.status != http.StatusUnauthorized || a.header.Get("Www-Authenticate") == "" {
					t.Errorf("%s: %s without credentials: %d", what, r.path, a.status)
				}
				r.user, r.password = "all", "pw-all"
				a := s.ask(r)
				if a.status != http.StatusServiceUnavailable || a.code != registry.CodeUnavailable || a.header.Get("Retry-After") == "" ||
					a.header.Get("Www-Authenticate") != "" || strings.Contains(a.body, dir) {
					t.Errorf("%s: %s: %d %v %s", what, r.path, a.status, a.header, a.body)
				}
			}
		}
		waits("no files", "the configuration cannot be read: no such file or directory; the tokens file cannot be read: no such file")
		write(config, `{"clientTokens"`)
		waits("no JSON", "the configuration has an error")
		bad := document(registry.ReadOnly)
		bad["clientTokens"].(map[string]any)["all"] = map[string]any{"scopeMap": "pull", "password1": "plain"}
		write(config, bad)
		waits("a token with an error", "the configuration has an error")
		write(config, document(registry.ReadOnly))
		s.ready()
		if a := login(s, "wrong"); a.status != http.StatusServiceUnavailable || strings.Contains(a.body, "configuration") {
			t.Errorf("a token that may be in the tokens file: %d %s", a.status, a.body)
		}
		write(tokens, `{"clientTokens":{}}`)
		s.until("wrong passwords are wrong", func() bool { return login(s, "wrong").status == http.StatusUnauthorized })
	})
	must(t, os.Remove(config))
	must(t, os.Remove(tokens))
	t.Run("second start, without the files", func(t *testing.T) {
		s := start(t, nil, named)
		if right, wrong := login(s, "pw-all"), login(s, "wrong"); right.status != http.StatusOK || wrong.status != http.StatusUnauthorized {
			t.Errorf("with what was last in force: %d and %d", right.status, wrong.status)
		}
	})
}

// TestTokensFile: tokens of a file work beside those of the document, of which each is the stronger one; a change is in
// force without a restart, and a file with an error, or none at all, changes nothing.
func TestTokensFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.json")
	write := func(text string) {
		t.Helper()
		must(t, os.WriteFile(path+".new", []byte(text), 0o600))
		must(t, os.Rename(path+".new", path))
	}
	tokens := func(names ...string) string {
		list := map[string]any{}
		for _, name := range names {
			list[name] = map[string]any{"scopeMap": "pull", "password1": digest("file-" + name)}
		}
		raw, err := json.Marshal(map[string]any{"scopeMaps": map[string]any{"pull": "repositories/*/content/read"}, "clientTokens": list})
		must(t, err)
		return string(raw)
	}
	write(tokens("crane", "all"))
	s := start(t, document(registry.ReadOnly), func(o *module.Options) { o.TokensFile = path })
	login := func(user, password string) int {
		return s.ask(request{method: "GET", path: "/v2/", user: user, password: password}).status
	}
	s.until("a token of the file works", func() bool { return login("crane", "file-crane") == http.StatusOK })
	s.ready()
	if status := login("all", "file-all"); status != http.StatusUnauthorized {
		t.Errorf("a token of the document with the password of the file: %d", status)
	}
	write(tokens("crane", "press"))
	s.until("another token works", func() bool { return login("press", "file-press") == http.StatusOK })
	for what, text := range map[string]string{
		"no JSON": `{"clientTokens"`, "an error": strings.Replace(tokens("crane"), "content/read", "content/fly", 1), "a section more": `{"mode": "ReadWrite"}`,
	} {
		write(text)
		s.until(what+" is in the status", func() bool {
			return s.wrong("InvalidConfiguration", path)
		})
		if status := login("press", "file-press"); status != http.StatusOK {
			t.Errorf("with %s in the file: %d", what, status)
		}
		write(tokens("crane", "press"))
		s.until("the file is good again", func() bool {
			return !s.wrong("InvalidConfiguration", path)
		})
	}
	must(t, os.Remove(path))
	if status := login("press", "file-press"); status != http.StatusOK {
		t.Errorf("without the file: %d", status)
	}
}

// status is what the operator is told; the zero value while nobody answers.
func (s *site) status() (status registry.Status) {
	s.t.Helper()
	_ = module.Control(s.t.Context(), s.data, http.MethodGet, "/status", nil, &status)
	return status
}

// wrong reports whether the status has a detail of the code with the text.
func (s *site) wrong(code, text string) bool {
	s.t.Helper()
	return slices.ContainsFunc(s.status().StatusDetails, func(d registry.StatusDetail) bool { return d.Code == code && strings.Contains(d.Description, text) })
}

// TestDocumentCannotLowerSecurity: a parent over plain http, and whatever would let somebody in, needs a word on the
// machine. The document alone is refused, which the status says, and nothing is asked over http.
func TestDocumentCannotLowerSecurity(t *testing.T) {
	var asked atomic.Int64
	parent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusNotFound)
	}))
	defer parent.Close()
	endpoint := strings.TrimPrefix(parent.URL, "http://")
	for what, connection := range map[string]string{
		"without a connection string":                          "",
		"with a connection string of https":                    "ConnectedRegistryName=lower;SyncTokenName=lower;SyncTokenPassword=hunter2;ParentGatewayEndpoint=" + endpoint + ";ParentEndpointProtocol=https",
		"with a connection string of http that is for another": "ConnectedRegistryName=lower;SyncTokenName=lower;SyncTokenPassword=hunter2;ParentGatewayEndpoint=127.0.0.1:9;ParentEndpointProtocol=http",
	} {
		doc := document(registry.ReadOnly)
		doc["parent"] = map[string]any{"gatewayEndpoint": endpoint, "protocol": "http"}
		doc["repositories"] = map[string]any{"all": "acme/app"}
		s := start(t, doc, func(o *module.Options) {
			o.AllowInsecureParent = false
			o.Lookup = func(name string) (string, bool) {
				return connection, name == "ACR_REGISTRY_CONNECTION_STRING" && connection != ""
			}
		})
		s.until(what+" it is refused", func() bool {
			return s.wrong("ParentConfiguration", "http needs consent on this machine")
		})
		_ = module.Control(t.Context(), s.data, http.MethodPost, "/methods/sync", nil, new(any)) // with nobody to ask
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("the parent was asked %d times over http", n)
	}
	for _, open := range []string{`"serve": {"anonymousPull": true}`, `"insecureAnonymousPull": true`, `"allowInsecureParent": true`, `"serve": {"pullThrough": true, "anonymousPush": true}`} {
		doc := document(registry.ReadOnly)
		must(t, json.Unmarshal([]byte("{"+open+"}"), &doc))
		s := start(t, doc, nil)
		s.until(open+" is refused", func() bool {
			return len(s.status().Configuration.Errors) > 0
		})
		if a := s.ask(request{method: "GET", path: "/v2/"}); a.status != http.StatusUnauthorized {
			t.Errorf("with %s somebody without a token is answered %d", open, a.status)
		}
	}
}
