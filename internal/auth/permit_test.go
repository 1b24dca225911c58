package auth

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// TestPermitIsTheSumOfItsLines compares with asking every line.
func TestPermitIsTheSumOfItsLines(t *testing.T) {
	name := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "ab", "team"}), 1, 4).Draw(t, "parts"), "/")
	})
	actions := []registry.Action{registry.ContentRead, registry.ContentWrite, registry.ContentDelete, registry.MetadataRead, registry.MetadataWrite}
	rapid.Check(t, func(t *rapid.T) {
		var lines []registry.Permission
		for range rapid.IntRange(0, 12).Draw(t, "lines") {
			n := rapid.SampledFrom([]string{"*", name.Draw(t, "name"), name.Draw(t, "prefix") + "/*"}).Draw(t, "kind")
			line := "repositories/" + n + "/" + string(rapid.SampledFrom(actions).Draw(t, "action"))
			if rapid.IntRange(0, 4).Draw(t, "gateway") == 0 {
				line = "gateway/" + rapid.SampledFrom([]string{"a", "b"}).Draw(t, "child") + "/config/read"
			}
			p, err := registry.ParsePermission(line)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, p)
		}
		p := newPermit(lines)
		for range 20 {
			resource, asked := registry.ResourceRepositories, name.Draw(t, "asked")
			action := rapid.SampledFrom(append(actions, registry.ConfigRead)).Draw(t, "asked action")
			if action == registry.ConfigRead {
				resource = registry.ResourceGateway
			}
			want := false
			for _, l := range lines {
				want = want || l.Allows(resource, asked, action)
			}
			if got := p.allows(resource, asked, action); got != want {
				t.Fatalf("%s %s %s: %v, the lines say %v: %v", resource, asked, action, got, want, lines)
			}
		}
	})
}

// many is a registry with that many tokens, and scope maps with that many lines in all.
func many(tokens, lines int) registry.TokenSet {
	set := registry.TokenSet{ScopeMaps: map[string]registry.ScopeMap{}, ClientTokens: map[string]registry.ClientToken{}}
	var long registry.ScopeMap
	for i := range lines / 2 {
		long = append(long, fmt.Sprintf("repositories/site%d/line%d/app/content/read", i%97, i))
	}
	set.ScopeMaps["long"] = long
	for i := range tokens {
		name := fmt.Sprintf("token-%d", i)
		set.ScopeMaps[name] = registry.ScopeMap{fmt.Sprintf("repositories/site%d/*/content/read", i)}
		for n := 1; n < lines/2/tokens; n++ {
			set.ScopeMaps[name] = append(set.ScopeMaps[name], fmt.Sprintf("repositories/site%d/r%d/content/read", i, n))
		}
		set.ClientTokens[name] = registry.ClientToken{ScopeMap: name, Enabled: true, Passwords: []registry.TokenPassword{
			{SHA256: sha256.Sum256([]byte("one" + name))}, {SHA256: sha256.Sum256([]byte("two" + name))},
		}}
	}
	set.ClientTokens["reader"] = registry.ClientToken{ScopeMap: "long", Enabled: true, Passwords: []registry.TokenPassword{{SHA256: sha256.Sum256([]byte("pw"))}}}
	return set
}

func reader(b testing.TB, user string) *http.Request {
	r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/v2/site3/line100/app/manifests/1", http.NoBody)
	if user != "" {
		r.SetBasicAuth(user, "pw")
	}
	return r
}

// nowhere keeps no documents.
type nowhere struct{}

func (nowhere) Document(context.Context, string) ([]byte, error)  { return nil, nil }
func (nowhere) PutDocument(context.Context, string, []byte) error { return nil }

// crowded is an authenticator with 10,000 tokens and 50,000 lines, and requests that it admits, by how they sign in.
func crowded(b testing.TB) (*Authenticator, map[string]*http.Request) {
	b.Helper()
	a := New(Options{AnonymousPull: true})
	a.UpdateAll(many(10_000, 50_000))
	a.Open(b.Context(), nowhere{})
	i, err := a.Authenticate(reader(b, "reader"))
	if err != nil {
		b.Fatal(err)
	}
	asked, err := parseScopes([]string{"repository:site3/line100/app:pull"})
	if err != nil {
		b.Fatal(err)
	}
	token, _, err := a.issue(b.Context(), i, useAccess, i.intersect(asked))
	if err != nil {
		b.Fatal(err)
	}
	bearer := reader(b, "")
	bearer.Header.Set("Authorization", "Bearer "+token)
	return a, map[string]*http.Request{"anonymous": reader(b, ""), "basic": reader(b, "reader"), "bearer": bearer}
}

// admit is what the authorisation of one request takes.
func admit(b testing.TB, a *Authenticator, r *http.Request) {
	ctx, err := a.Enter(r)
	if err == nil {
		err = a.Check(ctx, "site3/line100/app", registry.ContentRead)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// TestManyTokensStayFast: with 10,000 tokens and 50,000 lines an authorised request costs less than 20 microseconds more
// than an anonymous one, with a password and with an access token. The bound is for machines under load too; the benchmark beside it has the figure.
func TestManyTokensStayFast(t *testing.T) {
	a, requests := crowded(t)
	ask := func(how string) time.Duration {
		best := time.Hour
		for range 200 { // each shorter than a turn of the processor, or what else the machine does is in all of them
			const rounds = 50
			began := time.Now()
			for range rounds {
				admit(t, a, requests[how])
			}
			best = min(best, time.Since(began)/rounds)
		}
		return best
	}
	for _, how := range []string{"basic", "bearer"} {
		if more := ask(how) - ask("anonymous"); more > 20*time.Microsecond {
			t.Errorf("an authorised request (%s) costs %v more than an anonymous one", how, more)
		}
	}
}

// BenchmarkRequest is what a request costs, with 10,000 tokens and 50,000 lines, by how it signs in. "new bearer" is the first
// request with an access token, whose signature is checked.
func BenchmarkRequest(b *testing.B) {
	a, requests := crowded(b)
	for _, how := range []string{"anonymous", "basic", "bearer"} {
		b.Run(how, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				admit(b, a, requests[how])
			}
		})
	}
	b.Run("new bearer", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			a.verified = verified{}
			admit(b, a, requests["bearer"])
		}
	})
}

// BenchmarkUpdate puts 10,000 tokens with 50,000 lines in force.
func BenchmarkUpdate(b *testing.B) {
	a := New(Options{})
	set := many(10_000, 50_000)
	for b.Loop() {
		a.UpdateAll(set)
	}
}
