package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// slots is how many passwords a token can have (ACR: password1 and password2).
const slots = 2

// token is a ClientToken with its scope map looked up.
type token struct {
	passwords    [slots]registry.TokenPassword
	fingerprints [slots]string // of the passwords, for access tokens; empty for an empty slot
	enabled      bool
	permit       *permit
}

// newToken takes the first two passwords; the configuration allows no more. An empty slot is a hash of nothing: no
// password is known, or will be, that has it.
func newToken(t registry.ClientToken, permit *permit) token {
	made := token{enabled: t.Enabled, permit: permit}
	for n := range copy(made.passwords[:], t.Passwords) {
		made.fingerprints[n] = fingerprint(made.passwords[n])
	}
	return made
}

// errPassword is what ACR answers for a wrong name as for a wrong password, so that names cannot be found out.
var errPassword = registry.ErrUnauthorized.WithMessage("Incorrect Password").
	WithDetail("Please visit https://aka.ms/acr#UNAUTHORIZED for more information.")

// Authenticate finds out who sent the request. Credentials that are wrong are an error also where an anonymous
// request would be admitted.
//
// Errors: UNAUTHORIZED, UNAVAILABLE while tokens are awaited.
func (a *Authenticator) Authenticate(r *http.Request) (Identity, error) {
	headers := r.Header.Values("Authorization")
	switch {
	case len(headers) == 0 && a.admits && !a.mustAsk(r):
		return a.anonymous, nil
	case len(headers) == 0:
		return Identity{}, registry.ErrUnauthorized
	case len(headers) > 1:
		return Identity{}, registry.ErrUnauthorized.WithMessage("more than one Authorization header")
	}
	if text, ok := cutScheme(headers[0], "Bearer"); ok {
		return a.bearer(r, text)
	}
	user, password, ok := r.BasicAuth()
	if !ok {
		return Identity{}, registry.ErrUnauthorized.WithMessage("the Authorization header is neither Basic with a token's name and password nor Bearer with an access token")
	}
	return a.login(r, strings.ToLower(user), password)
}

// mustAsk reports a request that is answered with a challenge although an anonymous client is admitted: the first one of
// an engine, which sends the credentials that it has only where it was asked for them then. An engine without any gets an
// anonymous access token by the same way, so this is for Bearer alone.
func (a *Authenticator) mustAsk(r *http.Request) bool {
	return a.bearerChallenge && strings.TrimSuffix(r.URL.Path, "/") == "/v2"
}

// login finds out who has the password.
func (a *Authenticator) login(r *http.Request, name, password string) (Identity, error) {
	awaited := a.awaited.Load() // before the tokens are looked at: they are in force before they are not awaited any more
	i, why, err := a.judge(name, password)
	if err != nil {
		return Identity{}, a.refused(r, name, why, err, awaited)
	}
	a.signedIn(r, name)
	return i, nil
}

// judge takes the same time for every name and password: it always hashes once and compares with all slots. why is for
// the log.
func (a *Authenticator) judge(name, password string) (i Identity, why string, err *registry.Error) {
	t, known := (*a.tokens.Load())[name]
	sum := sha256.Sum256([]byte(password))
	now := a.clock.Now()
	matched, valid, slot := 0, 0, 0
	for n, p := range t.passwords {
		hit := subtle.ConstantTimeCompare(sum[:], p.SHA256[:])
		matched |= hit
		if unexpired(p.Expiry, now) {
			valid |= hit
			slot = subtle.ConstantTimeSelect(hit, n, slot)
		}
	}
	// Only who has a right password gets to know more than that it did not work.
	switch {
	case !known:
		return i, "there is no such token", errPassword
	case matched == 0:
		return i, "wrong password", errPassword
	case !t.enabled:
		return i, "the token is disabled", registry.ErrUnauthorized.WithMessage("token %q is disabled", name)
	case valid == 0:
		return i, "the password has expired", registry.ErrUnauthorized.WithMessage("the password of token %q has expired: generate a new one", name)
	}
	return Identity{principal: registry.Principal{Name: name}, permit: t.permit, credential: t.fingerprints[slot]}, "", nil
}

// unexpired reports whether a password that ends at expiry (zero: never) works at now.
func unexpired(expiry, now time.Time) bool { return expiry.IsZero() || now.Before(expiry) }
