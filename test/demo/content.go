package main

import (
	"context"
	"errors"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/connected-registry/connected-registry/test/cloud"
)

// Names in the cloud: those of the deployment manifests.
const (
	product = "connected-registry"
	version = "0.1.0"
	vision  = "acme/vision"
	gateway = "acme/plc-gw"
)

// microsoft are the images of the IoT Edge runtime that an operator imports into the cloud registry. Here they are
// stand-ins: random bytes under the names.
var microsoft = []string{"azureiotedge-agent:1.6", "azureiotedge-hub:1.6", "azureiotedge-api-proxy:1.1"}

// tags in the scope of the manifests: Microsoft's, the product's index and its platforms, the two of acme.
const (
	tagsUpper   = 3 + 4 + 2
	tagsLower   = 2
	tagsProduct = 4
)

const mib = 1 << 20

// content is what is pushed to the cloud.
type content struct {
	image   v1.ImageIndex // of the product, for three platforms
	sbom    v1.Image      // refers to image
	camera  v1.Image      // vision:1.0, on the product's base
	next    v1.Image      // vision:1.1, on that
	gateway v1.ImageIndex // plc-gw, of which the manifests take linux/arm64 alone
	arm     v1.Image      // that
	runtime []v1.Image    // as microsoft

	upper cloud.Unique // what the two upper links must carry
	lower cloud.Unique // the lowest: the bottom layer takes less
}

// platformTags are the suffixes that the IoT Edge tools give to the image of a platform.
var platformTags = map[string]string{"amd64": "-amd64", "arm64": "-arm64v8", "arm": "-arm32v7"}

// makeContent builds on the image of the product, an OCI layout.
func makeContent(image string) (*content, error) {
	l, err := layout.FromPath(image)
	if err != nil {
		return nil, err
	}
	top, err := l.ImageIndex()
	if err != nil {
		return nil, err
	}
	m, err := top.IndexManifest()
	if err != nil {
		return nil, err
	}
	c := &content{}
	if c.image, err = top.ImageIndex(m.Manifests[0].Digest); err != nil {
		return nil, err
	}
	if c.sbom, err = cloud.Artifact(c.image, "application/spdx+json", `{"spdxVersion":"SPDX-2.3","name":"connected-registry"}`); err != nil {
		return nil, err
	}
	if m, err = c.image.IndexManifest(); err != nil {
		return nil, err
	}
	base, err := c.image.Image(m.Manifests[0].Digest)
	if err != nil {
		return nil, err
	}
	if c.camera, err = with(base, "model.bin", 32*mib); err != nil {
		return nil, err
	}
	if c.next, err = with(c.camera, "patch.bin", mib); err != nil {
		return nil, err
	}
	for _, name := range microsoft {
		img, err := with(empty.Image, name, 256<<10)
		if err != nil {
			return nil, err
		}
		c.runtime = append(c.runtime, img)
	}
	return c, c.makeGateway()
}

// with is an image with one more layer.
func with(base v1.Image, name string, n int) (v1.Image, error) {
	l, err := cloud.Layer(name, n)
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(base, l)
}

// makeGateway makes an index of two platforms.
func (c *content) makeGateway() error {
	c.gateway = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := cloud.Image()
		if err != nil {
			return err
		}
		if img, err = with(img, "plc-gw-"+arch, 2*mib); err != nil {
			return err
		}
		c.arm = img // the last
		platform := &v1.Platform{OS: "linux", Architecture: arch}
		c.gateway = mutate.AppendManifests(c.gateway, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	return nil
}

// pushContent fills the cloud and counts what the links must carry.
func (d *demo) pushContent(ctx context.Context) error {
	c := d.content
	rows := [][]string{{"repository", "what", "bytes not there yet"}}
	push := func(ref, what string, image remote.Taggable, count func() (int64, error)) error {
		n, err := count()
		rows = append(rows, []string{ref, what, size(n)})
		return errors.Join(err, cloud.Push(ctx, d.cloud.Addr, ref, image))
	}
	for i, name := range microsoft {
		err := push(name, "stand-in", c.runtime[i], func() (int64, error) { return c.upper.Image(c.runtime[i]) })
		if err != nil {
			return err
		}
	}
	if err := push(product+":"+version, "index of three images", c.image, func() (int64, error) { return c.upper.Index(c.image) }); err != nil {
		return err
	}
	if err := d.pushPlatforms(ctx); err != nil {
		return err
	}
	digest, err := c.sbom.Digest()
	if err != nil {
		return err
	}
	n, err := c.upper.Image(c.sbom)
	rows = append(rows, []string{"  referrer", "SBOM of it", size(n)})
	err = errors.Join(
		err,
		cloud.Push(ctx, d.cloud.Addr, product+"@"+digest.String(), c.sbom),
		push(vision+":1.0", "image on the same base", c.camera, func() (int64, error) { return c.upper.Image(c.camera) }),
		push(gateway+":1.0", "index of two; the manifests take linux/arm64", c.gateway, func() (int64, error) {
			n, err := c.upper.Image(c.arm)
			return n, errors.Join(err, c.upper.Manifest(c.gateway))
		}),
	)
	d.out.table(rows...)
	_, lower := c.lower.Image(c.camera)
	_, arm := c.lower.Image(c.arm)
	return errors.Join(err, lower, arm, c.lower.Manifest(c.gateway))
}

// pushPlatforms tags the image of each platform as the IoT Edge tools do.
func (d *demo) pushPlatforms(ctx context.Context) error {
	m, err := d.content.image.IndexManifest()
	if err != nil {
		return err
	}
	for _, desc := range m.Manifests {
		img, err := d.content.image.Image(desc.Digest)
		if err != nil {
			return err
		}
		if err := cloud.Push(ctx, d.cloud.Addr, product+":"+version+platformTags[desc.Platform.Architecture], img); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) imageDir() string { return filepath.Join(d.dir, "image") }
