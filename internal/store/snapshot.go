package store

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// snapshotNames are the snapshots of the index, the latest first.
var snapshotNames = []string{"snapshot-1", "snapshot-2"}

const (
	snapshotTemp = "snapshot.new"
	snapshotRaw  = "snapshot.raw" // the index before it is packed
)

// snapshotUnit is how large an index may be to be kept each hour; a larger one is kept less often in proportion, so
// that a busy device writes so many bytes in an hour at most.
const snapshotUnit = 16 << 20

// checkIndex reads the whole index. Errors: UNAVAILABLE when it is not what its sum says; it is repaired then.
func (s *Store) checkIndex() error {
	return s.view(func(t *tx) error {
		last, ok := readSeal(t.Tx)
		if sum := sumIndex(t.Tx); !ok || sum != last.sum {
			return s.breakIndex(damaged("its rows have another sum than when they were written"))
		}
		return nil
	})
}

// SnapshotInterval is the time between two snapshots of the index as it is now: an hour, more for one above 16 MiB.
func (s *Store) SnapshotInterval() time.Duration {
	info, err := s.fs.Lstat(s.path(indexName))
	if err != nil {
		return time.Hour
	}
	return time.Hour * time.Duration(1+info.Size()/snapshotUnit)
}

// Snapshot keeps the index as it is now, durably, and the snapshot before, and begins a new log. When nothing changed
// since the last one of this process it writes nothing and looks for damage of the index only. What was pushed here
// survives the loss of the index that way; there is no other copy of its names.
//
// Errors: UNAVAILABLE while the index is being rebuilt or is damaged, DiskError.
func (s *Store) Snapshot(ctx context.Context) error {
	if s.recovering.Load() || s.broken.Load() != nil {
		return registry.ErrUnavailable.WithMessage("the index is not kept while it is damaged or being rebuilt")
	}
	s.snapshotMu.Lock()
	defer s.snapshotMu.Unlock()
	commits := s.commits.Load()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if commits == s.snapshotAt && !s.lacking.Load() {
		if s.kept.held.Load() > 0 { // the disk may take them now
			if err := s.flush(0); err != nil {
				return diskError(err)
			}
		}
		return s.checkIndex()
	}
	if err := s.flush(0); err != nil { // the log before the current one goes, with the content that it has
		return diskError(err)
	}
	if err := s.switchRedo(); err != nil {
		return diskError(err)
	}
	ix := s.index.Load()
	if err := s.syncIndex(); err != nil {
		return diskError(err)
	}
	temp := s.path(snapshotTemp)
	if err := s.fs.Remove(temp); err != nil && !isAbsent(err) {
		return diskError(err)
	}
	seq, err := s.copyIndex(temp)
	if err != nil {
		_ = s.fs.Remove(temp)
		return diskError(err)
	}
	for _, move := range s.snapshotMoves() {
		if err := s.fs.Rename(s.path(move[0]), s.path(move[1])); err != nil && !isAbsent(err) {
			return diskError(err)
		}
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return diskError(err)
	}
	s.snapshotAt = commits
	s.writing.Lock()
	defer s.writing.Unlock()
	s.switched = false
	if s.index.Load() == ix && s.redo != nil && reach([]span{{s.redo.base, s.redo.last}}, seq) == s.sealed.Load() {
		s.setCovered(ix, snapshotNames[0])
	}
	return nil
}

// snapshotMoves are the renames that make the new snapshot the latest. The one that covers the index stays until then.
func (s *Store) snapshotMoves() [][2]string {
	s.writing.Lock()
	defer s.writing.Unlock()
	moves := [][2]string{{snapshotNames[0], snapshotNames[1]}, {snapshotTemp, snapshotNames[0]}}
	if s.covered.Load() && s.base == snapshotNames[1] {
		return moves[1:]
	}
	return moves
}

// switchRedo begins a log, and keeps the one before for the snapshot before. It does so once for each snapshot: when a
// snapshot fails, the log that was begun for it goes on, and the one before it is still needed.
func (s *Store) switchRedo() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.switched && s.redo != nil {
		return nil
	}
	l, err := s.newRedo(s.path(redoTemp), s.sealed.Load())
	if err != nil {
		return err
	}
	s.endRedo()
	moves := [][2]string{{redoNames[0], redoNames[1]}, {redoTemp, redoNames[0]}}
	if s.switched { // the current log broke before it had its snapshot
		moves = moves[1:]
	}
	for _, move := range moves {
		if err := s.fs.Rename(s.path(move[0]), s.path(move[1])); err != nil && !isAbsent(err) {
			return errors.Join(err, l.file.Close())
		}
	}
	s.switched = true
	if !omitSwitch { // a record is durable only in a log that is found
		if err := s.fs.SyncDir(s.dir); err != nil {
			return errors.Join(err, l.file.Close())
		}
	}
	s.redo = l
	return nil
}

// copyIndex writes the index of one transaction to a new snapshot, and returns which that was. The copy that is looked
// through is the one that is packed, and the snapshot is read once before it is believed.
func (s *Store) copyIndex(path string) (seq uint64, err error) {
	raw := s.path(snapshotRaw)
	if err := s.fs.Remove(raw); err != nil && !isAbsent(err) {
		return 0, err
	}
	var f File
	var m mark
	err = s.view(func(t *tx) error {
		if err := s.room(t.Size() + t.Size()/2); err != nil {
			return err
		}
		if f, err = s.fs.Create(raw); err != nil {
			return err
		}
		if _, err = t.WriteTo(&appender{f: f}); err != nil {
			return err
		}
		v, err := inspectIndex(f, t.Size())
		if errors.Is(err, errDamaged) {
			return s.breakIndex(err)
		}
		m = v.mark()
		return err
	})
	if f == nil {
		return 0, err
	}
	if err == nil {
		err = s.pack(f, path, packed{m.seq, m.size})
	}
	if err == nil {
		seq, err = s.snapshotSeq(path)
	}
	return seq, errors.Join(err, f.Close(), s.fs.Remove(raw))
}

// appender is an io.Writer over a File.
type appender struct {
	f  File
	at int64
}

func (a *appender) Write(p []byte) (int, error) {
	n, err := writeFull(a.f, p, a.at)
	a.at += int64(n)
	return n, err
}

// hasSnapshot reports whether there is any.
func (s *Store) hasSnapshot() bool {
	for _, name := range snapshotNames {
		if info, err := s.fs.Lstat(s.path(name)); err == nil && info.Mode().IsRegular() {
			return true
		}
	}
	return false
}

// copySnapshot unpacks a sound snapshot to the name of the index, which must be free or may be replaced.
func (s *Store) copySnapshot(path string) error {
	temp := s.path(snapshotTemp)
	if err := s.fs.Remove(temp); err != nil && !isAbsent(err) {
		return err
	}
	out, err := s.fs.Create(temp)
	if err != nil {
		return err
	}
	if _, err = s.unpack(path, &appender{f: out}); err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = s.fs.Rename(temp, s.path(indexName))
	}
	if err != nil {
		_ = s.fs.Remove(temp)
		return err
	}
	return s.fs.SyncDir(s.dir)
}

const (
	// compactFree is how large an index has to be to be written anew when it is more than three times what it needs. Of a
	// large one half is enough.
	compactFree  = 1 << 20
	compactLarge = 16 << 20
	compactName  = indexName + ".compact"
	compactTx    = 4 << 20 // bytes of one transaction of the copy
)

// loose reports an index that a start writes anew.
func (s *Store) loose(free, size int64) bool {
	return size > s.compactAbove() && (size > 3*(size-free) || free >= compactLarge && free > size/2)
}

// compact writes an index anew without what is free in it: bbolt never makes its file smaller. Whatever goes wrong, the
// index that is there stays. What it returns has the lock of the directory, as the old file still has.
func (s *Store) compact(db *bbolt.DB, free, size int64) (f *os.File, err error) {
	path := s.path(compactName)
	if err := s.fs.Remove(path); err != nil && !isAbsent(err) {
		return nil, err
	}
	if err := s.room(size - free); err != nil {
		return nil, err
	}
	dst, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return nil, err
	}
	err = guard(func() error { return bbolt.Compact(dst, db, compactTx) })
	if err == nil {
		err = dst.Sync()
	}
	if err = errors.Join(err, dst.Close()); err == nil {
		f, err = s.lockCompact(path)
	}
	if err == nil {
		if err = s.fs.Rename(path, s.path(indexName)); err == nil {
			err = s.fs.SyncDir(s.dir)
		}
	}
	if err != nil {
		if f != nil {
			_ = f.Close()
		}
		_ = s.fs.Remove(path)
		return nil, err
	}
	s.log.Info("the index is written anew without its free space", "bytesBefore", size, "bytesNeeded", size-free)
	return f, nil
}

// lockCompact opens and locks an index that was written anew, and compares it with the one that it is of.
func (s *Store) lockCompact(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	var v *verifier
	info, err := f.Stat()
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err == nil {
		v, err = inspectIndex(f, info.Size())
	}
	if err == nil && v.mark().seq != s.sealed.Load() {
		err = damaged("the index that was written anew is another one")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// compactAbove is compactFree, or what a test wants.
func (s *Store) compactAbove() int64 {
	if s.opts.compactFree > 0 {
		return s.opts.compactFree
	}
	return compactFree
}
