package store

import (
	"context"
	"encoding/binary"
	"maps"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// SetClimbing says whether what clients change here is queued for the parent, durably. When it is switched on, and the
// first time after each start, what clients pushed and no row tells of is queued too, so that neither a change of the mode nor an upgrade
// nor a rebuilt index forgets it. When it is switched off the rows that are there stay.
func (s *Store) SetClimbing(ctx context.Context, on bool) error {
	s.climbing.Store(on)
	err := ctx.Err()
	if !s.already(func(t *tx) bool { return on == (t.Bucket(bucketMeta).Get(keyClimbing) != nil) }) {
		err = s.update(ctx, func(t *tx) error {
			if on {
				return t.put(t.Bucket(bucketMeta), keyClimbing, []byte{1})
			}
			return t.remove(t.Bucket(bucketMeta), keyClimbing)
		})
	}
	if err != nil || !on {
		s.seeded.Store(false)
		return err
	}
	if s.seeded.Load() {
		return nil
	}
	err = s.seedOutbox(ctx)
	s.seeded.Store(err == nil)
	return err
}

// seed is a push that has to be in the outbox.
type seed struct {
	digest registry.Digest
	tag    string // empty: by digest
}

// seedOutbox queues what clients pushed and no row tells of, and takes out rows without their manifest. Without either
// it writes nothing.
func (s *Store) seedOutbox(ctx context.Context) error {
	if err := s.weedOutbox(ctx); err != nil {
		return err
	}
	var repos []string
	err := s.view(func(t *tx) error {
		return t.Bucket(bucketRepos).ForEachBucket(func(k []byte) error { repos = append(repos, string(k)); return nil })
	})
	for _, repo := range repos {
		var seeds []seed
		if err == nil {
			err = s.view(func(t *tx) (err error) { seeds, err = t.seeds(repo); return err })
		}
		for batch := range slices.Chunk(seeds, outboxBatch) {
			if err == nil {
				err = s.update(ctx, func(t *tx) error { return t.plant(repo, batch) })
			}
		}
		if err != nil {
			return err
		}
		if len(seeds) > 0 {
			s.log.Info("what was pushed here is queued for the parent", "repository", repo, "entries", len(seeds))
		}
	}
	return err
}

// seeds lists what a repository lacks in the outbox, content before what refers to it.
func (t *tx) seeds(repo string) ([]seed, error) {
	r, err := t.repo(repo)
	if err != nil {
		return nil, ignoreUnknown(err)
	}
	q, err := t.outbox(false)
	if err != nil {
		return nil, err
	}
	rows, tags := map[registry.Digest]manifestRow{}, map[registry.Digest][]string{}
	err = r.manifests.ForEach(func(k, v []byte) error {
		d, ok := keyDigest(k)
		if row, err := decodeManifest(v); ok && err == nil {
			rows[d] = row
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for tag, row := range r.tagRows() {
		if row.pushed {
			tags[row.digest] = append(tags[row.digest], tag)
		}
	}
	var list []seed
	seen := map[registry.Digest]bool{}
	var visit func(d registry.Digest)
	visit = func(d registry.Digest) {
		row, here := rows[d]
		if !here || seen[d] {
			return
		}
		seen[d] = true
		for _, c := range row.children {
			visit(c.digest)
		}
		visit(row.subject)
		slices.Sort(tags[d])
		for _, tag := range tags[d] {
			if s := (seed{d, tag}); !q.has(repo, s) {
				list = append(list, s)
			}
		}
		if s := (seed{digest: d}); len(tags[d]) == 0 && row.pushed && row.loose == 0 && !q.has(repo, s) {
			list = append(list, s)
		}
	}
	for _, d := range slices.Sorted(maps.Keys(rows)) {
		visit(d)
	}
	return list, nil
}

// has reports whether the outbox has the push.
func (q *outboxTx) has(repo string, s seed) bool {
	if q == nil {
		return false
	}
	if s.tag == "" {
		return len(q.ofDigest(repo, s.digest, rowPush)) > 0
	}
	_, row, ok := q.ofTag(repo, s.tag)
	return ok && row.action == rowPush && row.digest == s.digest
}

// plant queues those of the seeds that still hold.
func (t *tx) plant(repo string, seeds []seed) error {
	r, err := t.repo(repo)
	if err != nil {
		return ignoreUnknown(err)
	}
	q, err := t.outbox(true)
	if err != nil {
		return err
	}
	for _, s := range seeds {
		row, err := r.manifest(s.digest)
		if err != nil || q.has(repo, s) {
			continue
		}
		if here, err := r.tag(s.tag); s.tag != "" && (err != nil || !here.pushed || here.digest != s.digest) {
			continue
		}
		if !row.pushed || row.loose != 0 { // the tag was, so its manifest is kept as it
			row.pushed, row.loose = true, 0
			if err := t.put(r.manifests, digestKey(s.digest), row.encode()); err != nil {
				return err
			}
		}
		m := registry.Descriptor{MediaType: row.mediaType, Digest: s.digest, Size: row.size}
		if err := r.queuePush(s.tag, m, row, ""); err != nil {
			return err
		}
	}
	return nil
}

// weedOutbox takes out rows that cannot be read and pushes of manifests that are not here: an older release, which knows
// no outbox, may have removed them.
func (s *Store) weedOutbox(ctx context.Context) error {
	find := func(t *tx) (bad []uint64, err error) {
		q, err := t.outbox(false)
		if q == nil || err != nil {
			return nil, err
		}
		err = q.entries.ForEach(func(k, v []byte) error {
			row, err := decodeOutbox(v)
			ok := err == nil && len(k) == 8
			if ok && row.action == rowPush {
				var b *bbolt.Bucket
				if r, err := t.repo(row.repo); err == nil {
					b = r.manifests
				}
				ok = b != nil && b.Get(digestKey(row.digest)) != nil
			}
			if !ok && len(k) == 8 {
				bad = append(bad, binary.BigEndian.Uint64(k))
			}
			return nil
		})
		return bad, err
	}
	var bad []uint64
	err := s.view(func(t *tx) (err error) { bad, err = find(t); return err })
	if err != nil || len(bad) == 0 {
		return err
	}
	return s.update(ctx, func(t *tx) error {
		bad, err := find(t)
		if err != nil {
			return err
		}
		q, err := t.outbox(true)
		if err != nil {
			return err
		}
		for _, seq := range bad {
			row, ok := q.row(seq)
			if !ok {
				err = t.remove(q.entries, seqKey(seq))
			} else {
				err = q.remove(seq, row)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}
