package acrsdk

import (
	"net/http"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	sdk "github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// TestAuthenticationClient exchanges tokens as the SDK does, step by step.
func TestAuthenticationClient(t *testing.T) {
	s := newSite(t, auth.Options{})
	s.push("app", "v1", registrytest.NewImage(1, 10))
	c, err := sdk.NewAuthenticationClient(s.url, &sdk.AuthenticationClientOptions{ClientOptions: options()})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	login, err := credential{s}.GetToken(ctx, tokenRequest)
	if err != nil {
		t.Fatal(err)
	}
	refresh := must[sdk.AuthenticationClientExchangeAADAccessTokenForACRRefreshTokenResponse](t)(
		c.ExchangeAADAccessTokenForACRRefreshToken(ctx, sdk.PostContentSchemaGrantTypeAccessToken, "registry", &sdk.AuthenticationClientExchangeAADAccessTokenForACRRefreshTokenOptions{
			AccessToken: &login.Token, Tenant: ptr("tenant"),
		}),
	)
	access := must[sdk.AuthenticationClientExchangeACRRefreshTokenForACRAccessTokenResponse](t)(
		c.ExchangeACRRefreshTokenForACRAccessToken(ctx, "registry", "repository:app:metadata_read", *refresh.RefreshToken, &sdk.AuthenticationClientExchangeACRRefreshTokenForACRAccessTokenOptions{
			GrantType: ptr(sdk.TokenGrantTypeRefreshToken),
		}),
	)
	for path, want := range map[string]int{"/acr/v1/app": 200, "/acr/v1/app/_tags": 200, "/v2/app/tags/list": 200, "/v2/app/manifests/v1": 401, "/acr/v1/_catalog": 401, "/v2/": 200} {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+*access.AccessToken)
		resp, err := transport.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	entra := "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL3N0cy53aW5kb3dzLm5ldC8ifQ.c2lnbmF0dXJl"
	_, err = c.ExchangeAADAccessTokenForACRRefreshToken(ctx, sdk.PostContentSchemaGrantTypeAccessToken, "registry",
		&sdk.AuthenticationClientExchangeAADAccessTokenForACRRefreshTokenOptions{AccessToken: &entra})
	wantError(t, "a token of Entra", err, http.StatusUnauthorized, "none of this registry's")
	_, err = c.ExchangeACRRefreshTokenForACRAccessToken(ctx, "registry", "registry:catalog:*", "", &sdk.AuthenticationClientExchangeACRRefreshTokenForACRAccessTokenOptions{GrantType: ptr(sdk.TokenGrantTypePassword)})
	wantError(t, "anonymous where nobody is admitted", err, http.StatusUnauthorized, "UNAUTHORIZED")
}

// TestAnonymous is the SDK without a credential.
func TestAnonymous(t *testing.T) {
	image := registrytest.NewImage(1, 10)
	open := newSite(t, auth.Options{AnonymousPull: true})
	open.push("app", "v1", image)
	c := open.client(nil)
	must[sdk.ClientGetTagPropertiesResponse](t)(c.GetTagProperties(t.Context(), "app", "v1", nil))
	_, err := c.DeleteTag(t.Context(), "app", "v1", nil)
	wantError(t, "anonymous untag", err, http.StatusUnauthorized, "UNAUTHORIZED")
	closed := newSite(t, auth.Options{})
	closed.push("app", "v1", image)
	_, err = closed.client(nil).GetTagProperties(t.Context(), "app", "v1", nil)
	wantError(t, "anonymous where nobody is admitted", err, http.StatusUnauthorized, "UNAUTHORIZED")
}

// TestTokensEnd: the SDK gets new tokens when the old ones end, and is told when its rights have gone.
func TestTokensEnd(t *testing.T) {
	s := newSite(t, auth.Options{TokenLife: 5 * time.Minute})
	s.push("app", "v1", registrytest.NewImage(1, 10))
	c := s.client(credential{s})
	ctx := t.Context()
	must[sdk.ClientGetTagPropertiesResponse](t)(c.GetTagProperties(ctx, "app", "v1", nil))
	s.now.Add(600)
	must[sdk.ClientGetTagPropertiesResponse](t)(c.GetTagProperties(ctx, "app", "v1", nil))
	must[sdk.ClientGetManifestResponse](t)(c.GetManifest(ctx, "app", "v1", nil)) // another scope, on the other API
	s.grant("less", "content/read")
	_, err := c.GetTagProperties(ctx, "app", "v1", nil)
	wantError(t, "a right that was taken away", err, http.StatusForbidden, "Insufficient scopes to perform the operation")
	must[sdk.ClientGetManifestResponse](t)(c.GetManifest(ctx, "app", "v1", nil))
}

var tokenRequest = policy.TokenRequestOptions{Scopes: []string{"https://containerregistry.azure.net/.default"}}
