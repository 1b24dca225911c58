package nested

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/layer"
)

const mib = 1 << 20

// image returns an OCI image of layers of n random bytes, one for each name.
func image(t *testing.T, n int, names ...string) v1.Image {
	t.Helper()
	var layers []v1.Layer
	for _, name := range names {
		l, err := cloud.Layer(name, n)
		must(t, err)
		layers = append(layers, l)
	}
	img, err := cloud.Image(layers...)
	must(t, err)
	return img
}

// index returns an index with an image of its own for each platform.
func index(t *testing.T, media types.MediaType, images map[string]v1.Image) v1.ImageIndex {
	t.Helper()
	list := mutate.IndexMediaType(empty.Index, media)
	for platform, img := range images {
		p, err := v1.ParsePlatform(platform)
		must(t, err)
		list = mutate.AppendManifests(list, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: p}})
	}
	return list
}

// docker turns an image into Docker schema 2.
func docker(t *testing.T, names ...string) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.DockerManifestSchema2), types.DockerConfigJSON)
	for _, name := range names {
		l, err := cloud.Layer(name, 2000)
		must(t, err)
		img, err = mutate.Append(img, mutate.Addendum{Layer: l, MediaType: types.DockerLayer})
		must(t, err)
	}
	return img
}

// artifact returns a manifest with the documents as layers; one without bytes is a 0-byte layer.
func artifact(t *testing.T, documents ...string) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.acme.recipe")
	for _, d := range documents {
		var err error
		img, err = mutate.AppendLayers(img, static.NewLayer([]byte(d), "text/plain"))
		must(t, err)
	}
	return img
}

// push uploads with a client that is not ours, and returns the digest.
func push(t *testing.T, addr, ref string, what remote.Taggable) string {
	t.Helper()
	must(t, cloud.Push(t.Context(), addr, ref, what))
	raw, err := what.RawManifest()
	must(t, err)
	return string(sum(raw))
}

// putManifest uploads a manifest under a tag, with what it needs already there.
func putManifest(ctx context.Context, client *http.Client, addr, repo, tag, media string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+addr+"/v2/"+repo+"/manifests/"+tag, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", media)
	req.SetBasicAuth(layer.User, layer.Password)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	said, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("%s:%s: %s: %s", repo, tag, resp.Status, said)
	}
	return nil
}

// pushMany gives a repository so many tags, on a manifest for every twenty of them.
func pushMany(t *testing.T, addr, repo string, tags int) {
	t.Helper()
	img := artifact(t, "the one document")
	push(t, addr, repo+":v0000", img)
	m, err := img.Manifest()
	must(t, err)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for i := 1; i < tags; i++ {
		m := m.DeepCopy()
		m.Annotations = map[string]string{"version": fmt.Sprint(i / 20)}
		body, err := json.Marshal(m)
		must(t, err)
		must(t, putManifest(t.Context(), client, addr, repo, fmt.Sprintf("v%04d", i), string(m.MediaType), body))
	}
}
