package acr

import (
	"context"
	"encoding/json"
	"io"
	"sync"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	maxConfig    = 1 << 20 // bytes of a config that are looked at
	maxPlatforms = 10_000  // images whose platform is remembered
)

// image is what the content of a manifest says of it. It never changes.
type image struct {
	architecture, os string
	configMediaType  string
	references       []referenceJSON
}

// platforms remembers what manifests say, so that a list does not read every config each time.
type platforms struct {
	mu    sync.Mutex
	known map[registry.Digest]image
}

func (p *platforms) get(d registry.Digest) (image, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i, ok := p.known[d]
	return i, ok
}

func (p *platforms) put(d registry.Digest, i image) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil || len(p.known) >= maxPlatforms {
		p.known = map[registry.Digest]image{}
	}
	p.known[d] = i
}

// describe adds to what the store knows what the manifest and its config say. What cannot be read is left out: the list
// is worth more than its last column.
func (s *server) describe(ctx context.Context, m registry.ManifestInfo) manifestJSON {
	out := manifestJSON{
		Digest: m.Digest, ImageSize: m.ImageSize, CreatedTime: m.Created, LastUpdateTime: m.Updated, MediaType: m.MediaType,
		Tags: m.Tags, ChangeableAttributes: attributesOf(m.Attributes),
	}
	i, known := s.platforms.get(m.Digest)
	if !known {
		var complete bool
		if i, complete = s.read(ctx, m.Descriptor); complete {
			s.platforms.put(m.Digest, i)
		}
	}
	out.Architecture, out.OS, out.ConfigMediaType, out.References = i.architecture, i.os, i.configMediaType, i.references
	return out
}

// read looks into a manifest and its config; complete is false when it may find more another time.
func (s *server) read(ctx context.Context, d registry.Descriptor) (out image, complete bool) {
	var doc struct {
		Config    registry.Descriptor   `json:"config"`
		Manifests []registry.Descriptor `json:"manifests"`
	}
	if !s.readJSON(ctx, d.Digest, registry.MaxManifestSize, &doc) {
		return out, false
	}
	for _, m := range doc.Manifests {
		ref := referenceJSON{Digest: m.Digest}
		if m.Platform != nil {
			ref.Architecture, ref.OS = m.Platform.Architecture, m.Platform.OS
		}
		out.references = append(out.references, ref)
	}
	out.configMediaType = doc.Config.MediaType
	if doc.Config.Digest == "" {
		return out, true
	}
	var config struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	}
	complete = s.readJSON(ctx, doc.Config.Digest, maxConfig, &config)
	out.architecture, out.os = config.Architecture, config.OS
	return out, complete || doc.Config.Size > maxConfig
}

// readJSON reads a document of at most limit bytes; false when it is not here. A document that is no JSON says nothing.
func (s *server) readJSON(ctx context.Context, d registry.Digest, limit int64, into any) bool {
	b, err := s.store.OpenContent(ctx, d)
	if err != nil {
		return false
	}
	defer func() { _ = b.Close() }() // it was only read
	raw, err := io.ReadAll(io.LimitReader(b, limit+1))
	if err != nil {
		return false
	}
	if int64(len(raw)) <= limit {
		_ = json.Unmarshal(raw, into)
	}
	return true
}
