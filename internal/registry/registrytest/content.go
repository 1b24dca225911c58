package registrytest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Media types of the blobs that the makers give out.
const (
	mediaTypeLayer        = ocispec.MediaTypeImageLayerGzip
	mediaTypeConfig       = ocispec.MediaTypeImageConfig
	mediaTypeDockerLayer  = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	mediaTypeDockerConfig = "application/vnd.docker.container.image.v1+json"
)

// platforms are given to the children of an index in turn.
var platforms = []registry.Platform{
	{OS: "linux", Architecture: "amd64"},
	{OS: "linux", Architecture: "arm64"},
	{OS: "linux", Architecture: "arm", Variant: "v7"},
}

// Blob is content with its descriptor.
type Blob struct {
	registry.Descriptor
	Bytes []byte
}

// Image is a manifest with all that it needs: an image, an index or a referrer.
type Image struct {
	registry.Manifest
	Blobs    []Blob  // config, then layers; none for an index
	Children []Image // of an index
}

// BlobOf describes the bytes by sha256.
func BlobOf(mediaType string, content []byte) Blob {
	return Blob{
		Descriptor: registry.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))},
		Bytes:      content,
	}
}

// NewBlob makes a layer of size random bytes. The same seed and size give the same bytes.
func NewBlob(seed uint64, size int) Blob {
	content := make([]byte, size)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(content) // never fails
	return BlobOf(mediaTypeLayer, content)
}

// NewImage makes an OCI image with one random layer of each size in bytes. The same seed gives the same image.
func NewImage(seed uint64, sizes ...int) Image {
	layers := make([]Blob, len(sizes))
	for i, size := range sizes {
		layers[i] = NewBlob(seed<<8+uint64(i)+1, size)
	}
	return NewImageOf(seed, layers...)
}

// NewImageOf makes an OCI image of layers that exist already, with a config of its own.
func NewImageOf(seed uint64, layers ...Blob) Image {
	return makeImage(registry.MediaTypeImageManifest, newConfig(mediaTypeConfig, seed, layers), layers)
}

// NewDockerImage makes a Docker schema 2 image with one random layer of each size.
func NewDockerImage(seed uint64, sizes ...int) Image {
	image := NewImage(seed, sizes...)
	layers := image.Blobs[1:]
	for i := range layers {
		layers[i].MediaType = mediaTypeDockerLayer
	}
	return makeImage(registry.MediaTypeDockerManifest, newConfig(mediaTypeDockerConfig, seed, layers), layers)
}

// NewIndex makes an OCI index of the images, which it gives the platforms linux/amd64, linux/arm64 and linux/arm/v7
// in turn.
func NewIndex(children ...Image) Image { return makeIndex(registry.MediaTypeImageIndex, children) }

// NewDockerList makes a Docker manifest list of the images.
func NewDockerList(children ...Image) Image { return makeIndex(registry.MediaTypeDockerList, children) }

// NewReferrer makes an artifact, with the empty config and one random layer, that refers to subject.
func NewReferrer(seed uint64, subject registry.Descriptor, artifactType string) Image {
	empty := BlobOf(ocispec.MediaTypeEmptyJSON, []byte("{}"))
	layer := NewBlob(seed, 64)
	layer.MediaType = "application/octet-stream"
	return encode(registry.MediaTypeImageManifest, map[string]any{
		"schemaVersion": 2,
		"mediaType":     registry.MediaTypeImageManifest,
		"artifactType":  artifactType,
		"config":        empty.Descriptor,
		"layers":        []registry.Descriptor{layer.Descriptor},
		"subject":       registry.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		"annotations":   map[string]string{"org.example.seed": fmt.Sprint(seed)},
	}, []Blob{empty, layer}, nil)
}

// Push writes the image and all that it needs; children come before their index, and the tag last. An empty tag
// pushes by digest.
func Push(ctx context.Context, w registry.Writer, repo, tag string, image Image) error {
	for _, child := range image.Children {
		if err := Push(ctx, w, repo, "", child); err != nil {
			return err
		}
	}
	for _, b := range image.Blobs {
		if err := PushBlob(ctx, w, repo, b); err != nil {
			return err
		}
	}
	ref := registry.DigestReference(image.Digest)
	if tag != "" {
		ref = registry.TagReference(tag)
	}
	if _, err := w.PutManifest(ctx, repo, ref, image.Manifest); err != nil {
		return fmt.Errorf("manifest %s of %s: %w", ref, repo, err)
	}
	return nil
}

// PushBlob writes one blob by an upload session.
func PushBlob(ctx context.Context, w registry.Writer, repo string, b Blob) error {
	u, err := w.StartUpload(ctx, repo)
	if err != nil {
		return fmt.Errorf("start upload to %s: %w", repo, err)
	}
	if _, err := u.Write(b.Bytes); err != nil {
		_ = u.Cancel(ctx)
		return fmt.Errorf("blob %s of %s: %w", b.Digest, repo, err)
	}
	if _, err := u.Commit(ctx, b.Digest); err != nil {
		return fmt.Errorf("commit blob %s of %s: %w", b.Digest, repo, err)
	}
	return nil
}

func newConfig(mediaType string, seed uint64, layers []Blob) Blob {
	p := platforms[0]
	diffs := make([]string, len(layers))
	for i, l := range layers {
		diffs[i] = l.Digest.String()
	}
	body := mustJSON(map[string]any{
		"architecture": p.Architecture,
		"os":           p.OS,
		"config":       map[string]any{"Labels": map[string]string{"seed": fmt.Sprint(seed)}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": diffs},
	})
	return BlobOf(mediaType, body)
}

func makeImage(mediaType string, config Blob, layers []Blob) Image {
	descriptors := make([]registry.Descriptor, len(layers))
	for i, l := range layers {
		descriptors[i] = l.Descriptor
	}
	return encode(mediaType, map[string]any{
		"schemaVersion": 2, "mediaType": mediaType, "config": config.Descriptor, "layers": descriptors,
	}, append([]Blob{config}, layers...), nil)
}

func makeIndex(mediaType string, children []Image) Image {
	descriptors := make([]registry.Descriptor, len(children))
	for i, c := range children {
		p := platforms[i%len(platforms)]
		descriptors[i] = registry.Descriptor{MediaType: c.MediaType, Digest: c.Digest, Size: c.Size, Platform: &p}
	}
	return encode(mediaType, map[string]any{
		"schemaVersion": 2, "mediaType": mediaType, "manifests": descriptors,
	}, nil, children)
}

func encode(mediaType string, doc map[string]any, blobs []Blob, children []Image) Image {
	body := mustJSON(doc)
	return Image{
		Manifest: registry.Manifest{
			Descriptor: registry.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))},
			Bytes:      body,
		},
		Blobs: blobs, Children: children,
	}
}

// mustJSON encodes documents of this package, which cannot fail.
func mustJSON(v any) []byte {
	b, err := json.MarshalIndent(v, "", "   ")
	if err != nil {
		panic(err)
	}
	return b
}
