package acr_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/acr"
	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/filter"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/store"
)

var actions = []registry.Action{registry.ContentRead, registry.ContentWrite, registry.ContentDelete, registry.MetadataRead, registry.MetadataWrite}

// fixture is the API over a store with acme/app:v1 and acme/app:v2. Each client token has one action, with the action as
// its name; "all" has all, "none" none.
type fixture struct {
	http.Handler
	t     testing.TB
	store *store.Store
	mode  registry.Mode
	now   time.Time
	v1    registrytest.Image
}

func newFixture(t testing.TB, o auth.Options) *fixture {
	t.Helper()
	f := &fixture{t: t, mode: registry.ReadWrite, now: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), v1: registrytest.NewImage(1, 10)}
	st, err := store.Open(context.Background(), t.TempDir(), store.Options{Clock: clock.Func(func() time.Time { return f.now })})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	f.store = st
	for tag, image := range map[string]registrytest.Image{"v1": f.v1, "v2": registrytest.NewImage(2, 10)} {
		if err := registrytest.Push(context.Background(), st, "acme/app", tag, image); err != nil {
			t.Fatal(err)
		}
	}
	access := auth.New(o)
	tokens, maps := map[string]registry.ClientToken{}, map[string]registry.ScopeMap{"none": nil}
	for _, a := range actions {
		line := "repositories/acme/*/" + string(a)
		maps[string(a)] = registry.ScopeMap{line}
		maps["all"] = append(maps["all"], line)
	}
	for name := range maps {
		tokens[name] = registry.ClientToken{ScopeMap: name, Enabled: true, Passwords: []registry.TokenPassword{{SHA256: sha256.Sum256([]byte(name))}}}
	}
	access.Update(tokens, maps)
	mode := func() registry.Mode { return f.mode }
	content := filter.Scoped(filter.Locked(filter.Switch(mode, st), st), access.MayList)
	f.Handler = acr.New(content, st, access, acr.Options{Mode: mode})
	return f
}

func (f *fixture) do(user, method, target, body string) *httptest.ResponseRecorder {
	f.t.Helper()
	r := httptest.NewRequest(method, "http://reg:8000/", strings.NewReader(body))
	path, query, _ := strings.Cut(target, "?")
	r.URL.Path, r.URL.RawQuery = path, query
	if user != "" {
		r.SetBasicAuth(user, user)
	}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w
}

func code(w *httptest.ResponseRecorder) registry.Code {
	var doc struct {
		Errors []struct{ Code registry.Code }
	}
	if json.Unmarshal(w.Body.Bytes(), &doc) != nil || len(doc.Errors) != 1 {
		return ""
	}
	return doc.Errors[0].Code
}

// needs is the permission of every method on every kind of path, written down a second time.
func (f *fixture) needs() map[string]map[string]registry.Action {
	const read, write = registry.MetadataRead, registry.MetadataWrite
	return map[string]map[string]registry.Action{
		"/acr/v1/_catalog":                                    {"GET": "", "HEAD": ""},
		"/acr/v1/acme/app":                                    {"GET": read, "HEAD": read, "PATCH": write, "DELETE": registry.ContentDelete},
		"/acr/v1/acme/app/_tags":                              {"GET": read, "HEAD": read},
		"/acr/v1/acme/app/_tags/v1":                           {"GET": read, "HEAD": read, "PATCH": write, "DELETE": write},
		"/acr/v1/acme/app/_manifests":                         {"GET": read, "HEAD": read},
		"/acr/v1/acme/app/_manifests/" + f.v1.Digest.String(): {"GET": read, "HEAD": read, "PATCH": write},
	}
}

// TestMatrix has every method on every path for every permission, in both modes.
func TestMatrix(t *testing.T) {
	f := newFixture(t, auth.Options{})
	cells := 0
	for _, mode := range []registry.Mode{registry.ReadOnly, registry.ReadWrite} {
		f.mode = mode
		for path, methods := range f.needs() {
			for _, method := range []string{"GET", "HEAD", "PUT", "POST", "PATCH", "OPTIONS", "DELETE"} {
				action, known := methods[method]
				if method == "DELETE" && mode == registry.ReadWrite {
					continue // TestDelete
				}
				users := []string{"", "nobody", "none", "all"}
				for _, a := range actions {
					users = append(users, string(a))
				}
				for _, user := range users {
					cells++
					want := http.StatusOK
					switch changes := method == "PATCH" || method == "DELETE"; {
					case !known:
						want = http.StatusMethodNotAllowed
					case user == "" || user == "nobody":
						want = http.StatusUnauthorized
					case action != "" && user != "all" && user != string(action), changes && mode == registry.ReadOnly:
						want = http.StatusForbidden
					}
					w := f.do(user, method, path, "{}")
					if w.Code != want || (want != http.StatusOK) != (code(w) != "") || (want == http.StatusMethodNotAllowed) != (w.Header().Get("Allow") != "") {
						t.Errorf("%s %s as %q in %s: %d %s, want %d", method, path, user, mode, w.Code, w.Body, want)
					}
					challenge := w.Header().Get("Www-Authenticate")
					if (want == http.StatusUnauthorized) != strings.HasPrefix(challenge, `Bearer realm="http://reg:8000/acr/oauth2/token",service="reg:8000",scope="`) {
						t.Errorf("%s %s as %q: challenge %q", method, path, user, challenge)
					}
				}
			}
		}
	}
	if cells < 400 {
		t.Errorf("%d cells", cells)
	}
}

func TestDelete(t *testing.T) {
	f := newFixture(t, auth.Options{})
	if w := f.do("all", "DELETE", "/acr/v1/acme/app/_tags/v2", ""); w.Code != http.StatusAccepted {
		t.Errorf("untag: %d %s", w.Code, w.Body)
	}
	if w := f.do("all", "DELETE", "/acr/v1/acme/app/_tags/v2", ""); w.Code != http.StatusNotFound || code(w) != "TAG_UNKNOWN" {
		t.Errorf("untag again: %d %s", w.Code, w.Body)
	}
	w := f.do("all", "DELETE", "/acr/v1/acme/app", "")
	var deleted struct {
		ManifestsDeleted []registry.Digest `json:"manifestsDeleted"`
		TagsDeleted      []string          `json:"tagsDeleted"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &deleted); err != nil || w.Code != http.StatusAccepted || len(deleted.ManifestsDeleted) != 2 || !slices.Equal(deleted.TagsDeleted, []string{"v1"}) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := f.do("all", "DELETE", "/acr/v1/acme/app", ""); w.Code != http.StatusNotFound || code(w) != registry.CodeNameUnknown {
		t.Errorf("delete again: %d %s", w.Code, w.Body)
	}
}

// TestNoOracle: who may not see a repository cannot find out whether it is there.
func TestNoOracle(t *testing.T) {
	f := newFixture(t, auth.Options{})
	for _, path := range []string{"", "/_tags", "/_tags/v1", "/_manifests", "/_manifests/" + f.v1.Digest.String()} {
		there, absent := f.do("none", "GET", "/acr/v1/acme/app"+path, ""), f.do("none", "GET", "/acr/v1/acme/absent"+path, "")
		if there.Code != http.StatusForbidden || there.Code != absent.Code || there.Body.String() != absent.Body.String() {
			t.Errorf("%q: %d %s and %d %s", path, there.Code, there.Body, absent.Code, absent.Body)
		}
	}
	var catalog struct{ Repositories []string }
	if err := json.Unmarshal(f.do("none", "GET", "/acr/v1/_catalog", "").Body.Bytes(), &catalog); err != nil || catalog.Repositories == nil || len(catalog.Repositories) != 0 {
		t.Errorf("catalog of one who may see nothing: %+v, %v", catalog, err)
	}
}

func TestBadRequests(t *testing.T) {
	f := newFixture(t, auth.Options{})
	for _, tt := range []struct {
		method, target, body string
		status               int
		code                 registry.Code
	}{
		{"GET", "/acr/v1/", "", 400, "NAME_INVALID"},
		{"GET", "/acr/v1/Upper", "", 400, "NAME_INVALID"},
		{"GET", "/acr/v1/../v2/", "", 400, "NAME_INVALID"},
		{"GET", "/acr/v1/a/_tagsx", "", 404, "NAME_INVALID"},
		{"GET", "/acr/v1//_tags", "", 400, "NAME_INVALID"},
		{"GET", "/acr/v1/acme/app/_tags/-x", "", 400, "TAG_INVALID"},
		{"GET", "/acr/v1/acme/app/_tags/a/b", "", 400, "TAG_INVALID"},
		{"GET", "/acr/v1/acme/app/_manifests/v1", "", 400, "DIGEST_INVALID"},
		{"GET", "/acr/v1/acme/app/_tags?n=0", "", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", "/acr/v1/acme/app/_tags?n=-1", "", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", "/acr/v1/acme/app/_tags?n=99999999999999999999", "", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", "/acr/v1/acme/app/_tags?n=1000000", "", 200, ""},
		{"GET", "/acr/v1/acme/app/_tags?orderby=size", "", 400, "UNSUPPORTED"},
		{"GET", "/acr/v1/acme/app/_tags?digest=x", "", 400, "DIGEST_INVALID"},
		{"GET", "/acr/v1/acme/app/_tags?%zz", "", 400, "UNSUPPORTED"},
		{"GET", "/acr/v1/acme/app/_manifests?last=x", "", 400, "DIGEST_INVALID"},
		{"GET", "/acr/v1/acme/app/_manifests?last=x&orderby=timedesc", "", 200, ""},
		{"PATCH", "/acr/v1/acme/app", "", 400, "UNSUPPORTED"},
		{"PATCH", "/acr/v1/acme/app", `{"writeEnabled":"no"}`, 400, "UNSUPPORTED"},
		{"PATCH", "/acr/v1/acme/app", `[]`, 400, "UNSUPPORTED"},
		{"PATCH", "/acr/v1/acme/app", `{"writeEnabled":` + strings.Repeat(" ", 20<<10) + `false}`, 400, "UNSUPPORTED"},
		{"PATCH", "/acr/v1/acme/app", `{"writeEnabled":null,"quarantineState":"x"}`, 200, ""},
		{"GET", "/acr/v1/" + strings.Repeat("a", 2000), "", 404, "NAME_INVALID"},
	} {
		if w := f.do("all", tt.method, tt.target, tt.body); w.Code != tt.status || code(w) != tt.code {
			t.Errorf("%s %.80s %.40s: %d %s, want %d %s", tt.method, tt.target, tt.body, w.Code, w.Body, tt.status, tt.code)
		}
	}
}

// TestAnonymous: a local option lets everybody read, never change.
func TestAnonymous(t *testing.T) {
	f := newFixture(t, auth.Options{AnonymousPull: true})
	for target, want := range map[string]int{
		"GET /acr/v1/_catalog": 200, "GET /acr/v1/acme/app": 200, "GET /acr/v1/acme/app/_tags/v1": 200,
		"PATCH /acr/v1/acme/app": 401, "DELETE /acr/v1/acme/app": 401, "DELETE /acr/v1/acme/app/_tags/v1": 401,
	} {
		method, path, _ := strings.Cut(target, " ")
		if w := f.do("", method, path, "{}"); w.Code != want {
			t.Errorf("%s: %d, want %d", target, w.Code, want)
		}
	}
}

// TestPagesByTimeHold: a tag that moves or goes between two pages neither hides nor repeats others.
func TestPagesByTimeHold(t *testing.T) {
	f := newFixture(t, auth.Options{})
	var names []string
	for i := range 7 {
		f.now = f.now.Add(time.Hour)
		names = append(names, fmt.Sprintf("t%d", i))
		if err := registrytest.Push(t.Context(), f.store, "acme/lib", names[i], registrytest.NewImage(uint64(i), 10)); err != nil {
			t.Fatal(err)
		}
	}
	page := func(target string) (tags []string, next string) {
		w := f.do("all", "GET", target, "")
		var doc struct{ Tags []struct{ Name string } }
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
			t.Fatal(err)
		}
		for _, tag := range doc.Tags {
			tags = append(tags, tag.Name)
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(w.Header().Get("Link"), "<"), ">")
		return tags, next
	}
	for what, between := range map[string]func() error{
		"moved": func() error {
			f.now = f.now.Add(time.Hour)
			return registrytest.Push(t.Context(), f.store, "acme/lib", "t2", registrytest.NewImage(99, 10))
		},
		"gone": func() error { return f.store.DeleteTag(t.Context(), "acme/lib", "t2") },
	} {
		first, next := page("/acr/v1/acme/lib/_tags?orderby=timeasc&n=3")
		last := first[len(first)-1]
		if err := between(); err != nil {
			t.Fatal(err)
		}
		rest, _ := page(strings.Replace(next, "n=3", "n=100", 1))
		for _, name := range names[3:] {
			if !slices.Contains(rest, name) && !slices.Contains(first, name) {
				t.Errorf("%s: %v, then after %s was changed %v: %s is missing", what, first, last, rest, name)
			}
		}
		for _, name := range rest {
			if name != "t2" && slices.Contains(first, name) {
				t.Errorf("%s: %s comes twice", what, name)
			}
		}
	}
}

// TestHiddenFromLists: what has listEnabled false is in no list, in whatever order and however small the pages are, and
// is found by its name.
func TestHiddenFromLists(t *testing.T) {
	f := newFixture(t, auth.Options{})
	var images []registrytest.Image
	for i := range 6 {
		f.now = f.now.Add(time.Hour)
		images = append(images, registrytest.NewImage(uint64(10+i), 10))
		if err := registrytest.Push(t.Context(), f.store, "acme/lib", fmt.Sprintf("t%d", i), images[i]); err != nil {
			t.Fatal(err)
		}
	}
	hidden := []int{0, 2, 3, 5} // the first and the last of every order, and two neighbours
	for _, i := range hidden {
		for _, path := range []string{fmt.Sprintf("_tags/t%d", i), "_manifests/" + images[i].Digest.String()} {
			if w := f.do("all", "PATCH", "/acr/v1/acme/lib/"+path, `{"listEnabled":false}`); w.Code != http.StatusOK {
				t.Fatalf("%s: %d %s", path, w.Code, w.Body)
			}
			if w := f.do("all", "GET", "/acr/v1/acme/lib/"+path, ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"listEnabled":false`) {
				t.Errorf("%s by name: %d %s", path, w.Code, w.Body)
			}
		}
	}
	for _, list := range []string{"_tags", "_manifests"} {
		for _, order := range []string{"none", "timeasc", "timedesc"} {
			for n := 1; n <= 3; n++ {
				got := map[string]int{}
				pages := 0
				for next := fmt.Sprintf("/acr/v1/acme/lib/%s?orderby=%s&n=%d", list, order, n); next != ""; pages++ {
					w := f.do("all", "GET", next, "")
					var doc struct {
						Tags      []struct{ Name string }
						Manifests []struct{ Tags []string }
					}
					if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != http.StatusOK {
						t.Fatalf("%s: %d %s", next, w.Code, w.Body)
					}
					for _, e := range doc.Tags {
						got[e.Name]++
					}
					for _, e := range doc.Manifests {
						got[e.Tags[0]]++
					}
					next, _, _ = strings.Cut(strings.TrimPrefix(w.Header().Get("Link"), "<"), ">")
				}
				if len(got) != 2 || got["t1"] != 1 || got["t4"] != 1 || pages != (2+n-1)/n {
					t.Errorf("%s in order %s, %d a page: %v on %d pages, want t1 and t4 once each", list, order, n, got, pages)
				}
			}
		}
	}
}

// TestHostile sends requests of any shape: no answer is a fault, and every refusal is ACR's.
func TestHostile(t *testing.T) {
	f := newFixture(t, auth.Options{})
	rnd := rand.New(rand.NewPCG(26, 1))
	parts := []string{
		"acme", "app", "_tags", "_manifests", "_catalog", "v1", f.v1.Digest.String(), "..", "", "%2e", "_", "Ä", "\x00", "sha256:" + strings.Repeat("0", 64),
		strings.Repeat("a", 300), "?", "_tags_manifests", " ",
	}
	queries := []string{"n=1", "n=", "n=x", "last=a", "last=%00", "orderby=timedesc", "orderby=timeasc", "digest=" + f.v1.Digest.String(), "lastTime=-1", "lastTime=9223372036854775807", "%", ";", "a=b"}
	bodies := []string{"", "{}", "[", `{"deleteEnabled":true}`, `{"listEnabled":1}`, strings.Repeat("[", 5000), "\xff"}
	methods := []string{"GET", "HEAD", "PATCH", "PATCH", "PUT", "TRACE", "get"}
	for i := range 20_000 {
		target := "/acr/v1/"
		for n := rnd.IntN(5); n >= 0; n-- {
			target += parts[rnd.IntN(len(parts))]
			if n > 0 {
				target += "/"
			}
		}
		r := httptest.NewRequest("GET", "http://reg/", strings.NewReader(bodies[rnd.IntN(len(bodies))]))
		r.Method = methods[rnd.IntN(len(methods))]
		r.URL = &url.URL{Path: target}
		for n := rnd.IntN(3); n > 0; n-- {
			r.URL.RawQuery += queries[rnd.IntN(len(queries))] + "&"
		}
		r.SetBasicAuth("all", "all")
		w := httptest.NewRecorder()
		f.ServeHTTP(w, r)
		if w.Code >= 500 || w.Code >= 400 && code(w) == "" {
			t.Fatalf("request %d, %s %q ?%s: %d %s", i, r.Method, target, r.URL.RawQuery, w.Code, w.Body)
		}
	}
}
