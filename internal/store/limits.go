package store

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// limits bound the volume. They change while the store runs.
type limits struct {
	max     atomic.Int64 // bytes of content; 0 is no bound
	reserve atomic.Int64 // bytes that new content leaves free on the file system
}

// evictAgain is when an eviction that found nothing is tried again.
const evictAgain = time.Minute

// errNoRoom is the cause of what the limits refuse.
var errNoRoom = errors.New("store: no room")

// SetLimits bounds the bytes of content, 0 for no bound, and sets how many bytes new content leaves free on the file
// system. What is here already stays, whatever the bound.
func (s *Store) SetLimits(maxBytes, reserveBytes int64) {
	s.limits.max.Store(maxBytes)
	s.limits.reserve.Store(reserveBytes)
}

// uploadShort is how long a session may be idle while there is no room: a client that still lives has tried again by then.
const uploadShort = time.Hour

// room refuses n more bytes when they would not leave the reserve free, or exceed the quota. Before that, uploads that
// were left go.
func (s *Store) room(n int64) error {
	if err := s.quota(s.counts.Load().bytes + n); err != nil {
		return err
	}
	err := s.free(n)
	if !errors.Is(err, errNoRoom) || !s.squeeze() {
		return err
	}
	return s.free(n)
}

// squeeze removes sessions that are idle for uploadShort, and looks for them once a minute at most.
func (s *Store) squeeze() bool {
	now := int64(s.uptime())
	last := s.squeezed.Load()
	if last != 0 && now-last < int64(evictAgain) || !s.squeezed.CompareAndSwap(last, max(now, 1)) {
		return false
	}
	removed, bytes, err := s.sweepUploads(uploadShort, false)
	if err != nil {
		s.log.Warn("uploads that were left could not be removed", "error", err)
	}
	if removed > 0 {
		s.log.Info("there is no room: uploads that nobody goes on with are removed before their time", "uploads", removed, "bytes", bytes)
	}
	return removed > 0
}

// free refuses n more bytes when they would not leave the reserve free.
func (s *Store) free(n int64) error {
	free, err := s.fs.Free(s.dir)
	if err != nil {
		return diskError(err)
	}
	if reserve := s.limits.reserve.Load(); free-n < reserve {
		return registry.ErrDisk.WithMessage("No space left on device: %d bytes are free, %d of them are kept in reserve (storage.reserveMiB).", free, reserve).Wrap(errNoRoom)
	}
	return nil
}

// quota refuses so many bytes of content.
func (s *Store) quota(bytes int64) error {
	limit := s.limits.max.Load()
	if limit <= 0 || bytes <= limit {
		return nil
	}
	return registry.ErrDisk.WithMessage("No space left: the registry may hold %d MiB (storage.maxMiB), and this needs %d bytes more. "+
		"Delete images, or raise storage.maxMiB.", limit>>20, bytes-limit).Wrap(errNoRoom)
}

// evict makes room for synchronisation without the grace period of what it replaced: manifests that it took the last tag
// of, and what only they needed. Nothing else goes: no tag, nothing that a client pushed, that is locked, or that
// somebody committed or asked for lately. It reports whether anything went.
func (s *Store) evict(ctx context.Context) bool {
	if s.recovering.Load() || !s.gcMu.TryLock() {
		return false
	}
	defer s.gcMu.Unlock()
	if s.evicted != 0 && s.uptime()-s.evicted < evictAgain {
		return false
	}
	g := &collection{s: s, grace: DefaultGrace, evict: true, now: s.clock.Now()}
	s.content.watch(true)
	defer s.content.watch(false)
	if err := g.index(ctx); err != nil {
		if !errors.Is(err, ctx.Err()) {
			s.log.Error("no room could be made for synchronisation", "error", err)
		}
		return false
	}
	if g.res.Bytes == 0 {
		s.evicted = s.uptime()
		return false
	}
	s.log.Info("room was made for synchronisation: replaced content went before its time", "manifests", g.res.Manifests, "bytes", g.res.Bytes)
	return true
}
