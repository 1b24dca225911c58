package azure

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azclouds "github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

// hand is a clock that the test moves.
type hand struct{ at atomic.Int64 }

func newHand() *hand {
	h := &hand{}
	h.at.Store(time.Now().Unix())
	return h
}

func (h *hand) now() time.Time       { return time.Unix(h.at.Load(), 0) }
func (h *hand) pass(d time.Duration) { h.at.Add(int64(d / time.Second)) }

func (c *cloud) roots() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	pool.AddCert(c.login.Certificate())
	return pool, nil
}

// parent connects as the product does.
func (c *cloud) parent(change func(*upstream.Options)) *upstream.Parent {
	c.t.Helper()
	o := upstream.Options{Endpoint: c.service, SourceClient: "on-prem/connected-registry/linea", Clock: clock.Func(c.now), Identity: upstream.Identity{
		Kind: upstream.ClientSecret, TenantID: tenant, ClientID: client, ClientSecret: secret, AuthorityHost: c.entra.URL,
	}}
	o.Transport.RootCAs, o.Transport.Data, o.Transport.Dial = c.roots, []string{c.dataURL()}, dial
	if change != nil {
		change(&o)
	}
	p, err := upstream.New(o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(p.Close)
	return p
}

// pull reads an image through p and compares each byte.
func pull(ctx context.Context, p *upstream.Parent, repo, tag string, image registrytest.Image) error {
	m, err := p.GetManifest(ctx, repo, registry.TagReference(tag))
	if err != nil {
		return err
	}
	if !bytes.Equal(m.Bytes, image.Bytes) {
		return errors.New("another manifest")
	}
	for _, b := range image.Blobs {
		r, err := p.GetBlob(ctx, repo, b.Digest)
		if err != nil {
			return err
		}
		got, err := io.ReadAll(r)
		_ = r.Close()
		if err != nil {
			return err
		}
		if !bytes.Equal(got, b.Bytes) {
			return fmt.Errorf("blob %s has other bytes", b.Digest)
		}
	}
	return nil
}

// TestStandIn: Microsoft's own packages find in the stand-in what they know from Azure.
func TestStandIn(t *testing.T) {
	c := newCloud(t, time.Now)
	image := registrytest.NewImage(1, 4096, 100)
	c.push("acme/app", "v1", image)
	roots, _ := c.roots()
	options := azcore.ClientOptions{
		Cloud: azclouds.Configuration{ActiveDirectoryAuthorityHost: c.entra.URL, Services: map[azclouds.ServiceName]azclouds.ServiceConfiguration{
			azcontainerregistry.ServiceName: {Audience: audience},
		}},
		Transport: &http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig(roots), DialContext: dial}}, Retry: policy.RetryOptions{MaxRetries: -1},
	}
	cred, err := azidentity.NewClientSecretCredential(tenant, client, secret, &azidentity.ClientSecretCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: true})
	if err != nil {
		t.Fatal(err)
	}
	sdk, err := azcontainerregistry.NewClient(c.login.URL, cred, &azcontainerregistry.ClientOptions{ClientOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	props, err := sdk.GetTagProperties(t.Context(), "acme/app", "v1", nil)
	if err != nil || *props.Tag.Digest != string(image.Digest) {
		t.Fatalf("GetTagProperties: %v, %v", props, err)
	}
	blobs, err := azcontainerregistry.NewBlobClient(c.login.URL, cred, &azcontainerregistry.BlobClientOptions{ClientOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	got, err := blobs.GetBlob(t.Context(), "acme/app", string(image.Blobs[0].Digest), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer got.BlobData.Close()
	body, err := io.ReadAll(got.BlobData)
	if err != nil || !bytes.Equal(body, image.Blobs[0].Bytes) {
		t.Fatalf("GetBlob: %d bytes, %v", len(body), err)
	}
}

// TestIdentities signs in with each kind of identity, through azidentity's real requests, and with a sync token.
func TestIdentities(t *testing.T) {
	image := registrytest.NewImage(1, 64<<10, 10)
	for name, change := range map[string]func(*cloud, *upstream.Options){
		"client secret": func(*cloud, *upstream.Options) {},
		"client certificate": func(c *cloud, o *upstream.Options) {
			o.Identity.Kind, o.Identity.CertificatePath = upstream.ClientCertificate, c.entra.certificatePath
		},
		"workload identity": func(c *cloud, o *upstream.Options) {
			o.Identity.Kind, o.Identity.TokenFile = upstream.WorkloadIdentity, c.entra.tokenFile
		},
		"managed identity": func(c *cloud, o *upstream.Options) { managed(t, c, o, client) },
		"system-assigned":  func(c *cloud, o *upstream.Options) { managed(t, c, o, "") },
		"Azure CLI":        func(c *cloud, o *upstream.Options) { o.Identity.Kind = upstream.AzureCLI; fakeCLI(t, c) },
		"Azure Stack Hub":  func(_ *cloud, o *upstream.Options) { o.Identity.TenantID = "adfs" },
		"sync token": func(_ *cloud, o *upstream.Options) {
			o.Identity, o.Username, o.Password = upstream.Identity{}, tokenName, tokenPassword
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCloud(t, time.Now)
			c.push("acme/app", "v1", image)
			p := c.parent(func(o *upstream.Options) { change(c, o) })
			status, _, err := p.Probe(t.Context())
			if err != nil || status.Kind != registry.KindACR {
				t.Fatalf("Probe: %+v, %v", status, err)
			}
			if err := pull(t.Context(), p, "acme/app", "v1", image); err != nil {
				t.Fatal(err)
			}
			c.noLeak(t)
		})
	}
}

// TestPages: a list is whole, whatever the default size of a page is.
func TestPages(t *testing.T) {
	c := newCloud(t, time.Now)
	image := registrytest.NewImage(2, 10)
	for i := range 150 {
		c.push("many", fmt.Sprintf("t%03d", i), image)
	}
	p := c.parent(nil)
	var tags []string
	for after := ""; ; {
		page, err := p.Tags(t.Context(), "many", after, 60)
		if err != nil {
			t.Fatal(err)
		}
		tags = append(tags, page...)
		if len(page) < 60 {
			break
		}
		after = page[len(page)-1]
	}
	if len(tags) != 150 {
		t.Errorf("%d tags of 150", len(tags))
	}
	if _, _, err := p.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, about, err := p.RecentTags(t.Context(), "many", time.Time{})
	if err != nil || about.Tags != 150 || about.Manifests == 0 || len(all) != 150 || all[0].Name != "t149" {
		t.Fatalf("by time: %d of %+v, %v", len(all), about, err)
	}
	if none, _, err := p.RecentTags(t.Context(), "many", all[0].Updated.Add(time.Second)); err != nil || len(none) != 0 {
		t.Errorf("nothing new: %v, %v", none, err)
	}
}

// noLeak: nobody got a credential that is not for him.
func (c *cloud) noLeak(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.atData) == 0 {
		t.Error("no blob came from the data endpoint")
	}
	for _, h := range c.atData {
		for _, name := range []string{"Authorization", "X-Meta-Source-Client", "Cookie", "Referer"} {
			if h.Get(name) != "" {
				t.Errorf("the data endpoint was sent %s", name)
			}
		}
	}
	if !slices.Contains(c.sources, "on-prem/connected-registry/linea") {
		t.Error("the registry was not told which software asks")
	}
	c.entra.mu.Lock()
	defer c.entra.mu.Unlock()
	if len(c.entra.seenBy) != 0 {
		t.Errorf("Entra was sent %d Authorization headers", len(c.entra.seenBy))
	}
}

func managed(t *testing.T, c *cloud, o *upstream.Options, id string) {
	t.Setenv("IDENTITY_ENDPOINT", c.entra.local.URL+"/msi/token")
	t.Setenv("IDENTITY_HEADER", "local")
	o.Identity = upstream.Identity{Kind: upstream.ManagedIdentity, ClientID: id, LocalEndpoints: []string{c.entra.local.URL}}
}

// fakeCLI puts an az on the path that prints what the real one prints for get-access-token.
func fakeCLI(t *testing.T, c *cloud) {
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *get-access-token*containerregistry.azure.net*) ;; *) exit 1 ;; esac\necho '{\"accessToken\":%q,\"expires_on\":%d,\"tokenType\":\"Bearer\"}'\n",
		c.entra.accessToken(client), time.Now().Add(time.Hour).Unix())
	if err := os.WriteFile(filepath.Join(dir, "az"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// TestRenewal: tokens are renewed before they end, used on while Entra is away, and dropped when the registry no longer
// takes them.
func TestRenewal(t *testing.T) {
	h := newHand()
	c := newCloud(t, h.now)
	c.push("acme/app", "v1", registrytest.NewImage(1, 10))
	p := c.parent(nil)
	ask := func() error {
		_, err := p.ResolveManifest(t.Context(), "acme/app", registry.TagReference("v1"))
		return err
	}
	exchanges := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.exchanges
	}
	steps := []struct {
		name string
		do   func()
		want int // exchanges since the start
	}{
		{"first", func() {}, 1},
		{"again", func() { h.pass(time.Hour) }, 1},
		{"after three quarters of its life", func() { h.pass(80 * time.Minute) }, 2},
		{"no exchange, the token is good", func() { c.down.Store(true); h.pass(140 * time.Minute) }, 2},
		{"the exchange is back", func() { c.down.Store(false); h.pass(2 * time.Minute) }, 3},
		{"the registry forgot the token", func() { c.revoked.Store(c.issued.Load() + 1); h.pass(80 * time.Minute) }, 4},
	}
	for _, s := range steps {
		s.do()
		if err := ask(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if n := exchanges(); n != s.want {
			t.Errorf("%s: %d exchanges, want %d", s.name, n, s.want)
		}
	}
	c.down.Store(true)
	h.pass(4 * time.Hour)
	if err := ask(); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("no exchange and no token: %v, want UNAVAILABLE", err)
	}
}

// TestRefused: what is wrong with an identity is said in words that its owner can act on.
func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*cloud, *upstream.Options)
		want   string
	}{
		"wrong secret":   {func(_ *cloud, o *upstream.Options) { o.Identity.ClientSecret = "wr0ng-s3cret" }, "AADSTS7000215"},
		"unknown tenant": {func(_ *cloud, o *upstream.Options) { o.Identity.TenantID = "00000000-0000-4000-8000-000000000000" }, "AADSTS90002"},
		"no role":        {func(c *cloud, _ *upstream.Options) { c.role.Store("") }, "AcrPull"},
		"other audience": {func(_ *cloud, o *upstream.Options) { o.Identity.Audience = "https://vault.azure.net" }, "AADSTS70011"},
		"no such managed identity": {func(c *cloud, o *upstream.Options) {
			managed(t, c, o, "00000000-0000-4000-8000-000000000000")
		}, "ManagedIdentity 00000000"},
		"no Azure CLI": {func(_ *cloud, o *upstream.Options) {
			t.Setenv("PATH", t.TempDir())
			o.Identity = upstream.Identity{Kind: upstream.AzureCLI}
		}, "AzureCLI has no token here"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCloud(t, time.Now)
			c.push("acme/app", "v1", registrytest.NewImage(1, 10))
			p := c.parent(func(o *upstream.Options) { tt.change(c, o) })
			_, err := p.ResolveManifest(t.Context(), "acme/app", registry.TagReference("v1"))
			if !errors.Is(err, registry.ErrUnauthorized) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want UNAUTHORIZED with %q", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "wr0ng-s3cret") || strings.Contains(err.Error(), "eyJ")) {
				t.Errorf("a secret in %q", err)
			}
		})
	}
	c := newCloud(t, time.Now)
	c.entra.fail = http.StatusServiceUnavailable
	if _, err := c.parent(nil).ResolveManifest(t.Context(), "acme/app", registry.TagReference("v1")); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("Entra answers 503: %v, want UNAVAILABLE", err)
	}
	for name, i := range map[string]upstream.Identity{
		"no kind of that name": {Kind: "Magic"},
		"no tenant":            {Kind: upstream.ClientSecret, ClientID: client, ClientSecret: secret},
		"no certificate":       {Kind: upstream.ClientCertificate, TenantID: tenant, ClientID: client, CertificatePath: "/nonexistent.pem"},
		"authority by http":    {Kind: upstream.ClientSecret, TenantID: tenant, ClientID: client, ClientSecret: secret, AuthorityHost: "http://127.0.0.1:1"},
	} {
		if _, err := upstream.New(upstream.Options{Endpoint: "contoso.azurecr.io", Identity: i}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := upstream.New(upstream.Options{Endpoint: "parent:8000", Protocol: "http", Identity: upstream.Identity{Kind: upstream.ManagedIdentity}}); err == nil {
		t.Error("an identity over http: no error")
	}
}

// TestReplica: while an endpoint is away the next one is asked, the bytes of a blob that are here are kept, and after a
// while the first is tried again.
func TestReplica(t *testing.T) {
	h := newHand()
	c := newCloud(t, h.now)
	image := registrytest.NewImage(1, 1<<20)
	c.push("acme/app", "v1", image)
	second := c.replica()
	p := c.parent(func(o *upstream.Options) {
		o.Alternates = []string{second.Listener.Addr().String()}
		o.Transport.Timeouts.Connect = 2 * time.Second
	})
	if err := pull(t.Context(), p, "acme/app", "v1", image); err != nil {
		t.Fatal(err)
	}
	layer := image.Blobs[len(image.Blobs)-1]
	for _, b := range image.Blobs {
		if b.Size == 1<<20 {
			layer = b
		}
	}
	r, err := p.GetBlob(t.Context(), "acme/app", layer.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	half := make([]byte, 1<<19)
	if _, err := io.ReadFull(r, half); err != nil {
		t.Fatal(err)
	}
	c.login.CloseClientConnections()
	c.login.Close()
	for range 3 { // what the syncer does: it tries again
		if _, err = p.ResolveManifest(t.Context(), "acme/app", registry.TagReference("v1")); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("the replica is not asked: %v", err)
	}
	if got := p.Endpoint(); got != second.Listener.Addr().String() {
		t.Fatalf("asks %s", got)
	}
	again, err := p.GetBlob(t.Context(), "acme/app", layer.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.Seek(1<<19, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(again)
	if err != nil || !bytes.Equal(rest, layer.Bytes[1<<19:]) || !bytes.Equal(half, layer.Bytes[:1<<19]) {
		t.Fatalf("the second half from the replica: %d bytes, %v", len(rest), err)
	}
	c.mu.Lock()
	if !slices.Contains(c.ranges, "bytes=524288-") {
		t.Errorf("no range was asked for: %q", c.ranges)
	}
	c.mu.Unlock()
	h.pass(11 * time.Minute)
	if got := p.Endpoint(); got != c.service {
		t.Errorf("after a while %s is asked, want the first again", got)
	}
	if _, err := p.ResolveManifest(t.Context(), "acme/app", registry.TagReference("v1")); err != nil {
		if _, err = p.ResolveManifest(t.Context(), "acme/app", registry.TagReference("v1")); err != nil {
			t.Errorf("the first is still away: %v", err)
		}
	}
	if got := p.Endpoint(); got != second.Listener.Addr().String() {
		t.Errorf("asks %s although the first is away", got)
	}
}
