// Package acrsdk runs Microsoft's SDK for Go, azcontainerregistry, as it is published, against this registry: its
// Client, its BlobClient and its AuthenticationClient find what they know from Azure Container Registry.
package acrsdk

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"

	"github.com/connected-registry/connected-registry/internal/acr"
	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/filter"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/store"
)

// site is a registry with a store of its own and the routes of the module.
type site struct {
	t     *testing.T
	url   string
	store *store.Store
	auth  *auth.Authenticator
	mode  atomic.Value // registry.Mode
	now   atomic.Int64 // unix seconds
}

func newSite(t *testing.T, o auth.Options) *site {
	t.Helper()
	s := &site{t: t}
	s.mode.Store(registry.ReadWrite)
	s.now.Store(time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC).Unix())
	o.Clock = clock.Func(func() time.Time { return time.Unix(s.now.Load(), 0).UTC() })
	var err error
	if s.store, err = store.Open(t.Context(), t.TempDir(), store.Options{Clock: o.Clock}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.store.Close() })
	s.auth = auth.New(o)
	s.auth.Open(t.Context(), s.store)
	s.grant("all", "content/read", "content/write", "content/delete", "metadata/read", "metadata/write")
	mode := func() registry.Mode { return s.mode.Load().(registry.Mode) }
	content := filter.Scoped(filter.Locked(filter.Switch(mode, s.store), s.store), s.auth.MayList)
	v2 := distribution.New(content, s.auth, distribution.Options{})
	azure := acr.New(content, s.store, s.auth, acr.Options{Mode: mode})
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, acr.Path):
			azure.ServeHTTP(w, r)
		case auth.IsTokenPath(r.URL.Path):
			s.auth.TokenHandler().ServeHTTP(w, r)
		default:
			v2.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	transport = server.Client()
	return s
}

// transport trusts the server of the test that runs; tests of this package run one after the other.
var transport *http.Client

// grant puts one client token in force, "line-a" with the password "one", and what it may do with every repository.
func (s *site) grant(name string, actions ...string) {
	var m registry.ScopeMap
	for _, a := range actions {
		m = append(m, "repositories/*/"+a)
	}
	s.auth.Update(map[string]registry.ClientToken{
		"line-a": {ScopeMap: name, Enabled: true, Passwords: []registry.TokenPassword{{SHA256: sha256.Sum256([]byte("one"))}}},
	}, map[string]registry.ScopeMap{name: m})
}

// credential gets a refresh token with the name and the password of a client token. The SDK then takes it to
// /oauth2/exchange, as it does with a token of Entra at Azure.
type credential struct{ s *site }

func (c credential) GetToken(ctx context.Context, _ policy.TokenRequestOptions) (azcore.AccessToken, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.s.url+"/acr/oauth2/token?service=registry&offline_token=true", nil)
	if err != nil {
		return azcore.AccessToken{}, err
	}
	r.SetBasicAuth("line-a", "one")
	resp, err := transport.Do(r)
	if err != nil {
		return azcore.AccessToken{}, err
	}
	defer resp.Body.Close()
	var body struct {
		RefreshToken string `json:"refresh_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || body.RefreshToken == "" {
		return azcore.AccessToken{}, fmt.Errorf("%s: no refresh token, %w", resp.Status, err)
	}
	return azcore.AccessToken{Token: body.RefreshToken, ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func options() azcore.ClientOptions {
	return azcore.ClientOptions{Transport: transport, Retry: policy.RetryOptions{MaxRetries: -1}}
}

func (s *site) client(cred azcore.TokenCredential) *azcontainerregistry.Client {
	s.t.Helper()
	c, err := azcontainerregistry.NewClient(s.url, cred, &azcontainerregistry.ClientOptions{ClientOptions: options()})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *site) blobs(cred azcore.TokenCredential) *azcontainerregistry.BlobClient {
	s.t.Helper()
	c, err := azcontainerregistry.NewBlobClient(s.url, cred, &azcontainerregistry.BlobClientOptions{ClientOptions: options()})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// push writes an image an hour after the last one.
func (s *site) push(repo, tag string, image registrytest.Image) {
	s.t.Helper()
	s.now.Add(3600)
	if err := registrytest.Push(s.t.Context(), s.store, repo, tag, image); err != nil {
		s.t.Fatal(err)
	}
}

// must stops at an error of the SDK.
func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// wantError checks status and code of an error of the SDK.
func wantError(t *testing.T, what string, err error, status int, code string) {
	t.Helper()
	var e *azcore.ResponseError
	if !errors.As(err, &e) || e.StatusCode != status || !strings.Contains(e.Error(), code) {
		t.Errorf("%s: %v, want %d %s", what, err, status, code)
	}
}

func readAll(t *testing.T, r io.ReadCloser) []byte {
	t.Helper()
	defer r.Close()
	body, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func ptr[T any](v T) *T { return &v }
