//go:build interop

package interop

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/test/cloud"
)

// content is an index of two platforms, which share a layer, as clients take it: an OCI layout on disk.
type content struct {
	layout string            // directory; the index is called 1 there
	index  string            // digest
	images map[string]string // architecture -> digest
	config map[string]string // architecture -> digest of the config, which engines call the image's id
}

// name changes the bytes, so that no content of another test makes a push a formality.
func newContent(t *testing.T, name string) *content {
	t.Helper()
	c := &content{layout: filepath.Join(t.TempDir(), "layout"), images: map[string]string{}, config: map[string]string{}}
	out, err := layout.Write(c.layout, empty.Index)
	must(t, err)
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, arch := range []string{"amd64", "arm64"} {
		d := c.image(t, out, name, arch)
		// Nothing but what every client knows: an older one drops the rest, and the digest is another one.
		index.Manifests = append(index.Manifests, v1.Descriptor{
			MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: &v1.Platform{OS: "linux", Architecture: arch},
		})
	}
	raw, err := json.Marshal(index)
	must(t, err)
	c.index = digest.FromBytes(raw).String()
	hash, err := v1.NewHash(c.index)
	must(t, err)
	must(t, out.WriteBlob(hash, io.NopCloser(bytes.NewReader(raw))))
	must(t, out.AppendDescriptor(v1.Descriptor{
		MediaType: types.OCIImageIndex, Digest: hash, Size: int64(len(raw)), Annotations: map[string]string{"org.opencontainers.image.ref.name": "1"},
	}))
	return c
}

func (c *content) image(t *testing.T, out layout.Path, name, arch string) *v1.Descriptor {
	t.Helper()
	var layers []v1.Layer
	for file, size := range map[string]int{name + "-base": 300_000, name + "-" + arch: 100_000} {
		l, err := cloud.Layer(file, size)
		must(t, err)
		layers = append(layers, l)
	}
	img, err := cloud.Image(layers...)
	must(t, err)
	conf, err := img.ConfigFile()
	must(t, err)
	conf.Architecture = arch
	img, err = mutate.ConfigFile(img, conf)
	must(t, err)
	must(t, out.WriteImage(img))
	d, err := partial.Descriptor(img)
	must(t, err)
	id, err := img.ConfigName()
	must(t, err)
	c.images[arch], c.config[arch] = d.Digest.String(), id.String()
	return d
}

// pushed is content in a repository above, put there by a client of ours: the test is about another one.
func (d *door) pushed(name string) *content {
	d.t.Helper()
	return d.pushedTo(d.repo(name))
}

// pushedTo is pushed with the whole name of the repository.
func (d *door) pushedTo(repo string) *content {
	d.t.Helper()
	c := newContent(d.t, repo)
	index, err := layout.ImageIndexFromPath(c.layout)
	must(d.t, err)
	m, err := index.IndexManifest()
	must(d.t, err)
	inner, err := index.ImageIndex(m.Manifests[0].Digest)
	must(d.t, err)
	must(d.t, remote.Push(d.ref(d.up+"/"+repo+":1"), inner, d.options()...))
	return c
}

// named returns the digest that a layout on disk has for a name; the only one when the name is empty.
func named(t *testing.T, dir, name string) string {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(dir, "index.json"))
	must(t, err)
	var index v1.IndexManifest
	must(t, json.Unmarshal(body, &index))
	for _, d := range index.Manifests {
		if name == "" && len(index.Manifests) == 1 || name != "" && d.Annotations["org.opencontainers.image.ref.name"] == name {
			return d.Digest.String()
		}
	}
	t.Fatalf("%s holds no %q: %s", dir, name, body)
	return ""
}
