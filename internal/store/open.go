package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bberrors "go.etcd.io/bbolt/errors"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	indexName   = "meta.db"
	reserveName = "reserve"
	dirBlobs    = "blobs"
	dirPartial  = "partial"
	dirUploads  = "uploads"

	dirQuarantine = "quarantine"
	keptDamaged   = 3 // damaged indexes that are kept for a look at them
	lockInterval  = 50 * time.Millisecond
)

// Open takes a data directory into use, creating it when it is new. It does not read content: a damaged or emptied
// index beside content is set aside, and the content is adopted in the background (Usage says "recovering").
//
// Errors: UNAVAILABLE when another process uses the directory, DiskError for missing permission, a read-only or full
// volume, UNSUPPORTED for one that a newer release wrote.
func Open(ctx context.Context, dir string, o Options) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("data directory %q: %w", dir, err)
	}
	if o.FS == nil {
		o.FS = OSFS{}
	}
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.LockTimeout <= 0 {
		o.LockTimeout = defaultLockTimeout
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = defaultCacheBytes
	}
	if o.migrations == nil {
		o.migrations = migrations
	}
	if o.uptime == nil {
		o.uptime = clock.Stopwatch()
	}
	s := &Store{
		dir: abs, fs: o.FS, clock: o.Clock, log: o.Logger, opts: o, cache: newCache(o.CacheBytes), uptime: o.uptime,
		changed: make(chan struct{}), journaled: make(chan struct{}), partials: map[registry.Digest]*partial{}, uploads: map[string]*session{},
	}
	s.tempPrefix = tempPrefix + s.randomID()[:8] + "-"
	s.limits.reserve.Store(o.ReserveBytes)
	if err := s.prepare(); err != nil {
		return nil, s.openError(err)
	}
	if err := s.openIndex(ctx); err != nil {
		return nil, s.openError(err)
	}
	s.makeReserve()
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.worker.Go(func() { s.startup(background) })
	return s, nil
}

// startup is the work that Open does not wait for.
func (s *Store) startup(ctx context.Context) {
	if s.recovering.Load() {
		s.recover(ctx)
	}
	if _, err := s.sweepUploads(ctx, false); err != nil && ctx.Err() == nil {
		s.log.Warn("stale uploads were not removed", "error", err)
	}
}

// prepare makes the directories. All shards exist from the first start on, so that a commit never has to make one
// durable.
func (s *Store) prepare() error {
	if err := s.mkdirAll(s.dir); err != nil {
		return err
	}
	made := false
	for _, d := range []string{dirBlobs, dirBlobs + "/sha256", dirBlobs + "/sha512", dirPartial, dirUploads, dirQuarantine} {
		m, err := s.mkdir(s.path(d))
		if err != nil {
			return err
		}
		made = made || m
	}
	shards := s.path(dirBlobs, "sha256")
	list, err := s.fs.ReadDir(shards, 0)
	if err != nil {
		return err
	}
	if len(list) < 256 {
		for i := range 256 {
			if _, err := s.mkdir(filepath.Join(shards, fmt.Sprintf("%02x", i))); err != nil {
				return err
			}
		}
		made = true
	}
	if !made {
		return nil
	}
	for _, d := range []string{shards, s.path(dirBlobs), s.dir} {
		if err := s.fs.SyncDir(d); err != nil {
			return err
		}
	}
	return nil
}

// mkdir makes a directory and refuses anything else in its place, a symbolic link included.
func (s *Store) mkdir(path string) (made bool, err error) {
	info, err := s.fs.Lstat(path)
	if isAbsent(err) {
		return true, s.fs.Mkdir(path)
	}
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a directory", path)
	}
	return false, err
}

// mkdirAll makes the data directory; its own path may have symbolic links, the operator chose them.
func (s *Store) mkdirAll(path string) error {
	info, err := s.fs.Lstat(path)
	switch {
	case err == nil && (info.IsDir() || info.Mode()&os.ModeSymlink != 0):
		return nil
	case err == nil:
		return fmt.Errorf("%s is not a directory", path)
	case !isAbsent(err):
		return err
	}
	parent := filepath.Dir(path)
	if err := s.mkdirAll(parent); err != nil {
		return err
	}
	if err := s.fs.Mkdir(path); err != nil {
		return err
	}
	return s.fs.SyncDir(parent)
}

// openError says what an operator has to do.
func (s *Store) openError(err error) error {
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
		owner := "another user"
		if info, e := s.fs.Lstat(s.dir); e == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				owner = "uid " + strconv.FormatUint(uint64(st.Uid), 10)
			}
		}
		uid := os.Geteuid()
		return registry.ErrDisk.WithMessage("Permission denied: the data volume %s belongs to %s and this process runs as uid %d: "+
			"give it the volume (chown -R %d on the host) or run it as the owner", s.dir, owner, uid, uid).Wrap(err)
	}
	if errors.Is(err, syscall.EROFS) {
		return registry.ErrDisk.WithMessage("Permission denied: the data volume %s is mounted read-only: remount it for writing", s.dir).Wrap(err)
	}
	var e *registry.Error
	if errors.As(err, &e) {
		return err
	}
	err = diskError(err)
	if errors.Is(err, registry.ErrInternal) {
		return registry.ErrUnavailable.WithMessage("the data volume %s cannot be used", s.dir).Wrap(errors.Unwrap(err))
	}
	return err
}

// openIndex locks, checks and opens the index. Whatever is wrong with its bytes, a snapshot or a new one takes its place.
func (s *Store) openIndex(ctx context.Context) error {
	f, err := s.lockIndex(ctx)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	size, used := info.Size(), int64(0)
	switch {
	case size > 0:
		used, err = measureIndex(f, size)
	case s.hasSnapshot():
		err = damaged("it is empty")
	}
	if err == nil {
		err = s.openBolt(f, indexState{fresh: size == 0})
	}
	if err == nil {
		return s.compacted(ctx, size, used)
	}
	if !errors.Is(err, errDamaged) {
		return err
	}
	// The lock of the damaged file is held until the new one is locked, so that no other process slips in between.
	s.log.Error("the index is damaged: it is set aside and rebuilt from the content", "error", err)
	if err := s.setAside(); err != nil {
		return errors.Join(err, f.Close())
	}
	restored := s.restoreSnapshot()
	g, err := s.lockIndex(ctx)
	_ = f.Close()
	if err != nil {
		return err
	}
	err = s.openBolt(g, indexState{fresh: !restored, restored: restored})
	if !restored || !errors.Is(err, errDamaged) {
		return err
	}
	// What the walk did not see, bbolt or the schema did.
	if err := s.setAside(); err != nil {
		return err
	}
	if g, err = s.lockIndex(ctx); err != nil {
		return err
	}
	return s.openBolt(g, indexState{fresh: true})
}

// compacted makes an open index smaller when that is worth it.
func (s *Store) compacted(ctx context.Context, size, used int64) error {
	done, err := s.compact(size-used, size)
	if err != nil {
		s.log.Warn("the index could not be made smaller", "error", err)
	}
	if !done {
		return nil
	}
	if err := s.db.Close(); err != nil {
		return err
	}
	f, err := s.lockIndex(ctx)
	if err != nil {
		return err
	}
	return s.openBolt(f, indexState{})
}

// indexState is what is known of an index before it is opened.
type indexState struct {
	fresh    bool // it is a new file
	restored bool // it is a snapshot
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

// openBolt hands the locked file to bbolt and brings its schema up to date. It owns f. Errors: errDamaged.
func (s *Store) openBolt(f *os.File, is indexState) error {
	id := s.randomID()
	err := guard(func() (err error) {
		if s.db, err = bbolt.Open(s.path(indexName), 0o600, boltOptions(f, s.opts.LockTimeout)); err != nil {
			return err
		}
		if err := migrate(s.db, id, s.dir, s.opts.migrations); err != nil {
			return err
		}
		if is.restored {
			if err := renew(s.db, id); err != nil {
				return err
			}
		}
		return s.load()
	})
	if err == nil && is.fresh {
		err = s.fs.SyncDir(s.dir)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bberrors.ErrInvalid), errors.Is(err, bberrors.ErrChecksum), errors.Is(err, bberrors.ErrVersionMismatch):
		err = errors.Join(errDamaged, err)
	case s.db != nil && !errors.Is(err, errDamaged):
		return errors.Join(err, s.db.Close())
	}
	s.db = nil
	_ = f.Close() // a database that panicked may hold its own locks for ever: only its file is closed
	return err
}

// load reads what the store keeps in memory. An index without a single blob beside content is not believed: bbolt opens
// an emptied file as an empty database.
func (s *Store) load() error {
	return s.db.View(func(btx *bbolt.Tx) error {
		meta := btx.Bucket(bucketMeta)
		s.id = string(meta.Get(keyInstanceID))
		if len(s.id) != 32 {
			return errDamaged
		}
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

// boltOptions never has NoSync in a release. The free list is not written, which saves a quarter of the bytes of a small commit; it
// is found again at start, by a walk that verifyIndex has made safe.
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

// hasContent reports whether any content is on the volume.
func (s *Store) hasContent() (bool, error) {
	found := false
	err := s.eachShard(func(dir string) (bool, error) {
		list, err := s.fs.ReadDir(dir, 1)
		found = len(list) > 0
		return !found, err
	})
	return found, err
}

// makeReserve takes blocks that releaseReserve gives back to a full volume. Without room there is none.
func (s *Store) makeReserve() {
	path := s.path(reserveName)
	if _, err := s.fs.Lstat(path); err == nil {
		return
	}
	free, err := s.fs.Free(s.dir)
	if err != nil || free < 16*reserveSize || free-reserveSize < s.limits.reserve.Load() {
		return
	}
	f, err := s.fs.Create(path)
	if err != nil {
		return
	}
	if err := s.fs.Reserve(f, reserveSize); err != nil {
		_ = s.fs.Remove(path)
	}
	_ = f.Close()
}

// releaseReserve reports whether there was a reserve to give back.
func (s *Store) releaseReserve() bool {
	if err := s.fs.Remove(s.path(reserveName)); err != nil {
		return false
	}
	s.log.Warn("the data volume is full: the reserve is used so that content can still be removed")
	return true
}
