package upstream

import (
	"context"
	"errors"
	"net/http"

	"github.com/regclient/regclient/scheme/reg"
	"github.com/regclient/regclient/types/manifest"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// GetManifest implements registry.Reader. The digest is computed over the bytes, whatever headers say.
//
// Errors: NAME_UNKNOWN, MANIFEST_UNKNOWN, MANIFEST_INVALID also for more than 4 MiB, DIGEST_INVALID for other bytes than
// the digest names, UNAVAILABLE, UNAUTHORIZED, DENIED.
func (p *Parent) GetManifest(ctx context.Context, repo string, ref registry.Reference) (registry.Manifest, error) {
	if err := registry.ValidateRepository(repo); err != nil {
		return registry.Manifest{}, err
	}
	var got manifest.Manifest
	var c call
	err := p.run(transport.WithMaxBody(ctx, registry.MaxManifestSize), &c, registry.ErrManifestUnknown, func(ctx context.Context, r *reg.Reg) (err error) {
		got, err = r.ManifestGet(ctx, p.ref(repo, ref))
		return err
	})
	if errors.Is(err, registry.ErrSizeInvalid) {
		return registry.Manifest{}, registry.ErrManifestInvalid.WithMessage("the manifest %s of %s is larger than %d bytes", ref, repo, registry.MaxManifestSize).Wrap(err)
	}
	if err != nil {
		if c.body != nil && c.status == http.StatusOK && errors.Is(err, registry.ErrUnavailable) {
			err = registry.ErrManifestInvalid.WithMessage("%s sent no manifest for %s of %s", p.host, ref, repo).Wrap(err)
		}
		return registry.Manifest{}, err
	}
	m, _, err := registry.NewManifest(got.GetDescriptor().MediaType, c.body)
	if err != nil {
		return registry.Manifest{}, err
	}
	if want := ref.Digest; want != "" {
		if have := want.Algorithm().FromBytes(c.body); have != want {
			return registry.Manifest{}, registry.ErrDigestInvalid.WithMessage("%s sent %s for %s of %s", p.host, have, want, repo)
		}
		m.Digest = want
	}
	return m, nil
}

// ResolveManifest implements registry.Reader with a HEAD. What it says of a tag's digest is a hint of the parent: only
// GetManifest proves it. A parent that does not say is asked with GET.
func (p *Parent) ResolveManifest(ctx context.Context, repo string, ref registry.Reference) (registry.Descriptor, error) {
	if err := registry.ValidateRepository(repo); err != nil {
		return registry.Descriptor{}, err
	}
	var got manifest.Manifest
	var c call
	err := p.run(ctx, &c, registry.ErrManifestUnknown, func(ctx context.Context, r *reg.Reg) (err error) {
		got, err = r.ManifestHead(ctx, p.ref(repo, ref))
		return err
	})
	if err != nil && c.status != http.StatusOK && !errors.Is(err, registry.ErrUnsupported) {
		return registry.Descriptor{}, err
	}
	if err == nil {
		d := got.GetDescriptor()
		said, bad := registry.ParseDigest(string(d.Digest))
		if bad == nil && d.Size > 0 && d.MediaType != "" {
			return registry.Descriptor{MediaType: d.MediaType, Digest: said, Size: d.Size}, nil
		}
	}
	m, err := p.GetManifest(ctx, repo, ref)
	return m.Descriptor, err
}
