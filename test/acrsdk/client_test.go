package acrsdk

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	sdk "github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// TestProperties is what the SDK reads of repositories, tags and manifests.
func TestProperties(t *testing.T) {
	s := newSite(t, auth.Options{})
	one, two := registrytest.NewImage(1, 100, 200), registrytest.NewImage(2, 50)
	index := registrytest.NewIndex(one, two)
	s.push("acme/app", "v1", one)
	s.push("acme/app", "latest", one)
	s.push("acme/app", "multi", index)
	s.push("acme/app", "latest", two)
	begin := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	c := s.client(credential{s})
	ctx := t.Context()

	repo := must[sdk.ClientGetRepositoryPropertiesResponse](t)(c.GetRepositoryProperties(ctx, "acme/app", nil))
	if *repo.Name != "acme/app" || *repo.TagCount != 3 || *repo.ManifestCount != 3 || !*repo.ChangeableAttributes.CanDelete ||
		!*repo.ChangeableAttributes.CanWrite || !*repo.ChangeableAttributes.CanRead || !*repo.ChangeableAttributes.CanList ||
		!repo.CreatedOn.Equal(begin.Add(time.Hour)) || !repo.LastUpdatedOn.Equal(begin.Add(4*time.Hour)) || *repo.RegistryLoginServer != strings.TrimPrefix(s.url, "https://") {
		t.Errorf("repository: %+v", repo)
	}
	tag := must[sdk.ClientGetTagPropertiesResponse](t)(c.GetTagProperties(ctx, "acme/app", "latest", nil)).Tag
	if *tag.Name != "latest" || *tag.Digest != string(two.Digest) || !tag.CreatedOn.Equal(begin.Add(2*time.Hour)) || !tag.LastUpdatedOn.Equal(begin.Add(4*time.Hour)) {
		t.Errorf("tag: %+v", tag)
	}
	m := must[sdk.ClientGetManifestPropertiesResponse](t)(c.GetManifestProperties(ctx, "acme/app", string(one.Digest), nil)).Manifest
	size := one.Size
	for _, b := range one.Blobs {
		size += b.Size
	}
	if *m.Digest != string(one.Digest) || *m.MediaType != one.MediaType || *m.Size != size || m.Architecture == nil || *m.Architecture != sdk.ArtifactArchitectureAmd64 ||
		*m.OperatingSystem != sdk.ArtifactOperatingSystemLinux || *m.ConfigMediaType != one.Blobs[0].MediaType || len(m.Tags) != 1 || *m.Tags[0] != "v1" || !m.CreatedOn.Equal(begin.Add(time.Hour)) {
		t.Errorf("manifest: %+v", m)
	}
	multi := must[sdk.ClientGetManifestPropertiesResponse](t)(c.GetManifestProperties(ctx, "acme/app", string(index.Digest), nil)).Manifest
	if len(multi.RelatedArtifacts) != 2 || *multi.RelatedArtifacts[0].Digest != string(one.Digest) || multi.ConfigMediaType != nil {
		t.Errorf("index: %+v", multi)
	}
	for what, err := range map[string]error{
		"NAME_UNKNOWN": func() error { _, err := c.GetRepositoryProperties(ctx, "nowhere", nil); return err }(),
		"TAG_UNKNOWN":  func() error { _, err := c.GetTagProperties(ctx, "acme/app", "none", nil); return err }(),
		"MANIFEST_UNKNOWN": func() error {
			_, err := c.GetManifestProperties(ctx, "acme/app", "sha256:"+strings.Repeat("0", 64), nil)
			return err
		}(),
	} {
		wantError(t, what, err, http.StatusNotFound, what)
	}
	_, err := c.GetManifestProperties(ctx, "acme/app", "wrong-digest", nil)
	wantError(t, "a digest that is none", err, http.StatusBadRequest, "DIGEST_INVALID")
}

// pages collects what a pager gives, and how many pages it took.
func pages[P, E any](t *testing.T, more func() bool, next func() (P, error), entries func(P) []E) (all []E, n int) {
	t.Helper()
	for more() {
		p, err := next()
		if err != nil {
			t.Fatal(err)
		}
		all, n = append(all, entries(p)...), n+1
	}
	return all, n
}

// TestPagers walks all lists page by page, in all orders.
func TestPagers(t *testing.T) {
	s := newSite(t, auth.Options{})
	var names []string // in order of time
	for i, tag := range []string{"c", "a", "e", "b", "d"} {
		s.push("acme/app", tag, registrytest.NewImage(uint64(i), 10))
		s.push(fmt.Sprintf("repo%d", i), "v1", registrytest.NewImage(100, 10))
		names = append(names, tag)
	}
	c := s.client(credential{s})
	ctx := t.Context()
	sorted, newest := slices.Sorted(slices.Values(names)), slices.Clone(names)
	slices.Reverse(newest)
	for _, tt := range []struct {
		order sdk.ArtifactTagOrderBy
		want  []string
	}{{sdk.ArtifactTagOrderByNone, sorted}, {sdk.ArtifactTagOrderByLastUpdatedOnAscending, names}, {sdk.ArtifactTagOrderByLastUpdatedOnDescending, newest}} {
		for _, size := range []int32{1, 2, 5, 100} {
			pager := c.NewListTagsPager("acme/app", &sdk.ClientListTagsOptions{MaxNum: &size, OrderBy: &tt.order})
			tags, n := pages(t, pager.More, func() (sdk.ClientListTagsResponse, error) { return pager.NextPage(ctx) },
				func(p sdk.ClientListTagsResponse) (list []string) {
					for _, tag := range p.Tags {
						list = append(list, *tag.Name)
					}
					return list
				})
			if want := (5 + int(size) - 1) / int(size); !slices.Equal(tags, tt.want) || n != want {
				t.Errorf("%s, %d a page: %v in %d pages, want %v in %d", tt.order, size, tags, n, tt.want, want)
			}
		}
	}
	var byTime [2][]string
	for i, order := range []sdk.ArtifactManifestOrderBy{sdk.ArtifactManifestOrderByLastUpdatedOnAscending, sdk.ArtifactManifestOrderByLastUpdatedOnDescending} {
		pager := c.NewListManifestsPager("acme/app", &sdk.ClientListManifestsOptions{MaxNum: ptr(int32(2)), OrderBy: &order})
		byTime[i], _ = pages(t, pager.More, func() (sdk.ClientListManifestsResponse, error) { return pager.NextPage(ctx) },
			func(p sdk.ClientListManifestsResponse) (list []string) {
				for _, m := range p.Attributes {
					list = append(list, *m.Tags[0])
				}
				return list
			})
	}
	if !slices.Equal(byTime[0], names) || !slices.Equal(byTime[1], newest) {
		t.Errorf("manifests by time: %v and %v", byTime[0], byTime[1])
	}
	repos := c.NewListRepositoriesPager(&sdk.ClientListRepositoriesOptions{MaxNum: ptr(int32(2))})
	got, n := pages(t, repos.More, func() (sdk.ClientListRepositoriesResponse, error) { return repos.NextPage(ctx) },
		func(p sdk.ClientListRepositoriesResponse) (list []string) {
			for _, name := range p.Names {
				list = append(list, *name)
			}
			return list
		})
	if want := []string{"acme/app", "repo0", "repo1", "repo2", "repo3", "repo4"}; !slices.Equal(got, want) || n != 3 {
		t.Errorf("repositories %v in %d pages", got, n)
	}
	filtered := c.NewListTagsPager("acme/app", &sdk.ClientListTagsOptions{Digest: ptr(string(registrytest.NewImage(2, 10).Digest)), MaxNum: ptr(int32(1))})
	if p := must[sdk.ClientListTagsResponse](t)(filtered.NextPage(ctx)); len(p.Tags) != 1 || *p.Tags[0].Name != "e" || filtered.More() {
		t.Errorf("tags of one digest: %+v", p.Tags)
	}
	_, err := c.NewListTagsPager("nowhere", nil).NextPage(ctx)
	wantError(t, "tags of an unknown repository", err, http.StatusNotFound, "NAME_UNKNOWN")
}

// TestChanges pushes, pulls, untags and deletes with the SDK.
func TestChanges(t *testing.T) {
	s := newSite(t, auth.Options{})
	image := registrytest.NewImage(1, 100)
	c, blobs := s.client(credential{s}), s.blobs(credential{s})
	ctx := t.Context()
	must[sdk.ClientListRepositoriesResponse](t)(c.NewListRepositoriesPager(nil).NextPage(ctx)) // the client learns where tokens are
	s.push("base", "v1", image)
	must[sdk.ClientGetRepositoryPropertiesResponse](t)(c.GetRepositoryProperties(ctx, "base", nil))
	_ = blobs

	res := must[sdk.ClientGetManifestResponse](t)(c.GetManifest(ctx, "base", "v1", nil))
	body := readAll(t, res.ManifestData)
	if !bytes.Equal(body, image.Bytes) || *res.DockerContentDigest != string(image.Digest) {
		t.Errorf("manifest %s: %q", *res.DockerContentDigest, body)
	}
	up := must[sdk.ClientUploadManifestResponse](t)(c.UploadManifest(ctx, "base", "v2", sdk.ContentType(image.MediaType), streaming.NopCloser(bytes.NewReader(body)), nil))
	if *up.DockerContentDigest != string(image.Digest) {
		t.Errorf("uploaded as %s", *up.DockerContentDigest)
	}
	must[sdk.ClientDeleteTagResponse](t)(c.DeleteTag(ctx, "base", "v2", nil))
	_, err := c.GetTagProperties(ctx, "base", "v2", nil)
	wantError(t, "a tag that was deleted", err, http.StatusNotFound, "TAG_UNKNOWN")
	must[sdk.ClientGetManifestPropertiesResponse](t)(c.GetManifestProperties(ctx, "base", string(image.Digest), nil)) // untagging leaves it
	must[sdk.ClientDeleteManifestResponse](t)(c.DeleteManifest(ctx, "base", string(image.Digest), nil))
	_, err = c.GetManifestProperties(ctx, "base", string(image.Digest), nil)
	wantError(t, "a manifest that was deleted", err, http.StatusNotFound, "MANIFEST_UNKNOWN")

	s.push("base", "v3", image)
	must[sdk.ClientDeleteRepositoryResponse](t)(c.DeleteRepository(ctx, "base", nil))
	_, err = c.GetRepositoryProperties(ctx, "base", nil)
	wantError(t, "a repository that was deleted", err, http.StatusNotFound, "NAME_UNKNOWN")

	s.push("base", "v4", image)
	s.mode.Store(registry.ReadOnly)
	const denied = "This operation is not allowed on this registry."
	_, err = c.DeleteRepository(ctx, "base", nil)
	wantError(t, "delete of a repository in ReadOnly mode", err, http.StatusForbidden, denied)
	_, err = c.DeleteTag(ctx, "base", "v4", nil)
	wantError(t, "untag in ReadOnly mode", err, http.StatusForbidden, denied)
	_, err = c.UpdateTagProperties(ctx, "base", "v4", &sdk.ClientUpdateTagPropertiesOptions{Value: &sdk.TagWriteableProperties{CanWrite: ptr(false)}})
	wantError(t, "lock in ReadOnly mode", err, http.StatusForbidden, denied)
}

// TestBlobClient pushes in chunks, mounts, reads whole and in part, and deletes.
func TestBlobClient(t *testing.T) {
	s := newSite(t, auth.Options{BearerChallenge: true})
	b := s.blobs(credential{s})
	ctx := t.Context()
	content := bytes.Repeat([]byte("connected "), 1000)
	start := must[sdk.BlobClientStartUploadResponse](t)(b.StartUpload(ctx, "app", nil))
	hash := sdk.NewBlobDigestCalculator()
	first := must[sdk.BlobClientUploadChunkResponse](t)(b.UploadChunk(ctx, *start.Location, bytes.NewReader(content[:4000]), hash, &sdk.BlobClientUploadChunkOptions{RangeStart: ptr(int32(0)), RangeEnd: ptr(int32(3999))}))
	status := must[sdk.BlobClientGetUploadStatusResponse](t)(b.GetUploadStatus(ctx, *first.Location, nil))
	if *status.Range != "0-3999" {
		t.Errorf("after a chunk: %s", *status.Range)
	}
	second := must[sdk.BlobClientUploadChunkResponse](t)(b.UploadChunk(ctx, *first.Location, bytes.NewReader(content[4000:]), hash, nil))
	done := must[sdk.BlobClientCompleteUploadResponse](t)(b.CompleteUpload(ctx, *second.Location, hash, nil))
	digest := *done.DockerContentDigest
	head := must[sdk.BlobClientCheckBlobExistsResponse](t)(b.CheckBlobExists(ctx, "app", digest, nil))
	if *head.ContentLength != int64(len(content)) {
		t.Errorf("%d bytes", *head.ContentLength)
	}
	if got := readAll(t, must[sdk.BlobClientGetBlobResponse](t)(b.GetBlob(ctx, "app", digest, nil)).BlobData); !bytes.Equal(got, content) {
		t.Error("another blob came back")
	}
	part := must[sdk.BlobClientGetChunkResponse](t)(b.GetChunk(ctx, "app", digest, "bytes=10-19", nil))
	if got := readAll(t, part.ChunkData); !bytes.Equal(got, content[10:20]) || *part.ContentRange != fmt.Sprintf("bytes 10-19/%d", len(content)) {
		t.Errorf("%q, %s", got, *part.ContentRange)
	}
	must[sdk.BlobClientMountBlobResponse](t)(b.MountBlob(ctx, "other", "app", digest, nil))
	if got := readAll(t, must[sdk.BlobClientGetBlobResponse](t)(b.GetBlob(ctx, "other", digest, nil)).BlobData); !bytes.Equal(got, content) {
		t.Error("the mounted blob is another")
	}
	must[sdk.BlobClientDeleteBlobResponse](t)(b.DeleteBlob(ctx, "app", digest, nil))
	_, err := b.GetBlob(ctx, "app", digest, nil)
	wantError(t, "a blob that was deleted", err, http.StatusNotFound, "BLOB_UNKNOWN")
	cancelled := must[sdk.BlobClientStartUploadResponse](t)(b.StartUpload(ctx, "app", nil))
	must[sdk.BlobClientCancelUploadResponse](t)(b.CancelUpload(ctx, *cancelled.Location, nil))
	_, err = b.GetUploadStatus(ctx, *cancelled.Location, nil)
	wantError(t, "an upload that was cancelled", err, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
}
