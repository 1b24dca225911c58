package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	issuer = "connected-registry"
	// maxToken is the size of a token, in bytes, above which it is not looked at.
	maxToken = 16 << 10
	// Life of an access token. Clients read it from the token; ACR's live 75 minutes.
	defaultLife = 30 * time.Minute
	minLife     = 5 * time.Minute
	maxLife     = 75 * time.Minute
	// refreshLife is how long a refresh token lives (ACR: three hours).
	refreshLife = 3 * time.Hour
)

// What a token is for; it is also the end of its audience, so that none passes for the other.
const (
	useAccess  = "access_token"
	useRefresh = "refresh_token"
)

// claims of a token. All of them are checked, and the scope map once more at every use.
type claims struct {
	jwt.RegisteredClaims
	Use        string  `json:"grant_type"`
	Credential string  `json:"credential,omitempty"` // fingerprint of the password that the token was got with
	Access     []entry `json:"access,omitempty"`
}

// errToken tells a client that its token is of no use; which check failed stands in the log only.
var errToken = registry.ErrUnauthorized.WithMessage("the access token is invalid or has expired: get a new one")

// fingerprint names a password of a token without telling anything of it.
func fingerprint(p registry.TokenPassword) string {
	sum := sha256.Sum256(append([]byte("credential "), p.SHA256[:]...))
	return hex.EncodeToString(sum[:8])
}

// issue signs a token for an identity. Errors: UNAVAILABLE before Open; UNSUPPORTED with status 400 when the token would
// be larger than what is accepted.
func (a *Authenticator) issue(ctx context.Context, i Identity, use string, access []entry) (string, time.Duration, error) {
	key, audience, ok := a.signer(ctx)
	if !ok {
		return "", 0, registry.ErrUnavailable.WithMessage("tokens are issued as soon as the data volume is open").WithRetryAfter(5 * time.Second)
	}
	life := a.life
	if use == useRefresh {
		life = refreshLife
	}
	now := a.clock.Now()
	made := claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: issuer, Subject: i.principal.Name, Audience: jwt.ClaimStrings{audience + "/" + use}, ID: randomText(12),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(life)),
		},
		Use: use, Credential: i.credential, Access: access,
	}
	t := jwt.NewWithClaims(jwt.SigningMethodHS256, made)
	t.Header["kid"] = key.ID
	signed, err := t.SignedString(key.Secret)
	if err != nil {
		return "", 0, registry.ErrInternal.Wrap(err)
	}
	if len(signed) > maxToken {
		return "", 0, badRequest("a token for these scopes would be larger than %d bytes", maxToken)
	}
	a.verified.put(sha256.Sum256([]byte(signed)), verifiedToken{claims: made, key: key.ID}) // it comes back in a moment
	return signed, life, nil
}

// bearer returns whom an access token speaks for, with what the scope map permits now and no more than what the token
// is for. Errors: UNAUTHORIZED, UNAVAILABLE while tokens are awaited.
func (a *Authenticator) bearer(r *http.Request, text string) (Identity, error) {
	return a.verify(r, text, useAccess)
}

func (a *Authenticator) verify(r *http.Request, text, use string) (Identity, error) {
	awaited := a.awaited.Load() // before the tokens are looked at
	i, err := a.check(text, use)
	if err != nil {
		if !errors.Is(err, errHolder) {
			awaited = nil // it is of no use whatever comes
		}
		return Identity{}, a.refused(r, "", use+": "+err.Error(), errToken, awaited)
	}
	return i, nil
}

// check verifies a token: one algorithm, a key of our own by its id, issuer, audience, use, expiry, begin, and that the
// client token and the password that it was got with are still in force.
func (a *Authenticator) check(text, use string) (Identity, error) {
	if len(text) > maxToken {
		return Identity{}, fmt.Errorf("a token of %d bytes", len(text))
	}
	sum := sha256.Sum256([]byte(text))
	t, ok := a.verified.get(sum)
	if _, known := a.verifier(t.key); !ok || !known || !t.in(a.clock.Now()) {
		var err error
		if t, err = a.parse(text, use); err != nil {
			return Identity{}, err
		}
		a.verified.put(sum, t)
	}
	if t.claims.Use != use {
		return Identity{}, errors.New("a token for another use")
	}
	i, err := a.holder(t.claims)
	if err != nil {
		return Identity{}, err
	}
	i.bearer, i.access = use == useAccess, t.claims.Access
	return i, nil
}

// parse verifies what cannot change of a token, and that it is good now.
func (a *Authenticator) parse(text, use string) (verifiedToken, error) {
	var t verifiedToken
	_, err := a.parser(use).ParseWithClaims(text, &t.claims, func(j *jwt.Token) (any, error) {
		for name := range j.Header {
			if name != "alg" && name != "typ" && name != "kid" {
				return nil, errors.New("a header parameter that is not ours") // jwk, jku, x5u, x5c, crit
			}
		}
		t.key, _ = j.Header["kid"].(string)
		secret, ok := a.verifier(t.key)
		if !ok {
			return nil, errors.New("a key that is not ours")
		}
		return secret, nil
	})
	if err == nil && (t.claims.Use != use || len(t.claims.Audience) != 1) {
		err = errors.New("a token for another use")
	}
	return t, err
}

// parser is strict. It is made for each token: the audience is known from Open on only.
func (a *Authenticator) parser(use string) *jwt.Parser {
	return jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}), jwt.WithStrictDecoding(),
		jwt.WithIssuer(issuer), jwt.WithAudience(a.audience()+"/"+use),
		jwt.WithExpirationRequired(), jwt.WithNotBeforeRequired(), jwt.WithIssuedAt(), jwt.WithTimeFunc(a.clock.Now),
	)
}

// errHolder is a token that was good when it was issued.
var errHolder = errors.New("the client token")

// holder looks up who a token was issued to, as that one is now.
func (a *Authenticator) holder(c claims) (Identity, error) {
	if c.Subject == "" {
		if !a.admits || c.Credential != "" {
			return Identity{}, errors.New("anonymous clients are not admitted")
		}
		return a.anonymous, nil
	}
	t, known := (*a.tokens.Load())[c.Subject]
	if !known || !t.enabled {
		return Identity{}, fmt.Errorf("%w is gone or disabled", errHolder)
	}
	now := a.clock.Now()
	for n, p := range t.passwords {
		if t.fingerprints[n] == c.Credential && c.Credential != "" && unexpired(p.Expiry, now) {
			return Identity{principal: registry.Principal{Name: c.Subject}, permit: t.permit, credential: c.Credential}, nil
		}
	}
	return Identity{}, fmt.Errorf("%w has no longer the password that this was got with", errHolder)
}

// cutScheme returns what follows the scheme of an Authorization header, in whatever case the scheme is.
func cutScheme(header, scheme string) (string, bool) {
	if len(header) <= len(scheme) || !strings.EqualFold(header[:len(scheme)], scheme) || header[len(scheme)] != ' ' {
		return "", false
	}
	return strings.TrimLeft(header[len(scheme)+1:], " "), true
}
