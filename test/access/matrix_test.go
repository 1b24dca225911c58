package access

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// The five actions on repositories, and one on the gateway of a child.
var actions = []string{"content/read", "content/write", "content/delete", "metadata/read", "metadata/write", "gateway"}

// cell is one row of the matrix: a request on the repository acme/app, what it needs, and what it is answered with when
// it is allowed. It is written down from ACR's documents and not from the code.
type cell struct {
	method, path string
	needs        string // one of actions; empty: any token
	changes      bool   // refused in ReadOnly mode, whoever asks
	allowed      []int  // in ReadWrite mode; in ReadOnly mode the same for what does not change
	body         string
	contentType  string
}

var cells = []cell{
	{method: "GET", path: "/v2/", allowed: []int{200}},
	{method: "GET", path: "/v2/_catalog", allowed: []int{200}},
	{method: "GET", path: "/v2/acme/app/tags/list", needs: "metadata/read", allowed: []int{200}},
	{method: "GET", path: "/v2/acme/app/manifests/v1", needs: "content/read", allowed: []int{200}},
	{method: "HEAD", path: "/v2/acme/app/manifests/v1", needs: "content/read", allowed: []int{200}},
	{method: "GET", path: "/v2/acme/app/manifests/" + digest(empty), needs: "content/read", allowed: []int{200}},
	{method: "GET", path: "/v2/acme/app/manifests/none", needs: "content/read", allowed: []int{404}},
	{method: "GET", path: "/v2/acme/app/blobs/" + absent, needs: "content/read", allowed: []int{404}},
	{method: "HEAD", path: "/v2/acme/app/blobs/" + absent, needs: "content/read", allowed: []int{404}},
	{method: "GET", path: "/v2/acme/app/referrers/" + absent, needs: "content/read", allowed: []int{200}},
	{method: "PUT", path: "/v2/acme/app/manifests/v1", needs: "content/write", changes: true, allowed: []int{201}, body: empty, contentType: indexType},
	{method: "PUT", path: "/v2/acme/app/manifests/latest", needs: "content/write", changes: true, allowed: []int{201}, body: empty, contentType: indexType},
	{method: "PUT", path: "/v2/acme/app/manifests/" + digest(empty), needs: "content/write", changes: true, allowed: []int{201}, body: empty, contentType: indexType},
	{method: "POST", path: "/v2/acme/app/blobs/uploads/", needs: "content/write", changes: true, allowed: []int{202}},
	{method: "POST", path: "/v2/acme/app/blobs/uploads/?mount=" + absent + "&from=acme/app", needs: "content/write", changes: true, allowed: []int{202}},
	{method: "GET", path: "/v2/acme/app/blobs/uploads/none", needs: "content/write", changes: true, allowed: []int{404}},
	{method: "PATCH", path: "/v2/acme/app/blobs/uploads/none", needs: "content/write", changes: true, allowed: []int{404}},
	{method: "PUT", path: "/v2/acme/app/blobs/uploads/none?digest=" + absent, needs: "content/write", changes: true, allowed: []int{404}},
	{method: "DELETE", path: "/v2/acme/app/blobs/uploads/none", needs: "content/write", changes: true, allowed: []int{404}},
	{method: "DELETE", path: "/v2/acme/app/manifests/" + absent, needs: "content/delete", changes: true, allowed: []int{404}},
	{method: "DELETE", path: "/v2/acme/app/blobs/" + absent, needs: "content/delete", changes: true, allowed: []int{404}},
	{method: "DELETE", path: "/v2/acme/app/manifests/none", needs: "metadata/write", changes: true, allowed: []int{404}},
	{method: "GET", path: "/acr/v1/_catalog", allowed: []int{200}},
	{method: "GET", path: "/acr/v1/acme/app", needs: "metadata/read", allowed: []int{200}},
	{method: "PATCH", path: "/acr/v1/acme/app", needs: "metadata/write", changes: true, allowed: []int{200}, body: `{"listEnabled":true}`, contentType: "application/json"},
	{method: "GET", path: "/acr/v1/acme/app/_tags", needs: "metadata/read", allowed: []int{200}},
	{method: "GET", path: "/acr/v1/acme/app/_tags/v1", needs: "metadata/read", allowed: []int{200}},
	{method: "DELETE", path: "/acr/v1/acme/app/_tags/none", needs: "metadata/write", changes: true, allowed: []int{404}},
	{method: "GET", path: "/acr/v1/acme/app/_manifests", needs: "metadata/read", allowed: []int{200}},
	{method: "GET", path: "/acr/v1/acme/app/_manifests/" + digest(empty), needs: "metadata/read", allowed: []int{200}},
	{method: "GET", path: "/acr/oauth2/token?service=x", allowed: []int{200}},
	{method: "GET", path: "/v2/_connected/v1/", allowed: []int{200}},
	{method: "GET", path: "/v2/_connected/v1/changes", allowed: []int{200}},
	{method: "GET", path: "/v2/_connected/v1/tokens", needs: "gateway", allowed: []int{200}},
	{method: "PUT", path: "/v2/_connected/v1/activation", needs: "gateway", allowed: []int{200}, body: `{"name":"lower","instanceId":"1","mode":"ReadOnly"}`},
	{method: "PUT", path: "/v2/_connected/v1/status", needs: "gateway", allowed: []int{204}, body: `{"connectedRegistries":[{"name":"lower","connectionState":"Online"}]}`},
	{method: "PUT", path: "/v2/_connected/v1/", allowed: []int{405}},
	{method: "POST", path: "/v2/_catalog", allowed: []int{405}},
	{method: "DELETE", path: "/v2/acme/app/tags/list", allowed: []int{405}},
}

// principal is who asks: with what credentials, and what its scope map permits on acme/app.
type principal struct {
	name     string
	request  request
	refused  bool // the credentials are not accepted
	none     bool // it has none
	may      []string
	narrower []string // what its access token is for; nil is no access token
}

// document has a token for each single action, for all of them, and for all of them elsewhere.
func document(mode registry.Mode) map[string]any {
	maps, tokens := map[string]any{}, map[string]any{}
	add := func(name, lines string, more map[string]any) {
		maps[name] = lines
		token := map[string]any{"scopeMap": name, "password1": digest("pw-" + name)}
		for k, v := range more {
			token[k] = v
		}
		tokens[name] = token
	}
	gateway := "gateway/lower/config/read gateway/lower/config/write gateway/lower/message/read gateway/lower/message/write"
	var all, other []string
	for _, a := range actions[:5] {
		add("only-"+strings.ReplaceAll(a, "/", "-"), "repositories/acme/app/"+a, nil)
		all, other = append(all, "repositories/acme/app/"+a), append(other, "repositories/acme/other/"+a, "repositories/acme/app/*/"+a)
	}
	add("only-gateway", gateway, nil)
	add("all", strings.Join(append(all, gateway), " "), nil)
	add("elsewhere", strings.Join(other, " "), nil)
	add("everywhere", strings.ReplaceAll(strings.Join(all, " "), "acme/app", "*"), nil)
	add("nothing", "", nil)
	add("disabled", strings.Join(all, " "), map[string]any{"status": "disabled"})
	add("expired", strings.Join(all, " "), map[string]any{"expiry1": "2020-01-01T00:00:00Z"})
	return map[string]any{"schemaVersion": "1.0", "mode": mode, "scopeMaps": maps, "clientTokens": tokens}
}

func principals(s *site) []principal {
	basic := func(name string, may ...string) principal {
		return principal{name: name, request: request{user: name, password: "pw-" + name}, may: may}
	}
	repo := actions[:5]
	list := []principal{
		{name: "nobody", none: true},
		{name: "wrong password", request: request{user: "all", password: "x"}, refused: true},
		{name: "unknown", request: request{user: "ghost", password: "x"}, refused: true},
		{name: "disabled", request: request{user: "disabled", password: "pw-disabled"}, refused: true},
		{name: "expired", request: request{user: "expired", password: "pw-expired"}, refused: true},
		{name: "no token", request: request{bearer: "a.b.c"}, refused: true},
		basic("all", actions...), basic("everywhere", repo...), basic("elsewhere"), basic("nothing"), basic("only-gateway", "gateway"),
	}
	for _, a := range repo {
		list = append(list, basic("only-"+strings.ReplaceAll(a, "/", "-"), a))
	}
	bearer := func(name string, narrower []string, scopes ...string) {
		list = append(list, principal{name: name, request: request{bearer: s.token("all", "pw-all", scopes...)}, may: actions, narrower: narrower})
	}
	bearer("token for pull", []string{"content/read", "metadata/read"}, "repository:acme/app:pull")
	bearer("token for two scopes", []string{"content/read", "metadata/read", "content/write"}, "repository:acme/app:pull", "repository:acme/app:push")
	bearer("token for another repository", []string{}, "repository:acme/other:pull,push,delete")
	return list
}

// rule says what the answer is: who is not known is asked to sign in, who may not is denied, what the mode forbids is
// denied, and the rest is what the request is answered with. An access token that is for less than its holder may do asks
// for another token.
func rule(c cell, p principal, mode registry.Mode, anonymousPull bool) (statuses []int, code registry.Code) {
	unauthorized, denied := []int{http.StatusUnauthorized}, []int{http.StatusForbidden}
	may := p.may
	token := strings.HasPrefix(c.path, "/acr/oauth2/")
	switch {
	case slices.Equal(c.allowed, []int{405}):
		return c.allowed, registry.CodeUnsupported // a method that there is not, for everybody
	case p.refused:
		return unauthorized, registry.CodeUnauthorized
	case p.none && !anonymousPull:
		return unauthorized, registry.CodeUnauthorized
	case p.none:
		may = []string{"content/read", "metadata/read"}
	case token && p.request.bearer != "":
		return unauthorized, registry.CodeUnauthorized // an access token is no credential for another one
	}
	catalog := strings.HasSuffix(c.path, "_catalog")
	if catalog && p.narrower != nil {
		return unauthorized, registry.CodeUnauthorized // none of the tokens is for the list
	}
	if c.needs != "" && !slices.Contains(may, c.needs) {
		if p.none && c.needs != "gateway" {
			return unauthorized, registry.CodeUnauthorized // it may have credentials still
		}
		return denied, registry.CodeDenied
	}
	if c.needs != "" && p.narrower != nil && !slices.Contains(p.narrower, c.needs) {
		if c.needs == "gateway" {
			return denied, registry.CodeDenied
		}
		return unauthorized, registry.CodeUnauthorized
	}
	if c.changes && mode == registry.ReadOnly {
		if c.method == "DELETE" && strings.HasPrefix(c.path, "/v2/") && !strings.Contains(c.path, "/uploads/") {
			return []int{http.StatusMethodNotAllowed}, registry.CodeDenied // OCI distribution, "Deleting": when it is switched off
		}
		return denied, registry.CodeDenied
	}
	return c.allowed, ""
}

// TestMatrix asks every route with every kind of permission, in both modes, with and without anonymous pull.
func TestMatrix(t *testing.T) {
	seen, answers := 0, map[int]int{}
	for _, anonymousPull := range []bool{false, true} {
		for _, mode := range []registry.Mode{registry.ReadWrite, registry.ReadOnly} {
			s := start(t, document(registry.ReadWrite), func(o *module.Options) { o.AnonymousPull = anonymousPull })
			s.until("the push is taken", func() bool {
				return s.ask(request{method: "PUT", path: "/v2/acme/app/manifests/v1", user: "all", password: "pw-all", body: empty, contentType: indexType}).status == 201
			})
			s.configure(document(mode))
			s.until("the mode is in force", func() bool {
				a := s.ask(request{method: "POST", path: "/v2/acme/app/blobs/uploads/", user: "all", password: "pw-all"})
				return (a.status == 403) == (mode == registry.ReadOnly)
			})
			for _, p := range principals(s) {
				for _, c := range cells {
					r := p.request
					r.method, r.path, r.body, r.contentType = c.method, c.path, c.body, c.contentType
					if strings.HasPrefix(c.path, "/v2/_connected/") {
						r.header = map[string]string{registry.HeaderChildName: "lower", registry.HeaderChildInstance: "1"}
					}
					a := s.ask(r)
					statuses, code := rule(c, p, mode, anonymousPull)
					what := fmt.Sprintf("%s %s as %s, %s, anonymous pull %v", c.method, c.path, p.name, mode, anonymousPull)
					if !slices.Contains(statuses, a.status) {
						t.Errorf("%s: %d %s, want %d", what, a.status, a.body, statuses)
					}
					if code != "" && c.method != "HEAD" && a.code != code {
						t.Errorf("%s: code %s, want %s", what, a.code, code)
					}
					if challenge := a.header.Get("Www-Authenticate"); (a.status == 401) != (challenge != "") {
						t.Errorf("%s: %d with the challenge %q", what, a.status, challenge)
					}
					seen++
					answers[a.status]++
				}
			}
		}
	}
	if seen < 400 || len(answers) < 8 {
		t.Errorf("%d cells with %d kinds of answers, want at least 400 and 8", seen, len(answers))
	}
	t.Logf("%d cells; answers by status %v", seen, slices.Sorted(maps.Keys(answers)))
}
