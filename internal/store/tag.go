package store

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// nextSeq takes the next number of a change and writes its row.
func (t *tx) nextSeq(row changeRow) (uint64, error) {
	seq := t.number(keyChangeSeq) + 1
	if err := t.putNumber(keyChangeSeq, seq); err != nil {
		return 0, err
	}
	row.at = t.now
	t.changed = true
	return seq, t.put(t.Bucket(bucketChanges), seqKey(seq), row.encode())
}

// moveTag points a tag at a manifest. A tag that points there already only changes its origin, which is no change of
// the content.
func (r *repoTx) moveTag(tag string, d registry.Digest, pushed bool) error {
	if err := r.mayMove(tag, d); err != nil {
		return err
	}
	row, err := r.tag(tag)
	if err == nil && row.digest == d {
		row.pushed = pushed
		return r.t.put(r.tags, []byte(tag), row.encode())
	}
	if err == nil {
		if err := r.t.remove(r.t.Bucket(bucketChanges), seqKey(row.seq)); err != nil {
			return err
		}
	} else if r.tags.Get([]byte(tag)) == nil {
		r.t.counts.tags++
	}
	created := r.t.now
	if err == nil {
		created = row.created
	}
	row = tagRow{digest: d, pushed: pushed, at: r.t.now, created: created}
	if row.seq, err = r.t.nextSeq(changeRow{kind: changeTag, repo: r.name, tag: tag}); err != nil {
		return err
	}
	if err := r.tellTag(false, tag, d); err != nil {
		return err
	}
	return r.t.put(r.tags, []byte(tag), row.encode())
}

// removeTag removes a tag and leaves a tombstone among the changes.
func (r *repoTx) removeTag(tag string) error {
	if r.tags.Get([]byte(tag)) == nil {
		return nil
	}
	if row, err := r.tag(tag); err == nil {
		if err := r.t.remove(r.t.Bucket(bucketChanges), seqKey(row.seq)); err != nil {
			return err
		}
		if err := r.tellTag(true, tag, row.digest); err != nil {
			return err
		}
	}
	if _, err := r.t.nextSeq(changeRow{kind: changeGone, repo: r.name, tag: tag}); err != nil {
		return err
	}
	if err := r.dropLock(registry.TagReference(tag)); err != nil {
		return err
	}
	r.t.counts.tags--
	return r.t.remove(r.tags, []byte(tag))
}

// meets refuses to move a tag to d, or with an empty d to remove it, where the precondition of ctx does not hold. The tag
// stands where ResolveManifest says, so that who asks for it and acts on the answer is not refused for ever. A tag that is
// at d already is not moved.
func (r *repoTx) meets(ctx context.Context, tag string, d registry.Digest) error {
	p := registry.PreconditionFrom(ctx)
	if tag == "" || p == (registry.Precondition{}) {
		return nil
	}
	at, row, err := r.resolve(registry.TagReference(tag))
	if err != nil || r.t.s.cache.get(at) == nil && !r.t.s.stat(at, row.size) {
		at = ""
	}
	if at != "" && at == d {
		return nil
	}
	return p.Check(at)
}

// tagsOf lists the tags that point at a manifest.
func (r *repoTx) tagsOf(d registry.Digest) (tags []string, err error) {
	err = r.tags.ForEach(func(k, v []byte) error {
		row, err := decodeTag(v)
		if err == nil && row.digest == d {
			tags = append(tags, string(k))
		}
		return nil
	})
	return tags, err
}

// principal is the name of the client that a call acts for.
func principal(ctx context.Context) string { return registry.PrincipalFrom(ctx).Name }

// DeleteTag implements registry.Deleter.
func (s *Store) DeleteTag(ctx context.Context, repo, tag string) error {
	return s.update(ctx, func(t *tx) error {
		r, err := t.repo(repo)
		if err != nil || r.tags.Get([]byte(tag)) == nil {
			return registry.ErrManifestUnknown.WithDetail(map[string]string{"tag": tag})
		}
		if err := cmp.Or(r.mayUntag(tag), r.meets(ctx, tag, "")); err != nil {
			return err
		}
		if err := r.queueUntag(tag, principal(ctx)); err != nil {
			return err
		}
		return r.removeTag(tag)
	})
}

// TagStates implements registry.Replica.
func (s *Store) TagStates(ctx context.Context, repo string) (list []registry.LocalTag, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.view(func(t *tx) error {
		r, err := t.repo(repo)
		if err != nil {
			return nil // none for an unknown repository
		}
		locks := r.locks()
		queued := r.queuedTags()
		err = r.tags.ForEach(func(k, v []byte) error {
			row, err := decodeTag(v)
			if err != nil {
				return nil // absent: synchronisation writes it again
			}
			list = append(list, registry.LocalTag{
				Tag: string(k), Digest: row.digest, Pushed: row.pushed,
				Locked: locks.Of().NoWrite || locks.Tag(string(k)).NoWrite,
			})
			delete(queued, string(k))
			return nil
		})
		for _, tag := range slices.Sorted(maps.Keys(queued)) {
			list = append(list, registry.LocalTag{Tag: tag, Pushed: true})
		}
		return err
	})
	return list, err
}

// putReferrer adds a manifest to the referrers list of its subject.
func (r *repoTx) putReferrer(subject registry.Digest, m registry.Descriptor, refs registry.References) error {
	key := referrerKey(subject, m.Digest)
	if v := r.referrers.Get(key); v != nil {
		if _, err := decodeReferrer(v); err == nil {
			return nil
		}
	}
	row := referrerRow{descriptor: registry.ReferrerDescriptor(m, refs)}
	var err error
	if row.seq, err = r.t.nextSeq(changeRow{kind: changeReferrer, repo: r.name, subject: subject, digest: m.Digest}); err != nil {
		return err
	}
	value, err := row.encode()
	if err != nil {
		return err
	}
	return r.t.put(r.referrers, key, value)
}

func referrerKey(subject, d registry.Digest) []byte {
	return slices.Concat(digestKey(subject), digestKey(d))
}

// removeReferrer takes a manifest out of the referrers list of its subject. While that is here, a tombstone tells of it;
// otherwise it goes below with its subject.
func (r *repoTx) removeReferrer(subject, d registry.Digest) error {
	key := referrerKey(subject, d)
	if row, err := decodeReferrer(r.referrers.Get(key)); err == nil {
		if err := r.t.remove(r.t.Bucket(bucketChanges), seqKey(row.seq)); err != nil {
			return err
		}
	}
	if _, err := r.manifest(subject); err == nil {
		if _, err := r.t.nextSeq(changeRow{kind: changeUnrefer, repo: r.name, subject: subject, digest: d}); err != nil {
			return err
		}
	}
	return r.t.remove(r.referrers, key)
}
