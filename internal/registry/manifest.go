package registry

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of manifests. The Docker ones keep their names and bytes for ever.
const (
	MediaTypeImageManifest  = ocispec.MediaTypeImageManifest
	MediaTypeImageIndex     = ocispec.MediaTypeImageIndex
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// isForeign marks layers that registries do not hold; they are kept as descriptors and never fetched
// ("Non-distributable layers", OCI image spec, layer.md).
func isForeign(mediaType string) bool {
	return mediaType == "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" ||
		strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.")
}

// References is what a manifest refers to, in its own order.
type References struct {
	MediaType    string       // as found in the document or given by the caller
	Manifests    []Descriptor // children of an index
	Blobs        []Descriptor // config, then layers, without foreign ones
	Subject      *Descriptor  // what this manifest is about, when it is a referrer
	ArtifactType string       // artifactType, or the config's media type (OCI distribution spec, "Listing Referrers")
	Annotations  map[string]string
}

// IsIndex reports whether the media type is that of an index or manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == MediaTypeImageIndex || mediaType == MediaTypeDockerList
}

// ParseManifest reads what a manifest refers to. mediaType is the Content-Type it came with; the document must not
// contradict it, and must not be readable as image and as index at once (CVE-2021-41190).
//
// Errors: MANIFEST_INVALID, with the field in the message.
func ParseManifest(mediaType string, body []byte) (References, error) {
	var doc struct {
		Version      int               `json:"schemaVersion"`
		MediaType    string            `json:"mediaType"`
		ArtifactType string            `json:"artifactType"`
		Config       *Descriptor       `json:"config"`
		Layers       []Descriptor      `json:"layers"`
		Manifests    []Descriptor      `json:"manifests"`
		FSLayers     json.RawMessage   `json:"fsLayers"`
		Subject      *Descriptor       `json:"subject"`
		Annotations  map[string]string `json:"annotations"`
	}
	invalid := func(format string, args ...any) (References, error) {
		return References{}, ErrManifestInvalid.WithMessage(format, args...)
	}
	if len(body) > MaxManifestSize {
		e := ErrManifestInvalid.WithMessage("manifest of %d bytes: at most %d are accepted", len(body), MaxManifestSize)
		e.Status = 413
		return References{}, e
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return invalid("manifest is not the JSON of a manifest: %v", err)
	}
	switch mediaType {
	case MediaTypeImageManifest, MediaTypeImageIndex, MediaTypeDockerManifest, MediaTypeDockerList:
	default:
		return invalid("Content-Type %q: want an OCI or Docker schema 2 manifest or index", clip(mediaType))
	}
	if doc.MediaType != "" && doc.MediaType != mediaType {
		return invalid("mediaType %q contradicts Content-Type %q", clip(doc.MediaType), mediaType)
	}
	if doc.Version != 0 && doc.Version != 2 {
		return invalid("schemaVersion %d: want 2", doc.Version)
	}
	hasImage := doc.Config != nil || doc.Layers != nil || doc.FSLayers != nil
	if hasImage && doc.Manifests != nil {
		return invalid("manifest has both manifests and config or layers; it must be one kind")
	}
	refs := References{MediaType: mediaType, Subject: doc.Subject, ArtifactType: doc.ArtifactType, Annotations: doc.Annotations}
	if IsIndex(mediaType) {
		if hasImage {
			return invalid("an index must not have config or layers")
		}
		refs.Manifests = doc.Manifests
	} else {
		if doc.Manifests != nil {
			return invalid("an image manifest must not have manifests")
		}
		if doc.Config == nil {
			return invalid("config: missing")
		}
		if refs.ArtifactType == "" {
			refs.ArtifactType = doc.Config.MediaType
		}
		refs.Blobs = append(refs.Blobs, *doc.Config)
		for _, l := range doc.Layers {
			if !isForeign(l.MediaType) {
				refs.Blobs = append(refs.Blobs, l)
			}
		}
	}
	return refs, refs.validate()
}

// validate checks every descriptor: a digest becomes a file name, a size a reservation.
func (r References) validate() error {
	check := func(field string, list ...Descriptor) error {
		for _, d := range list {
			if _, err := ParseDigest(d.Digest.String()); err != nil {
				return ErrManifestInvalid.WithMessage("%s: %s", field, AsError(err).Message)
			}
			if d.Size < 0 {
				return ErrManifestInvalid.WithMessage("%s: size %d of %s is negative", field, d.Size, d.Digest)
			}
		}
		return nil
	}
	if err := check("manifests", r.Manifests...); err != nil {
		return err
	}
	if err := check("config or layers", r.Blobs...); err != nil {
		return err
	}
	if r.Subject != nil {
		return check("subject", *r.Subject)
	}
	return nil
}

// fields are the names in a manifest and its descriptors that this registry goes by.
var fields = []string{
	"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "fsLayers", "subject", "annotations", "digest", "size", "urls", "platform",
}

// oneReading refuses what two readers may understand in two ways: a key that stands twice, of which one takes the first
// and another the last, and a field in other letters, which some take for it. A signature must not be about one image
// here and about another where it is verified. The body is JSON.
//
// Errors: MANIFEST_INVALID, with the field in the message.
func oneReading(body []byte) error {
	type object struct {
		keys    map[string]bool // nil of a list
		free    bool            // its keys are the author's
		between bool            // a key comes next
	}
	d := json.NewDecoder(bytes.NewReader(body))
	var open []object
	var key string
	for {
		t, err := d.Token()
		if err != nil {
			return nil //nolint:nilerr // the end
		}
		top := len(open) - 1
		if name, ok := t.(string); ok && top >= 0 && open[top].between {
			o := &open[top]
			if o.keys[name] {
				return ErrManifestInvalid.WithMessage("%q stands twice in one object of the manifest", clip(name))
			}
			o.keys[name], o.between, key = true, false, name
			i := slices.IndexFunc(fields, func(f string) bool { return strings.EqualFold(f, name) })
			if i >= 0 && fields[i] != name && !o.free {
				return ErrManifestInvalid.WithMessage("%q: want %q", clip(name), fields[i])
			}
			continue
		}
		switch t {
		case json.Delim('{'):
			open = append(open, object{keys: map[string]bool{}, free: key == "annotations", between: true})
		case json.Delim('['):
			open = append(open, object{})
		case json.Delim('}'), json.Delim(']'):
			open = open[:top]
			top--
			fallthrough
		default:
			if top >= 0 {
				open[top].between = open[top].keys != nil
			}
		}
	}
}

// NewManifest describes the bytes: digest by sha256, size, media type, artifact type and annotations. It is stricter
// than ParseManifest, which is for what is here already.
//
// Errors: MANIFEST_INVALID, with the field in the message.
func NewManifest(mediaType string, body []byte) (Manifest, References, error) {
	refs, err := ParseManifest(mediaType, body)
	if err == nil {
		err = oneReading(body)
	}
	if err != nil {
		return Manifest{}, refs, err
	}
	return Manifest{Bytes: body, Descriptor: Descriptor{
		MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body)),
	}}, refs, nil
}

// ReferrerDescriptor is the entry of a referrers list for a manifest (OCI distribution spec, "Listing Referrers").
func ReferrerDescriptor(d Descriptor, r References) Descriptor {
	return Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, ArtifactType: r.ArtifactType, Annotations: r.Annotations}
}
