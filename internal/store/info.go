package store

import (
	"context"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// RepositoryInfo describes a repository. Errors: NAME_UNKNOWN.
func (s *Store) RepositoryInfo(ctx context.Context, repo string) (info registry.RepositoryInfo, err error) {
	err = s.inRepo(ctx, repo, func(r *repoTx) error {
		info = registry.RepositoryInfo{Name: repo, Attributes: r.locks().Of()}
		var oldest, newest int64
		see := func(created, updated int64) {
			if oldest == 0 || created < oldest {
				oldest = created
			}
			newest = max(newest, updated)
		}
		for _, row := range r.tagRows() {
			info.Tags++
			see(row.created, row.at)
		}
		rows, err := r.rows()
		for _, row := range rows {
			info.Manifests++
			see(row.created, max(row.created, row.loose))
		}
		info.Created, info.Updated = instant(oldest), instant(newest)
		return err
	})
	return info, err
}

// TagInfos describes the tags of a repository in lexical order, from the one after "after" on; limit 0 takes all.
// Errors: NAME_UNKNOWN.
func (s *Store) TagInfos(ctx context.Context, repo, after string, limit int) (list []registry.TagInfo, err error) {
	err = s.inRepo(ctx, repo, func(r *repoTx) error {
		locks := r.locks()
		forward(r.tags, []byte(after), limit, func(k, v []byte) bool {
			row, err := decodeTag(v)
			if err == nil {
				list = append(list, row.info(string(k), locks))
			}
			return err == nil
		})
		return nil
	})
	return list, err
}

// TagInfo describes one tag. Errors: NAME_UNKNOWN, MANIFEST_UNKNOWN.
func (s *Store) TagInfo(ctx context.Context, repo, tag string) (info registry.TagInfo, err error) {
	err = s.inRepo(ctx, repo, func(r *repoTx) error {
		row, err := r.tag(tag)
		info = row.info(tag, r.locks())
		return err
	})
	return info, err
}

// ManifestInfos describes the manifests of a repository in order of digest, from the one after "after" on; limit 0
// takes all. Errors: NAME_UNKNOWN.
func (s *Store) ManifestInfos(ctx context.Context, repo string, after registry.Digest, limit int) (list []registry.ManifestInfo, err error) {
	var start []byte
	if after != "" {
		if _, err := registry.ParseDigest(after.String()); err != nil {
			return nil, err
		}
		start = digestKey(after)
	}
	err = s.inRepo(ctx, repo, func(r *repoTx) error {
		locks, tags := r.locks(), r.tagsByDigest()
		forward(r.manifests, start, limit, func(k, v []byte) bool {
			d, ok := keyDigest(k)
			row, err := decodeManifest(v)
			if !ok || err != nil {
				return false
			}
			list = append(list, row.info(d, tags, locks))
			return true
		})
		return nil
	})
	return list, err
}

// ManifestInfo describes one manifest. Errors: NAME_UNKNOWN, MANIFEST_UNKNOWN.
func (s *Store) ManifestInfo(ctx context.Context, repo string, d registry.Digest) (info registry.ManifestInfo, err error) {
	err = s.inRepo(ctx, repo, func(r *repoTx) error {
		row, err := r.manifest(d)
		info = row.info(d, r.tagsByDigest(), r.locks())
		return err
	})
	return info, err
}

// inRepo runs fn on a repository in a read transaction.
func (s *Store) inRepo(ctx context.Context, repo string, fn func(*repoTx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.view(func(t *tx) error {
		r, err := t.repo(repo)
		if err != nil {
			return err
		}
		return fn(r)
	})
}

// forward calls fn for the rows after a key until it was true limit times; 0 is for all of them.
func forward(b *bbolt.Bucket, after []byte, limit int, fn func(k, v []byte) bool) {
	c := b.Cursor()
	k, v := c.First()
	if len(after) > 0 {
		if k, v = c.Seek(after); k != nil && slices.Equal(k, after) {
			k, v = c.Next()
		}
	}
	for n := 0; k != nil && (limit <= 0 || n < limit); k, v = c.Next() {
		if fn(k, v) {
			n++
		}
	}
}

// tagRows reads all tags; one that cannot be read is left out.
func (r *repoTx) tagRows() map[string]tagRow {
	rows := map[string]tagRow{}
	_ = r.tags.ForEach(func(k, v []byte) error {
		if row, err := decodeTag(v); err == nil {
			rows[string(k)] = row
		}
		return nil
	})
	return rows
}

func (r tagRow) info(tag string, l *registry.Locks) registry.TagInfo {
	return registry.TagInfo{Name: tag, Digest: r.digest, Created: instant(r.created), Updated: instant(r.at), Attributes: l.Tag(tag)}
}

// tagged is the tags of one manifest.
type tagged struct {
	tags []string
	at   int64 // when one of them was moved last
}

func (r *repoTx) tagsByDigest() map[registry.Digest]tagged {
	all := map[registry.Digest]tagged{}
	for tag, row := range r.tagRows() {
		t := all[row.digest]
		all[row.digest] = tagged{append(t.tags, tag), max(t.at, row.at)}
	}
	return all
}

// info describes a manifest; it was updated last when it came or when a tag came to it or left it.
func (r manifestRow) info(d registry.Digest, byDigest map[registry.Digest]tagged, l *registry.Locks) registry.ManifestInfo {
	t := byDigest[d]
	slices.Sort(t.tags)
	out := registry.ManifestInfo{
		Descriptor: registry.Descriptor{MediaType: r.mediaType, Digest: d, Size: r.size}, ImageSize: r.size, Tags: t.tags,
		Created: instant(r.created), Updated: instant(max(r.created, r.loose, t.at)), Attributes: l.Manifest(d),
	}
	for _, b := range r.blobs {
		out.ImageSize += b.size
	}
	return out
}

// instant is a time of the index.
func instant(unix int64) time.Time { return time.Unix(unix, 0).UTC() }

// maxHolders bounds the repositories that are looked through for one blob.
const maxHolders = 10_000

// BlobHolders names repositories that a blob belongs to, in lexical order, at most limit. Of more than 10,000
// repositories the first are looked at.
func (s *Store) BlobHolders(ctx context.Context, d registry.Digest, limit int) (repos []string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.view(func(t *tx) error {
		if _, ok := t.blob(d); !ok {
			return nil
		}
		key, c := digestKey(d), t.Bucket(bucketRepos).Cursor()
		looked := 0
		for name, _ := c.First(); name != nil && len(repos) < limit && looked < maxHolders; name, _ = c.Next() {
			looked++
			if r, err := t.repo(string(name)); err == nil && r.links.Get(key) != nil {
				repos = append(repos, string(name))
			}
		}
		return nil
	})
	return repos, err
}
