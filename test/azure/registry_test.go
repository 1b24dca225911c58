package azure

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/acr"
	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/store"
	"github.com/connected-registry/connected-registry/test/layer"
)

const (
	tokenName     = "linea-sync-token"
	tokenPassword = "p4ssword+of/the=token"
)

// cloud is a stand-in for one Azure Container Registry: its login server, replicas of it, and its data endpoint.
type cloud struct {
	t       *testing.T
	entra   *entra
	now     func() time.Time
	store   *store.Store
	inner   http.Handler // content without any access rule
	login   *httptest.Server
	data    *httptest.Server
	service string // host:port of the login server

	role     atomic.Value // string: "AcrPull", "AcrPush" or "" for none
	redirect atomic.Bool  // blobs come from the data endpoint
	revoked  atomic.Int64 // refresh tokens with a lower number are refused
	issued   atomic.Int64 // refresh tokens
	down     atomic.Bool  // the exchange of tokens answers 503

	mu        sync.Mutex
	exchanges int
	atData    []http.Header // of the requests to the data endpoint
	sources   []string      // X-Meta-Source-Client at the login server
	ranges    []string
}

func newCloud(t *testing.T, now func() time.Time) *cloud {
	t.Helper()
	c := &cloud{t: t, now: now, entra: newEntra(t, now)}
	c.role.Store("AcrPush")
	c.redirect.Store(true)
	var err error
	if c.store, err = store.Open(t.Context(), t.TempDir(), store.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.store.Close() })
	open := auth.New(auth.Options{Clock: clock.System()})
	open.Update(map[string]registry.ClientToken{
		"inner": {ScopeMap: "all", Enabled: true, Passwords: []registry.TokenPassword{{SHA256: sha256.Sum256([]byte("inner"))}}},
	}, map[string]registry.ScopeMap{"all": strings.Fields(layer.Everything("*"))})
	v2 := distribution.New(c.store, open, distribution.Options{})
	v1 := acr.New(c.store, c.store, open, acr.Options{Mode: func() registry.Mode { return registry.ReadWrite }})
	c.inner = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.SetBasicAuth("inner", "inner")
		if strings.HasPrefix(r.URL.Path, acr.Path) {
			v1.ServeHTTP(w, r)
			return
		}
		v2.ServeHTTP(w, r)
	})
	c.data = httptest.NewTLSServer(http.HandlerFunc(c.serveData))
	t.Cleanup(c.data.Close)
	c.login = c.replica()
	c.service = c.login.Listener.Addr().String()
	return c
}

// dataURL is the data endpoint by a name of its own, as at Azure: Go's own client hands a credential on to another port
// of the same name.
func (c *cloud) dataURL() string { return strings.Replace(c.data.URL, "127.0.0.1", "example.com", 1) }

// dial leads every name to this machine.
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
}

// replica is another login server of the same registry.
func (c *cloud) replica() *httptest.Server {
	s := httptest.NewTLSServer(http.HandlerFunc(c.serve))
	c.t.Cleanup(s.Close)
	return s
}

func (c *cloud) push(repo, tag string, image registrytest.Image) {
	c.t.Helper()
	if err := registrytest.Push(c.t.Context(), c.store, repo, tag, image); err != nil {
		c.t.Fatal(err)
	}
}

var (
	contentPath  = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs|tags|referrers)/`)
	metadataPath = regexp.MustCompile(`^/acr/v1/([^_].*?)(/_tags.*|/_manifests.*)?$`)
)

// needed is the scope that a request needs; several are alternatives.
func needed(r *http.Request) []string {
	switch path := r.URL.Path; {
	case path == "/v2/":
		return nil
	case path == "/v2/_catalog" || path == "/acr/v1/_catalog":
		return []string{"registry:catalog:*"}
	case contentPath.MatchString(path):
		m := contentPath.FindStringSubmatch(path)
		switch {
		case r.Method == http.MethodDelete:
			return []string{"repository:" + m[1] + ":delete"}
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			return []string{"repository:" + m[1] + ":push"}
		case m[2] == "tags":
			return []string{"repository:" + m[1] + ":pull", "repository:" + m[1] + ":metadata_read"}
		}
		return []string{"repository:" + m[1] + ":pull"}
	case metadataPath.MatchString(path):
		verb := map[string]string{http.MethodGet: "metadata_read", http.MethodPatch: "metadata_write", http.MethodDelete: "delete"}[r.Method]
		return []string{"repository:" + metadataPath.FindStringSubmatch(path)[1] + ":" + verb}
	}
	return []string{"nothing"}
}

func (c *cloud) serve(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/oauth2/exchange":
		c.exchange(w, r)
		return
	case "/oauth2/token":
		c.token(w, r)
		return
	}
	c.mu.Lock()
	c.sources = append(c.sources, r.Header.Get("X-Meta-Source-Client"))
	c.mu.Unlock()
	want := needed(r)
	if status := c.allowed(r, want); status != 0 {
		c.challenge(w, r, want, status)
		return
	}
	if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:") && c.redirect.Load() {
		w.Header().Set("Location", c.dataURL()+r.URL.Path+"?sig="+url.QueryEscape(makeJWT(map[string]any{"path": r.URL.Path, "exp": c.now().Add(20 * time.Minute).Unix()})))
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	if strings.HasSuffix(r.URL.Path, "/tags/list") && r.URL.Query().Get("n") == "" {
		q := r.URL.Query()
		q.Set("n", "100") // the documented default
		r.URL.RawQuery = q.Encode()
	}
	c.inner.ServeHTTP(w, r)
}

// allowed returns 0 or the status to refuse with.
func (c *cloud) allowed(r *http.Request, want []string) int {
	header := r.Header.Get("Authorization")
	if name, password, ok := r.BasicAuth(); ok {
		if name == tokenName && password == tokenPassword {
			return 0
		}
		return http.StatusUnauthorized
	}
	claims, ok := openJWT(strings.TrimPrefix(header, "Bearer "), c.now())
	if !ok || !strings.HasPrefix(header, "Bearer ") || claims["aud"] != c.service {
		return http.StatusUnauthorized
	}
	has, _ := claims["access"].([]any)
	for _, s := range want {
		if slices.Contains(has, any(s)) {
			return 0
		}
	}
	if len(want) == 0 {
		return 0
	}
	return http.StatusUnauthorized
}

func (c *cloud) challenge(w http.ResponseWriter, r *http.Request, want []string, status int) {
	value := fmt.Sprintf(`Bearer realm="https://%s/oauth2/token",service="%s"`, r.Host, c.service)
	if len(want) > 0 {
		scope := want[0]
		if s, ok := strings.CutSuffix(scope, ":push"); ok {
			scope = s + ":pull,push"
		}
		value += fmt.Sprintf(`,scope="%s"`, scope)
	}
	w.Header().Set("Www-Authenticate", value)
	writeJSON(w, status, map[string]any{"errors": []any{map[string]any{"code": "UNAUTHORIZED", "message": "authentication required"}}})
}

func refuseToken(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]any{"errors": []any{map[string]any{"code": "UNAUTHORIZED", "message": text}}})
}

// exchange gives a refresh token of the registry for a token of Entra.
func (c *cloud) exchange(w http.ResponseWriter, r *http.Request) {
	if c.down.Load() {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	c.mu.Lock()
	c.exchanges++
	c.mu.Unlock()
	claims, ok := openJWT(r.PostFormValue("access_token"), c.now())
	switch tid := r.PostFormValue("tenant"); {
	case r.Method != http.MethodPost || r.PostFormValue("grant_type") != "access_token":
		refuseToken(w, http.StatusBadRequest, "grant_type")
	case r.PostFormValue("service") != c.service && !strings.HasPrefix(r.PostFormValue("service"), "127.0.0.1:"):
		refuseToken(w, http.StatusBadRequest, "service")
	case !ok || claims["aud"] != audience || tid != "" && tid != claims["tid"]:
		refuseToken(w, http.StatusUnauthorized, "AAD access token with missing or invalid claims")
	case c.role.Load() == "":
		refuseToken(w, http.StatusForbidden, "the identity has no role here")
	default:
		writeJSON(w, http.StatusOK, map[string]any{"refresh_token": makeJWT(map[string]any{
			"aud": c.service, "grant": "refresh", "sub": claims["appid"], "number": c.issued.Add(1), "exp": c.now().Add(3 * time.Hour).Unix(),
		})})
	}
}

// token gives an access token for a refresh token, or for the name and the password of a token of the registry.
func (c *cloud) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		refuseToken(w, http.StatusBadRequest, "form")
		return
	}
	name, password, basic := r.BasicAuth()
	if !basic {
		name, password = r.PostFormValue("username"), r.PostFormValue("password")
	}
	ok := name == tokenName && password == tokenPassword
	if r.PostFormValue("grant_type") == "refresh_token" {
		claims, good := openJWT(r.PostFormValue("refresh_token"), c.now())
		number, _ := claims["number"].(float64)
		ok = good && claims["grant"] == "refresh" && claims["aud"] == c.service && int64(number) >= c.revoked.Load()
	}
	if !ok {
		refuseToken(w, http.StatusUnauthorized, "refresh token is invalid")
		return
	}
	var access []string
	for _, scope := range r.Form["scope"] {
		for _, one := range strings.Fields(scope) {
			what, verbs, _ := cutLast(one, ":")
			for _, v := range strings.Split(verbs, ",") {
				if (v == "push" || v == "delete") && c.role.Load() != "AcrPush" {
					continue
				}
				access = append(access, what+":"+v)
			}
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"access_token": makeJWT(map[string]any{
		"aud": c.service, "access": access, "exp": c.now().Add(75 * time.Minute).Unix(),
	})})
}

// serveData gives blobs to who has a signed address, and to nobody who brings a credential.
func (c *cloud) serveData(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.atData = append(c.atData, r.Header.Clone())
	c.ranges = append(c.ranges, r.Header.Get("Range"))
	c.mu.Unlock()
	claims, ok := openJWT(r.URL.Query().Get("sig"), c.now())
	if r.Header.Get("Authorization") != "" || !ok || claims["path"] != r.URL.Path {
		http.Error(w, "InvalidAuthenticationInfo", http.StatusBadRequest)
		return
	}
	r.URL.RawQuery = ""
	c.inner.ServeHTTP(w, r)
}
