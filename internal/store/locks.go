package store

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Kinds of a key of the bucket of locks, behind the repository and a zero byte. The repository itself has an empty rest.
const (
	lockTag      = "t"
	lockManifest = "m"
)

func lockKey(repo string, ref registry.Reference) []byte {
	key := append([]byte(repo), 0)
	switch {
	case ref.Digest != "":
		return append(append(key, lockManifest...), digestKey(ref.Digest)...)
	case ref.Tag != "":
		return append(append(key, lockTag...), ref.Tag...)
	}
	return key
}

func encodeLock(a registry.Attributes) []byte {
	return putInt(nil, bit(a.NoDelete, 1)|bit(a.NoWrite, 2)|bit(a.NoRead, 4)|bit(a.NoList, 8))
}

func decodeLock(b []byte) (registry.Attributes, error) {
	r := reader{b: b}
	v := r.uint()
	return registry.Attributes{NoDelete: v&1 != 0, NoWrite: v&2 != 0, NoRead: v&4 != 0, NoList: v&8 != 0}, r.err()
}

// addLock puts one row into the locks of its repository. A row that cannot be read locks: what somebody protected is not
// lost to a flipped bit.
func addLock(into map[string]*registry.Locks, key, value []byte) {
	name, rest, ok := bytes.Cut(key, []byte{0})
	if !ok {
		return
	}
	a, err := decodeLock(value)
	if err != nil {
		a = registry.Attributes{NoDelete: true, NoWrite: true}
	}
	l := into[string(name)]
	if l == nil {
		l = &registry.Locks{Tags: map[string]registry.Attributes{}, Manifests: map[registry.Digest]registry.Attributes{}}
		into[string(name)] = l
	}
	switch tag, isTag := strings.CutPrefix(string(rest), lockTag); {
	case len(rest) == 0:
		l.Repository = a
	case isTag:
		l.Tags[tag] = a
	default:
		if d, ok := keyDigest(rest[1:]); ok {
			l.Manifests[d] = a
		}
	}
}

// locks reads the locks of the repository; nil for none, which costs one look into the index.
func (r *repoTx) locks() *registry.Locks {
	b := r.t.Bucket(bucketLocks)
	if b == nil {
		return nil
	}
	found := map[string]*registry.Locks{}
	prefix := lockKey(r.name, registry.Reference{})
	c := b.Cursor()
	for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		addLock(found, k, v)
	}
	return found[r.name]
}

// allLocks reads the locks of all repositories.
func (t *tx) allLocks() map[string]*registry.Locks {
	found := map[string]*registry.Locks{}
	if b := t.Bucket(bucketLocks); b != nil {
		_ = b.ForEach(func(k, v []byte) error { addLock(found, k, v); return nil })
	}
	return found
}

// loadLocks takes the locks of the index into memory.
func (s *Store) loadLocks(t *tx) {
	all := t.allLocks()
	s.locked.Store(&all)
}

// Locks returns what is locked in a repository; nil for nothing. It reads memory only, and nobody may change the result.
func (s *Store) Locks(repo string) *registry.Locks {
	all := s.locked.Load()
	if all == nil {
		return nil
	}
	return (*all)[repo]
}

// dropLock forgets the attributes of what is gone.
func (r *repoTx) dropLock(ref registry.Reference) error {
	b := r.t.Bucket(bucketLocks)
	if b == nil {
		return nil
	}
	key := lockKey(r.name, ref)
	r.t.relock = r.t.relock || b.Get(key) != nil
	return r.t.remove(b, key)
}

// SetAttributes changes the attributes of a tag, a manifest or, with a zero ref, the repository, durably.
// Errors: NAME_UNKNOWN, MANIFEST_UNKNOWN.
func (s *Store) SetAttributes(ctx context.Context, repo string, ref registry.Reference, change registry.AttributeChange) error {
	return s.update(ctx, func(t *tx) error {
		r, err := t.repo(repo)
		if err != nil {
			return err
		}
		switch {
		case ref.Digest != "":
			_, err = r.manifest(ref.Digest)
		case ref.Tag != "":
			_, err = r.tag(ref.Tag)
		}
		if err != nil {
			return err
		}
		l := r.locks()
		var old registry.Attributes
		switch {
		case ref.Digest != "":
			old = l.Manifest(ref.Digest)
		case ref.Tag != "":
			old = l.Tag(ref.Tag)
		default:
			old = l.Of()
		}
		next := change.Apply(old)
		if next == old {
			return nil
		}
		if next == (registry.Attributes{}) {
			return r.dropLock(ref)
		}
		b, err := t.makeBucket(nil, bucketLocks)
		if err != nil {
			return err
		}
		t.relock = true
		return t.put(b, lockKey(repo, ref), encodeLock(next))
	})
}

// mayMove refuses to point a locked tag elsewhere, and anything new in a locked repository.
func (r *repoTx) mayMove(tag string, d registry.Digest) error {
	l := r.locks()
	if l == nil {
		return nil
	}
	old, err := r.tag(tag)
	switch {
	case err == nil && old.digest == d:
		return nil
	case l.Of().NoWrite, err == nil && l.Tag(tag).NoWrite:
		return r.refuse("tag", tag)
	}
	return nil
}

// mayPush refuses a manifest in a locked repository, and one under a locked tag. What is there already is no change.
func (r *repoTx) mayPush(tag string, d registry.Digest) error {
	if tag != "" {
		return r.mayMove(tag, d)
	}
	if r.locks().Of().NoWrite && r.manifests.Get(digestKey(d)) == nil {
		return r.refuse("manifest", d.String())
	}
	return nil
}

// mayUntag refuses to remove a locked tag.
func (r *repoTx) mayUntag(tag string) error {
	if l := r.locks(); l.Of().Fixed() || l.Tag(tag).Fixed() {
		return r.refuse("tag", tag)
	}
	return nil
}

// mayDelete refuses to delete a manifest that is locked, that a locked tag points at, or that belongs to an index for
// which one of these is true.
func (r *repoTx) mayDelete(d registry.Digest) error {
	l := r.locks()
	if l == nil {
		return nil
	}
	fixed := r.fixed(l)
	if fixed == nil || fixed[d] {
		return r.refuse("manifest", d.String())
	}
	return nil
}

// mayUnlink refuses to take away a blob that a locked image needs.
func (r *repoTx) mayUnlink(d registry.Digest) error {
	l := r.locks()
	if l == nil {
		return nil
	}
	fixed := r.fixed(l)
	if fixed == nil {
		return r.refuse("blob", d.String())
	}
	for m := range fixed {
		row, err := r.manifest(m)
		if err == nil && slices.ContainsFunc(row.blobs, func(b target) bool { return b.digest == d }) {
			return r.refuse("blob", d.String())
		}
	}
	return nil
}

// fixed returns the manifests that nobody may delete: locked ones, those of locked tags, and what is below them. nil is
// all of them.
func (r *repoTx) fixed(l *registry.Locks) map[registry.Digest]bool {
	if l.Of().Fixed() {
		return nil
	}
	queue := []registry.Digest{}
	for d, a := range l.Manifests {
		if a.Fixed() {
			queue = append(queue, d)
		}
	}
	for tag, a := range l.Tags {
		if row, err := r.tag(tag); err == nil && a.Fixed() {
			queue = append(queue, row.digest)
		}
	}
	all := map[registry.Digest]bool{}
	for ; len(queue) > 0; queue = queue[1:] {
		if d := queue[0]; !all[d] {
			all[d] = true
			row, err := r.manifest(d)
			if err != nil {
				continue // gone, or an index whose child never came
			}
			for _, c := range row.children {
				queue = append(queue, c.digest)
			}
		}
	}
	return all
}

// refuse is ACR's answer, with what it is about.
func (r *repoTx) refuse(what, name string) error {
	return registry.ErrLocked.WithDetail(map[string]string{"repository": r.name, what: name})
}

// DeleteRepository removes a repository with all that is in it, in one step, and says what that was. Its content is
// freed by garbage collection. Errors: NAME_UNKNOWN; REGISTRY_DISALLOWED_OPERATION when anything in it is locked.
func (s *Store) DeleteRepository(ctx context.Context, repo string) (manifests []registry.Digest, tags []string, err error) {
	err = s.update(ctx, func(t *tx) error {
		manifests, tags = nil, nil
		r, err := t.repo(repo)
		if err != nil {
			return err
		}
		if l := r.locks(); l != nil {
			if fixed := r.fixed(l); fixed == nil || len(fixed) > 0 {
				return r.refuse("locked", repo)
			}
		}
		rows, err := r.rows()
		if err != nil {
			return err
		}
		for tag := range r.tagRows() {
			tags = append(tags, tag)
		}
		slices.Sort(tags)
		if err := r.queueDeleteAll(rows, principal(ctx)); err != nil {
			return err
		}
		for _, tag := range tags {
			if err := r.removeTag(tag); err != nil {
				return err
			}
		}
		for _, d := range slices.Sorted(maps.Keys(rows)) {
			if err := r.removeManifest(d, rows[d]); err != nil {
				return err
			}
			manifests = append(manifests, d)
		}
		return r.removeRepo()
	})
	return manifests, tags, err
}

// removeRepo removes the bucket of a repository whose tags and manifests are gone, and its attributes.
func (r *repoTx) removeRepo() error {
	if err := r.dropLock(registry.Reference{}); err != nil {
		return err
	}
	r.t.counts.repositories--
	return r.t.dropBucket(r.t.Bucket(bucketRepos), []byte(r.name))
}
