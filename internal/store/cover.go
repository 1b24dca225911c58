package store

import (
	"io"
	"slices"
)

// An index is covered while a sound snapshot and the logs since then have all of its transactions, durably. bbolt syncs
// nothing then: the record in the log is what makes a transaction durable, with one sync, and an index that a power cut
// left in any state is made again from the snapshot and the logs. Each transaction is in the log before it is in the
// index, so nobody sees what a power cut takes back. An index that is not covered syncs each commit itself, with the two
// syncs of bbolt, until its next snapshot.

// span is the transactions that a log has: those after base, up to last. The zero span is no log.
type span struct{ base, last uint64 }

// reach is the last transaction that the logs, the current one first, have from a snapshot of transaction seq on.
func reach(logs []span, seq uint64) uint64 {
	for _, l := range slices.Backward(logs) {
		if l.base <= seq {
			seq = max(seq, l.last)
		}
	}
	return seq
}

// standIn names the sound snapshot that the logs bring up to the end of the current one, and its last transaction; empty
// when there is none.
func (s *Store) standIn(logs []span) (name string, seq uint64) {
	for _, name := range snapshotNames {
		seq, err := s.snapshotSeq(s.path(name))
		if err == nil && reach(logs, seq) == logs[0].last {
			return name, seq
		}
	}
	return "", 0
}

// snapshotSeq reads a whole snapshot and returns its last transaction.
func (s *Store) snapshotSeq(path string) (uint64, error) {
	p, err := s.unpack(path, io.Discard)
	return p.seq, err
}

// cover looks once, before the first transaction of an index, whether it is covered by what a process before left;
// otherwise it asks for a snapshot. The caller has the writing lock.
func (s *Store) cover(ix *index) {
	if ix.asked || s.covered.Load() {
		return
	}
	ix.asked = true
	if s.redo != nil {
		if s.behind == nil {
			l := s.readRedo(redoNames[1])
			behind := l.span()
			s.behind = &behind
		}
		if name, seq := s.standIn([]span{{s.redo.base, s.redo.last}, *s.behind}); name != "" {
			s.setCovered(ix, name)
			s.switched = s.switched || seq < s.redo.base // the log before is needed until there is a snapshot of this one
			return
		}
	}
	s.lacking.Store(true)
	s.want()
}

// already reports whether the index is what fn wants of it. Whoever says at each start what nearly never changes asks first:
// a transaction without news costs nothing but for the first one, which reads a whole snapshot (cover).
func (s *Store) already(fn func(*tx) bool) bool {
	is := false
	err := s.view(func(t *tx) error { is = fn(t); return nil })
	return err == nil && is && s.unbroken() == nil
}

// setCovered lets the log alone be synced from now on. The caller has the writing lock.
func (s *Store) setCovered(ix *index, name string) {
	s.base = name
	ix.db.NoSync = true
	s.lacking.Store(false)
	s.covered.Store(true)
}

// uncover lets bbolt sync each commit; what it did not sync yet goes to the disk with the next one. The caller has the
// writing lock.
func (s *Store) uncover() {
	s.covered.Store(false)
	s.lacking.Store(true)
	if ix := s.index.Load(); ix != nil {
		ix.db.NoSync = omitIndexSync
	}
	s.want()
}

// syncIndex brings the index to the disk as it is now. An index whose sync failed while it was covered is not believed
// any more: what the disk has of it is unknown, whatever can be read from memory.
func (s *Store) syncIndex() error {
	ix := s.index.Load()
	if ix.stuck.Load() {
		return s.unbroken()
	}
	err := guard(ix.db.Sync)
	if err != nil && s.covered.Load() && s.index.Load() == ix {
		s.distrusted.Store(true)
		return s.breakIndex(err)
	}
	return err
}

// rest leaves everything on the disk as it is in memory, and notes in the log that it is so: the next start has nothing
// to bring back. It does nothing when nothing came since the last time. The caller has the writing lock.
func (s *Store) rest() error {
	if s.redo == nil || s.redo.ended || s.broken.Load() != nil || s.redo.last != s.sealed.Load() {
		return nil
	}
	if err := s.flush(s.patience()); err != nil {
		return err
	}
	if err := s.syncIndex(); err != nil {
		return err
	}
	if err := s.step("rest"); err != nil {
		return err
	}
	return s.redo.end()
}
