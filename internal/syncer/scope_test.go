package syncer_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// withForeignLayer is an image whose first layer no registry holds; its bytes are at url.
func withForeignLayer(t *testing.T, manifestType, layerType, url string) (registrytest.Image, registry.Descriptor) {
	t.Helper()
	img := registrytest.NewImage(31, 1000)
	foreign := registrytest.NewBlob(32, 500).Descriptor
	foreign.MediaType, foreign.URLs = layerType, []string{url}
	body, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": img.Blobs[0].Descriptor,
		"layers": []registry.Descriptor{foreign, img.Blobs[1].Descriptor},
	})
	if err != nil {
		t.Fatal(err)
	}
	img.Manifest = registry.Manifest{Bytes: body, Descriptor: registry.Descriptor{MediaType: manifestType, Digest: digest.FromBytes(body), Size: int64(len(body))}}
	return img, foreign
}

// TestForeignLayersStayDescriptors syncs and pulls images with layers that registries do not hold.
func TestForeignLayersStayDescriptors(t *testing.T) {
	for layerType, manifestType := range map[string]string{
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    registry.MediaTypeDockerManifest,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": registry.MediaTypeImageManifest,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": registry.MediaTypeImageManifest,
	} {
		t.Run(layerType, func(t *testing.T) {
			p := newParent()
			img, foreign := withForeignLayer(t, manifestType, layerType, "http://127.0.0.1:1/layer")
			push(t, p, "app", "v1", img)
			r, _ := newReplica(t, t.TempDir(), settings(t, p, "app"), syncer.Options{})
			if err := r.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustHave(t, r.store, "app", "v1", img)
			if n := p.count("blob " + foreign.Digest.String()); n != 0 {
				t.Errorf("the parent was asked %d times for a layer that it does not hold", n)
			}
			if missing, err := r.store.Missing(t.Context(), "app", img.Digest, nil); err != nil || len(missing) != 0 {
				t.Errorf("the image lacks %v, %v", missing, err)
			}
		})
	}
}

// TestManyShapes brings content of every shape, and its digests never change.
func TestManyShapes(t *testing.T) {
	a, b, c := registrytest.NewImage(1, 0), registrytest.NewImage(2, 1000, 0), registrytest.NewDockerImage(3, 500)
	shapes := map[string]registrytest.Image{
		"nested":   registrytest.NewIndex(registrytest.NewIndex(a, b), registrytest.NewIndex(registrytest.NewIndex(c))),
		"mixed":    registrytest.NewDockerList(c, registrytest.NewDockerImage(4, 0)),
		"zero":     registrytest.NewImage(5, 0, 0),
		"docker":   registrytest.NewDockerImage(6, 100, 0, 200),
		"artifact": registrytest.NewReferrer(7, a.Descriptor, "application/vnd.example.sbom"),
		"none":     registrytest.NewImage(8),
	}
	p := newParent()
	for tag, img := range shapes {
		push(t, p, "app", tag, img)
	}
	r, _ := newReplica(t, t.TempDir(), settings(t, p, "app"), syncer.Options{})
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for tag, img := range shapes {
		mustHave(t, r.store, "app", tag, img)
	}
	lazy := newServing(t, settings(t, p, "app"))
	for tag, img := range shapes {
		mustHave(t, lazy.served, "app", tag, img)
	}
}

// TestVersionRangeInScope takes the versions of a range, and lets them go when the range moves on.
func TestVersionRangeInScope(t *testing.T) {
	p := newParent()
	img := registrytest.NewImage(1, 100)
	for _, tag := range []string{"1.3.9", "1.4.0", "v1.4.2", "1.4.3-rc1", "1.5.0", "latest"} {
		push(t, p, "app", tag, img)
	}
	set := settings(t, p)
	set.Scope = registry.Scope{{Repository: "app", Tag: "~1.4"}}
	r, _ := newReplica(t, t.TempDir(), set, syncer.Options{})
	for _, step := range []struct {
		rule string
		want []string
	}{{"~1.4", []string{"1.4.0", "v1.4.2"}}, {">=1.5", []string{"1.5.0"}}} {
		set.Scope = registry.Scope{{Repository: "app", Tag: step.rule}}
		r.Update(set)
		if err := r.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, err := r.store.Tags(t.Context(), "app", "", 100); err != nil || !slices.Equal(got, step.want) {
			t.Errorf("%s: %v, %v; want %v", step.rule, got, err, step.want)
		}
	}
	if _, err := r.served.GetManifest(t.Context(), "app", registry.TagReference("1.4.0")); !errors.Is(err, registry.ErrManifestUnknown) {
		t.Errorf("a tag outside the range is pulled through: %v", err)
	}
}

// TestUnwantedPlatformSaysSo asks for a platform of an index that is not in scope: by what was synced, and by what was
// pulled through a moment ago.
func TestUnwantedPlatformSaysSo(t *testing.T) {
	p := newParent()
	amd, arm64 := registrytest.NewImage(1, 1000), registrytest.NewImage(2, 1000)
	push(t, p, "multi", "1", registrytest.NewIndex(amd, arm64))
	set := settings(t, p)
	set.Scope = registry.Scope{{Repository: "multi", Platform: "linux/arm64"}}
	synced, _ := newReplica(t, t.TempDir(), set, syncer.Options{})
	if err := synced.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	pulled := newServing(t, set)
	for name, r := range map[string]registry.Registry{"synced": synced.served, "pulled": pulled.served} {
		if _, err := r.GetManifest(t.Context(), "multi", registry.TagReference("1")); err != nil {
			t.Fatal(err)
		}
		_, err := r.GetManifest(t.Context(), "multi", registry.DigestReference(amd.Digest))
		if !errors.Is(err, registry.ErrManifestUnknown) || !strings.Contains(err.Error(), "linux/amd64") || !strings.Contains(err.Error(), "linux/arm64") {
			t.Errorf("%s: %v", name, err)
		}
		mustHave(t, r, "multi", "", arm64)
		if _, err := r.GetManifest(t.Context(), "multi", registry.DigestReference(registrytest.NewImage(9, 1).Digest)); !errors.Is(err, registry.ErrManifestUnknown) || strings.Contains(err.Error(), "platform") {
			t.Errorf("%s: what is nowhere: %v", name, err)
		}
	}
	if n := p.bytes(amd.Blobs[1].Digest); n != 0 {
		t.Errorf("%d bytes of the unwanted platform crossed the link", n)
	}
}

// TestEmptyScopeKeepsInTouch: a parent is asked what it is once a minute, or once each time that the schedule opens,
// also by a registry that syncs nothing, and again as soon as it can be when it was away; nothing else is asked.
func TestEmptyScopeKeepsInTouch(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		r, stop := newReplica(t, dir, settings(t, p), syncer.Options{})
		time.Sleep(10*time.Minute + time.Second)
		if n := p.count("probe"); n < 9 || n > 12 {
			t.Errorf("in ten minutes the parent was asked %d times what it is", n)
		}
		if err := r.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "set repositories") {
			t.Errorf("sync says %v", err)
		}
		daily := settings(t, p)
		daily.Schedule = every(t, "0 5 * * *")
		r.Update(daily)
		time.Sleep(24 * time.Hour)
		before := p.count("probe")
		time.Sleep(3 * 24 * time.Hour)
		if n := p.count("probe") - before; n != 3 {
			t.Errorf("in three days of one window each: %d questions", n)
		}
		stop()
		p.mu.Lock()
		defer p.mu.Unlock()
		for what := range p.calls {
			if what != "probe" {
				t.Errorf("it asks for %s", what)
			}
		}
	})
}
