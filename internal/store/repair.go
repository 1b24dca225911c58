package store

import (
	"context"
	"errors"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// repairFloor and repairCap bound the pause before an index that breaks again is opened again.
	repairFloor = time.Second
	repairCap   = time.Minute
	// repairForget is how long an index has to hold until a break of it is the first again.
	repairForget = 10 * time.Minute
	// lookAgain is how often a suspicion has the whole index read.
	lookAgain = time.Minute
)

// unbroken refuses what needs a sound index.
func (s *Store) unbroken() error {
	if reason := s.broken.Load(); reason != nil {
		return registry.ErrUnavailable.WithMessage("the index of this registry is damaged and is being repaired; pulls go on as far as it can be read").
			WithRetryAfter(repairFloor).Wrap(*reason)
	}
	return nil
}

// breakIndex notes that the index cannot be trusted any more and has it repaired in the background.
func (s *Store) breakIndex(err error) error {
	if s.broken.CompareAndSwap(nil, &err) {
		s.log.Error("the index is damaged; writes are refused until it is repaired", "error", err)
	}
	s.want()
	return registry.ErrUnavailable.WithMessage("the index of this registry is damaged and is being repaired").WithRetryAfter(repairFloor).Wrap(err)
}

// breakWhile is breakIndex while the index is in use; one that another took the place of was closed under its readers.
func (s *Store) breakWhile(ix *index, err error) error {
	if ix == s.index.Load() {
		return s.breakIndex(err)
	}
	return registry.ErrUnavailable.WithMessage("the index of this registry was repaired meanwhile").WithRetryAfter(repairFloor).Wrap(err)
}

// want wakes the keeper.
func (s *Store) want() {
	select {
	case s.wanted <- struct{}{}:
	default:
	}
}

// suspect has the whole index looked at, because a row may not be what it was.
func (s *Store) suspect() {
	select {
	case s.suspected <- struct{}{}:
	default:
	}
}

// keep repairs the index when it breaks, keeps it when its log wants that, and looks at it when it is suspected.
func (s *Store) keep(ctx context.Context) {
	var pause, last time.Duration
	looked := -lookAgain
	for {
		select {
		case <-ctx.Done():
			if err := s.makeSmall(context.WithoutCancel(ctx)); err != nil {
				s.log.Info("the index and its logs stay as they are until the next start", "error", err)
			}
			return
		case <-s.suspected:
			if s.uptime()-looked < lookAgain {
				continue
			}
			looked = s.uptime()
			if err := s.checkIndex(); err != nil {
				s.log.Debug("the index is not sound", "error", err)
			}
			continue
		case <-s.wanted:
		}
		if s.broken.Load() == nil {
			if err := s.Snapshot(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, registry.ErrUnavailable) {
				s.log.Warn("no snapshot of the index could be made", "error", err)
			}
			continue
		}
		if last != 0 && s.uptime()-last > repairForget {
			pause = 0
		}
		for s.broken.Load() != nil && clock.Wait(ctx, pause) == nil {
			pause = min(max(2*pause, repairFloor), repairCap)
			if err := s.reopen(ctx); err != nil && ctx.Err() == nil {
				s.log.Error("the index could not be repaired yet", "error", err, "again", pause.String())
			}
		}
		last = s.uptime()
	}
}

// reopen opens the index again as a start does. Who reads goes on with the old one for as long as that can be read.
func (s *Store) reopen(ctx context.Context) error {
	s.writing.Lock()
	old := s.index.Load()
	old.free() // its lock is in the way of the new one
	how, err := s.openIndex(ctx, s.sealed.Load())
	s.writing.Unlock()
	if err != nil {
		return s.openError(err)
	}
	go func() { _ = old.close() }() // it waits for those who read from it
	s.broken.Store(nil)
	if err := s.settle(ctx, how); err != nil {
		s.want()
		return s.breakIndex(err)
	}
	s.log.Warn("the index is in use again", "restored", how.restored, "transactions", how.replayed)
	if s.recovering.Load() {
		s.recover(ctx)
	}
	return nil
}
