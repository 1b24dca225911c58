package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxDocument bounds a document of the index, in bytes.
const maxDocument = 1 << 20

// maxDepth bounds indexes of indexes.
const maxDepth = 4

// StatContent implements registry.Replica. A file that a killed process left without its row is hashed and taken.
func (s *Store) StatContent(ctx context.Context, d registry.Digest) (size int64, ok bool) {
	if _, err := registry.ParseDigest(d.String()); err != nil || ctx.Err() != nil {
		return 0, false
	}
	var row blobRow
	var known bool
	if err := s.leased(d, func(t *tx) error { row, known = t.blob(d); return nil }); err != nil {
		return 0, false
	}
	if !known {
		return s.adopt(ctx, d)
	}
	return row.size, s.stat(d, row.size)
}

// OpenContent implements registry.Replica. The result is a *Blob.
func (s *Store) OpenContent(ctx context.Context, d registry.Digest) (registry.BlobReader, error) {
	size, ok := s.StatContent(ctx, d)
	if !ok {
		return nil, errors.Join(registry.ErrBlobUnknown.WithDetail(map[string]string{"digest": d.String()}), ctx.Err())
	}
	return s.openBlob(d, size)
}

// parsedManifest is a manifest of an image with what it refers to.
type parsedManifest struct {
	registry.Manifest
	refs registry.References
	row  manifestRow
}

// CommitImage implements registry.Replica: the bytes of the manifests first, then one transaction for all that becomes
// visible.
func (s *Store) CommitImage(ctx context.Context, image registry.Image) (kept []string, err error) {
	list, err := s.parseImage(ctx, image)
	if err != nil {
		return nil, err
	}
	// Files whose rows are not written yet look like rubbish to a collection: they are announced until the end.
	for _, m := range list {
		defer s.content.publish(m.Digest)()
	}
	var placed []registry.Digest
	defer func() {
		if err != nil {
			s.withdraw(placed)
		}
	}()
	rows := func(t *tx) error {
		r, err := t.makeRepo(image.Repository)
		if err != nil {
			return err
		}
		if r.locks().Of().NoWrite {
			return r.refuse("image", list[len(list)-1].Digest.String())
		}
		root := list[len(list)-1]
		_, missing := r.manifest(root.Digest)
		for i, m := range list {
			if err := r.commitManifest(m, i == len(list)-1 && len(image.Tags) > 0); err != nil {
				return err
			}
		}
		switch {
		case len(image.Tags) == 0 && image.Loose:
			return r.loosen(root.Digest)
		case len(image.Tags) == 0:
			return r.pin(root.Digest)
		}
		if kept, err = r.syncTags(image.Tags, root.Digest); err != nil || len(kept) < len(image.Tags) {
			return err
		}
		if missing != nil { // no tag took it, so no tag told of it
			err = r.tell(false, "", root.Digest, root.row)
		}
		return cmp.Or(err, r.loosen(root.Digest))
	}
	if omitOrder {
		_ = s.update(ctx, rows)
	}
	for _, m := range list {
		if size, ok := s.StatContent(ctx, m.Digest); ok && size == m.Size {
			continue
		}
		if err := s.placeManifest(m.Manifest); err != nil {
			return nil, err
		}
		placed = append(placed, m.Digest)
	}
	if err := s.update(ctx, rows); err != nil {
		return nil, err
	}
	for _, d := range placed {
		s.warned.Delete(d)
	}
	return kept, nil
}

// withdraw removes files that were placed for a transaction that failed.
func (s *Store) withdraw(list []registry.Digest) {
	for _, d := range list {
		s.unowned(d, func() error { return s.fs.Remove(s.contentPath(d)) })
	}
}

// syncTags moves tags to a manifest, as synchronisation does: what was pushed here with another digest stays.
func (r *repoTx) syncTags(tags []string, root registry.Digest) (kept []string, err error) {
	for _, tag := range tags {
		queued, err := r.syncQueued(tag, root)
		if err != nil {
			return nil, err
		}
		old, err := r.tag(tag)
		if queued || err == nil && old.pushed && old.digest != root {
			kept = append(kept, tag)
			continue
		}
		if locked := r.mayMove(tag, root); locked != nil {
			r.t.s.log.Warn("a locked tag stays where it is; the parent has another image under it", "repository", r.name, "tag", tag, "parent", root.String())
			kept = append(kept, tag)
			continue
		}
		if err := r.moveTag(tag, root, false); err != nil {
			return nil, err
		}
		if err == nil && old.digest != root {
			if err := r.loosen(old.digest); err != nil {
				return nil, err
			}
		}
	}
	return kept, nil
}

// pin keeps a manifest that was fetched by digest, whatever happens to tags, unless it belongs to a subject or an index
// of this repository and goes with that.
func (r *repoTx) pin(d registry.Digest) error {
	row, err := r.manifest(d)
	if err != nil {
		return err
	}
	row.pinned = row.pinned || row.subject == "" && !r.hasParent(d)
	return r.t.put(r.manifests, digestKey(d), row.encode())
}

// parseImage verifies the manifests of an image and that its blobs are here.
func (s *Store) parseImage(ctx context.Context, image registry.Image) ([]parsedManifest, error) {
	if err := registry.ValidateRepository(image.Repository); err != nil {
		return nil, err
	}
	if len(image.Manifests) == 0 {
		return nil, registry.ErrManifestInvalid.WithMessage("an image without manifests")
	}
	for _, tag := range image.Tags {
		if err := registry.ValidateTag(tag); err != nil {
			return nil, err
		}
	}
	list := make([]parsedManifest, 0, len(image.Manifests))
	for _, m := range image.Manifests {
		if _, err := registry.ParseDigest(m.Digest.String()); err != nil {
			return nil, err
		}
		if got := m.Digest.Algorithm().FromBytes(m.Bytes); got != m.Digest {
			return nil, registry.ErrDigestInvalid.WithMessage("the manifest has the digest %s, not %s", got, m.Digest)
		}
		refs, err := registry.ParseManifest(m.MediaType, m.Bytes)
		if err != nil {
			return nil, err
		}
		m.Size = int64(len(m.Bytes))
		p := parsedManifest{Manifest: m, refs: refs, row: newManifestRow(m.Descriptor, refs)}
		for _, b := range p.row.blobs {
			if _, ok := s.StatContent(ctx, b.digest); !ok {
				return nil, errors.Join(blobUnknown(b.digest), ctx.Err())
			}
		}
		list = append(list, p)
	}
	return list, nil
}

// placeManifest makes the bytes of a manifest durable under their name; the row follows in the image's transaction.
func (s *Store) placeManifest(m registry.Manifest) error {
	f, path, err := s.writeTemp(m.Bytes)
	if err != nil {
		return err
	}
	if _, err := s.place(f, path, m.Digest, false); err != nil {
		_ = s.fs.Remove(path)
		return diskError(err)
	}
	return nil
}

// commitManifest writes the rows of one manifest of an image.
func (r *repoTx) commitManifest(m parsedManifest, tagged bool) error {
	if err := r.t.holdBlob(m.Digest, m.Size); err != nil {
		return err
	}
	for _, b := range m.row.blobs {
		if _, ok := r.t.blob(b.digest); !ok {
			return blobUnknown(b.digest)
		}
		if err := r.link(b.digest, false); err != nil {
			return err
		}
	}
	return r.putManifest(m.Descriptor, m.row, m.refs, tagged)
}

// loosen marks a manifest that lost a tag to synchronisation: when nothing needs it, it goes after collection's grace.
func (r *repoTx) loosen(d registry.Digest) error {
	row, err := r.manifest(d)
	if err != nil || row.pushed {
		return nil
	}
	row.loose = r.t.now
	return r.t.put(r.manifests, digestKey(d), row.encode())
}

// Untag implements registry.Replica.
func (s *Store) Untag(ctx context.Context, repo string, tags []string) (removed int, err error) {
	err = s.update(ctx, func(t *tx) error {
		removed = 0
		r, err := t.repo(repo)
		if err != nil {
			return nil // nothing to remove
		}
		var roots []registry.Digest
		for _, tag := range tags {
			row, err := r.tag(tag)
			if err != nil || row.pushed {
				continue
			}
			if r.mayUntag(tag) != nil {
				r.t.s.log.Warn("a locked tag stays; the parent has it no more, or it left the scope", "repository", r.name, "tag", tag)
				continue
			}
			if err := r.removeTag(tag); err != nil {
				return err
			}
			roots = append(roots, row.digest)
			removed++
		}
		if len(roots) == 0 {
			return nil
		}
		_, err = r.prune(roots)
		return err
	})
	return removed, err
}

// Unrefer removes manifests that refer to another one, as synchronisation does with what was deleted at the parent, and
// what only they needed. What was pushed here, has a tag, is locked or belongs to an index stays.
func (s *Store) Unrefer(ctx context.Context, repo string, referrers []registry.Digest) (removed int, err error) {
	err = s.update(ctx, func(t *tx) error {
		removed = 0
		r, err := t.repo(repo)
		if err != nil {
			return nil // nothing to remove
		}
		rows, err := r.rows()
		if err != nil {
			return err
		}
		var roots []registry.Digest
		for _, d := range referrers {
			if row, ok := rows[d]; ok && row.subject != "" {
				roots = append(roots, d)
			}
		}
		subjects := make(map[registry.Digest]registry.Digest, len(roots))
		for _, d := range roots {
			row := rows[d]
			subjects[d], row.subject = row.subject, "" // it does not keep this one
			rows[d] = row
		}
		if removed, err = r.pruneRows(roots, rows); err != nil {
			return err
		}
		for _, d := range roots {
			if _, stays := rows[d]; stays {
				continue
			}
			if err := r.removeReferrer(subjects[d], d); err != nil {
				return err
			}
		}
		return nil
	})
	return removed, err
}

// Missing implements registry.Replica.
func (s *Store) Missing(ctx context.Context, repo string, d registry.Digest, want func(registry.Descriptor) bool) ([]registry.Descriptor, error) {
	w := missing{s: s, repo: repo, want: want, seen: map[registry.Digest]bool{}}
	m, err := s.GetManifest(ctx, repo, registry.DigestReference(d))
	if err != nil {
		return nil, err
	}
	if err := w.below(ctx, m, 0); err != nil {
		return nil, err
	}
	return w.list, nil
}

// missing walks what is below a manifest.
type missing struct {
	s    *Store
	repo string
	want func(registry.Descriptor) bool
	seen map[registry.Digest]bool
	list []registry.Descriptor
}

func (w *missing) below(ctx context.Context, m registry.Manifest, depth int) error {
	refs, err := registry.ParseManifest(m.MediaType, m.Bytes)
	if err != nil {
		return err
	}
	for _, b := range refs.Blobs {
		if w.seen[b.Digest] {
			continue
		}
		w.seen[b.Digest] = true
		if _, ok := w.s.StatContent(ctx, b.Digest); !ok {
			w.list = append(w.list, b)
		}
	}
	for _, c := range refs.Manifests {
		if err := ctx.Err(); err != nil {
			return err
		}
		if w.seen[c.Digest] || (w.want != nil && !w.want(c)) {
			continue
		}
		w.seen[c.Digest] = true
		child, err := w.s.GetManifest(ctx, w.repo, registry.DigestReference(c.Digest))
		switch {
		case errors.Is(err, registry.ErrManifestUnknown):
			w.list = append(w.list, c)
		case err != nil:
			return err
		case depth < maxDepth:
			if err := w.below(ctx, child, depth+1); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// Document implements registry.Documents.
func (s *Store) Document(ctx context.Context, name string) (body []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.view(func(t *tx) error {
		if v := t.Bucket(bucketDocuments).Get([]byte(name)); v != nil {
			body = append([]byte{}, v...)
		}
		return nil
	})
	return body, err
}

// PutDocument implements registry.Documents. A document has at most 1 MiB; an empty body is a document.
func (s *Store) PutDocument(ctx context.Context, name string, body []byte) error {
	if len(body) > maxDocument || name == "" {
		return registry.ErrInternal.WithMessage("document %q of %d bytes: at most %d are kept", name, len(body), maxDocument)
	}
	is := func(t *tx) bool {
		old := t.Bucket(bucketDocuments).Get([]byte(name))
		return old != nil && bytes.Equal(old, body)
	}
	if s.already(is) {
		return ctx.Err()
	}
	return s.update(ctx, func(t *tx) error {
		return t.put(t.Bucket(bucketDocuments), []byte(name), body)
	})
}
