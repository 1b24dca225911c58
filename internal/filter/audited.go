package filter

import (
	"context"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// audited records what changes content. Blobs are not recorded as they come: a push is its manifest.
type audited struct {
	registry.Registry
	log registry.Auditor
}

// Audited records every push, untagging and delete of inner, with its digest and how it ended, refusals included. It is
// the outermost decorator, so that it sees what clients get.
func Audited(inner registry.Registry, log registry.Auditor) registry.Registry {
	return audited{Registry: inner, log: log}
}

func (a audited) record(ctx context.Context, operation, repo string, ref registry.Reference, err error) {
	a.log.Audit(ctx, registry.AuditRecord{
		Category: registry.AuditContent, Operation: operation, Repository: repo, Tag: ref.Tag, Digest: ref.Digest,
	}.End(err))
}

func (a audited) PutManifest(ctx context.Context, repo string, ref registry.Reference, m registry.Manifest) (registry.Descriptor, error) {
	d, err := a.Registry.PutManifest(ctx, repo, ref, m)
	if err == nil {
		ref.Digest = d.Digest
	}
	a.record(ctx, "push", repo, ref, err)
	return d, err
}

func (a audited) DeleteManifest(ctx context.Context, repo string, d registry.Digest) error {
	err := a.Registry.DeleteManifest(ctx, repo, d)
	a.record(ctx, "delete", repo, registry.DigestReference(d), err)
	return err
}

func (a audited) DeleteTag(ctx context.Context, repo, tag string) error {
	err := a.Registry.DeleteTag(ctx, repo, tag)
	a.record(ctx, "untag", repo, registry.TagReference(tag), err)
	return err
}

func (a audited) DeleteBlob(ctx context.Context, repo string, d registry.Digest) error {
	err := a.Registry.DeleteBlob(ctx, repo, d)
	a.record(ctx, "deleteBlob", repo, registry.DigestReference(d), err)
	return err
}

// StartUpload is recorded only when it is refused: that is the end of a push that was not allowed.
func (a audited) StartUpload(ctx context.Context, repo string) (registry.Upload, error) {
	u, err := a.Registry.StartUpload(ctx, repo)
	if err != nil {
		a.record(ctx, "push", repo, registry.Reference{}, err)
	}
	return u, err
}
