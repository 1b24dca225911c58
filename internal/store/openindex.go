package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bberrors "go.etcd.io/bbolt/errors"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// index is an index file in use.
type index struct {
	db    *bbolt.DB
	file  *os.File    // has the lock of the data directory
	stuck atomic.Bool // bbolt panicked with the lock of its writers: it is held for ever
	freed atomic.Bool // the lock of the directory was given back already
	asked bool        // whether it is covered; under writing
}

// free gives the lock of the directory back; what is mapped stays readable.
func (ix *index) free() {
	if ix.freed.CompareAndSwap(false, true) {
		_ = syscall.Flock(int(ix.file.Fd()), syscall.LOCK_UN) // the map keeps the lock of a closed file
		_ = ix.file.Close()
	}
}

// inPlace reports an index that is not the file of that name any more, or shorter than it was.
func (ix *index) inPlace(path string, size int64) error {
	info, err := ix.file.Stat()
	switch {
	case err != nil:
		return err
	case !isAt(ix.file, path):
		return errors.New("another file has taken its place, or none")
	case info.Size() < size:
		return fmt.Errorf("its file has %d bytes, and had %d", info.Size(), size)
	}
	return nil
}

// close ends it.
func (ix *index) close() error {
	var err error
	if ix.stuck.Load() {
		ix.free()
	} else {
		err = guard(ix.db.Close)
	}
	if ix.freed.Load() {
		return nil // bbolt minds that its file is closed
	}
	return err
}

// opened is how an index came into use.
type opened struct {
	fresh    bool // it is new
	copied   bool // it is made of a snapshot
	restored bool // and what it lacks is not known
	replayed int  // transactions that its log brought back
	logs     []redoLog
}

// openIndex locks, checks and opens the index. Whatever is wrong with its bytes, a snapshot with what the log adds to it
// takes its place, or a new one. An index that lacks transactions below atLeast is none.
func (s *Store) openIndex(ctx context.Context, atLeast uint64) (how opened, err error) {
	f, err := s.lockIndex(ctx)
	if err != nil {
		return how, err
	}
	info, err := f.Stat()
	if err != nil {
		return how, errors.Join(err, f.Close())
	}
	first := s.readRedo(redoNames[0])
	second := sync.OnceValue(func() redoLog { return s.readRedo(redoNames[1]) })
	if !first.ended {
		go second()
	}
	size, seen := info.Size(), mark{}
	switch {
	case s.distrusted.Swap(false):
		err = damaged("it could not be synced")
	case size > 0:
		seen, err = s.examine(f, size)
	case s.hasSnapshot():
		err = damaged("it is empty")
	}
	how.fresh = size == 0
	logs := []redoLog{first, {unread: true}}
	if err != nil || !first.ended || seen.seq != first.last {
		logs[1] = second()
	}
	if err == nil {
		err = s.openBolt(f, &how, logs)
	} else if !errors.Is(err, errDamaged) {
		_ = f.Close()
	}
	if err == nil {
		err = s.reaches(atLeast, logs)
	}
	if err == nil {
		if s.loose(seen.size-seen.used, seen.size) {
			err = s.compacted(seen.size, seen.used)
		}
		return how, err
	}
	if !errors.Is(err, errDamaged) {
		return how, err
	}
	logs[1] = second()
	if name := s.standInAfter(atLeast, logs); name != "" {
		s.log.Info("the power failed or the process was killed: the index is made again from its snapshot and its log", "reason", err)
		if how, err = s.remakeIndex(ctx, f, name, logs); err == nil || !errors.Is(err, errDamaged) {
			return how, err
		}
	}
	s.log.Error("the index is damaged: it is set aside and made again from its snapshot, its log and the content", "error", err)
	for i, name := range append(slices.Concat(snapshotNames, snapshotNames), "") {
		if i == len(snapshotNames) {
			logs = nil // they do not fit
		}
		if how, err = s.replaceIndex(ctx, f, name, logs); err == nil || !errors.Is(err, errDamaged) && !isAbsent(err) {
			return how, err
		}
		if !isAbsent(err) {
			s.log.Error("a snapshot of the index cannot be used", "snapshot", name, "error", err)
		}
	}
	return how, err
}

// reaches reports an index that lacks transactions: of this process, or of logs.
func (s *Store) reaches(atLeast uint64, logs []redoLog) error {
	for _, l := range logs {
		if l.at > 0 && !l.old {
			atLeast = max(atLeast, l.last)
		}
	}
	if last := s.sealed.Load(); last < atLeast {
		return damaged("it ends with transaction %d, and %d was the last", last, atLeast)
	}
	return nil
}

// standInAfter names the snapshot that an index is made again from where that is nothing unusual: the process did not end
// in order, and its log is whole.
func (s *Store) standInAfter(atLeast uint64, logs []redoLog) string {
	if atLeast > 0 || !logs[0].working() || !logs[0].cut {
		return ""
	}
	name, _ := s.standIn([]span{logs[0].span(), logs[1].span()})
	return name
}

// remakeIndex writes a snapshot over the index, whose blocks it needs where the volume is full, and adds what the logs have.
// A power cut in the middle leaves what the next start does this with again.
func (s *Store) remakeIndex(ctx context.Context, old *os.File, name string, logs []redoLog) (how opened, err error) {
	_ = old.Close()
	if ix := s.index.Load(); ix != nil { // it lacks transactions; nobody reads from it yet
		_ = ix.close()
	}
	for {
		f, err := s.lockIndex(ctx)
		if err != nil {
			return how, err
		}
		if err = s.overwrite(f, name); err != nil {
			_ = f.Close()
		} else {
			how = opened{copied: true, logs: logs}
			err = s.openBolt(f, &how, logs)
		}
		if err == nil {
			err = s.reaches(0, logs)
		}
		if !isFull(err) || !s.releaseReserve() {
			return how, err
		}
	}
}

// overwrite writes a snapshot over a file.
func (s *Store) overwrite(f *os.File, name string) error {
	p, err := s.unpack(s.path(name), io.NewOffsetWriter(f, 0))
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(p.size), f.Sync())
}

// replaceIndex sets the index aside and opens one that is made of a snapshot, or a new one for an empty name. old is the
// file of the damaged index: it holds its lock until the new one is locked, so that no other process slips in between.
func (s *Store) replaceIndex(ctx context.Context, old *os.File, name string, logs []redoLog) (how opened, err error) {
	if name != "" {
		if info, err := s.fs.Lstat(s.path(name)); err != nil || !info.Mode().IsRegular() {
			return how, os.ErrNotExist
		}
	}
	if err := s.setAside(); err != nil && !isAbsent(err) {
		return how, errors.Join(err, old.Close())
	}
	how = opened{fresh: name == "", copied: name != "", restored: name != ""}
	if name != "" {
		if err := s.copySnapshot(s.path(name)); err != nil {
			return how, err
		}
	}
	f, err := s.lockIndex(ctx)
	_ = old.Close()
	if err != nil {
		return how, err
	}
	if err := s.openBolt(f, &how, logs); err != nil {
		return how, err
	}
	if how.restored {
		s.log.Warn("the index was damaged: its snapshot is used, with what its log has of the time after it; content without a row is looked for",
			"snapshot", name, "transactions", how.replayed)
	}
	return how, nil
}

// compacted makes an open index smaller.
func (s *Store) compacted(size, used int64) error {
	ix := s.index.Load()
	f, err := s.compact(ix.db, size-used, size)
	if err != nil {
		s.log.Warn("the index could not be made smaller", "error", err)
		return nil
	}
	s.marked = mark{}
	if err := ix.db.Close(); err != nil {
		return errors.Join(err, f.Close())
	}
	return s.openBolt(f, &opened{}, nil)
}

// lockIndex opens the index file and waits for its lock, for LockTimeout at most.
func (s *Store) lockIndex(ctx context.Context) (*os.File, error) {
	path := s.path(indexName)
	timeout := time.NewTimer(s.opts.LockTimeout)
	defer timeout.Stop()
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil && isAt(f, path) {
			return f, nil
		}
		_ = f.Close()
		if err == nil { // renamed by the process that had the lock
			continue
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, err
		}
		again := time.NewTimer(lockInterval)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timeout.C:
			return nil, registry.ErrUnavailable.WithMessage("another process uses the data volume %s: stop it, or give this one a volume of its own", s.dir)
		case <-again.C:
		}
	}
}

// isAt reports whether an open file is what the path names.
func isAt(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Lstat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// setAside renames a damaged index to the next free number, and keeps a few of them.
func (s *Store) setAside() error {
	const prefix = indexName + ".corrupt-"
	list, err := s.fs.ReadDir(s.dir, 0)
	if err != nil {
		return err
	}
	var numbers []int
	for _, e := range list {
		if n, err := strconv.Atoi(strings.TrimPrefix(e.Name(), prefix)); err == nil && strings.HasPrefix(e.Name(), prefix) {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	next := 1
	if len(numbers) > 0 {
		next = numbers[len(numbers)-1] + 1
	}
	if err := s.fs.Rename(s.path(indexName), s.path(prefix+strconv.Itoa(next))); err != nil {
		return err
	}
	for len(numbers) >= keptDamaged {
		_ = s.fs.Remove(s.path(prefix + strconv.Itoa(numbers[0])))
		numbers = numbers[1:]
	}
	return s.fs.SyncDir(s.dir)
}

// openBolt hands the locked file to bbolt, adds what the logs have beyond it, and brings its schema up to date. It owns
// f. Errors: errDamaged.
func (s *Store) openBolt(f *os.File, how *opened, logs []redoLog) error {
	var db *bbolt.DB
	err := guard(func() (err error) {
		if db, err = bbolt.Open(s.path(indexName), 0o600, boltOptions(f, s.opts.LockTimeout)); err != nil {
			return err
		}
		if how.replayed, err = replay(db, logs, how.copied); errors.Is(err, errDamaged) && !how.copied {
			s.log.Error("the log of the index does not fit it and is not used", "error", err)
			err = nil
		}
		if err != nil {
			return err
		}
		how.logs = logs
		if err := migrate(db, s.randomID(), s.dir, s.opts.migrations); err != nil {
			return err
		}
		return s.load(db)
	})
	if err == nil && how.fresh {
		err = s.fs.SyncDir(s.dir)
	}
	switch {
	case err == nil:
		s.covered.Store(false)
		s.index.Store(&index{db: db, file: f})
		return nil
	case errors.Is(err, bberrors.ErrInvalid), errors.Is(err, bberrors.ErrChecksum), errors.Is(err, bberrors.ErrVersionMismatch):
		err = errors.Join(errDamaged, err)
	case db != nil && !errors.Is(err, errDamaged):
		return errors.Join(err, db.Close())
	}
	_ = f.Close() // a database that panicked may hold its own locks for ever: only its file is closed
	return err
}

// settle makes what was opened the index of this process: a restored one gets a name of its own, the log goes on or
// begins anew.
func (s *Store) settle(ctx context.Context, how opened) error {
	var end seal
	if err := s.view(func(t *tx) error { end, _ = readSeal(t.Tx); return nil }); err != nil {
		return err
	}
	s.writing.Lock()
	s.resume(how.logs, end)
	none := s.redo == nil
	s.writing.Unlock()
	if len(how.logs) > 0 && !how.logs[0].ended {
		if err := s.restoreKept(how.logs); err != nil {
			return err
		}
	}
	if how.restored {
		if err := s.update(ctx, s.renew); err != nil {
			return err
		}
		s.recovering.Store(true)
	}
	if none {
		s.lacking.Store(true)
	}
	if none && !s.recovering.Load() {
		if err := s.Snapshot(ctx); err != nil {
			s.log.Warn("there is no snapshot of the index yet", "error", err)
		}
	}
	return nil
}

// renew makes a restored index another one: cursors of children that saw what the log does not have do not fit it. Files
// that it does not know are looked for.
func (s *Store) renew(t *tx) error {
	meta, id := t.Bucket(bucketMeta), s.randomID()
	if err := errors.Join(t.put(meta, keyInstanceID, []byte(id)), t.put(meta, keyRecovering, []byte{1})); err != nil {
		return err
	}
	s.id.Store(&id)
	return nil
}

// endIndex closes the index and its log.
func (s *Store) endIndex() error {
	s.endRedo()
	if ix := s.index.Load(); ix != nil {
		return ix.close()
	}
	return nil
}

// load reads what the store keeps in memory. An index without a single blob beside content is not believed: bbolt opens
// an emptied file as an empty database.
func (s *Store) load(db *bbolt.DB) error {
	return db.View(func(btx *bbolt.Tx) error {
		meta := btx.Bucket(bucketMeta)
		id := string(meta.Get(keyInstanceID))
		last, ok := readSeal(btx)
		if !ok || len(id) != 32 {
			return errDamaged
		}
		s.id.Store(&id)
		s.sealed.Store(last.seq)
		s.indexSize.Store(btx.Size())
		c := decodeCounts(meta.Get(keyCounts))
		s.counts.Store(&c)
		s.loadLocks(&tx{Tx: btx, s: s})
		if err := s.loadOutbox(&tx{Tx: btx, s: s}); err != nil {
			return err
		}
		recovering := meta.Get(keyRecovering) != nil
		if first, _ := btx.Bucket(bucketBlobs).Cursor().First(); first == nil && !recovering {
			var err error
			if recovering, err = s.hasContent(); err != nil {
				return err
			}
		}
		s.recovering.Store(recovering)
		if recovering {
			s.log.Warn("the index is being rebuilt from the content; tags come back from the parent")
		}
		return nil
	})
}

// boltOptions has no NoSync in a release: that comes once the index is covered. The free list is not written, which saves a quarter of the bytes of a small commit; it
// is found again at start, by a walk that inspectIndex has made safe.
func boltOptions(f *os.File, timeout time.Duration) *bbolt.Options {
	maxSize := int64(8) << 30
	if strconv.IntSize == 32 {
		maxSize = 512 << 20 // the address space holds the map and, while it grows, a second one
	}
	given := false
	return &bbolt.Options{
		Timeout:         timeout,
		NoSync:          omitIndexSync,
		NoFreelistSync:  true,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: 1 << 20,
		MaxSize:         int(maxSize),
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			if given {
				return os.OpenFile(name, flag, mode)
			}
			given = true
			return f, nil
		},
	}
}
