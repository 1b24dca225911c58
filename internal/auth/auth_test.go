package auth_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// password is one of a token; a zero expiry never ends.
func password(s string, expiry time.Time) registry.TokenPassword {
	return registry.TokenPassword{SHA256: sha256.Sum256([]byte(s)), Expiry: expiry}
}

func newAuthenticator(o auth.Options) *auth.Authenticator {
	o.Clock = clock.Func(func() time.Time { return now })
	a := auth.New(o)
	a.Update(map[string]registry.ClientToken{
		"line-a":   {ScopeMap: "pull", Enabled: true, Passwords: []registry.TokenPassword{password("one", time.Time{}), password("two", now.Add(time.Hour))}},
		"Upper":    {ScopeMap: "pull", Enabled: true, Passwords: []registry.TokenPassword{password("one", time.Time{})}},
		"disabled": {ScopeMap: "pull", Passwords: []registry.TokenPassword{password("one", time.Time{})}},
		"expired":  {ScopeMap: "pull", Enabled: true, Passwords: []registry.TokenPassword{password("one", now), password("two", now.Add(time.Nanosecond))}},
		"bare":     {ScopeMap: "pull", Enabled: true},
		"nomap":    {ScopeMap: "gone", Enabled: true, Passwords: []registry.TokenPassword{password("one", time.Time{})}},
		"zero":     {ScopeMap: "pull", Enabled: true, Passwords: []registry.TokenPassword{{}}},
		"team":     {ScopeMap: "team", Enabled: true, Passwords: []registry.TokenPassword{password("one", time.Time{})}},
	}, map[string]registry.ScopeMap{
		"pull": {"repositories/*/content/read", "repositories/*/metadata/read"},
		"team": {
			"repositories/sample/*/content/read", "repositories/sample/teamA/*/content/write", "repositories/sample/teamA/projectB/content/delete",
			"repositories/listed/content/read", "repositories/listed/metadata/read", "repositories/named/metadata/read", "gateway/lineA/config/read", "not a permission",
		},
	})
	return a
}

func request(t *testing.T, authorization ...string) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/", nil)
	r.Header["Authorization"] = authorization
	return r
}

func basic(t *testing.T, user, pass string) *http.Request {
	t.Helper()
	r := request(t)
	r.SetBasicAuth(user, pass)
	return r
}

// TestAwaitedTokens: credentials that are not known are not called wrong while tokens are awaited; those that are known
// work, and a request without any is challenged.
func TestAwaitedTokens(t *testing.T) {
	var results []string
	a := newAuthenticator(auth.Options{Logins: func(result string) { results = append(results, result) }})
	a.Await("the configuration has not been read yet")
	for what, r := range map[string]*http.Request{"another name": basic(t, "nobody", "one"), "another password": basic(t, "line-a", "three"), "disabled": basic(t, "disabled", "one")} {
		_, err := a.Authenticate(r)
		e := registry.AsError(err)
		if !errors.Is(err, registry.ErrUnavailable) || e.RetryAfter <= 0 || !strings.Contains(e.Message, "the configuration has not been read yet") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if len(results) != 3 || results[0] != registry.AuditFailed {
		t.Errorf("counted as %v", results)
	}
	if _, err := a.Authenticate(basic(t, "line-a", "one")); err != nil {
		t.Error(err)
	}
	for what, r := range map[string]*http.Request{"none": httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/", nil), "no token": request(t, "Bearer x")} {
		if _, err := a.Authenticate(r); !errors.Is(err, registry.ErrUnauthorized) {
			t.Errorf("%s: %v", what, err)
		}
	}
	a.Await("")
	if _, err := a.Authenticate(basic(t, "nobody", "one")); !errors.Is(err, registry.ErrUnauthorized) {
		t.Error(err)
	}
}

// TestSameWorkForEveryName: how long an answer takes tells nothing of which names there are (CVE-2023-20902). The password
// is so long that whoever does not hash it is done at once, and so short that most answers fit between two turns of the
// processor; the names take turns, so that what else the machine does slows all of them down.
func TestSameWorkForEveryName(t *testing.T) {
	a := newAuthenticator(auth.Options{})
	long := strings.Repeat("x", 256<<10)
	names := []string{"line-a", "disabled", "expired", "bare", "ghost", ""}
	best := map[string]time.Duration{}
	for range 50 {
		for _, name := range names {
			began := time.Now()
			a.Judge(name, long)
			took := time.Since(began)
			if b, ok := best[name]; !ok || took < b {
				best[name] = took
			}
		}
	}
	for name, d := range best {
		if d < best["line-a"]/4 {
			t.Errorf("%q takes %v, a name that there is %v", name, d, best["line-a"])
		}
	}
}

func TestAuthenticate(t *testing.T) {
	a := newAuthenticator(auth.Options{})
	for _, tt := range []struct{ name, user, pass, wrong string }{
		{name: "first password", user: "line-a", pass: "one"},
		{name: "second password", user: "line-a", pass: "two"},
		{name: "name in another case", user: "LINE-A", pass: "one"},
		{name: "configured in another case", user: "upper", pass: "one"},
		{name: "wrong password", user: "line-a", pass: "three", wrong: "Incorrect Password"},
		{name: "empty password", user: "line-a", wrong: "Incorrect Password"},
		{name: "unknown name", user: "nobody", pass: "one", wrong: "Incorrect Password"},
		{name: "empty name", pass: "one", wrong: "Incorrect Password"},
		{name: "disabled", user: "disabled", pass: "one", wrong: `token "disabled" is disabled`},
		{name: "disabled and wrong", user: "disabled", pass: "x", wrong: "Incorrect Password"},
		{name: "expired now", user: "expired", pass: "one", wrong: "has expired"},
		{name: "expires in a moment", user: "expired", pass: "two"},
		{name: "no passwords", user: "bare", wrong: "Incorrect Password"},
		{name: "a slot of zeros is no password", user: "bare", pass: strings.Repeat("\x00", 32), wrong: "Incorrect Password"},
		{name: "no scope map", user: "nomap", pass: "one"},
		{name: "colons in the password", user: "line-a", pass: "one:", wrong: "Incorrect Password"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i, err := a.Authenticate(basic(t, tt.user, tt.pass))
			if tt.wrong == "" {
				if err != nil || i.Principal().Name != strings.ToLower(tt.user) || i.Anonymous() {
					t.Fatalf("%v, %v", i, err)
				}
				return
			}
			if !errors.Is(err, registry.ErrUnauthorized) || !strings.Contains(err.Error(), tt.wrong) {
				t.Fatalf("error %v, want %q", err, tt.wrong)
			}
			if i.Can("a", registry.ContentRead) {
				t.Error("the identity beside the error may read")
			}
		})
	}
}

func TestAuthenticateHeader(t *testing.T) {
	for _, tt := range []struct {
		name    string
		headers []string
		o       auth.Options
		ok      bool
	}{
		{name: "none"},
		{name: "none, anonymous pull", o: auth.Options{AnonymousPull: true}, ok: true},
		{name: "wrong credentials are wrong for anonymous pull too", headers: []string{"Basic bGluZS1hOng="}, o: auth.Options{AnonymousPull: true}},
		{name: "right", headers: []string{"Basic bGluZS1hOm9uZQ=="}, ok: true},
		{name: "scheme in lower case", headers: []string{"basic bGluZS1hOm9uZQ=="}, ok: true},
		{name: "twice", headers: []string{"Basic bGluZS1hOm9uZQ==", "Basic bGluZS1hOm9uZQ=="}},
		{name: "bearer", headers: []string{"Bearer abc"}, o: auth.Options{AnonymousPull: true}},
		{name: "empty", headers: []string{""}, o: auth.Options{AnonymousPull: true}},
		{name: "no base64", headers: []string{"Basic ###"}},
		{name: "no colon", headers: []string{"Basic bGluZS1h"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := newAuthenticator(tt.o).Authenticate(request(t, tt.headers...))
			if tt.ok != (err == nil) || (err != nil && !errors.Is(err, registry.ErrUnauthorized)) {
				t.Errorf("error %v, want one: %v", err, !tt.ok)
			}
		})
	}
}

func TestPermissionsAddUp(t *testing.T) {
	i, err := newAuthenticator(auth.Options{}).Authenticate(basic(t, "team", "one"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		repo string
		want []registry.Action
	}{
		{"sample/teama/projectb", []registry.Action{registry.ContentRead, registry.ContentWrite, registry.ContentDelete}},
		{"sample/teama/projectc", []registry.Action{registry.ContentRead, registry.ContentWrite}},
		{"sample/teamb", []registry.Action{registry.ContentRead}},
		{"sample", nil},
		{"listed", []registry.Action{registry.ContentRead, registry.MetadataRead}},
		{"listed/below", nil},
		{"linea", nil},
	} {
		for _, action := range registry.ActionsOf(registry.ReadWrite) {
			want := false
			for _, w := range tt.want {
				want = want || w == action
			}
			if got := i.Can(tt.repo, action); got != want {
				t.Errorf("%s on %s: %v, want %v", action, tt.repo, got, want)
			}
		}
	}
	if !i.CanGateway("LineA", registry.ConfigRead) || i.CanGateway("linea", registry.ConfigWrite) || i.CanGateway("lineb", registry.ConfigRead) {
		t.Error("gateway actions")
	}
	if i.CanList("sample/teamb") || i.CanList("named") || !i.CanList("listed") {
		t.Error("a list shows what has content/read and metadata/read")
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name   string
		o      auth.Options
		user   string
		action registry.Action
		want   error
	}{
		{name: "token", user: "line-a", action: registry.ContentRead},
		{name: "token, not in its map", user: "line-a", action: registry.ContentWrite, want: registry.ErrDenied},
		{name: "token without a map", user: "nomap", action: registry.ContentRead, want: registry.ErrDenied},
		{name: "token gets nothing from anonymous options", o: auth.Options{AnonymousPull: true}, user: "nomap", action: registry.ContentRead, want: registry.ErrDenied},
		{name: "anonymous pull", o: auth.Options{AnonymousPull: true}, action: registry.ContentRead},
		{name: "anonymous pull lists tags", o: auth.Options{AnonymousPull: true}, action: registry.MetadataRead},
		{name: "anonymous pull does not push", o: auth.Options{AnonymousPull: true}, action: registry.ContentWrite, want: registry.ErrUnauthorized},
		{name: "anonymous never deletes", o: auth.Options{AnonymousPull: true}, action: registry.ContentDelete, want: registry.ErrUnauthorized},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAuthenticator(tt.o)
			r := request(t)
			if tt.user == "" {
				r.Header.Del("Authorization")
			} else {
				r = basic(t, tt.user, "one")
			}
			ctx, err := a.Enter(r)
			if err != nil {
				t.Fatal(err)
			}
			if got := registry.PrincipalFrom(ctx).Name; got != tt.user {
				t.Errorf("principal %q, want %q", got, tt.user)
			}
			err = a.Check(ctx, "a", tt.action)
			if !errors.Is(err, tt.want) || (tt.want == nil && err != nil) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if errors.Is(err, registry.ErrDenied) && !strings.Contains(err.Error(), "Insufficient scopes to perform the operation") {
				t.Errorf("text %q", err)
			}
		})
	}
}

func TestNothingInTheContextIsNothing(t *testing.T) {
	a := newAuthenticator(auth.Options{AnonymousPull: true})
	if err := a.Check(t.Context(), "a", registry.ContentRead); !errors.Is(err, registry.ErrUnauthorized) {
		t.Errorf("Check without Enter: %v", err)
	}
	if a.MayList(t.Context(), "a") {
		t.Error("MayList without Enter")
	}
}

func TestCallerAndMayList(t *testing.T) {
	a := newAuthenticator(auth.Options{})
	c, err := a.Caller(basic(t, "team", "one"))
	if err != nil || c.Token != "team" || !c.MayRead("listed") || c.MayRead("sample/x") || !c.MayGateway("LineA", registry.ConfigRead) {
		t.Errorf("Caller: %v", err)
	}
	if names := c.Gateways(registry.ConfigRead); len(names) != 1 || names[0] != "linea" || len(c.Gateways(registry.MessageRead)) > 0 {
		t.Errorf("gateways %q", names)
	}
	if _, err := a.Caller(request(t)); !errors.Is(err, registry.ErrUnauthorized) {
		t.Errorf("Caller without credentials: %v", err)
	}
	ctx, err := a.Enter(basic(t, "team", "one"))
	if err != nil || !a.MayList(ctx, "listed") || a.MayList(ctx, "sample/x") {
		t.Errorf("MayList: %v", err)
	}
	h := http.Header{}
	a.Challenge(h)
	if got := h.Get("Www-Authenticate"); got != `Basic realm="connected registry"` {
		t.Errorf("challenge %q", got)
	}
}

// TestUpdateIsAtomic moves a name between two passwords and scope maps: nobody may be seen with parts of both.
func TestUpdateIsAtomic(t *testing.T) {
	a := auth.New(auth.Options{})
	set := func(pass, repo string) {
		a.Update(map[string]registry.ClientToken{"t": {ScopeMap: "m", Enabled: true, Passwords: []registry.TokenPassword{password(pass, time.Time{})}}},
			map[string]registry.ScopeMap{"m": {"repositories/" + repo + "/content/read"}})
	}
	set("one", "a")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			set("two", "b")
			set("one", "a")
		}
	})
	for range 2000 {
		i, err := a.Authenticate(basic(t, "t", "one"))
		if err == nil && (!i.Can("a", registry.ContentRead) || i.Can("b", registry.ContentRead)) {
			t.Error("password of one set with the permissions of the other")
			break
		}
	}
	cancel()
	wg.Wait()
	a.Update(nil, nil)
	if _, err := a.Authenticate(basic(t, "t", "one")); !errors.Is(err, registry.ErrUnauthorized) {
		t.Errorf("a removed token: %v", err)
	}
}

// TestCanIsTheUnion checks Can against the definition, on random maps: a line permits its own action on its own name,
// or on every name that its prefix and at least one more character begin.
func TestCanIsTheUnion(t *testing.T) {
	part := rapid.SampledFrom([]string{"a", "b", "ab"})
	name := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(part, 1, 3).Draw(t, "parts"), "/")
	})
	actions := registry.ActionsOf(registry.ReadWrite)
	rapid.Check(t, func(rt *rapid.T) {
		type line struct {
			name, suffix string
			action       registry.Action
		}
		lines := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) line {
			return line{name.Draw(t, "name"), rapid.SampledFrom([]string{"", "/*"}).Draw(t, "suffix"), rapid.SampledFrom(actions).Draw(t, "action")}
		}), 0, 5).Draw(rt, "lines")
		var m registry.ScopeMap
		for _, l := range lines {
			m = append(m, "repositories/"+l.name+l.suffix+"/"+string(l.action))
		}
		a := auth.New(auth.Options{})
		a.Update(map[string]registry.ClientToken{"t": {ScopeMap: "m", Enabled: true, Passwords: []registry.TokenPassword{password("p", time.Time{})}}},
			map[string]registry.ScopeMap{"m": m})
		i, err := a.Authenticate(basic(t, "t", "p"))
		if err != nil {
			rt.Fatal(err)
		}
		repo, action := name.Draw(rt, "repo"), rapid.SampledFrom(actions).Draw(rt, "asked")
		want := false
		for _, l := range lines {
			want = want || l.action == action && (l.suffix == "" && repo == l.name || l.suffix != "" && strings.HasPrefix(repo, l.name+"/"))
		}
		if got := i.Can(repo, action); got != want {
			rt.Fatalf("%v: %s on %s: %v, want %v", m, action, repo, got, want)
		}
	})
}
