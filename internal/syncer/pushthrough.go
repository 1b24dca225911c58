package syncer

import (
	"context"
	"errors"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// PutManifest takes a manifest that refers to what only the parent has: an image on a base that was never pulled here. The
// client was told that it is there, and did not upload it; so it is fetched before the manifest is taken.
func (p *pullThrough) PutManifest(ctx context.Context, repo string, ref registry.Reference, m registry.Manifest) (registry.Descriptor, error) {
	d, err := p.Registry.PutManifest(ctx, repo, ref, m)
	if !errors.Is(err, registry.ErrManifestBlobUnknown) {
		return d, err
	}
	if err := p.fetchBelow(ctx, repo, m, err); err != nil {
		return registry.Descriptor{}, err
	}
	return p.Registry.PutManifest(ctx, repo, ref, m)
}

// fetchBelow brings here what a manifest refers to and the parent has in the repository. missing is returned for what it
// has not.
func (p *pullThrough) fetchBelow(ctx context.Context, repo string, m registry.Manifest, missing error) error {
	m, refs, err := registry.NewManifest(m.MediaType, m.Bytes)
	if err != nil {
		return err
	}
	for _, child := range refs.Manifests {
		_, err := p.Registry.ResolveManifest(ctx, repo, registry.DigestReference(child.Digest))
		if !isMiss(err) {
			continue
		}
		if _, err := p.s.pulls.parent(repo, "", missing); err != nil {
			return err
		}
		if err := p.s.bring(ctx, image{repo: repo, root: registry.Manifest{Descriptor: registry.Descriptor{Digest: child.Digest}}}); err != nil {
			return orMissing(err, missing)
		}
	}
	for _, b := range refs.Blobs {
		if _, err := p.Registry.ResolveBlob(ctx, repo, b.Digest); !isMiss(err) {
			continue
		}
		have, err := p.s.pulls.blob(ctx, repo, b.Digest, missing)
		if err != nil {
			return orMissing(err, missing)
		}
		if have.Size != b.Size {
			return registry.ErrManifestInvalid.WithMessage("the manifest says that %s has %d bytes, and the parent that it has %d", b.Digest, b.Size, have.Size)
		}
		if err := p.s.fetch.blob(ctx, repo, b); err != nil {
			return orMissing(err, missing)
		}
	}
	if len(refs.Blobs) == 0 {
		return nil
	}
	// All that it refers to is the repository's, here or at the parent: what was fetched is made so here.
	_, err = p.s.store.CommitImage(ctx, registry.Image{Repository: repo, Manifests: []registry.Manifest{m}})
	return err
}

// orMissing is what the client is told: that something is missing where the parent has it not, and why where it cannot be
// asked.
func orMissing(err, missing error) error {
	if isMiss(err) {
		return missing
	}
	return err
}
