package acrsdk

import (
	"bytes"
	"net/http"
	"slices"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	sdk "github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/store"
)

const (
	codeLocked = "REGISTRY_DISALLOWED_OPERATION"
	textLocked = "The operation is disallowed on this registry, repository or image."
)

// TestImageLock locks a tag with the SDK. Nobody moves or removes it then: no client, no synchronisation, no collection.
func TestImageLock(t *testing.T) {
	s := newSite(t, auth.Options{BearerChallenge: true})
	one, two := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)
	s.push("app", "v1", one)
	s.push("app", "v2", two)
	c, b := s.client(credential{s}), s.blobs(credential{s})
	ctx := t.Context()

	locked := must[sdk.ClientUpdateTagPropertiesResponse](t)(c.UpdateTagProperties(ctx, "app", "v1", &sdk.ClientUpdateTagPropertiesOptions{
		Value: &sdk.TagWriteableProperties{CanWrite: ptr(false), CanDelete: ptr(false)},
	})).Tag.ChangeableAttributes
	if *locked.CanWrite || *locked.CanDelete || !*locked.CanRead || !*locked.CanList {
		t.Fatalf("after the lock: %+v", locked)
	}
	put := func() error {
		_, err := c.UploadManifest(ctx, "app", "v1", sdk.ContentType(two.MediaType), streaming.NopCloser(bytes.NewReader(two.Bytes)), nil)
		return err
	}
	for what, do := range map[string]func() error{
		"overwrite":             put,
		"untag":                 func() error { _, err := c.DeleteTag(ctx, "app", "v1", nil); return err },
		"delete the manifest":   func() error { _, err := c.DeleteManifest(ctx, "app", string(one.Digest), nil); return err },
		"delete the repository": func() error { _, err := c.DeleteRepository(ctx, "app", nil); return err },
		"delete a layer":        func() error { _, err := b.DeleteBlob(ctx, "app", string(one.Blobs[1].Digest), nil); return err },
	} {
		err := do()
		wantError(t, what, err, http.StatusMethodNotAllowed, codeLocked)
		wantError(t, what, err, http.StatusMethodNotAllowed, textLocked)
	}
	kept, err := s.store.CommitImage(ctx, registry.Image{Repository: "app", Manifests: []registry.Manifest{two.Manifest}, Tags: []string{"v1"}})
	if err != nil || !slices.Equal(kept, []string{"v1"}) {
		t.Errorf("synchronisation: kept %v, %v", kept, err)
	}
	if _, err := s.store.GC(ctx, store.GCOptions{Grace: -1}); err != nil {
		t.Fatal(err)
	}
	if got := must[sdk.ClientGetTagPropertiesResponse](t)(c.GetTagProperties(ctx, "app", "v1", nil)); *got.Tag.Digest != string(one.Digest) {
		t.Errorf("v1 is %s now", *got.Tag.Digest)
	}
	must[sdk.ClientUpdateTagPropertiesResponse](t)(c.UpdateTagProperties(ctx, "app", "v1", &sdk.ClientUpdateTagPropertiesOptions{
		Value: &sdk.TagWriteableProperties{CanWrite: ptr(true), CanDelete: ptr(true)},
	}))
	if err := put(); err != nil {
		t.Errorf("after the lock was taken back: %v", err)
	}
}

// TestLockOfManifestAndRepository has reading, listing and writing.
func TestLockOfManifestAndRepository(t *testing.T) {
	s := newSite(t, auth.Options{BearerChallenge: true})
	one, two := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)
	s.push("app", "v1", one)
	s.push("app", "v2", two)
	s.push("hidden", "v1", one)
	c, b := s.client(credential{s}), s.blobs(credential{s})
	ctx := t.Context()

	m := must[sdk.ClientUpdateManifestPropertiesResponse](t)(c.UpdateManifestProperties(ctx, "app", string(one.Digest), &sdk.ClientUpdateManifestPropertiesOptions{
		Value: &sdk.ManifestWriteableProperties{CanRead: ptr(false), CanList: ptr(false)},
	}))
	if *m.Manifest.ChangeableAttributes.CanRead || !*m.Manifest.ChangeableAttributes.CanWrite {
		t.Errorf("%+v", m.Manifest.ChangeableAttributes)
	}
	_, err := c.GetManifest(ctx, "app", "v1", nil)
	wantError(t, "pull of what is not to be read", err, http.StatusMethodNotAllowed, codeLocked)
	if p := must[sdk.ClientListManifestsResponse](t)(c.NewListManifestsPager("app", nil).NextPage(ctx)); len(p.Attributes) != 1 || *p.Attributes[0].Digest != string(two.Digest) {
		t.Errorf("manifests: %+v", p.Attributes)
	}

	r := must[sdk.ClientUpdateRepositoryPropertiesResponse](t)(c.UpdateRepositoryProperties(ctx, "hidden", &sdk.ClientUpdateRepositoryPropertiesOptions{
		Value: &sdk.RepositoryWriteableProperties{CanList: ptr(false), CanWrite: ptr(false)},
	}))
	if *r.ChangeableAttributes.CanList || *r.ChangeableAttributes.CanWrite || !*r.ChangeableAttributes.CanRead {
		t.Errorf("%+v", r.ChangeableAttributes)
	}
	if p := must[sdk.ClientListRepositoriesResponse](t)(c.NewListRepositoriesPager(nil).NextPage(ctx)); len(p.Names) != 1 || *p.Names[0] != "app" {
		t.Errorf("repositories: %v", p.Names)
	}
	_, err = b.StartUpload(ctx, "hidden", nil)
	wantError(t, "upload to a locked repository", err, http.StatusMethodNotAllowed, codeLocked)
	_, err = c.UploadManifest(ctx, "hidden", "new", sdk.ContentType(one.MediaType), streaming.NopCloser(bytes.NewReader(one.Bytes)), nil)
	wantError(t, "push to a locked repository", err, http.StatusMethodNotAllowed, codeLocked)
	if got := readAll(t, must[sdk.ClientGetManifestResponse](t)(c.GetManifest(ctx, "hidden", "v1", nil)).ManifestData); !bytes.Equal(got, one.Bytes) {
		t.Error("a locked repository is pulled from as before")
	}
	_, err = c.UpdateRepositoryProperties(ctx, "nowhere", &sdk.ClientUpdateRepositoryPropertiesOptions{Value: &sdk.RepositoryWriteableProperties{CanWrite: ptr(false)}})
	wantError(t, "lock of an unknown repository", err, http.StatusNotFound, "NAME_UNKNOWN")
	_, err = c.UpdateRepositoryProperties(ctx, "app", nil)
	wantError(t, "a change without a body", err, http.StatusBadRequest, "no JSON object")
}
