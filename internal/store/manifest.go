package store

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// GetManifest implements registry.Reader: one read transaction at most, and the bytes from memory when they were asked
// for lately. The caller must not change the bytes.
func (s *Store) GetManifest(ctx context.Context, repo string, ref registry.Reference) (registry.Manifest, error) {
	f, err := s.findManifest(ctx, repo, ref)
	if err != nil {
		return registry.Manifest{}, err
	}
	body, err := s.manifestBytes(ctx, f.digest, f.size)
	if err != nil {
		return registry.Manifest{}, err
	}
	return registry.Manifest{Bytes: body, Descriptor: f.descriptor()}, nil
}

// ResolveManifest implements registry.Reader.
func (s *Store) ResolveManifest(ctx context.Context, repo string, ref registry.Reference) (registry.Descriptor, error) {
	f, err := s.findManifest(ctx, repo, ref)
	if err != nil {
		return registry.Descriptor{}, err
	}
	if s.cache.get(f.digest) == nil && !s.stat(f.digest, f.size) {
		return registry.Descriptor{}, registry.ErrManifestUnknown.WithDetail(map[string]string{"digest": f.digest.String()})
	}
	return f.descriptor(), nil
}

func (f found) descriptor() registry.Descriptor {
	return registry.Descriptor{MediaType: f.mediaType, Digest: f.digest, Size: f.size}
}

// findManifest reads the index, unless it was asked the same since the last commit.
func (s *Store) findManifest(ctx context.Context, repo string, ref registry.Reference) (f found, err error) {
	if err := ctx.Err(); err != nil {
		return f, err
	}
	at, quiet := s.moment()
	if quiet {
		if f, ok := s.resolved.get(at, asked{repo, ref}); ok {
			return f, nil
		}
	}
	err = s.view(func(t *tx) error {
		r, err := t.repo(repo)
		if err != nil {
			return err
		}
		d, row, err := r.resolve(ref)
		f = found{d, row.mediaType, row.size}
		return err
	})
	if err == nil && quiet {
		f.digest = registry.Digest(strings.Clone(string(f.digest))) // not a part of a request's path, nor is what follows
		ref = registry.Reference{Tag: strings.Clone(ref.Tag), Digest: registry.Digest(strings.Clone(string(ref.Digest)))}
		s.resolved.put(at, asked{strings.Clone(repo), ref}, f)
	}
	return f, err
}

// manifestBytes reads a manifest and hashes what it read: a manifest is small, so no wrong byte of it is ever served.
func (s *Store) manifestBytes(ctx context.Context, d registry.Digest, size int64) ([]byte, error) {
	if body := s.cache.get(d); body != nil {
		return body, nil
	}
	unknown := registry.ErrManifestUnknown.WithDetail(map[string]string{"digest": d.String()})
	if size > registry.MaxManifestSize {
		return nil, unknown
	}
	f, err := s.open(d, size)
	if err != nil {
		if registry.AsError(err).Code == registry.CodeBlobUnknown {
			err = unknown
		}
		return nil, err
	}
	defer f.Close()
	body := make([]byte, size)
	if _, err := f.ReadAt(body, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, diskError(err)
	}
	hash := newRunning(d.Algorithm().String())
	hash.wrote(body, 0)
	got, err := hash.sum(ctx, f, d.Algorithm().String(), size)
	if err != nil {
		return nil, err
	}
	if got != d {
		s.quarantine(f, d, errOtherBytes)
		return nil, unknown
	}
	s.cache.put(d, body)
	return body, nil
}

// PutManifest implements registry.Writer. Every blob must belong to the repository and every child of an index must be
// a manifest of it; a subject may come later (OCI distribution spec, "Pushing Manifests with Subject").
func (s *Store) PutManifest(ctx context.Context, repo string, ref registry.Reference, m registry.Manifest) (registry.Descriptor, error) {
	m, refs, err := registry.NewManifest(m.MediaType, m.Bytes)
	if err != nil {
		return registry.Descriptor{}, err
	}
	if ref.Digest != "" {
		if got := ref.Digest.Algorithm().FromBytes(m.Bytes); got != ref.Digest {
			return registry.Descriptor{}, registry.ErrDigestInvalid.WithMessage("the manifest has the digest %s, not %s", got, ref.Digest)
		}
		m.Digest = ref.Digest
	}
	row := newManifestRow(m.Descriptor, refs)
	row.pushed = true
	if err := s.checkPush(ctx, repo, ref.Tag, m.Digest, row); err != nil {
		return registry.Descriptor{}, err
	}
	err = s.putManifestBytes(ctx, m, func(t *tx) error {
		r, err := t.makeRepo(repo)
		if err != nil {
			return err
		}
		if err := r.checkLinked(row); err != nil {
			return err
		}
		if err := cmp.Or(r.mayPush(ref.Tag, m.Digest), r.meets(ctx, ref.Tag, m.Digest)); err != nil {
			return err
		}
		if err := r.putManifest(m.Descriptor, row, refs, ref.Tag != ""); err != nil {
			return err
		}
		if err := r.queuePush(ref.Tag, m.Descriptor, row, principal(ctx)); err != nil || ref.Tag == "" {
			return err
		}
		return r.moveTag(ref.Tag, m.Digest, true)
	})
	if err != nil {
		return registry.Descriptor{}, err
	}
	return m.Descriptor, nil
}

// checkPush refuses a manifest early, before its bytes are written, and one whose content is lost on the disk.
func (s *Store) checkPush(ctx context.Context, repo, tag string, d registry.Digest, row manifestRow) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := s.view(func(t *tx) error {
		r, err := t.repo(repo)
		if err == nil {
			return cmp.Or(r.mayPush(tag, d), r.checkLinked(row), r.meets(ctx, tag, d))
		}
		if len(row.blobs)+len(row.children) == 0 {
			return nil
		}
		return blobUnknown(append(row.blobs, row.children...)[0].digest)
	})
	if err != nil {
		return err
	}
	for _, list := range [][]target{row.blobs, row.children} {
		for _, b := range list {
			if _, ok := s.StatContent(ctx, b.digest); !ok {
				return blobUnknown(b.digest)
			}
		}
	}
	return nil
}

func blobUnknown(d registry.Digest) error {
	return registry.ErrManifestBlobUnknown.WithDetail(map[string]string{"digest": d.String()})
}

// checkLinked requires all that a pushed manifest refers to.
func (r *repoTx) checkLinked(row manifestRow) error {
	for _, b := range row.blobs {
		if _, ok := r.t.blob(b.digest); !ok || r.links.Get(digestKey(b.digest)) == nil {
			return blobUnknown(b.digest)
		}
	}
	for _, c := range row.children {
		if r.manifests.Get(digestKey(c.digest)) == nil {
			return blobUnknown(c.digest)
		}
	}
	return nil
}

// putManifestBytes makes the bytes of a manifest content and runs fn in the transaction of its row. Bytes that are
// here already are not written again.
func (s *Store) putManifestBytes(ctx context.Context, m registry.Manifest, fn func(*tx) error) error {
	defer s.content.publish(m.Digest)() // from here on no collection removes the file
	if size, ok := s.StatContent(ctx, m.Digest); ok && size == m.Size {
		return s.update(ctx, func(t *tx) error {
			if err := t.holdBlob(m.Digest, m.Size); err != nil {
				return err
			}
			return fn(t)
		})
	}
	f, path, err := s.writeTemp(m.Bytes)
	if err != nil {
		return err
	}
	back, err := s.publish(ctx, f, path, m.Digest, blobRow{size: m.Size}, fn)
	if back {
		_ = s.fs.Remove(path)
	}
	return err
}

// writeTemp writes bytes to a new file beside the uploads, without a sync.
func (s *Store) writeTemp(body []byte) (File, string, error) {
	if err := s.room(int64(len(body))); err != nil {
		return nil, "", err
	}
	path := s.path(dirUploads, s.tempPrefix+s.randomID())
	f, err := s.fs.Create(path)
	if err != nil {
		return nil, "", diskError(err)
	}
	if _, err = writeFull(f, body, 0); err != nil {
		_ = f.Close()
		_ = s.fs.Remove(path)
		return nil, "", diskError(err)
	}
	return f, path, nil
}

// writeFull writes at an offset; a short write without a reason is one.
func writeFull(f File, p []byte, offset int64) (int, error) {
	n, err := f.WriteAt(p, offset)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}

// randomID returns 128 random bits in hex.
func (s *Store) randomID() string {
	b := make([]byte, 16)
	_, _ = io.ReadFull(s.opts.Rand, b) // crypto/rand's never fails, as its documentation says
	return hex.EncodeToString(b)
}

// putManifest writes the row of a manifest and of its place in a referrers list. A row that is there keeps what is
// stronger: pushed by a client, pinned by digest.
// One that is new and comes under no tag is told of.
func (r *repoTx) putManifest(m registry.Descriptor, row manifestRow, refs registry.References, tagged bool) error {
	key := digestKey(m.Digest)
	if v := r.manifests.Get(key); v != nil {
		if old, err := decodeManifest(v); err == nil {
			kept := old.pushed && old.loose == 0 // else the parent did not take it, and it is only here for the grace
			row.pushed, row.pinned = row.pushed || kept, row.pinned || old.pinned
			row.mediaType = old.mediaType // served for ever
			row.created = old.created
		}
	} else {
		row.created = r.t.now
		r.t.counts.manifests++
		if !tagged {
			if err := r.tell(false, "", m.Digest, row); err != nil {
				return err
			}
		}
	}
	for _, list := range [][]target{row.blobs, row.children} {
		for _, t := range list {
			r.t.s.touch(t.digest)
		}
	}
	if row.subject != "" {
		if err := r.putReferrer(row.subject, m, refs); err != nil {
			return err
		}
	}
	return r.t.put(r.manifests, key, row.encode())
}

// removeManifest removes a manifest, its tags and its place in a referrers list.
func (r *repoTx) removeManifest(d registry.Digest, row manifestRow) error {
	key := digestKey(d)
	if r.manifests.Get(key) == nil {
		return nil
	}
	if row.subject != "" {
		if err := r.removeReferrer(row.subject, d); err != nil {
			return err
		}
	}
	if err := r.dropLock(registry.DigestReference(d)); err != nil {
		return err
	}
	if err := r.tell(true, "", d, row); err != nil {
		return err
	}
	r.t.counts.manifests--
	return r.t.remove(r.manifests, key)
}

// DeleteManifest implements registry.Deleter. Manifests that refer to it as their subject stay.
func (s *Store) DeleteManifest(ctx context.Context, repo string, d registry.Digest) error {
	return s.update(ctx, func(t *tx) error {
		r, err := t.repo(repo)
		if err != nil {
			return registry.ErrManifestUnknown.WithDetail(map[string]string{"digest": d.String()})
		}
		row, err := r.manifest(d)
		if err != nil {
			return err
		}
		if err := r.mayDelete(d); err != nil {
			return err
		}
		tags, err := r.tagsOf(d)
		if err != nil {
			return err
		}
		if err := r.queueDelete(d, row.mediaType, tags, principal(ctx)); err != nil {
			return err
		}
		for _, tag := range tags {
			if err := r.removeTag(tag); err != nil {
				return err
			}
		}
		return r.removeManifest(d, row)
	})
}
