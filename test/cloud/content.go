package cloud

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Layer returns a layer of n random bytes in one file of a tar; the same name gives the same bytes.
func Layer(name string, n int) (v1.Layer, error) {
	var seed [32]byte
	copy(seed[:], name)
	body := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(body) // it has no error
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(n)}); err != nil {
		return nil, err
	}
	if _, err := tw.Write(body); err != nil {
		return nil, err
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithCompressionLevel(gzip.NoCompression), tarball.WithMediaType(types.OCILayer))
}

// Image returns an OCI image for linux/amd64 of these layers, bottom first.
func Image(layers ...v1.Layer) (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(base, layers...)
	if err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", "amd64"
	return mutate.ConfigFile(img, c)
}

// Extend returns the index with a layer on top of each of its images: the next version on the same base.
func Extend(index v1.ImageIndex, layer v1.Layer) (v1.ImageIndex, error) {
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	next := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, d := range m.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return nil, err
		}
		next = mutate.AppendManifests(next, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: d.Platform}})
	}
	return next, nil
}

// Artifact returns a document that refers to a manifest.
func Artifact(subject remote.Taggable, artifactType, document string) (v1.Image, error) {
	raw, err := subject.RawManifest()
	if err != nil {
		return nil, err
	}
	d := v1.Descriptor{MediaType: types.OCIImageIndex, Size: int64(len(raw))}
	if d.Digest, _, err = v1.SHA256(bytes.NewReader(raw)); err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), static.NewLayer([]byte(document), "text/plain"))
	if err != nil {
		return nil, err
	}
	img = mutate.ConfigMediaType(img, types.MediaType(artifactType))
	withSubject, ok := mutate.Subject(img, d).(v1.Image)
	if !ok {
		return nil, fmt.Errorf("an image with a subject is no image")
	}
	return withSubject, nil
}

// Unique counts the bytes of every manifest, config and layer once: what a link has to carry at least.
type Unique struct {
	seen map[v1.Hash]bool
	sum  int64
}

// Bytes is the sum so far.
func (u *Unique) Bytes() int64 { return u.sum }

// Index adds an index and its images, and returns the bytes that were new.
func (u *Unique) Index(index v1.ImageIndex) (int64, error) {
	before := u.sum
	m, err := index.IndexManifest()
	if err != nil {
		return 0, err
	}
	for _, d := range m.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			return 0, err
		}
		if _, err := u.Image(img); err != nil {
			return 0, err
		}
	}
	return u.sum - before, u.Manifest(index)
}

// Image adds an image or an artifact, and returns the bytes that were new.
func (u *Unique) Image(img v1.Image) (int64, error) {
	before := u.sum
	m, err := img.Manifest()
	if err != nil {
		return 0, err
	}
	for _, d := range append(m.Layers, m.Config) {
		u.add(d.Digest, d.Size)
	}
	err = u.Manifest(img)
	return u.sum - before, err
}

// Manifest adds a manifest alone, such as an index of which not every platform is wanted.
func (u *Unique) Manifest(m remote.Taggable) error {
	raw, err := m.RawManifest()
	if err != nil {
		return err
	}
	d, n, err := v1.SHA256(bytes.NewReader(raw))
	u.add(d, n)
	return err
}

func (u *Unique) add(d v1.Hash, n int64) {
	if u.seen == nil {
		u.seen = map[v1.Hash]bool{}
	}
	if !u.seen[d] {
		u.seen[d] = true
		u.sum += n
	}
}
