package store

import (
	"context"
	"errors"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// recoverRetry is the pause after a rebuild that the disk did not let through.
const recoverRetry = time.Minute

// recover gives the content of the volume its rows again, by hash. Names and tags come back with synchronisation, which
// finds the content here and fetches none of it. It ends when all is done or the store is closed.
func (s *Store) recover(ctx context.Context) {
	for {
		err := s.rebuild(ctx)
		if err == nil {
			s.log.Info("the index is rebuilt from the content", "blobs", s.counts.Load().blobs)
			s.want() // a snapshot, when there is no log
			return
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Error("the index could not be rebuilt yet", "error", err)
		if clock.Wait(ctx, recoverRetry) != nil {
			return
		}
	}
}

func (s *Store) rebuild(ctx context.Context) error {
	// A process that is killed in the middle goes on at the next start.
	err := s.update(ctx, func(t *tx) error { return t.put(t.Bucket(bucketMeta), keyRecovering, []byte{1}) })
	if err != nil {
		return err
	}
	err = s.eachShard(func(dir string) (bool, error) { return true, s.adoptShard(ctx, dir) })
	if err != nil {
		return err
	}
	err = s.update(ctx, func(t *tx) error { return t.remove(t.Bucket(bucketMeta), keyRecovering) })
	if err == nil {
		s.recovering.Store(false)
	}
	return err
}

// adoptShard gives all files of a shard their rows, in one transaction.
func (s *Store) adoptShard(ctx context.Context, dir string) error {
	list, err := s.unknownFiles(dir)
	if err != nil || len(list) == 0 {
		return err
	}
	sizes := map[registry.Digest]int64{}
	for _, d := range list {
		size, err := s.check(ctx, d)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errDamaged):
			s.log.Warn("a file is not the content of its name and is removed", "digest", d.String())
			if s.content.doom(d) {
				_, _ = s.content.execute(d, func() error { return s.fs.Remove(s.contentPath(d)) })
			}
		case err != nil:
			s.log.Warn("a file cannot be read and stays without a row", "digest", d.String(), "error", err)
		default:
			sizes[d] = size
		}
	}
	if err := s.fs.SyncDir(dir); err != nil {
		return err
	}
	return s.update(ctx, func(t *tx) error {
		for d, size := range sizes {
			if _, known := t.blob(d); known {
				continue
			}
			if err := t.putBlob(d, blobRow{size: size, at: t.now, recovered: true}); err != nil {
				return err
			}
		}
		return nil
	})
}

// check hashes the file of content and makes it durable. Errors: errDamaged for other bytes than the name says.
func (s *Store) check(ctx context.Context, d registry.Digest) (size int64, err error) {
	f, info, err := openStat(s.fs, s.contentPath(d), true)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if !info.Mode().IsRegular() {
		return 0, errDamaged
	}
	alg := d.Algorithm().String()
	got, err := newRunning(alg).sum(ctx, f, alg, info.Size())
	if err != nil {
		return 0, err
	}
	if got != d {
		return 0, errDamaged
	}
	return info.Size(), f.Sync()
}

// adopt gives a file without a row its row, when its bytes are those of its name: a process that was killed between
// the rename and the transaction must not fetch them again.
func (s *Store) adopt(ctx context.Context, d registry.Digest) (size int64, ok bool) {
	if info, err := s.fs.Lstat(s.contentPath(d)); err != nil || !info.Mode().IsRegular() {
		return 0, false
	}
	s.adoptions.Lock()
	defer s.adoptions.Unlock()
	defer s.content.publish(d)()
	var row blobRow
	if err := s.view(func(t *tx) error { row, ok = t.blob(d); return nil }); err != nil || ok {
		return row.size, ok && err == nil // somebody else was faster
	}
	size, err := s.check(ctx, d)
	if err == nil {
		err = s.fs.SyncDir(s.shard(d))
	}
	if err == nil {
		err = s.update(ctx, func(t *tx) error { return t.putBlob(d, blobRow{size: size, at: t.now, fetched: true}) })
	}
	return size, err == nil
}
