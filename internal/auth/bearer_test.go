package auth_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// documents is a store of documents in memory; with fail set it is a broken disk.
type documents struct {
	mu   sync.Mutex
	byID map[string][]byte
	fail error
}

func (d *documents) Document(_ context.Context, name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.byID[name], d.fail
}

func (d *documents) PutDocument(_ context.Context, name string, body []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail == nil {
		if d.byID == nil {
			d.byID = map[string][]byte{}
		}
		d.byID[name] = slices.Clone(body)
	}
	return d.fail
}

// bench is an authenticator with a clock that tests set.
type bench struct {
	*auth.Authenticator
	t    testing.TB
	now  time.Time
	docs *documents
	o    auth.Options
}

var (
	benchTokens = map[string]registry.ClientToken{
		"line-a":   {ScopeMap: "pull", Enabled: true, Passwords: []registry.TokenPassword{password("one", time.Time{}), password("two", now.Add(time.Hour))}},
		"writer":   {ScopeMap: "write", Enabled: true, Passwords: []registry.TokenPassword{password("one", time.Time{})}},
		"disabled": {ScopeMap: "pull", Passwords: []registry.TokenPassword{password("one", time.Time{})}},
	}
	benchMaps = map[string]registry.ScopeMap{
		"pull": {"repositories/acme/*/content/read", "repositories/acme/*/metadata/read"},
		"write": {
			"repositories/acme/*/content/read", "repositories/acme/*/metadata/read", "repositories/acme/*/content/write",
			"repositories/acme/*/content/delete", "repositories/acme/*/metadata/write", "gateway/child/config/read",
		},
	}
)

func newBench(t testing.TB, o auth.Options) *bench {
	b := &bench{t: t, now: now, docs: &documents{}}
	o.Clock = clock.Func(func() time.Time { return b.now })
	b.o = o
	b.restart()
	return b
}

// restart is a new process on the same data volume.
func (b *bench) restart() {
	b.Authenticator = auth.New(b.o)
	b.Update(benchTokens, benchMaps)
	b.Open(context.Background(), b.docs)
}

// answer is what a token endpoint says.
type answer struct {
	Status       int
	AccessToken  string `json:"access_token"`
	Token        string `json:"token"`
	RefreshToken string `json:"refresh_token"`
	ExpiresIn    int    `json:"expires_in"`
	Errors       []struct{ Code, Message string }
	Header       http.Header
}

func (b *bench) serve(r *http.Request) answer {
	b.t.Helper()
	w := httptest.NewRecorder()
	b.TokenHandler().ServeHTTP(w, r)
	a := answer{Status: w.Code, Header: w.Header()}
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
		b.t.Fatalf("%s %s: %q: %v", r.Method, r.URL, w.Body, err)
	}
	return a
}

// get asks as ACR's documentation does.
func (b *bench) get(user, query string) answer {
	b.t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/acr/oauth2/token?service=registry.example&"+query, nil)
	if user != "" {
		r.SetBasicAuth(user, "one")
	}
	return b.serve(r)
}

func (b *bench) post(path string, form url.Values) answer {
	b.t.Helper()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return b.serve(r)
}

// token returns an access token for scopes.
func (b *bench) token(user string, scopes ...string) string {
	b.t.Helper()
	a := b.get(user, url.Values{"scope": scopes}.Encode())
	if a.Status != http.StatusOK || a.AccessToken == "" || a.AccessToken != a.Token {
		b.t.Fatalf("no token: %+v", a)
	}
	return a.AccessToken
}

// may asks what a Bearer token may do.
func (b *bench) may(token, repo string, action registry.Action) error {
	r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	ctx, err := b.Enter(r)
	if err != nil {
		return err
	}
	return b.Check(ctx, repo, action)
}

// TestTokenCall is the call that ACR documents for its connected registry, and those of other clients.
func TestTokenCall(t *testing.T) {
	b := newBench(t, auth.Options{})
	for _, tt := range []struct {
		name, user, query string
		allowed           map[string][]registry.Action
		catalog           bool
	}{
		{
			name: "pull, which lists tags too", user: "line-a", query: "scope=repository:acme/app:pull",
			allowed: map[string][]registry.Action{"acme/app": {registry.ContentRead, registry.MetadataRead}},
		},
		{name: "the catalog", user: "line-a", query: "scope=registry:catalog:*", catalog: true},
		{
			name: "several parameters, as containerd sends them", user: "writer",
			query: "scope=repository:acme/app:pull,push&scope=repository:acme/base:pull&scope=repository:acme/app:delete",
			allowed: map[string][]registry.Action{
				"acme/app": {registry.ContentRead, registry.MetadataRead, registry.ContentWrite, registry.ContentDelete}, "acme/base": {registry.ContentRead, registry.MetadataRead},
			},
		},
		{
			name: "several scopes in one parameter", user: "writer", query: "scope=repository:acme/app:metadata_write+repository:acme/base:push",
			allowed: map[string][]registry.Action{"acme/app": {registry.MetadataWrite}, "acme/base": {registry.ContentWrite}},
		},
		{
			name: "everything is what the scope map permits", user: "line-a", query: "scope=repository:acme/app:*",
			allowed: map[string][]registry.Action{"acme/app": {registry.ContentRead, registry.MetadataRead}},
		},
		{
			name: "a class behind the type", user: "line-a", query: "scope=repository(plugin):acme/app:pull",
			allowed: map[string][]registry.Action{"acme/app": {registry.ContentRead, registry.MetadataRead}},
		},
		{name: "more than the scope map permits", user: "line-a", query: "scope=repository:other:pull,push&scope=repository:acme/app:push"},
		{name: "no scope", user: "line-a", query: ""},
		{name: "a pattern", user: "writer", query: "scope=repository:acme/*:pull&scope=repository:*:*"},
		{name: "rubbish", user: "writer", query: "scope=:::&scope=repository&scope=repository:acme/app&scope=repository:acme/app:fly&scope=a:b:c&scope=registry:other:*&scope=registry:catalog:pull"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			token := b.get(tt.user, tt.query).AccessToken
			for _, repo := range []string{"acme/app", "acme/base", "acme/app/below", "other"} {
				for _, action := range registry.ActionsOf(registry.ReadWrite) {
					if got, want := b.may(token, repo, action) == nil, slices.Contains(tt.allowed[repo], action); got != want {
						t.Errorf("%s on %s: %v, want %v", action, repo, got, want)
					}
				}
			}
			if err := b.may(token, "", registry.CatalogList); (err == nil) != tt.catalog {
				t.Errorf("catalog: %v, want %v", err, tt.catalog)
			}
		})
	}
}

// TestTokenForMoreIsChallenged: who may do something, but came with a token for something else, is told to come back;
// who may not is told so.
func TestTokenForMoreIsChallenged(t *testing.T) {
	b := newBench(t, auth.Options{})
	token := b.token("line-a", "repository:acme/app:pull")
	if err := b.may(token, "acme/base", registry.ContentRead); !errors.Is(err, registry.ErrUnauthorized) {
		t.Errorf("a token for another repository: %v", err)
	}
	if err := b.may(token, "acme/app", registry.ContentWrite); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("what the scope map does not permit: %v", err)
	}
	if err := b.may(token, "", registry.CatalogList); !errors.Is(err, registry.ErrUnauthorized) {
		t.Errorf("a token that is not for the catalog: %v", err)
	}
}

// TestListWithAToken: the list of repositories needs a token for it, or shows what the token is for.
func TestListWithAToken(t *testing.T) {
	b := newBench(t, auth.Options{})
	for _, tt := range []struct {
		scope string
		want  map[string]bool
	}{
		{"registry:catalog:*", map[string]bool{"acme/app": true, "acme/base": true, "other": false}},
		{"repository:acme/app:pull", map[string]bool{"acme/app": true, "acme/base": false, "other": false}},
	} {
		r := httptest.NewRequest(http.MethodGet, "/v2/_connected/v1/", nil)
		r.Header.Set("Authorization", "bearer "+b.token("line-a", tt.scope))
		c, err := b.Caller(r)
		if err != nil {
			t.Fatal(err)
		}
		for repo, want := range tt.want {
			if c.MayRead(repo) != want {
				t.Errorf("%s: %s is %v", tt.scope, repo, !want)
			}
		}
	}
}

func TestGatewayScope(t *testing.T) {
	b := newBench(t, auth.Options{})
	r := httptest.NewRequest(http.MethodGet, "/v2/_connected/v1/", nil)
	r.Header.Set("Authorization", "Bearer "+b.token("writer", "gateway:Child:config_read,config_write"))
	i, err := b.Authenticate(r)
	if err != nil {
		t.Fatal(err)
	}
	if !i.CanGateway("child", registry.ConfigRead) || i.CanGateway("child", registry.ConfigWrite) || i.CanGateway("other", registry.ConfigRead) {
		t.Error("a token for a gateway is for that one, and for what the scope map permits")
	}
}

// TestRevocation: what is taken away does not work with tokens that were issued before.
func TestRevocation(t *testing.T) {
	for _, tt := range []struct {
		name string
		take func(tokens map[string]registry.ClientToken, maps map[string]registry.ScopeMap)
		want error
	}{
		{"nothing", func(map[string]registry.ClientToken, map[string]registry.ScopeMap) {}, nil},
		{"a line of the scope map", func(_ map[string]registry.ClientToken, maps map[string]registry.ScopeMap) {
			maps["pull"] = registry.ScopeMap{"repositories/acme/*/metadata/read"}
		}, registry.ErrDenied},
		{"the scope map", func(_ map[string]registry.ClientToken, maps map[string]registry.ScopeMap) { delete(maps, "pull") }, registry.ErrDenied},
		{"the client token", func(tokens map[string]registry.ClientToken, _ map[string]registry.ScopeMap) { delete(tokens, "line-a") }, registry.ErrUnauthorized},
		{"disabled", func(tokens map[string]registry.ClientToken, _ map[string]registry.ScopeMap) {
			c := tokens["line-a"]
			c.Enabled = false
			tokens["line-a"] = c
		}, registry.ErrUnauthorized},
		{"its password", func(tokens map[string]registry.ClientToken, _ map[string]registry.ScopeMap) {
			c := tokens["line-a"]
			c.Passwords = c.Passwords[1:]
			tokens["line-a"] = c
		}, registry.ErrUnauthorized},
		{"the other password", func(tokens map[string]registry.ClientToken, _ map[string]registry.ScopeMap) {
			c := tokens["line-a"]
			c.Passwords = c.Passwords[:1]
			tokens["line-a"] = c
		}, nil},
		{"its password has expired", func(tokens map[string]registry.ClientToken, _ map[string]registry.ScopeMap) {
			c := tokens["line-a"]
			c.Passwords = []registry.TokenPassword{password("one", now)}
			tokens["line-a"] = c
		}, registry.ErrUnauthorized},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, auth.Options{})
			a := b.get("line-a", "offline_token=true&scope=repository:acme/app:pull")
			tokens, maps := map[string]registry.ClientToken{}, map[string]registry.ScopeMap{}
			for k, v := range benchTokens {
				tokens[k] = v
			}
			for k, v := range benchMaps {
				maps[k] = v
			}
			tt.take(tokens, maps)
			b.Update(tokens, maps)
			if err := b.may(a.AccessToken, "acme/app", registry.ContentRead); !errors.Is(err, tt.want) {
				t.Errorf("access token: %v, want %v", err, tt.want)
			}
			got := b.post("/oauth2/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {a.RefreshToken}})
			if want := !errors.Is(tt.want, registry.ErrUnauthorized); (got.Status == http.StatusOK) != want {
				t.Errorf("refresh token: %d, want it to work: %v", got.Status, want)
			}
		})
	}
}

func TestTokenLife(t *testing.T) {
	for o, want := range map[time.Duration]time.Duration{0: 30 * time.Minute, time.Second: 5 * time.Minute, 10 * time.Minute: 10 * time.Minute, time.Hour * 24: 75 * time.Minute} {
		b := newBench(t, auth.Options{TokenLife: o})
		a := b.get("line-a", "scope=repository:acme/app:pull")
		if got := time.Duration(a.ExpiresIn) * time.Second; got != want {
			t.Errorf("TokenLife %s: %s, want %s", o, got, want)
		}
		for _, step := range []struct {
			at time.Duration
			ok bool
		}{{-time.Second, false}, {0, true}, {want - time.Second, true}, {want, false}, {want + time.Hour, false}} {
			b.now = now.Add(step.at)
			if err := b.may(a.AccessToken, "acme/app", registry.ContentRead); (err == nil) != step.ok {
				t.Errorf("TokenLife %s, after %s: %v", o, step.at, err)
			}
		}
	}
}

// TestGrants has the ways of OAuth 2.
func TestGrants(t *testing.T) {
	form := func(pairs ...string) url.Values {
		v := url.Values{"service": {"registry.example"}, "scope": {"repository:acme/app:pull"}}
		for i := 0; i < len(pairs); i += 2 {
			v.Set(pairs[i], pairs[i+1])
		}
		return v
	}
	open, closed := newBench(t, auth.Options{AnonymousPull: true}), newBench(t, auth.Options{})
	refresh := closed.get("line-a", "offline_token=true").RefreshToken
	access := closed.token("line-a", "repository:acme/app:pull")
	for _, tt := range []struct {
		name, path string
		form       url.Values
		status     int
		anonymous  int // status where anonymous pull is admitted
	}{
		{"password", "/acr/oauth2/token", form("grant_type", "password", "username", "LINE-A", "password", "one"), 200, 200},
		{"wrong password", "/oauth2/token", form("grant_type", "password", "username", "line-a", "password", "x"), 401, 401},
		{"user without password", "/oauth2/token", form("grant_type", "password", "username", "line-a"), 401, 401},
		{"anonymous, as the SDK for Go asks", "/oauth2/token", form("grant_type", "password", "refresh_token", ""), 401, 200},
		{"refresh", "/oauth2/token", form("grant_type", "refresh_token", "refresh_token", refresh), 200, 401}, // of another registry
		{"an access token is no refresh token", "/oauth2/token", form("grant_type", "refresh_token", "refresh_token", access), 401, 401},
		{"no refresh token", "/oauth2/token", form("grant_type", "refresh_token"), 401, 401},
		{"no grant", "/oauth2/token", form(), 400, 400},
		{"another grant", "/oauth2/token", form("grant_type", "client_credentials"), 400, 400},
		{"exchange", "/oauth2/exchange", form("grant_type", "access_token", "access_token", refresh), 200, 401},
		{"exchange of a refresh token", "/oauth2/exchange", form("grant_type", "refresh_token", "refresh_token", refresh), 200, 401},
		{"an access token is never exchanged for more", "/oauth2/exchange", form("grant_type", "access_token", "access_token", access), 401, 401},
		{"exchange without a grant", "/oauth2/exchange", form(), 400, 400},
	} {
		for what, b := range map[string]*bench{"closed": closed, "open": open} {
			want := tt.status
			if b == open {
				want = tt.anonymous
			}
			a := b.post(tt.path, tt.form)
			if a.Status != want {
				t.Errorf("%s, %s: %d %v, want %d", tt.name, what, a.Status, a.Errors, want)
				continue
			}
			if want == http.StatusUnauthorized && (a.Errors[0].Code != "UNAUTHORIZED" || !strings.HasPrefix(a.Header.Get("Www-Authenticate"), "Basic ")) {
				t.Errorf("%s, %s: %+v", tt.name, what, a)
			}
			if want == http.StatusOK && tt.path != "/oauth2/exchange" {
				if err := b.may(a.AccessToken, "acme/app", registry.ContentRead); err != nil {
					t.Errorf("%s, %s: the token does not work: %v", tt.name, what, err)
				}
			}
		}
	}
	exchanged := closed.post("/oauth2/exchange", form("grant_type", "access_token", "access_token", refresh)).RefreshToken
	if a := closed.post("/oauth2/token", form("grant_type", "refresh_token", "refresh_token", exchanged)); a.Status != 200 || closed.may(a.AccessToken, "acme/app", registry.ContentRead) != nil {
		t.Errorf("an exchanged refresh token does not work: %+v", a)
	}
}

func TestTokenRequestsThatAreRefused(t *testing.T) {
	b := newBench(t, auth.Options{})
	for _, tt := range []struct {
		method, target, auth, body string
		status                     int
	}{
		{"GET", "/acr/oauth2/token", "", "", 401},
		{"GET", "/acr/oauth2/token", "Bearer " + b.token("line-a"), "", 401},
		{"GET", "/oauth2/exchange", "", "", 405},
		{"PUT", "/oauth2/token", "", "", 405},
		{"DELETE", "/oauth2/exchange", "", "", 405},
		{"POST", "/oauth2/token", "", "grant_type=%zz", 400},
		{"POST", "/oauth2/token", "", "a=" + strings.Repeat("b", 70<<10), 400},
		{"GET", "/acr/oauth2/token?scope=" + strings.Repeat("repository:acme/app:pull+", 101), "Basic bGluZS1hOm9uZQ==", "", 400},
	} {
		r := httptest.NewRequest(tt.method, tt.target, strings.NewReader(tt.body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if tt.auth != "" {
			r.Header.Set("Authorization", tt.auth)
		}
		if a := b.serve(r); a.Status != tt.status || len(a.Errors) != 1 || (tt.status == 405) != (a.Header.Get("Allow") != "") {
			t.Errorf("%s %.60s: %+v, want %d", tt.method, tt.target, a, tt.status)
		}
	}
	before := auth.New(auth.Options{AnonymousPull: true})
	w := httptest.NewRecorder()
	before.TokenHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/oauth2/token", nil))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("before the data volume is open: %d", w.Code)
	}
}

// TestKeys: tokens outlive the process and the rotation of keys, and end with a lost volume.
func TestKeys(t *testing.T) {
	b := newBench(t, auth.Options{})
	token := b.token("line-a", "repository:acme/app:pull")
	works := func(token string) bool { return b.may(token, "acme/app", registry.ContentRead) == nil }
	b.restart()
	if !works(token) {
		t.Error("a restart ended the token")
	}
	kid := func(token string) string {
		header, _, _ := strings.Cut(token, ".")
		raw, _ := base64.RawURLEncoding.DecodeString(header)
		var h struct{ Kid string }
		_ = json.Unmarshal(raw, &h)
		return h.Kid
	}
	b.now = now.Add(30*24*time.Hour - time.Minute)
	late := b.token("line-a", "repository:acme/app:pull")
	b.now = b.now.Add(2 * time.Minute)
	next := b.token("line-a", "repository:acme/app:pull")
	if kid(late) != kid(token) || kid(next) == kid(late) {
		t.Errorf("keys %s, %s, %s: want a new one after 30 days", kid(token), kid(late), kid(next))
	}
	if !works(late) || !works(next) {
		t.Error("a token of before the rotation does not work")
	}
	b.restart()
	if !works(late) || !works(next) {
		t.Error("a token does not work after rotation and restart")
	}
	b.now = b.now.Add(30*24*time.Hour + time.Hour)
	b.token("line-a")
	if got := strings.Count(string(b.docs.byID["auth/token-keys"]), `"kid"`); got != 2 {
		t.Errorf("%d keys are kept, want 2: the oldest has nothing left to verify", got)
	}
	b.docs.byID = nil
	b.restart()
	b.now = now
	if works(next) || works(token) {
		t.Error("a token of another volume works")
	}
	b.docs.byID["auth/token-keys"] = []byte(`{"audience":"x","keys":[{"kid":"","secret":"AAAA"},{"kid":"short","secret":"AAAA"}]}`)
	b.restart()
	if !works(b.token("line-a", "repository:acme/app:pull")) {
		t.Error("damaged keys are not replaced")
	}
}

// TestKeysWithoutADisk: a full or broken disk does not stop logins.
func TestKeysWithoutADisk(t *testing.T) {
	b := newBench(t, auth.Options{})
	b.docs.fail = io.ErrShortWrite
	b.restart()
	if err := b.may(b.token("line-a", "repository:acme/app:pull"), "acme/app", registry.ContentRead); err != nil {
		t.Error(err)
	}
}

func TestChallengeFor(t *testing.T) {
	const basic = `Basic realm="connected registry"`
	for _, tt := range []struct {
		name, path, auth string
		forwarded        [2]string // host, protocol
		bearer           bool
		host             string
		repo             string
		action           registry.Action
		want             string
	}{
		{name: "default", path: "/v2/", want: basic},
		{name: "default, with a repository", path: "/v2/a/tags/list", repo: "a", action: registry.MetadataRead, want: basic},
		{name: "option", path: "/v2/", bearer: true, want: `Bearer realm="http://reg:8000/acr/oauth2/token",service="reg:8000"`},
		{
			name: "ACR's API", path: "/acr/v1/_catalog", action: registry.CatalogList,
			want: `Bearer realm="http://reg:8000/acr/oauth2/token",service="reg:8000",scope="registry:catalog:*"`,
		},
		{
			name: "who has a token already", path: "/v2/a/manifests/v1", auth: "Bearer x", repo: "a", action: registry.ContentRead,
			want: `Bearer realm="http://reg:8000/acr/oauth2/token",service="reg:8000",scope="repository:a:pull",error="invalid_token"`,
		},
		{
			name: "behind a proxy", path: "/v2/a/blobs/uploads/", bearer: true, forwarded: [2]string{"edge.example:443, inner", "https, http"}, repo: "a", action: registry.ContentWrite,
			want: `Bearer realm="https://edge.example:443/acr/oauth2/token",service="edge.example:443",scope="repository:a:pull,push"`,
		},
		{
			name: "a forwarded host that is none", path: "/v2/", bearer: true, forwarded: [2]string{`x",realm="http://evil`, "gopher"},
			want: `Bearer realm="http://reg:8000/acr/oauth2/token",service="reg:8000"`,
		},
		{name: "a host that is none", path: "/v2/", bearer: true, host: `a"b`, want: basic},
		{name: "IPv6", path: "/v2/", bearer: true, host: "[fe80::1]:80", want: `Bearer realm="http://[fe80::1]:80/acr/oauth2/token",service="[fe80::1]:80"`},
		{
			name: "mount", path: "/v2/a/blobs/uploads/?mount=x&from=b/c", bearer: true, repo: "a", action: registry.ContentWrite,
			want: `Bearer realm="http://reg:8000/acr/oauth2/token",service="reg:8000",scope="repository:a:pull,push repository:b/c:pull"`,
		},
		{
			name: "mount from no repository", path: "/v2/a/blobs/uploads/?mount=x&from=b%22,x=%22", bearer: true, repo: "a", action: registry.ContentWrite,
			want: `Bearer realm="http://reg:8000/acr/oauth2/token",service="reg:8000",scope="repository:a:pull,push"`,
		},
		{name: "delete", path: "/acr/v1/a", repo: "a", action: registry.ContentDelete, want: `Bearer realm="http://reg:8000/acr/oauth2/token",service="reg:8000",scope="repository:a:delete"`},
		{name: "untag", path: "/acr/v1/a/_tags/v1", repo: "a", action: registry.MetadataWrite, want: `Bearer realm="http://reg:8000/acr/oauth2/token",service="reg:8000",scope="repository:a:metadata_write"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, tt.path, nil)
			r.Host = "reg:8000"
			if tt.host != "" {
				r.Host = tt.host
			}
			for i, key := range []string{"X-Forwarded-Host", "X-Forwarded-Proto"} {
				if tt.forwarded[i] != "" {
					r.Header.Set(key, tt.forwarded[i])
				}
			}
			if tt.auth != "" {
				r.Header.Set("Authorization", tt.auth)
			}
			h := http.Header{}
			auth.New(auth.Options{BearerChallenge: tt.bearer}).ChallengeFor(h, r, tt.repo, tt.action)
			if got := h.Get("Www-Authenticate"); got != tt.want {
				t.Errorf("%s\nwant %s", got, tt.want)
			}
		})
	}
}

func BenchmarkBearer(b *testing.B) {
	f := newBench(b, auth.Options{})
	r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
	r.Header.Set("Authorization", "Bearer "+f.token("line-a", "repository:acme/app:pull"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Authenticate(r); err != nil {
			b.Fatal(err)
		}
	}
}
