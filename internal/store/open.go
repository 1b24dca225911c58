package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

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
		changed: make(chan struct{}), journaled: make(chan struct{}), wanted: make(chan struct{}, 1), suspected: make(chan struct{}, 1),
		partials: map[registry.Digest]*partial{}, uploads: map[string]*session{},
	}
	s.tempPrefix = tempPrefix + s.randomID()[:8] + "-"
	s.limits.reserve.Store(o.ReserveBytes)
	if err := s.prepare(); err != nil {
		return nil, s.openError(err)
	}
	how, err := s.openIndex(ctx, 0)
	if err == nil {
		err = s.settle(ctx, how)
	}
	if err != nil {
		_ = s.endIndex()
		return nil, s.openError(err)
	}
	s.makeReserve()
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.worker.Go(func() { s.startup(background) })
	s.keeper.Go(func() { s.keep(background) })
	return s, nil
}

// startup is the work that Open does not wait for.
func (s *Store) startup(ctx context.Context) {
	if s.recovering.Load() {
		s.recover(ctx)
	}
	if _, _, err := s.sweepUploads(uploadTTL, false); err != nil && ctx.Err() == nil {
		s.log.Warn("stale uploads were not removed", "error", err)
	}
}

// prepare makes the directories. Those that hold content come with the first of it, see makeShard.
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
	if !made {
		return nil
	}
	return errors.Join(s.fs.SyncDir(s.path(dirBlobs)), s.fs.SyncDir(s.dir))
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
		return registry.ErrDisk.WithMessage("Permission denied: %s", s.denied(err)).Wrap(err)
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

// denied says which file or directory is in the way, and the command that clears it.
func (s *Store) denied(err error) string {
	path, uid := s.dir, os.Geteuid()
	var at *fs.PathError
	if errors.As(err, &at) && filepath.IsAbs(at.Path) {
		path = at.Path
	}
	info, e := s.fs.Lstat(path)
	for e != nil && len(path) > len(s.dir) { // what could not be made or looked at
		path = filepath.Dir(path)
		info, e = s.fs.Lstat(path)
	}
	owner, what := "another user", "the data volume "+s.dir
	if path != s.dir {
		what = path + " of " + what
	}
	if e == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			if int(st.Uid) == uid {
				return fmt.Sprintf("%s has the mode %04o, which keeps its owner uid %d from it: chmod -R u+rwX %s on the host",
					what, info.Mode().Perm(), uid, s.dir)
			}
			owner = "uid " + strconv.FormatUint(uint64(st.Uid), 10)
		}
	}
	return fmt.Sprintf("%s belongs to %s and this process runs as uid %d: give it the volume (chown -R %d %s on the host) or run it as the owner",
		what, owner, uid, uid, s.dir)
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
