package filter

import (
	"context"
	"slices"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Locks says what is locked. The store of package store is one.
type Locks interface {
	// Locks returns the locks of a repository; nil for none. It is asked at every request and has to be quick.
	Locks(repo string) *registry.Locks
}

// locked applies the attributes of ACR that a request can be judged by. What keeps a tag where it is and a manifest from
// being deleted is in the store's own transactions: it has to hold for everybody, synchronisation included.
type locked struct {
	registry.Registry
	locks Locks
}

// Locked refuses to read what has readEnabled false, hides from lists what has listEnabled false, and begins no upload
// to a repository that has writeEnabled false. All else goes to inner as it is.
//
// Errors, beside those of inner: REGISTRY_DISALLOWED_OPERATION.
func Locked(inner registry.Registry, locks Locks) registry.Registry {
	return locked{Registry: inner, locks: locks}
}

func refuse(repo, what, name string) error {
	return registry.ErrLocked.WithDetail(map[string]string{"repository": repo, what: name})
}

// readable checks the repository and what the reference names; then, with its digest, the manifest.
func (l locked) readable(repo string, ref registry.Reference) error {
	locks := l.locks.Locks(repo)
	switch {
	case locks == nil:
		return nil
	case locks.Of().NoRead:
		return refuse(repo, "operation", "read")
	case ref.Tag != "" && locks.Tag(ref.Tag).NoRead, ref.Digest != "" && locks.Manifest(ref.Digest).NoRead:
		return refuse(repo, "reference", ref.String())
	}
	return nil
}

func (l locked) GetManifest(ctx context.Context, repo string, ref registry.Reference) (registry.Manifest, error) {
	if err := l.readable(repo, ref); err != nil {
		return registry.Manifest{}, err
	}
	m, err := l.Registry.GetManifest(ctx, repo, ref)
	if err == nil {
		err = l.readable(repo, registry.DigestReference(m.Digest))
	}
	if err != nil {
		return registry.Manifest{}, err
	}
	return m, nil
}

func (l locked) ResolveManifest(ctx context.Context, repo string, ref registry.Reference) (registry.Descriptor, error) {
	if err := l.readable(repo, ref); err != nil {
		return registry.Descriptor{}, err
	}
	d, err := l.Registry.ResolveManifest(ctx, repo, ref)
	if err == nil {
		err = l.readable(repo, registry.DigestReference(d.Digest))
	}
	if err != nil {
		return registry.Descriptor{}, err
	}
	return d, nil
}

func (l locked) GetBlob(ctx context.Context, repo string, d registry.Digest) (registry.BlobReader, error) {
	if err := l.readable(repo, registry.Reference{}); err != nil {
		return nil, err
	}
	return l.Registry.GetBlob(ctx, repo, d)
}

func (l locked) ResolveBlob(ctx context.Context, repo string, d registry.Digest) (registry.Descriptor, error) {
	if err := l.readable(repo, registry.Reference{}); err != nil {
		return registry.Descriptor{}, err
	}
	return l.Registry.ResolveBlob(ctx, repo, d)
}

func (l locked) Repositories(ctx context.Context, after string, limit int) ([]string, error) {
	return visible(ctx, after, limit, func(repo string) bool { return !l.locks.Locks(repo).Of().NoList },
		func(after string, limit int) ([]string, error) { return l.Registry.Repositories(ctx, after, limit) })
}

func (l locked) Tags(ctx context.Context, repo, after string, limit int) ([]string, error) {
	locks := l.locks.Locks(repo)
	if locks == nil {
		return l.Registry.Tags(ctx, repo, after, limit)
	}
	return visible(ctx, after, limit, func(tag string) bool { return !locks.Tag(tag).NoList },
		func(after string, limit int) ([]string, error) { return l.Registry.Tags(ctx, repo, after, limit) })
}

func (l locked) Referrers(ctx context.Context, repo string, d registry.Digest, artifactType string) ([]registry.Descriptor, error) {
	list, err := l.Registry.Referrers(ctx, repo, d, artifactType)
	if locks := l.locks.Locks(repo); locks != nil && err == nil {
		list = slices.DeleteFunc(slices.Clone(list), func(d registry.Descriptor) bool { return locks.Manifest(d.Digest).NoList })
	}
	return list, err
}

// writable refuses uploads to a repository where nothing may be pushed.
func (l locked) writable(repo string) error {
	if l.locks.Locks(repo).Of().NoWrite {
		return refuse(repo, "operation", "write")
	}
	return nil
}

func (l locked) StartUpload(ctx context.Context, repo string) (registry.Upload, error) {
	if err := l.writable(repo); err != nil {
		return nil, err
	}
	return l.Registry.StartUpload(ctx, repo)
}

func (l locked) MountBlob(ctx context.Context, repo, from string, d registry.Digest) (registry.Descriptor, error) {
	if err := l.writable(repo); err != nil {
		return registry.Descriptor{}, err
	}
	if err := l.readable(from, registry.Reference{}); err != nil {
		return registry.Descriptor{}, registry.ErrBlobUnknown.Wrap(err)
	}
	return l.Registry.MountBlob(ctx, repo, from, d)
}
