package acrsdk

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	sdk "github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/test/apiproxy"
	"github.com/connected-registry/connected-registry/test/layer"
)

var binary string

func TestMain(m *testing.M) { os.Exit(layer.Main(m.Run, &binary)) }

// installed is the real binary with TLS and the client token of these tests.
type installed struct {
	*layer.Layer
	site
}

func install(t *testing.T, ca *apiproxy.Authority, o layer.Options) *installed {
	t.Helper()
	c, err := ca.Server("127.0.0.1", "registry", time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	o.Binary, o.Dir, o.Closed, o.Args = binary, t.TempDir(), true, []string{"--bearer-challenge"}
	o.Document = map[string]any{
		"scopeMaps":    map[string]string{"all": layer.Everything("*")},
		"clientTokens": map[string]any{"line-a": layer.Token("all", "one")},
	}
	addr, release, err := o.ListenTLS("127.0.0.1", c.Chain, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	l, err := layer.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	i := &installed{Layer: l, site: site{t: t, url: "https://" + addr}}
	i.start()
	return i
}

func (i *installed) start() {
	i.t.Helper()
	if err := i.Start(i.t.Context()); err != nil {
		i.t.Fatal(err)
	}
	if err := i.Configured(i.t.Context()); err != nil {
		i.t.Fatal(err)
	}
}

// upload pushes an image with the SDK alone.
func (i *installed) upload(repo, tag string, image registrytest.Image) {
	i.t.Helper()
	ctx, c, b := i.t.Context(), i.client(credential{&i.site}), i.blobs(credential{&i.site})
	for _, blob := range image.Blobs {
		start := must[sdk.BlobClientStartUploadResponse](i.t)(b.StartUpload(ctx, repo, nil))
		hash := sdk.NewBlobDigestCalculator()
		chunk := must[sdk.BlobClientUploadChunkResponse](i.t)(b.UploadChunk(ctx, *start.Location, bytes.NewReader(blob.Bytes), hash, nil))
		must[sdk.BlobClientCompleteUploadResponse](i.t)(b.CompleteUpload(ctx, *chunk.Location, hash, nil))
	}
	up := must[sdk.ClientUploadManifestResponse](i.t)(c.UploadManifest(ctx, repo, tag, sdk.ContentType(image.MediaType), streaming.NopCloser(bytes.NewReader(image.Bytes)), nil))
	if *up.DockerContentDigest != string(image.Digest) {
		i.t.Errorf("%s:%s is %s", repo, tag, *up.DockerContentDigest)
	}
}

func (i *installed) digest(repo, tag string) string {
	i.t.Helper()
	return *must[sdk.ClientGetTagPropertiesResponse](i.t)(i.client(credential{&i.site}).GetTagProperties(i.t.Context(), repo, tag, nil)).Tag.Digest
}

// TestInstalled drives the real binary with the SDK's three clients: push, read, list, order, lock, restart, and a
// synchronisation and a collection that find a locked tag.
func TestInstalled(t *testing.T) {
	ca, err := apiproxy.NewAuthority("root of " + t.Name())
	if err != nil {
		t.Fatal(err)
	}
	transport = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}}
	one, two := registrytest.NewImage(1, 100, 200), registrytest.NewImage(2, 50)
	up := install(t, ca, layer.Options{Name: "layer5", Mode: registry.ReadWrite})
	up.upload("acme/app", "v1", one)
	up.upload("acme/app", "free", one)
	down := install(t, ca, layer.Options{
		Name: "layer4", Mode: registry.ReadWrite, Repositories: map[string]string{"all": "acme/app"},
		Env: []string{layer.ConnectionString("line-a", "one", up.Addr, "http")},
	})
	if err := down.Until(t.Context(), "both tags are there", func(ctx context.Context) (bool, error) {
		st, err := down.Status(ctx)
		return err == nil && st.Storage.Tags == 2, nil
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("the test took longer than a minute"))
	defer cancel()
	c := down.client(credential{&down.site})
	off := &sdk.TagWriteableProperties{CanWrite: ptr(false), CanDelete: ptr(false)}
	must[sdk.ClientUpdateTagPropertiesResponse](t)(c.UpdateTagProperties(ctx, "acme/app", "v1", &sdk.ClientUpdateTagPropertiesOptions{Value: off}))

	if err := down.Stop(); err != nil {
		t.Fatal(err)
	}
	down.start()
	up.upload("acme/app", "v1", two)
	up.upload("acme/app", "free", two)
	if err := down.Until(ctx, "the tag that is not locked moves", func(context.Context) (bool, error) {
		return down.digest("acme/app", "free") == string(two.Digest), nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := down.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if got := down.digest("acme/app", "v1"); got != string(one.Digest) {
		t.Errorf("synchronisation moved a locked tag to %s", got)
	}
	_, err = c.UploadManifest(ctx, "acme/app", "v1", sdk.ContentType(two.MediaType), streaming.NopCloser(bytes.NewReader(two.Bytes)), nil)
	wantError(t, "overwrite", err, http.StatusMethodNotAllowed, codeLocked)
	_, err = c.DeleteTag(ctx, "acme/app", "v1", nil)
	wantError(t, "untag", err, http.StatusMethodNotAllowed, codeLocked)
	_, err = c.DeleteManifest(ctx, "acme/app", string(one.Digest), nil)
	wantError(t, "delete of the manifest", err, http.StatusMethodNotAllowed, codeLocked)
	_, err = c.DeleteRepository(ctx, "acme/app", nil)
	wantError(t, "delete of the repository", err, http.StatusMethodNotAllowed, codeLocked)

	order := sdk.ArtifactTagOrderByLastUpdatedOnDescending
	page := must[sdk.ClientListTagsResponse](t)(c.NewListTagsPager("acme/app", &sdk.ClientListTagsOptions{OrderBy: &order}).NextPage(ctx))
	var names []string
	for _, tag := range page.Tags {
		names = append(names, *tag.Name)
	}
	if want := []string{"free", "v1"}; !slices.Equal(names, want) || *page.Tags[1].ChangeableAttributes.CanWrite {
		t.Errorf("newest first: %v, want %v with the second one locked", names, want)
	}
	must[sdk.ClientUpdateTagPropertiesResponse](t)(c.UpdateTagProperties(ctx, "acme/app", "v1", &sdk.ClientUpdateTagPropertiesOptions{
		Value: &sdk.TagWriteableProperties{CanWrite: ptr(true), CanDelete: ptr(true)},
	}))
	if err := down.Until(ctx, "the lock was taken back and the tag follows its parent", func(context.Context) (bool, error) {
		return down.digest("acme/app", "v1") == string(two.Digest), nil
	}); err != nil {
		t.Fatal(err)
	}
	if a := down.authenticate(); !strings.HasPrefix(a, "eyJ") {
		t.Errorf("access token %q", a)
	}
}

// authenticate gets an access token with the SDK's AuthenticationClient.
func (i *installed) authenticate() string {
	i.t.Helper()
	c, err := sdk.NewAuthenticationClient(i.url, &sdk.AuthenticationClientOptions{ClientOptions: options()})
	if err != nil {
		i.t.Fatal(err)
	}
	login, err := credential{&i.site}.GetToken(i.t.Context(), tokenRequest)
	if err != nil {
		i.t.Fatal(err)
	}
	refresh := must[sdk.AuthenticationClientExchangeAADAccessTokenForACRRefreshTokenResponse](i.t)(
		c.ExchangeAADAccessTokenForACRRefreshToken(i.t.Context(), sdk.PostContentSchemaGrantTypeAccessToken, "registry",
			&sdk.AuthenticationClientExchangeAADAccessTokenForACRRefreshTokenOptions{AccessToken: &login.Token}),
	)
	return *must[sdk.AuthenticationClientExchangeACRRefreshTokenForACRAccessTokenResponse](i.t)(
		c.ExchangeACRRefreshTokenForACRAccessToken(i.t.Context(), "registry", "repository:acme/app:pull", *refresh.RefreshToken, &sdk.AuthenticationClientExchangeACRRefreshTokenForACRAccessTokenOptions{
			GrantType: ptr(sdk.TokenGrantTypeRefreshToken),
		}),
	).AccessToken
}
