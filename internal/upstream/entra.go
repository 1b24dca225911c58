package upstream

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// defaultRefresh is how long a refresh token is used that does not say when it ends; ACR's last three hours.
const defaultRefresh = time.Hour

// entra signs in to an Azure Container Registry with an identity of Microsoft Entra ID: its token is exchanged at
// /oauth2/exchange for a refresh token of the registry, which regclient turns into access tokens at /oauth2/token.
type entra struct {
	identity Identity
	source   azcore.TokenCredential
	client   *http.Client // the parent's
	origin   string       // scheme://host[:port] of the registry
	host     string       // of the registry, which is also the service's name
	clock    clock.Clock
	one      chan struct{} // holds a token while nobody exchanges

	// guarded by one
	access      map[string]accessToken // by scope, made of token
	token       registry.Secret
	until       time.Time // the refresh token ends
	renew       time.Time // and is renewed from here on
	failed      error     // of the last exchange
	failedAt    time.Time
	forgottenAt time.Time
}

func (p *Parent) newEntra() (*entra, error) {
	if p.o.Protocol != "https" {
		return nil, fmt.Errorf("the identity %s is used over https only", p.o.Identity.Who())
	}
	source, err := newTokenSource(p.o.Identity, p.host, p.o.Transport)
	if err != nil {
		return nil, err
	}
	e := &entra{identity: p.o.Identity, source: source, client: p.http, origin: p.origin, host: p.host, clock: p.clock, one: make(chan struct{}, 1)}
	e.one <- struct{}{}
	return e, nil
}

// refreshToken returns a refresh token of the registry. One that is still good is used on while a new one cannot be
// had.
//
// Errors: UNAUTHORIZED, UNAVAILABLE, the context's.
func (e *entra) refreshToken(ctx context.Context) (registry.Secret, error) {
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case <-e.one:
	}
	defer func() { e.one <- struct{}{} }()
	now := e.clock.Now()
	good := e.token != "" && now.Before(e.until)
	if good && now.Before(e.renew) {
		return e.token, nil
	}
	if e.failed != nil && now.Sub(e.failedAt).Abs() < renewEvery {
		if good {
			return e.token, nil
		}
		return "", e.failed
	}
	token, err := e.exchange(ctx)
	if ctx.Err() != nil && err != nil {
		return "", err
	}
	e.failed, e.failedAt = err, now
	switch {
	case err != nil && good:
		return e.token, nil
	case err != nil:
		return "", err
	}
	life := defaultRefresh
	if ends := expiry(token); !ends.IsZero() {
		life = max(ends.Sub(now), time.Minute) // a clock that is wrong here would never find it good
	}
	e.token, e.until, e.renew, e.access = registry.Secret(token), now.Add(life), now.Add(life*3/4), map[string]accessToken{}
	return e.token, nil
}

// forget drops a refresh token that the registry no longer takes, at most once a minute, and reports whether it did.
func (e *entra) forget(ctx context.Context, token registry.Secret) bool {
	select {
	case <-ctx.Done():
		return false
	case <-e.one:
	}
	defer func() { e.one <- struct{}{} }()
	now := e.clock.Now()
	if e.token != token || now.Sub(e.forgottenAt).Abs() < renewEvery {
		return false
	}
	e.token, e.forgottenAt = "", now
	return true
}

// exchange gets a refresh token of the registry for a token of Microsoft Entra ID.
func (e *entra) exchange(ctx context.Context) (string, error) {
	token, err := e.entraToken(ctx)
	if err != nil {
		return "", err
	}
	form := url.Values{"grant_type": {"access_token"}, "service": {e.host}, "access_token": {token}}
	if t := e.identity.TenantID; t != "" && !strings.EqualFold(t, "adfs") { // AD FS, of an Azure Stack Hub, has no tenants
		form.Set("tenant", t)
	}
	var doc struct {
		RefreshToken string `json:"refresh_token"`
	}
	if err := e.post(ctx, "/oauth2/exchange", form, &doc); err != nil {
		return "", err
	}
	if doc.RefreshToken == "" {
		return "", registry.ErrUnauthorized.WithMessage("%s answers the exchange of tokens without a refresh token", e.host)
	}
	return doc.RefreshToken, nil
}

// post sends a form to a token endpoint of the registry and reads its answer.
//
// Errors: UNAUTHORIZED, UNAVAILABLE, the context's.
func (e *entra) post(ctx context.Context, path string, form url.Values, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.origin+path, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := e.client.Do(req)
	if err != nil {
		var known *registry.Error
		if errors.As(err, &known) {
			return known
		}
		return registry.ErrUnavailable.WithMessage("no answer from %s", e.host).Wrap(err)
	}
	defer func() { _ = resp.Body.Close() }() // read
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxToken))
	if err != nil {
		return registry.ErrUnavailable.WithMessage("the answer of %s to the exchange of tokens broke off", e.host).Wrap(err)
	}
	switch {
	case isAway(resp.StatusCode):
		return away(e.host, resp.StatusCode, resp.Header)
	case resp.StatusCode != http.StatusOK || json.Unmarshal(body, into) != nil:
		return registry.ErrUnauthorized.WithMessage("%s does not take the token of %s: HTTP %d%s; give the identity the role AcrPull, and AcrPush where it pushes",
			e.host, e.identity.Who(), resp.StatusCode, reason(body))
	}
	return nil
}

// expiry reads when a JWT ends. Nothing is verified: the token is for its maker to read, and only its end is of use
// here. Zero where it does not say.
func expiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return time.Time{}
	}
	var claims struct {
		Exp float64 `json:"exp"`
	}
	if json.Unmarshal(raw, &claims) != nil || claims.Exp <= 0 || claims.Exp > 1e11 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Exp), 0)
}

// accessToken is a token for one scope.
type accessToken struct {
	token registry.Secret
	until time.Time
}

const (
	// maxAccess bounds the access tokens that are kept.
	maxAccess = 256
	// leastAccess is how long an access token is used that does not say when it ends.
	leastAccess = time.Minute
)

// introduce signs in a question that regclient has no part in. With an identity only the metadata API of the registry
// is asked that way.
//
// Errors: UNAUTHORIZED, UNAVAILABLE, the context's.
func (p *Parent) introduce(ctx context.Context, req *http.Request, path string) error {
	if p.o.Username != "" {
		req.SetBasicAuth(p.o.Username, p.o.Password.Reveal())
	}
	repo, ok := strings.CutPrefix(path, "/acr/v1/")
	if p.entra == nil || !ok {
		return nil
	}
	repo, _, _ = strings.Cut(repo, "/_")
	refresh, err := p.entra.refreshToken(ctx)
	if err != nil {
		return err
	}
	token, err := p.entra.accessToken(ctx, refresh, "repository:"+repo+":metadata_read")
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token.Reveal())
	return nil
}

// accessToken makes an access token of a refresh token.
//
// Errors: UNAUTHORIZED, UNAVAILABLE, the context's.
func (e *entra) accessToken(ctx context.Context, refresh registry.Secret, scope string) (registry.Secret, error) {
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case <-e.one:
	}
	defer func() { e.one <- struct{}{} }()
	now := e.clock.Now()
	if a, ok := e.access[scope]; ok && now.Before(a.until) && refresh == e.token {
		return a.token, nil
	}
	form := url.Values{"grant_type": {"refresh_token"}, "service": {e.host}, "scope": {scope}, "refresh_token": {refresh.Reveal()}}
	var doc struct {
		AccessToken string `json:"access_token"`
	}
	if err := e.post(ctx, "/oauth2/token", form, &doc); err != nil {
		return "", err
	}
	if doc.AccessToken == "" {
		return "", registry.ErrUnauthorized.WithMessage("%s answers without an access token", e.host)
	}
	until := now.Add(leastAccess)
	if ends := expiry(doc.AccessToken).Add(-leastAccess); ends.After(until) {
		until = ends
	}
	if len(e.access) >= maxAccess {
		clear(e.access)
	}
	if e.access != nil {
		e.access[scope] = accessToken{registry.Secret(doc.AccessToken), until}
	}
	return registry.Secret(doc.AccessToken), nil
}
