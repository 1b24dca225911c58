package store

import (
	"bytes"
	"context"
	"errors"
	"time"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// referrersAgain is when a client is to ask again that could not be told what refers to a manifest.
const referrersAgain = 5 * time.Second

// page collects keys after "after", at most limit, in the order of the bucket, which is lexical.
func page(b *bbolt.Bucket, after string, limit int) []string {
	limit = min(max(limit, 1), registry.MaxPage)
	c := b.Cursor()
	k, _ := c.First()
	if after != "" {
		if k, _ = c.Seek([]byte(after)); k != nil && string(k) == after {
			k, _ = c.Next()
		}
	}
	var keys []string
	for ; k != nil && len(keys) < limit; k, _ = c.Next() {
		keys = append(keys, string(k))
	}
	return keys
}

// Repositories implements registry.Lister.
func (s *Store) Repositories(ctx context.Context, after string, limit int) (names []string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.view(func(t *tx) error {
		names = page(t.Bucket(bucketRepos), after, limit)
		return nil
	})
	return names, err
}

// Tags implements registry.Lister.
func (s *Store) Tags(ctx context.Context, repo, after string, limit int) (tags []string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.view(func(t *tx) error {
		r, err := t.repo(repo)
		if err == nil {
			tags = page(r.tags, after, limit)
		}
		return err
	})
	return tags, err
}

// Referrers implements registry.Lister. A list is whole, or it is an error: who takes it for whole would take an image for
// unsigned.
//
// Errors: UNAVAILABLE for a row that cannot be read, and for a subject that is not here while the names of the volume may
// not be complete.
func (s *Store) Referrers(ctx context.Context, repo string, d registry.Digest, artifactType string) (list []registry.Descriptor, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.view(func(t *tx) error {
		r, err := t.repo(repo)
		if errors.Is(err, registry.ErrNameUnknown) && !s.recovering.Load() {
			return nil // an unknown subject has none
		}
		if err != nil {
			return unreadable(err)
		}
		if s.recovering.Load() && r.manifests.Get(digestKey(d)) == nil {
			return unreadable(nil)
		}
		prefix := digestKey(d)
		c := r.referrers.Cursor()
		for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
			digest, ok := keyDigest(k[len(prefix):])
			row, err := decodeReferrer(v)
			if !ok || err != nil {
				s.log.Error("index row is damaged", "repository", repo, "subject", d.String())
				s.suspect()
				return unreadable(err)
			}
			row.descriptor.Digest = digest
			if artifactType == "" || row.descriptor.ArtifactType == artifactType {
				list = append(list, row.descriptor)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// unreadable is the answer where nobody knows what refers to a manifest.
func unreadable(err error) error {
	return registry.ErrUnavailable.WithMessage("what refers to this manifest cannot be told while the index of the data volume is repaired").
		WithRetryAfter(referrersAgain).Wrap(err)
}
