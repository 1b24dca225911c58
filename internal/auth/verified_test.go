package auth_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// TestRememberedToken: a token that was good a moment ago is judged by what holds now.
func TestRememberedToken(t *testing.T) {
	for name, change := range map[string]func(b *bench){
		"it has expired":            func(b *bench) { b.now = b.now.Add(30 * time.Minute) },
		"the clock was set back":    func(b *bench) { b.now = b.now.Add(-time.Second) },
		"its holder is gone":        func(b *bench) { b.Update(nil, benchMaps) },
		"its holder may do nothing": func(b *bench) { b.Update(benchTokens, nil) },
		"other keys are in force": func(b *bench) {
			b.Open(b.t.Context(), newBench(b.t, auth.Options{}).docs)
		},
		"the password was replaced": func(b *bench) {
			b.Update(map[string]registry.ClientToken{"line-a": {ScopeMap: "pull", Enabled: true, Passwords: []registry.TokenPassword{password("three", time.Time{})}}}, benchMaps)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, auth.Options{})
			token := b.token("line-a", "repository:acme/app:pull")
			for range 3 {
				if err := b.may(token, "acme/app", registry.ContentRead); err != nil {
					t.Fatal(err)
				}
			}
			change(b)
			if err := b.may(token, "acme/app", registry.ContentRead); !errors.Is(err, registry.ErrUnauthorized) && !errors.Is(err, registry.ErrDenied) {
				t.Errorf("accepted: %v", err)
			}
		})
	}
}

// TestRememberedTokenHasOneUse: a refresh token that was used is no access token, and the other way round.
func TestRememberedTokenHasOneUse(t *testing.T) {
	b := newBench(t, auth.Options{})
	a := b.get("line-a", "offline_token=true&scope=repository:acme/app:pull")
	refresh := func(token string) int {
		return b.post("/oauth2/token", map[string][]string{"grant_type": {"refresh_token"}, "refresh_token": {token}}).Status
	}
	for range 2 {
		if err := b.may(a.AccessToken, "acme/app", registry.ContentRead); err != nil || refresh(a.RefreshToken) != 200 {
			t.Fatal(err)
		}
		if err := b.may(a.RefreshToken, "acme/app", registry.ContentRead); err == nil || refresh(a.AccessToken) != 401 {
			t.Errorf("one passes for the other: %v", err)
		}
	}
}

// TestMoreTokensThanAreRemembered: all of them are good, and those that were forgotten are verified again.
func TestMoreTokensThanAreRemembered(t *testing.T) {
	b := newBench(t, auth.Options{})
	var tokens []string
	for range 1300 {
		tokens = append(tokens, b.token("line-a", "repository:acme/app:pull"))
	}
	for range 2 {
		for _, token := range tokens {
			if err := b.may(token, "acme/app", registry.ContentRead); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := b.Remembered(); n == 0 || n > 512 {
		t.Errorf("%d tokens are remembered, want at most 512", n)
	}
}

// TestBearerIsCheap bounds the allocations of a request with a token that came before: parsing it takes more than 60.
func TestBearerIsCheap(t *testing.T) {
	b := newBench(t, auth.Options{})
	r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
	r.Header.Set("Authorization", "Bearer "+b.token("line-a", "repository:acme/app:pull"))
	if b.Remembered() == 0 {
		t.Error("a token that was issued a moment ago is parsed when it comes")
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := b.Authenticate(r); err != nil {
			t.Fatal(err)
		}
	}); n > 3 {
		t.Errorf("%.0f allocations, want at most 3", n)
	}
}
