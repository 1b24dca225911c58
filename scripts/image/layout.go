package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "crypto/sha256" // go-digest takes its hashes from the registered ones
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Spec is what goes into an image.
type Spec struct {
	Version  string
	Revision string // commit; may be empty
	Created  time.Time
	Binaries []Binary
	CA       []byte // PEM bundle; may be empty
}

// Binary is the program for one platform.
type Binary struct {
	Platform ocispec.Platform
	Body     []byte
}

const (
	user    = 65532 // nonroot of distroless images; no passwd file is needed for a number
	dataDir = "var/acr/data"
)

// Write replaces dir by an OCI image layout of the images and their index, and returns the index.
func Write(dir string, spec Spec) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	if err := os.RemoveAll(dir); err != nil {
		return none, err
	}
	l := layout{dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, ocispec.ImageBlobsDir, "sha256"), 0o755); err != nil {
		return none, err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Annotations: labels(spec)}
	for _, b := range spec.Binaries {
		d, err := l.image(spec, b)
		if err != nil {
			return none, err
		}
		index.Manifests = append(index.Manifests, d)
	}
	root, err := l.document(ocispec.MediaTypeImageIndex, index)
	if err != nil {
		return none, err
	}
	named := root
	named.Annotations = map[string]string{ocispec.AnnotationRefName: spec.Version}
	err = l.file(ocispec.ImageIndexFile, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{named},
	})
	if err != nil {
		return none, err
	}
	return root, l.file(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
}

// layout writes into a directory.
type layout struct{ dir string }

// image writes layer, config and manifest of one platform.
func (l layout) image(spec Spec, b Binary) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	plain, err := layer(spec, b)
	if err != nil {
		return none, err
	}
	var packed bytes.Buffer
	gz := gzip.NewWriter(&packed) // its header holds no name and no time
	if _, err := gz.Write(plain); err != nil {
		return none, err
	}
	if err := gz.Close(); err != nil {
		return none, err
	}
	layerDesc, err := l.blob(ocispec.MediaTypeImageLayerGzip, packed.Bytes())
	if err != nil {
		return none, err
	}
	config, err := l.document(ocispec.MediaTypeImageConfig, config(spec, b, digest.FromBytes(plain)))
	if err != nil {
		return none, err
	}
	manifest, err := l.document(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{layerDesc}, Annotations: labels(spec),
	})
	manifest.Platform = &b.Platform
	return manifest, err
}

// layer returns the tar of the image's only layer. Owners are numbers, times are the spec's, the order is fixed.
func layer(spec Spec, b Binary) ([]byte, error) {
	type entry struct {
		name  string
		mode  int64
		owner int
		body  []byte
	}
	entries := []entry{{name: "connected-registry", mode: 0o755, body: b.Body}}
	if len(spec.CA) > 0 {
		entries = append(entries, entry{name: "etc/", mode: 0o755}, entry{name: "etc/ssl/", mode: 0o755},
			entry{name: "etc/ssl/certs/", mode: 0o755}, entry{name: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, body: spec.CA})
	}
	entries = append(entries, entry{name: "var/", mode: 0o755}, entry{name: "var/acr/", mode: 0o755},
		entry{name: dataDir + "/", mode: 0o700, owner: user})
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Mode: e.mode, Uid: e.owner, Gid: e.owner, Size: int64(len(e.body)),
			ModTime: spec.Created, Format: tar.FormatUSTAR, Typeflag: tar.TypeReg,
		}
		if e.name[len(e.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := tw.Write(e.body); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), tw.Close()
}

func config(spec Spec, b Binary, diff digest.Digest) ocispec.Image {
	return ocispec.Image{
		Created:  &spec.Created,
		Platform: b.Platform,
		Config: ocispec.ImageConfig{
			User:         fmt.Sprintf("%d:%d", user, user),
			ExposedPorts: map[string]struct{}{"8080/tcp": {}},
			Env:          []string{"ACR_REGISTRY_DATA_VOLUME=/" + dataDir},
			Entrypoint:   []string{"/connected-registry"},
			Cmd:          []string{"serve"},
			Volumes:      map[string]struct{}{"/" + dataDir: {}},
			Labels:       labels(spec),
		},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diff}},
		History: []ocispec.History{{Created: &spec.Created, CreatedBy: "scripts/image", Comment: "FROM scratch"}},
	}
}

// labels are the annotations of image-spec annotations.md.
func labels(spec Spec) map[string]string {
	m := map[string]string{
		ocispec.AnnotationTitle:       "connected-registry",
		ocispec.AnnotationDescription: "An on-premises OCI registry that is a replica of its parent and serves without it",
		ocispec.AnnotationSource:      "https://github.com/connected-registry/connected-registry",
		ocispec.AnnotationLicenses:    "Apache-2.0",
		ocispec.AnnotationVersion:     spec.Version,
	}
	if spec.Revision != "" {
		m[ocispec.AnnotationRevision] = spec.Revision
	}
	return m
}

// document writes v as a blob in JSON.
func (l layout) document(mediaType string, v any) (ocispec.Descriptor, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.blob(mediaType, body)
}

func (l layout) blob(mediaType string, body []byte) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	return d, os.WriteFile(filepath.Join(l.dir, ocispec.ImageBlobsDir, "sha256", d.Digest.Encoded()), body, 0o644)
}

func (l layout) file(name string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir, name), body, 0o644)
}
