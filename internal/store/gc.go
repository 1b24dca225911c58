package store

import (
	"context"
	"encoding/hex"
	"errors"
	"path/filepath"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// sweepBatch bounds the rows of one transaction of a collection.
const sweepBatch = 500

// recoveredTTL is how long content that was found beside a lost index waits for its names: the parent may be away for
// that long.
const recoveredTTL = 90 * 24 * time.Hour

// GCOptions configures a collection.
type GCOptions struct {
	DryRun bool          // count, and change nothing
	Grace  time.Duration // 0 is DefaultGrace; negative takes everything that is not in use at this moment
}

// GCResult is what a collection removed or, in a dry run, would remove.
type GCResult struct {
	Manifests int   // that synchronisation took the last tag of, and what belonged to them
	Blobs     int   // manifests' bytes included
	Bytes     int64 // of all of these on the disk
	Partials  int   // nobody continued them for 7 days
	Uploads   int   // idle for 7 days
	Files     int   // of content without a row, left by a process that was killed, and damaged ones that were set aside
}

// errDryRun undoes the transaction of a dry run.
var errDryRun = errors.New("store: dry run")

// GC frees what nothing refers to. It runs beside pushes, pulls and synchronisation. Blobs and links without a manifest
// are kept for the grace period; content that came from a link and waits for its image is kept as long as a partial.
// Referrers stay with their subject.
//
// Errors: UNAVAILABLE while the index is being rebuilt, CONFLICT while another collection runs, DiskError.
func (s *Store) GC(ctx context.Context, o GCOptions) (res GCResult, err error) {
	if s.recovering.Load() {
		return res, registry.ErrUnavailable.WithMessage("nothing is collected while the index is being rebuilt").WithRetryAfter(time.Minute)
	}
	if !s.gcMu.TryLock() {
		return res, registry.ErrConflict.WithMessage("a garbage collection is running")
	}
	defer s.gcMu.Unlock()
	grace := o.Grace
	if grace == 0 {
		grace = DefaultGrace
	}
	g := &collection{s: s, grace: grace, dryRun: o.DryRun, now: s.clock.Now()}
	s.content.watch(true)
	defer s.content.watch(false)
	if err := g.index(ctx); err != nil {
		return g.res, err
	}
	if err := g.files(ctx); err != nil {
		return g.res, err
	}
	uploads, bytes, err := s.sweepUploads(uploadTTL, o.DryRun)
	if g.res.Uploads, g.res.Bytes = uploads, g.res.Bytes+bytes; err != nil {
		return g.res, err
	}
	if !o.DryRun {
		s.leases.prune(s.uptime(), max(grace, 0))
		s.makeReserve()
	}
	return g.res, nil
}

// watch begins and ends the notes of what is touched while a collection marks and sweeps.
func (c *contentLocks) watch(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.touched = nil
	if on {
		c.touched = map[registry.Digest]struct{}{}
	}
}

// isTouched reports whether d came into use since watch.
func (c *contentLocks) isTouched(d registry.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.touched[d]
	return ok
}

// collection is one run of GC.
type collection struct {
	s      *Store
	grace  time.Duration
	dryRun bool
	evict  bool // manifests that lost their tags do not wait
	now    time.Time
	res    GCResult
}

// expired reports whether something stands since before the grace period. A time in the future was written before the
// clock was set back and says nothing.
func (g *collection) expired(unix int64, grace time.Duration) bool {
	age := g.now.Sub(time.Unix(unix, 0))
	return g.grace < 0 || age >= grace || age < -time.Hour && age <= -grace
}

func (g *collection) leased(d registry.Digest) bool {
	return g.grace >= 0 && g.s.leases.fresh(d, g.s.uptime(), g.grace)
}

// index collects manifests and links repository by repository, then blobs. A dry run does it in one transaction that is
// undone.
func (g *collection) index(ctx context.Context) error {
	var names []string
	err := g.s.view(func(t *tx) error {
		return t.Bucket(bucketRepos).ForEachBucket(func(k []byte) error { names = append(names, string(k)); return nil })
	})
	if err != nil {
		return err
	}
	if g.dryRun {
		var victims []victim
		err := g.s.update(ctx, func(t *tx) (err error) {
			g.res = GCResult{}
			for _, name := range names {
				n, err := g.tidy(t, name)
				if err != nil {
					return err
				}
				g.res.Manifests += n
			}
			if victims, err = g.mark(t); err != nil {
				return err
			}
			t.writes++ // whatever this group wrote is undone with it, and each of the others runs again
			return errDryRun
		})
		for _, v := range victims {
			g.res.Blobs++
			g.res.Bytes += v.size
		}
		if errors.Is(err, errDryRun) {
			return nil
		}
		return err
	}
	for _, name := range names {
		n := 0
		err := g.s.update(ctx, func(t *tx) (err error) { n, err = g.tidy(t, name); return err })
		if err != nil {
			return err
		}
		g.res.Manifests += n
	}
	err = g.s.update(ctx, func(t *tx) error { return t.dropTombstones(maxTombstones) })
	if err != nil {
		return err
	}
	return g.sweep(ctx)
}

// tidy removes the manifests of a repository that are loose since before the grace period, links that no manifest needs,
// and the repository when nothing is left of it.
func (g *collection) tidy(t *tx, name string) (manifests int, err error) {
	r, err := t.repo(name)
	if err != nil {
		return 0, ignoreUnknown(err)
	}
	rows, err := r.rows()
	if err != nil {
		return 0, err
	}
	var roots []registry.Digest
	for d, row := range rows {
		due := row.loose != 0 && g.expired(row.loose, g.grace)
		if row.pushed && due { // the parent did not take it, and its time is over
			row.pushed = false
			rows[d] = row
		}
		if row.loose != 0 && (g.evict || due) && !g.leased(d) {
			roots = append(roots, d)
		}
	}
	if len(roots) > 0 {
		if manifests, err = r.pruneRows(roots, rows); err != nil {
			return 0, err
		}
	}
	if err := g.unlink(r, rows); err != nil {
		return 0, err
	}
	if k, _ := r.manifests.Cursor().First(); k != nil {
		return manifests, nil
	}
	if k, _ := r.links.Cursor().First(); k != nil {
		return manifests, nil
	}
	if r.locks().Of() != (registry.Attributes{}) {
		return manifests, nil // its attributes are for what is pushed to it next
	}
	return manifests, r.removeRepo()
}

func ignoreUnknown(err error) error {
	if errors.Is(err, registry.ErrNameUnknown) {
		return nil
	}
	return err
}

// unlink removes the links that no manifest of the repository needs.
func (g *collection) unlink(r *repoTx, rows map[registry.Digest]manifestRow) error {
	needed := map[registry.Digest]bool{}
	for _, row := range rows {
		for _, b := range row.blobs {
			needed[b.digest] = true
		}
	}
	var stale []registry.Digest
	err := r.links.ForEach(func(k, v []byte) error {
		d, ok := keyDigest(k)
		if !ok {
			return errDamaged
		}
		in := reader{b: v}
		at := in.int()
		if !needed[d] && (in.bad || g.expired(at, g.grace)) && !g.leased(d) {
			stale = append(stale, d)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range stale {
		if err := r.t.remove(r.links, digestKey(d)); err != nil {
			return err
		}
	}
	return nil
}

// victim is a blob that nothing referred to when it was marked.
type victim struct {
	digest registry.Digest
	size   int64
}

// mark lists the blobs that no manifest and no link refers to. A row that cannot be read ends the collection: what it
// refers to is unknown.
func (g *collection) mark(t *tx) ([]victim, error) {
	used := map[string]struct{}{}
	repos := t.Bucket(bucketRepos)
	err := repos.ForEachBucket(func(name []byte) error {
		r, err := t.repo(string(name))
		if err != nil {
			return err
		}
		err = r.manifests.ForEach(func(k, v []byte) error {
			row, err := decodeManifest(v)
			if err != nil {
				return err
			}
			used[string(k)] = struct{}{}
			for _, b := range row.blobs {
				used[string(digestKey(b.digest))] = struct{}{}
			}
			return nil
		})
		if err != nil {
			return err
		}
		return r.links.ForEach(func(k, _ []byte) error { used[string(k)] = struct{}{}; return nil })
	})
	if err != nil {
		return nil, err
	}
	var list []victim
	err = t.Bucket(bucketBlobs).ForEach(func(k, v []byte) error {
		if _, ok := used[string(k)]; ok {
			return nil
		}
		d, ok := keyDigest(k)
		row, err := decodeBlob(v)
		if !ok || err != nil {
			return errDamaged
		}
		if g.expired(row.at, g.graceOf(row)) && !g.leased(d) {
			list = append(list, victim{d, row.size})
		}
		return nil
	})
	return list, err
}

// graceOf is how long a blob without references is kept.
func (g *collection) graceOf(row blobRow) time.Duration {
	switch {
	case row.recovered:
		return max(g.grace, recoveredTTL)
	case row.fetched:
		return max(g.grace, partialTTL)
	}
	return g.grace
}

// sweep marks in a read transaction, then removes rows in short write transactions that check again whether somebody
// came to need the blob, and files after their rows.
func (g *collection) sweep(ctx context.Context) error {
	var victims []victim
	if err := g.s.view(func(t *tx) (err error) { victims, err = g.mark(t); return err }); err != nil {
		return diskError(err)
	}
	for len(victims) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(len(victims), sweepBatch)
		if err := g.sweepBatch(ctx, victims[:n]); err != nil {
			return err
		}
		victims = victims[n:]
	}
	return nil
}

func (g *collection) sweepBatch(ctx context.Context, victims []victim) error {
	s := g.s
	var doomed []victim
	s.sweeping.Lock()
	err := s.update(ctx, func(t *tx) error {
		doomed = nil
		for _, v := range victims {
			if _, ok := t.blob(v.digest); !ok || s.content.isTouched(v.digest) || !s.content.doom(v.digest) {
				continue
			}
			if err := t.remove(t.Bucket(bucketBlobs), digestKey(v.digest)); err != nil {
				return err
			}
			t.counts.blobs--
			t.counts.bytes -= v.size
			doomed = append(doomed, v)
		}
		return nil
	})
	s.sweeping.Unlock()
	if err != nil {
		for _, v := range victims {
			s.content.spare(v.digest)
		}
		return err
	}
	if err := s.step("swept"); err != nil {
		return err
	}
	for _, v := range doomed {
		g.res.Blobs++
		g.res.Bytes += v.size
		if err := g.removeFile(v.digest); err != nil {
			return err
		}
	}
	return nil
}

// removeFile removes the file of doomed content.
func (g *collection) removeFile(d registry.Digest) error {
	removed, err := g.s.content.execute(d, func() error { return g.s.fs.Remove(g.s.contentPath(d)) })
	if removed {
		g.s.cache.remove(d)
	}
	if err != nil && !isAbsent(err) {
		return diskError(err)
	}
	return nil
}

// files removes content files without a row and partials that nobody continues.
func (g *collection) files(ctx context.Context) error {
	err := g.s.eachShard(func(dir string) (bool, error) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		return true, g.orphans(dir)
	})
	if err != nil {
		return diskError(err)
	}
	if err := g.quarantined(); err != nil {
		return diskError(err)
	}
	list, err := g.s.fs.ReadDir(g.s.path(dirPartial), 0)
	if err != nil {
		return diskError(err)
	}
	for _, e := range list {
		if d, ok := partialDigest(e.Name()); ok {
			if err := g.stalePartial(d); err != nil {
				return diskError(err)
			}
		}
	}
	return nil
}

func partialDigest(name string) (registry.Digest, bool) {
	for _, alg := range []string{"sha256", "sha512"} {
		if len(name) > len(alg) && name[:len(alg)] == alg && name[len(alg)] == '-' {
			d, err := registry.ParseDigest(alg + ":" + name[len(alg)+1:])
			return d, err == nil
		}
	}
	return "", false
}

// stalePartial removes a partial that is not open and was not written for partialTTL.
func (g *collection) stalePartial(d registry.Digest) error {
	s := g.s
	s.partialsMu.Lock() // so that nobody opens it in between
	defer s.partialsMu.Unlock()
	if _, open := s.partials[d]; open {
		return nil
	}
	info, err := s.fs.Lstat(s.partialPath(d))
	if err != nil || !g.expired(info.ModTime().Unix(), partialTTL) {
		return nil
	}
	g.res.Partials++
	g.res.Bytes += info.Size()
	if g.dryRun {
		return nil
	}
	return s.fs.Remove(s.partialPath(d))
}

// shardDigest is the digest that a file of a shard must have by its name.
func shardDigest(dir, name string) (registry.Digest, bool) {
	if _, err := hex.DecodeString(name); err != nil || len(name) < 2 || name[:2] != filepath.Base(dir) {
		return "", false
	}
	d, err := registry.ParseDigest(filepath.Base(filepath.Dir(dir)) + ":" + name)
	return d, err == nil
}

// unknownFiles lists the digests of a shard's files that have no row.
func (s *Store) unknownFiles(dir string) (list []registry.Digest, err error) {
	entries, err := s.fs.ReadDir(dir, 0)
	if err != nil {
		return nil, err
	}
	err = s.view(func(t *tx) error {
		for _, e := range entries {
			d, ok := shardDigest(dir, e.Name())
			if !ok {
				continue
			}
			if _, known := t.blob(d); !known {
				list = append(list, d)
			}
		}
		return nil
	})
	return list, err
}

// orphans removes the files of a shard that have no row. What is being published is spared.
func (g *collection) orphans(dir string) error {
	s := g.s
	list, err := s.unknownFiles(dir)
	if err != nil {
		return err
	}
	for _, d := range list {
		info, err := s.fs.Lstat(s.contentPath(d))
		if err != nil || !g.expired(info.ModTime().Unix(), g.grace) || !s.content.doom(d) {
			continue
		}
		known := true
		err = s.view(func(t *tx) error { _, known = t.blob(d); return nil })
		if err != nil || known || g.dryRun {
			s.content.spare(d)
			if err == nil && !known {
				g.res.Files++
				g.res.Bytes += info.Size()
			}
			continue
		}
		g.res.Files++
		g.res.Bytes += info.Size()
		if err := g.removeFile(d); err != nil {
			return err
		}
	}
	return nil
}
