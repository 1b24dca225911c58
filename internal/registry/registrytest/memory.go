package registrytest

import (
	"bytes"
	"context"
	_ "crypto/sha256" // digests of these kinds are verified
	_ "crypto/sha512"
	"slices"
	"strings"
	"sync"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// memory keeps everything in maps under one lock: it is meant to be obviously right, not fast.
type memory struct {
	mu      sync.Mutex
	repos   map[string]*repository
	uploads map[string]*session
}

type repository struct {
	blobs     map[registry.Digest][]byte
	manifests map[registry.Digest]manifest
	tags      map[string]registry.Digest
}

type manifest struct {
	registry.Manifest
	refs registry.References
}

// NewMemory returns an empty registry that keeps everything in memory, for tests. It is safe for concurrent use.
func NewMemory() registry.Registry {
	return &memory{repos: map[string]*repository{}, uploads: map[string]*session{}}
}

// repo returns a repository under the lock, nil for an unknown one.
func (m *memory) repo(name string) (*repository, error) {
	if r, ok := m.repos[name]; ok {
		return r, nil
	}
	return nil, registry.ErrNameUnknown
}

// makeRepo returns a repository under the lock, creating it.
func (m *memory) makeRepo(name string) *repository {
	r, ok := m.repos[name]
	if !ok {
		r = &repository{blobs: map[registry.Digest][]byte{}, manifests: map[registry.Digest]manifest{}, tags: map[string]registry.Digest{}}
		m.repos[name] = r
	}
	return r
}

func (m *memory) GetManifest(_ context.Context, repo string, ref registry.Reference) (registry.Manifest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.repo(repo)
	if err != nil {
		return registry.Manifest{}, err
	}
	d := ref.Digest
	if ref.Tag != "" {
		d = r.tags[ref.Tag]
	}
	found, ok := r.manifests[d]
	if !ok {
		return registry.Manifest{}, registry.ErrManifestUnknown
	}
	return registry.Manifest{Descriptor: found.Descriptor, Bytes: slices.Clone(found.Bytes)}, nil
}

func (m *memory) ResolveManifest(ctx context.Context, repo string, ref registry.Reference) (registry.Descriptor, error) {
	found, err := m.GetManifest(ctx, repo, ref)
	return found.Descriptor, err
}

func (m *memory) GetBlob(_ context.Context, repo string, d registry.Digest) (registry.BlobReader, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.repo(repo)
	if err != nil {
		return nil, err
	}
	content, ok := r.blobs[d]
	if !ok {
		return nil, registry.ErrBlobUnknown
	}
	return memoryBlob{Reader: bytes.NewReader(content), d: registry.Descriptor{
		MediaType: "application/octet-stream", Digest: d, Size: int64(len(content)),
	}}, nil
}

func (m *memory) ResolveBlob(ctx context.Context, repo string, d registry.Digest) (registry.Descriptor, error) {
	b, err := m.GetBlob(ctx, repo, d)
	if err != nil {
		return registry.Descriptor{}, err
	}
	return b.Descriptor(), nil
}

// memoryBlob reads bytes that never change.
type memoryBlob struct {
	*bytes.Reader
	d registry.Descriptor
}

func (b memoryBlob) Descriptor() registry.Descriptor { return b.d }
func (b memoryBlob) Close() error                    { return nil }

func (m *memory) Repositories(_ context.Context, after string, limit int) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return page(m.repos, after, limit), nil
}

func (m *memory) Tags(_ context.Context, repo, after string, limit int) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.repo(repo)
	if err != nil {
		return nil, err
	}
	return page(r.tags, after, limit), nil
}

// page returns the keys after "after" in order, at most limit.
func page[V any](all map[string]V, after string, limit int) []string {
	keys := []string{}
	for k := range all {
		if k > after {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys[:min(len(keys), max(limit, 1), registry.MaxPage)]
}

func (m *memory) Referrers(_ context.Context, repo string, d registry.Digest, artifactType string) ([]registry.Descriptor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := []registry.Descriptor{}
	r, err := m.repo(repo)
	if err != nil {
		return list, nil //nolint:nilerr // an unknown subject has no referrers
	}
	for _, x := range r.manifests {
		if x.refs.Subject == nil || x.refs.Subject.Digest != d || (artifactType != "" && x.refs.ArtifactType != artifactType) {
			continue
		}
		list = append(list, registry.ReferrerDescriptor(x.Descriptor, x.refs))
	}
	slices.SortFunc(list, func(a, b registry.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return list, nil
}

func (m *memory) MountBlob(_ context.Context, repo, from string, d registry.Digest) (registry.Descriptor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	source, err := m.repo(from)
	if err != nil {
		return registry.Descriptor{}, registry.ErrBlobUnknown
	}
	content, ok := source.blobs[d]
	if !ok {
		return registry.Descriptor{}, registry.ErrBlobUnknown
	}
	m.makeRepo(repo).blobs[d] = content
	return registry.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(content))}, nil
}

func (m *memory) PutManifest(ctx context.Context, repo string, ref registry.Reference, in registry.Manifest) (registry.Descriptor, error) {
	made, refs, err := registry.NewManifest(in.MediaType, slices.Clone(in.Bytes))
	if err != nil {
		return registry.Descriptor{}, err
	}
	if ref.Digest != "" {
		if made.Digest = ref.Digest.Algorithm().FromBytes(in.Bytes); made.Digest != ref.Digest {
			return registry.Descriptor{}, registry.ErrDigestInvalid
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.repos[repo]
	if r == nil {
		r = &repository{} // reads as empty; made only when the manifest is good
	}
	for _, b := range refs.Blobs {
		if _, ok := r.blobs[b.Digest]; !ok {
			return registry.Descriptor{}, registry.ErrManifestBlobUnknown.WithDetail(map[string]string{"digest": b.Digest.String()})
		}
	}
	for _, c := range refs.Manifests {
		if _, ok := r.manifests[c.Digest]; !ok {
			return registry.Descriptor{}, registry.ErrManifestBlobUnknown.WithDetail(map[string]string{"digest": c.Digest.String()})
		}
	}
	if at := r.tags[ref.Tag]; ref.Tag != "" && at != made.Digest {
		if err := registry.PreconditionFrom(ctx).Check(at); err != nil {
			return registry.Descriptor{}, err
		}
	}
	r = m.makeRepo(repo)
	r.manifests[made.Digest] = manifest{Manifest: made, refs: refs}
	if ref.Tag != "" {
		r.tags[ref.Tag] = made.Digest
	}
	return made.Descriptor, nil
}

func (m *memory) DeleteManifest(_ context.Context, repo string, d registry.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.repo(repo)
	if err != nil {
		return registry.ErrManifestUnknown
	}
	if _, ok := r.manifests[d]; !ok {
		return registry.ErrManifestUnknown
	}
	delete(r.manifests, d)
	for tag, target := range r.tags {
		if target == d {
			delete(r.tags, tag)
		}
	}
	return nil
}

func (m *memory) DeleteTag(ctx context.Context, repo, tag string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.repo(repo)
	if err != nil {
		return registry.ErrManifestUnknown
	}
	at, ok := r.tags[tag]
	if !ok {
		return registry.ErrManifestUnknown
	}
	if err := registry.PreconditionFrom(ctx).Check(at); err != nil {
		return err
	}
	delete(r.tags, tag)
	return nil
}

func (m *memory) DeleteBlob(_ context.Context, repo string, d registry.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.repo(repo)
	if err != nil {
		return registry.ErrBlobUnknown
	}
	if _, ok := r.blobs[d]; !ok {
		return registry.ErrBlobUnknown
	}
	delete(r.blobs, d)
	return nil
}
