//go:build interop

package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/layer"
)

// start runs one registry; more is changed by the caller's function.
func start(t *testing.T, change func(*layer.Options)) *layer.Layer {
	t.Helper()
	dir := t.TempDir()
	o := layer.Options{Binary: filepath.Join(dir, "connected-registry"), Dir: dir, Name: "interop"}
	if err := layer.Build(t.Context(), o.Binary); err != nil {
		t.Fatal(err)
	}
	change(&o)
	l, err := layer.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// skopeo runs it and returns what it printed.
func skopeo(t *testing.T, args ...string) []byte {
	t.Helper()
	program, err := exec.LookPath("skopeo")
	if err != nil {
		t.Fatal("skopeo is missing: run make test-interop")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"--insecure-policy"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

// rawIndex is an index as it is written here. The one of go-containerregistry's mutate has an artifactType in each
// descriptor, which older clients do not know and drop: another digest.
type rawIndex struct{ v1.IndexManifest }

func (r rawIndex) RawManifest() ([]byte, error)        { return json.Marshal(r.IndexManifest) }
func (r rawIndex) MediaType() (types.MediaType, error) { return types.OCIImageIndex, nil }

// TestSkopeo pushes an index to a ReadWrite registry in both formats, reads it back, and compares digests.
func TestSkopeo(t *testing.T) {
	l := start(t, func(o *layer.Options) { o.Mode = registry.ReadWrite })
	index := rawIndex{v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}}
	for _, arch := range []string{"amd64", "arm64"} {
		content, err := cloud.Layer(arch, 300_000)
		if err != nil {
			t.Fatal(err)
		}
		img, err := cloud.Image(content)
		if err != nil {
			t.Fatal(err)
		}
		if err := cloud.Push(t.Context(), l.Addr, "from/go:"+arch, img); err != nil {
			t.Fatal(err)
		}
		d, err := partial.Descriptor(img)
		if err != nil {
			t.Fatal(err)
		}
		index.Manifests = append(index.Manifests, v1.Descriptor{
			MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: &v1.Platform{OS: "linux", Architecture: arch},
		})
	}
	if err := cloud.Push(t.Context(), l.Addr, "from/go:1", index); err != nil {
		t.Fatal(err)
	}
	body, err := index.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	want := digest.FromBytes(body)
	at := "docker://" + l.Addr + "/"

	raw := skopeo(t, "inspect", "--raw", "--tls-verify=false", at+"from/go:1")
	if got := digest.FromBytes(raw); got != want {
		t.Errorf("skopeo reads an index of digest %s, pushed was %s", got, want)
	}
	dir := t.TempDir()
	skopeo(t, "copy", "--all", "--preserve-digests", "--src-tls-verify=false", at+"from/go:1", "dir:"+dir)
	skopeo(t, "copy", "--all", "--preserve-digests", "--dest-tls-verify=false", "dir:"+dir, at+"by/skopeo:1")
	got, err := cloud.Pull(t.Context(), l.Addr, "by/skopeo:1")
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest.String() != want.String() || got.Images != 2 {
		t.Errorf("pushed by skopeo: %d images of digest %s, want 2 of %s", got.Images, got.Digest, want)
	}

	// Docker schema 2: another manifest, the same layers, which are mounted or found.
	skopeo(t, "copy", "--format", "v2s2", "--src-tls-verify=false", "--dest-tls-verify=false", at+"from/go:1", at+"by/skopeo:v2s2")
	if raw := skopeo(t, "inspect", "--raw", "--tls-verify=false", at+"by/skopeo:v2s2"); !bytes.Contains(raw, []byte("application/vnd.docker.distribution.manifest.v2+json")) {
		t.Errorf("the Docker manifest came back as %s", raw)
	}
	var tags struct{ Tags []string }
	if err := json.Unmarshal(skopeo(t, "list-tags", "--tls-verify=false", at+"by/skopeo"), &tags); err != nil {
		t.Fatal(err)
	}
	if strings.Join(tags.Tags, " ") != "1 v2s2" {
		t.Errorf("tags: %v", tags.Tags)
	}
}

// TestSkopeoThroughAChild pushes with skopeo to one registry and pulls with it from its child.
func TestSkopeoThroughAChild(t *testing.T) {
	parent := start(t, func(o *layer.Options) { o.Mode = registry.ReadWrite })
	content, err := cloud.Layer("base", 300_000)
	if err != nil {
		t.Fatal(err)
	}
	img, err := cloud.Image(content)
	if err != nil {
		t.Fatal(err)
	}
	if err := cloud.Push(t.Context(), parent.Addr, "acme/vision:1", img); err != nil {
		t.Fatal(err)
	}
	child := start(t, func(o *layer.Options) {
		o.Parent, o.Repositories = parent.Addr, map[string]string{"all": "acme/*"}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = child.Until(ctx, "the tag is there", func(ctx context.Context) (bool, error) {
		ok, _, err := child.Has(ctx, 1)
		return ok, err
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	skopeo(t, "copy", "--preserve-digests", "--src-tls-verify=false", "docker://"+child.Addr+"/acme/vision:1", "oci:"+dir+":1")
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "blobs", "sha256", d.Hex)); err != nil {
		t.Errorf("the image came down with another digest than %s: %v", d, err)
	}
}
