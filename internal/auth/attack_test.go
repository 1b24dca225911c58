package auth_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"hash"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// forge makes tokens as an attacker would; with the real secret it shows which checks hold even then.
type forge struct {
	b      *bench
	secret []byte
	kid    string
	aud    string
}

func newForge(t testing.TB) forge {
	b := newBench(t, auth.Options{})
	var ring struct {
		Audience string
		Keys     []struct {
			Kid    string
			Secret []byte
		}
	}
	if err := json.Unmarshal(b.docs.byID["auth/token-keys"], &ring); err != nil || len(ring.Keys) != 1 {
		t.Fatal(err, ring)
	}
	return forge{b: b, secret: ring.Keys[0].Secret, kid: ring.Keys[0].Kid, aud: ring.Audience}
}

func encode(v any) string {
	raw, ok := v.(string)
	if !ok {
		body, _ := json.Marshal(v)
		raw = string(body)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(raw))
}

func (f forge) sign(text string) string { return f.signWith(sha256.New, text) }

func (f forge) signWith(sum func() hash.Hash, text string) string {
	mac := hmac.New(sum, f.secret)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// parts of a token that is good.
func (f forge) parts() (header, claims map[string]any) {
	token := strings.Split(f.b.token("line-a", "repository:acme/app:pull"), ".")
	for i, into := range []*map[string]any{&header, &claims} {
		raw, _ := base64.RawURLEncoding.DecodeString(token[i])
		_ = json.Unmarshal(raw, into)
	}
	return header, claims
}

// with returns a token that is signed with the real key after changes; a nil value takes a field away.
func (f forge) with(header, claims map[string]any) string {
	h, c := f.parts()
	for _, p := range []struct{ into, from map[string]any }{{h, header}, {c, claims}} {
		maps.Copy(p.into, p.from)
		maps.DeleteFunc(p.into, func(_ string, v any) bool { return v == nil })
	}
	return f.sign(encode(h) + "." + encode(c))
}

func (f forge) accepted(token string) bool {
	return f.b.may(token, "acme/app", registry.ContentRead) == nil
}

// TestTokenAttacks is the table of what is tried on tokens (CVE-2025-24976, CVE-2020-26160, CVE-2016-9122,
// CVE-2024-51744, CVE-2025-30204 and their like).
func TestTokenAttacks(t *testing.T) {
	f := newForge(t)
	if !f.accepted(f.with(nil, nil)) {
		t.Fatal("the forge cannot make a good token, so the table would prove nothing")
	}
	h, c := f.parts()
	good := f.with(nil, nil)
	public, private, _ := ed25519.GenerateKey(nil)
	jwk := map[string]any{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(public)}
	eddsa := encode(map[string]any{"alg": "EdDSA", "typ": "JWT", "kid": f.kid, "jwk": jwk}) + "." + encode(c)
	signature, _ := private.Sign(nil, []byte(eddsa), crypto.Hash(0))
	unix := func(d time.Duration) int64 { return now.Add(d).Unix() }
	refresh := f.b.get("line-a", "offline_token=true").RefreshToken
	duplicate := `{"alg":"none","alg":"HS256","typ":"JWT","kid":"` + f.kid + `"}`

	for name, token := range map[string]string{
		"empty":                       "",
		"two parts":                   encode(h) + "." + encode(c),
		"no signature":                encode(h) + "." + encode(c) + ".",
		"alg none":                    encode(map[string]any{"alg": "none", "typ": "JWT", "kid": f.kid}) + "." + encode(c) + ".",
		"alg None, signed":            f.sign(encode(map[string]any{"alg": "None", "typ": "JWT", "kid": f.kid}) + "." + encode(c)),
		"alg missing":                 f.with(map[string]any{"alg": nil}, nil),
		"HS384 with our key":          f.signWith(sha512.New384, encode(map[string]any{"alg": "HS384", "typ": "JWT", "kid": f.kid})+"."+encode(c)),
		"RS256":                       f.with(map[string]any{"alg": "RS256"}, nil),
		"the attacker's jwk":          eddsa + "." + base64.RawURLEncoding.EncodeToString(signature),
		"jwk beside our signature":    f.with(map[string]any{"jwk": jwk}, nil),
		"x5u":                         f.with(map[string]any{"x5u": "http://127.0.0.1:1/"}, nil),
		"jku":                         f.with(map[string]any{"jku": "http://127.0.0.1:1/"}, nil),
		"x5c":                         f.with(map[string]any{"x5c": []string{"AAAA"}}, nil),
		"crit":                        f.with(map[string]any{"crit": []string{"exp"}}, nil),
		"kid missing":                 f.with(map[string]any{"kid": nil}, nil),
		"kid is a path":               f.with(map[string]any{"kid": "../../../../dev/null"}, nil),
		"kid is a number":             f.with(map[string]any{"kid": 1}, nil),
		"another key":                 forge{secret: make([]byte, 32)}.sign(encode(h) + "." + encode(c)),
		"audience of another":         f.with(nil, map[string]any{"aud": "registry.example"}),
		"audience empty":              f.with(nil, map[string]any{"aud": []string{""}}),
		"audience missing":            f.with(nil, map[string]any{"aud": nil}),
		"audience among others":       f.with(nil, map[string]any{"aud": []string{"x", f.aud + "/access_token"}}),
		"issuer of another":           f.with(nil, map[string]any{"iss": "Azure Container Registry"}),
		"issuer missing":              f.with(nil, map[string]any{"iss": nil}),
		"no expiry":                   f.with(nil, map[string]any{"exp": nil}),
		"expired":                     f.with(nil, map[string]any{"exp": unix(0)}),
		"expiry is text":              f.with(nil, map[string]any{"exp": "never"}),
		"no begin":                    f.with(nil, map[string]any{"nbf": nil}),
		"begins later":                f.with(nil, map[string]any{"nbf": unix(time.Second)}),
		"issued later":                f.with(nil, map[string]any{"iat": unix(time.Hour)}),
		"a refresh token":             refresh,
		"use missing":                 f.with(nil, map[string]any{"grant_type": nil}),
		"use is refresh":              f.with(nil, map[string]any{"grant_type": "refresh_token"}),
		"nobody":                      f.with(nil, map[string]any{"sub": "nobody"}),
		"anonymous":                   f.with(nil, map[string]any{"sub": nil, "credential": nil}),
		"a disabled token":            f.with(nil, map[string]any{"sub": "disabled"}),
		"no credential":               f.with(nil, map[string]any{"credential": nil}),
		"credential of another":       f.with(nil, map[string]any{"credential": "0000000000000000"}),
		"access is no list":           f.with(nil, map[string]any{"access": "*"}),
		"no access":                   f.with(nil, map[string]any{"access": nil}),
		"another type":                f.with(nil, map[string]any{"access": []map[string]any{{"type": "registry", "name": "acme/app", "actions": []string{"*"}}}}),
		"name is a pattern":           f.with(nil, map[string]any{"access": []map[string]any{{"type": "repository", "name": "*", "actions": []string{"pull"}}}}),
		"claims are no object":        f.sign(encode(h) + "." + encode("[]")),
		"claims are no JSON":          f.sign(encode(h) + "." + encode("{")),
		"header is no JSON":           f.sign(encode("{") + "." + encode(c)),
		"header says alg twice":       strings.Replace(f.sign(encode(duplicate)+"."+encode(c)), ".", ".A", 1),
		"padding":                     good + "=",
		"space":                       " " + good + " x",
		"line break":                  strings.Replace(good, ".", ".\n", 1),
		"four parts":                  good + ".x",
		"a million dots":              strings.Repeat(".", 1_000_000),
		"a million bytes":             f.with(map[string]any{"kid": strings.Repeat("k", 1_000_000)}, nil),
		"above 16 KiB, with our key":  f.with(nil, map[string]any{"padding": strings.Repeat("x", 16<<10)}),
		"deep JSON":                   f.sign(encode(h) + "." + encode(strings.Repeat("[", 10_000))),
		"no UTF-8":                    "\xff\xfe.\x00.\x00",
		"standard base64":             strings.NewReplacer("-", "+", "_", "/").Replace(f.sign(encode(h)+"."+encode(c))) + "+",
		"signature of another":        good[:strings.LastIndexByte(good, '.')] + "." + strings.Split(refresh, ".")[2],
		"last bits of the signature":  trailingBits(good),
		"scope as the Docker grammar": f.with(nil, map[string]any{"access": nil, "scope": "repository:acme/app:pull"}),
	} {
		if err := f.b.may(token, "acme/app", registry.ContentRead); !errors.Is(err, registry.ErrUnauthorized) {
			t.Errorf("%s: %v, want UNAUTHORIZED", name, err)
		}
	}
	wide := f.with(nil, map[string]any{"access": []map[string]any{{"type": "repository", "name": "acme/app", "actions": []string{"*", "push", "pull"}}}})
	if err := f.b.may(wide, "acme/app", registry.ContentWrite); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("a token that claims more than its holder may: %v", err)
	}
}

// trailingBits changes bits of the last character that decode to nothing.
func trailingBits(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last^1])
}

// TestGeneratedTokens changes good tokens 10,000 times; only the good one passes.
func TestGeneratedTokens(t *testing.T) {
	f := newForge(t)
	good := f.with(nil, nil)
	rnd := rand.New(rand.NewPCG(17, 17))
	for range 10_000 {
		b := []byte(good)
		for range 1 + rnd.IntN(3) {
			switch at := rnd.IntN(len(b)); rnd.IntN(4) {
			case 0:
				b[at] = byte(rnd.UintN(256))
			case 1:
				b[at] ^= 1 << rnd.UintN(7)
			case 2:
				b = slices.Delete(b, at, at+1)
			default:
				b = slices.Insert(b, at, ".-_=A \x00"[rnd.IntN(7)])
			}
		}
		if token := string(b); token != good && strings.TrimLeft(token, " ") != good && f.accepted(token) {
			t.Fatalf("accepted: %q\ngood is   %q", token, good)
		}
	}
}

func FuzzToken(f *testing.F) {
	g := newForge(f)
	good := g.with(nil, nil)
	for _, seed := range []string{good, "", "..", "a.b.c", g.with(map[string]any{"alg": "none"}, nil), g.b.get("line-a", "offline_token=true").RefreshToken} {
		f.Add(seed, "repository:acme/app:pull")
	}
	f.Add("x", "repository:a:pull,push repository:b:* registry:catalog:*")
	f.Fuzz(func(t *testing.T, token, scope string) {
		b := *g.b
		b.t = t
		r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		if _, err := b.Authenticate(r); err == nil && strings.TrimLeft(token, " ") != good {
			t.Fatalf("accepted %q", token)
		} else if err != nil && !errors.Is(err, registry.ErrUnauthorized) {
			t.Fatal(err)
		}
		q := httptest.NewRequest(http.MethodGet, "/oauth2/token", nil)
		q.URL.RawQuery = "scope=" + strings.NewReplacer("%", "%25", "&", "%26", "+", "%2B", ";", "%3B").Replace(scope)
		q.SetBasicAuth("line-a", "one")
		a := b.serve(q)
		if a.Status != http.StatusOK && a.Status != http.StatusBadRequest {
			t.Fatalf("%q: %d", scope, a.Status)
		}
		for _, action := range []registry.Action{registry.ContentWrite, registry.ContentDelete, registry.MetadataWrite} {
			if a.Status == http.StatusOK && b.may(a.AccessToken, "acme/app", action) == nil {
				t.Fatalf("scope %q: %s, which the scope map does not permit", scope, action)
			}
		}
	})
}
