package store

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// Defaults and limits.
const (
	DefaultGrace       = 24 * time.Hour     // for content that nothing refers to, from its commit on
	partialTTL         = 7 * 24 * time.Hour // unfinished content that nobody continues
	uploadTTL          = 7 * 24 * time.Hour // idle upload sessions
	defaultLockTimeout = time.Second
	defaultCacheBytes  = 4 << 20
	reserveSize        = 4 << 20 // bytes; enough pages for a batch of deletions
)

// States of a store, as StorageStatus has them.
const (
	stateOK          = "ok"
	stateRecovering  = "recovering"
	stateUnavailable = "unavailable"
)

// Options configures a Store. The zero value works.
type Options struct {
	FS           FS            // nil is OSFS
	Clock        clock.Clock   // nil is the system's
	Rand         io.Reader     // of names and ids; it must not fail; nil is crypto/rand's
	Logger       *slog.Logger  // nil discards
	LockTimeout  time.Duration // how long Open waits for another process to leave the volume; 0 is one second
	ReserveBytes int64         // new content is refused when it would leave less than this free on the volume; see SetLimits
	CacheBytes   int           // memory for manifests; 0 is 4 MiB, negative none

	// hook is called between the steps of a commit, for tests that stop there; an error of it fails the step.
	hook func(step string) error
	// migrations replaces the variable of that name in tests.
	migrations []migration
	// compactFree replaces the constant of that name in tests.
	compactFree int64
	// redoLong replaces the constant of that name in tests.
	redoLong int64
	// uptime replaces the monotonic clock in tests.
	uptime func() time.Duration
}

// Store is a data directory in use by this process. All methods may be called concurrently.
type Store struct {
	dir   string
	fs    FS
	clock clock.Clock
	log   *slog.Logger
	opts  Options
	index atomic.Pointer[index]  // in use; another takes its place when it breaks
	id    atomic.Pointer[string] // see InstanceID
	cache *cache
	// version counts the beginnings and ends of commits: it is odd while one may be changing the index. See resolved.
	version  atomic.Uint64
	resolved resolved

	uptime func() time.Duration // since Open, by the monotonic clock

	queue      queue
	writing    sync.Mutex  // held by who writes the index or its log, or replaces it
	redo       *redo       // nil when there is none until the next snapshot; under writing
	behind     *span       // of the log before a log that a process before began, once it was read; under writing
	covered    atomic.Bool // see cover.go; changes under writing
	base       string      // the snapshot that covers it; under writing
	switched   bool        // the log before the current one is needed: the current one has no snapshot yet; under writing
	lacking    atomic.Bool // a snapshot is needed for that
	distrusted atomic.Bool // a sync of the index failed while it was covered
	kept       kept
	naming     sync.Mutex // held while a file gets the name of its content
	marked     mark       // of the index as it was found; zero when there was none; under writing
	indexSize  atomic.Int64
	sealed     atomic.Uint64 // seq of the last transaction
	commits    atomic.Int64
	counts     atomic.Pointer[counts]
	locked     atomic.Pointer[map[string]*registry.Locks] // as the index has them
	broken     atomic.Pointer[error]
	recovering atomic.Bool

	climbing atomic.Bool // what clients change is queued for the parent
	seeded   atomic.Bool // by this process, since it was switched on
	outboxed outboxState

	journaling atomic.Bool // what comes and goes is noted for those who want to be told

	changedMu sync.Mutex
	changed   chan struct{}
	journaled chan struct{}

	leases    leases
	content   contentLocks
	shards    shards
	adoptions sync.Mutex // one recovery of a file at a time: it is bound by the disk

	partialsMu sync.Mutex
	partials   map[registry.Digest]*partial

	uploadsMu  sync.Mutex
	uploads    map[string]*session
	tempPrefix string // of the manifests on their way in this process: whatever the clock says, they are not stale

	warned sync.Map // Digest -> struct{}: content that was reported as missing
	sound  sound    // content that this process has hashed

	snapshotMu sync.Mutex
	snapshotAt int64 // commits at the last snapshot

	wanted    chan struct{} // a snapshot, or the repair of a broken index
	suspected chan struct{} // a look at the whole index

	limits   limits
	squeezed atomic.Int64  // uptime of the last look for uploads that were left, in nanoseconds
	evicted  time.Duration // uptime of the last eviction that found nothing; under gcMu

	gcMu     sync.Mutex
	sweeping sync.RWMutex // held for writing from the last check of a blob's references to the removal of its row

	stop   context.CancelFunc
	worker sync.WaitGroup
	keeper sync.WaitGroup
	closed atomic.Bool
	ending time.Duration // uptime at the begin of an orderly end
}

var (
	_ registry.Registry  = (*Store)(nil)
	_ registry.Replica   = (*Store)(nil)
	_ registry.Documents = (*Store)(nil)
	_ registry.Outbox    = (*Store)(nil)
)

// InstanceID names this volume's content: it is made with the index, and again when the index had to be rebuilt.
func (s *Store) InstanceID() string { return *s.id.Load() }

// Changed returns a channel that is closed at the next change of a tag or referrer. Fetch it before Changes is asked,
// and again after each time that it was closed.
func (s *Store) Changed() <-chan struct{} {
	s.changedMu.Lock()
	defer s.changedMu.Unlock()
	return s.changed
}

// Close ends background work and gives the volume free. Open uploads and partials keep their bytes.
func (s *Store) Close() error {
	if !s.closed.CompareAndSwap(false, true) {
		return nil
	}
	s.ending = s.uptime()
	s.stop()
	s.worker.Wait()
	s.keeper.Wait()
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.rest(); err != nil {
		s.log.Warn("the next start looks at what the disk has", "error", err)
	} else {
		s.leaveMark()
	}
	return diskError(s.endIndex())
}

// Usage reports the volume. It reads counters and asks the file system for its free space; nothing is walked.
func (s *Store) Usage(ctx context.Context) (registry.StorageStatus, error) {
	if err := ctx.Err(); err != nil {
		return registry.StorageStatus{}, err
	}
	c := s.counts.Load()
	st := registry.StorageStatus{
		State: stateOK, Repositories: int(c.repositories), Tags: int(c.tags),
		Manifests: int(c.manifests), Blobs: int(c.blobs), UsedBytes: c.bytes,
	}
	switch {
	case s.closed.Load():
		st.State = stateUnavailable
	case s.broken.Load() != nil || s.recovering.Load():
		st.State = stateRecovering
	}
	if info, err := s.fs.Lstat(s.path(indexName)); err == nil {
		st.UsedBytes += info.Size()
	}
	free, err := s.fs.Free(s.dir)
	if err != nil {
		return st, diskError(err)
	}
	st.FreeBytes = free
	return st, nil
}

// path is a file of the data directory.
func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// step calls the hook of a test.
func (s *Store) step(name string) error {
	if s.opts.hook == nil {
		return nil
	}
	return s.opts.hook(name)
}
