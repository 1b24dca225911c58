package store

import (
	"context"
	"time"
)

const (
	// restPatience is how long an orderly end works at what the next start would have to do otherwise, or could do without.
	restPatience = 3 * time.Second
	// leaveShare is the part of a long log, one in so many, that it is worth this work to get rid of.
	leaveShare = 4
	// leaveLarge is the size up to which an index is written anew then, in bytes: that takes a second of a slow processor.
	// Of a larger one the logs are a part only.
	leaveLarge = 16 << 20
)

// patience is what an orderly end has left of its time; never 0.
func (s *Store) patience() time.Duration {
	return max(restPatience-(s.uptime()-s.ending), 1)
}

// makeSmall is the last work of the keeper. While a process works its logs get longer than its index, and bbolt leaves
// nearly half of the pages of that empty. An orderly end leaves an index without gaps, two snapshots of it as it is, and
// two empty logs. After each step the volume is one that a start can use, so that the end may come at any of them; a step
// that fails, or is too late, is the last one.
func (s *Store) makeSmall(ctx context.Context) error {
	m, is := s.isLarge()
	if !is {
		return nil
	}
	if err := s.flush(s.patience()); err != nil {
		return err
	}
	if m.size-m.used > m.size/4 {
		if err := s.closeGaps(m); err != nil {
			return err
		}
	}
	for range snapshotNames {
		if s.patience() == 1 {
			return context.DeadlineExceeded
		}
		s.lacking.Store(true)
		if err := s.Snapshot(ctx); err != nil {
			return err
		}
	}
	return nil
}

// isLarge reports whether this process left logs or gaps that are worth the work, and what the index is.
func (s *Store) isLarge() (m mark, is bool) {
	s.writing.Lock()
	defer s.writing.Unlock()
	size := s.indexSize.Load()
	if s.redo == nil || s.redo.ended || s.recovering.Load() || s.broken.Load() != nil || size > leaveLarge {
		return m, false
	}
	logs := s.redo.at
	if info, err := s.fs.Lstat(s.path(redoNames[1])); err == nil {
		logs += info.Size() - redoChunk
	}
	ix := s.index.Load()
	info, err := ix.file.Stat()
	if err != nil {
		return m, false
	}
	v, err := inspectIndex(ix.file, info.Size())
	if err != nil {
		return m, false // the next start finds it out again, and mends it
	}
	m = v.mark()
	worth := redoLimit(s.opts.redoLong, size) / leaveShare
	return m, logs > worth || m.size-m.used > max(worth, m.size/4)
}

// closeGaps writes the index anew.
func (s *Store) closeGaps(m mark) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	err := s.unbroken()
	if err == nil {
		if err = s.compacted(m.size, m.used); err != nil {
			s.endRedo() // it has no index any more
		}
	}
	return err
}
