package distribution_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// needs is the permission of every method on every kind of path, written down a second time: a change of the routes
// that is not meant fails here. Methods that are not listed are answered with 405.
var needs = []struct {
	path    string
	methods map[string]registry.Action // empty: any token
}{
	{"/v2/", map[string]registry.Action{"GET": "", "HEAD": ""}},
	{"/v2/_catalog", map[string]registry.Action{"GET": "", "HEAD": ""}}, // everybody may ask; the list is filtered
	{"/v2/a/tags/list", map[string]registry.Action{"GET": "metadata/read", "HEAD": "metadata/read"}},
	{"/v2/a/referrers/" + absent, map[string]registry.Action{"GET": "content/read", "HEAD": "content/read"}},
	{"/v2/a/blobs/" + absent, map[string]registry.Action{"GET": "content/read", "HEAD": "content/read", "DELETE": "content/delete"}},
	{"/v2/a/manifests/v1", map[string]registry.Action{"GET": "content/read", "HEAD": "content/read", "PUT": "content/write", "DELETE": "metadata/write"}},
	{"/v2/a/manifests/" + absent, map[string]registry.Action{"GET": "content/read", "HEAD": "content/read", "PUT": "content/write", "DELETE": "content/delete"}},
	{"/v2/a/blobs/uploads/", map[string]registry.Action{"POST": "content/write"}},
	{"/v2/a/blobs/uploads/id", map[string]registry.Action{"GET": "content/write", "HEAD": "content/write", "PATCH": "content/write", "PUT": "content/write", "DELETE": "content/write"}},
}

func TestPermissionMatrix(t *testing.T) {
	s := newServer(t, registrytest.NewMemory(), distribution.Options{})
	methods := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
	for _, n := range needs {
		for _, method := range methods {
			action, known := n.methods[method]
			path := n.path
			if strings.HasSuffix(path, "/uploads/id") && method == "PUT" {
				path += "?digest=" + absent
			}
			for token := range scopeMaps {
				what := method + " " + path + " as " + token
				a := s.do(token, method, path, nil)
				granted := action == "" || token == "all" || token == strings.Replace(string(action), "/", "-", 1) ||
					token == "other" && (action == "content/read" || action == "content/write")
				switch {
				case !known:
					s.want(what, a, 405, "Allow", "*")
				case !granted:
					s.want(what, a, 403)
					if method != "HEAD" && (a.code() != registry.CodeDenied || !strings.Contains(string(a.body), "Insufficient scopes to perform the operation")) {
						t.Errorf("%s: %s", what, a.body)
					}
				case a.status == 401 || a.status == 403 || a.status == 405 || a.status >= 500:
					t.Errorf("%s: status %d", what, a.status)
				}
			}
			if !known {
				continue
			}
			for _, user := range []string{"", "nobody"} {
				a := s.do(user, method, path, nil)
				s.want(method+" "+path+" as "+user, a, 401, "Www-Authenticate", `Basic realm="connected registry"`)
				if method != "HEAD" {
					s.wantError(method+" "+path+" as "+user, a, 401, registry.CodeUnauthorized)
				}
			}
		}
	}
}

// TestPrincipal sees who a request acts for where content is written.
func TestPrincipal(t *testing.T) {
	seen := make(chan string, 1)
	s := newServer(t, principals{seen: seen}, distribution.Options{})
	s.do("other", "POST", "/v2/a/blobs/uploads/", nil)
	if got := <-seen; got != "other" {
		t.Errorf("principal %q, want other", got)
	}
}

type principals struct {
	registry.Unsupported
	seen chan string
}

func (p principals) StartUpload(ctx contextType, _ string) (registry.Upload, error) {
	p.seen <- registry.PrincipalFrom(ctx).Name
	return nil, registry.ErrUnsupported
}

// TestAnonymous has what local options admit.
func TestAnonymous(t *testing.T) {
	reg := registrytest.NewMemory()
	if err := registrytest.Push(t.Context(), reg, "a", "v1", registrytest.NewImage(1, 10)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		o    auth.Options
		ping int
		pull int
	}{
		{auth.Options{}, 401, 401},
		{auth.Options{AnonymousPull: true}, 200, 200},
		{auth.Options{AnonymousPull: true, BearerChallenge: true}, 401, 200}, // so that engines send the credentials they have
	} {
		h := distribution.New(reg, newAccess(tt.o), distribution.Options{})
		for _, c := range []struct {
			method, path string
			want         int
		}{
			{"GET", "/v2/", tt.ping},
			{"GET", "/v2/a/manifests/v1", tt.pull},
			{"GET", "/v2/a/tags/list", tt.pull},
			{"POST", "/v2/a/blobs/uploads/", 401},
			{"DELETE", "/v2/a/manifests/v1", 401},
		} {
			w := record(h, c.method, c.path)
			if w.Code != c.want || (w.Code == http.StatusUnauthorized) != (w.Header().Get("Www-Authenticate") != "") {
				t.Errorf("%+v: %s %s: %d, want %d", tt.o, c.method, c.path, w.Code, c.want)
			}
		}
	}
}
