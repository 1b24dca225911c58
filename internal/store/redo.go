package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"go.etcd.io/bbolt"
)

// Beside the index stands a log of what each transaction did to it since a snapshot of it was begun: the snapshot and the
// log are the index again. A transaction is acknowledged once its record is durable (cover.go).
//
// A log begins with logMagic, the seq of the index at that time, and a checksum. A record is the length of its body, a
// checksum over the one before it and the body, and the body: seq and sum of the transaction, then its operations. It ends
// where no record fits. Zeros are written ahead, so that the sync of a record has no length or place of the file to write.
// There are two logs, so that the snapshot before the last can be used too; records are found by their seq, whatever file
// they are in.

// redoNames are the logs, the one that is written first.
var redoNames = []string{"redo-1", "redo-2"}

const (
	redoTemp          = "redo.new"
	logMagic          = "crredo2\n"
	oldLogMagic       = "crredo1\n" // of releases that synced the index too
	logHeader         = len(logMagic) + 8 + 4
	recordHeader      = 8
	redoChunk         = 128 << 10 // bytes by which a log grows, so that not each record changes the size of the file
	endMark           = 1<<32 - 1 // in place of a length: the process ended in order, with all on the disk
	redoLong          = 4 << 20   // bytes of a log that a snapshot makes short again; a quarter of a larger index
	maxRedo           = 64 << 20  // bytes of a log that is read
	opPut        byte = 1
	opRemove     byte = 2
	opMake       byte = 3
	opDrop       byte = 4
	opNext       byte = 5 // the sequence of the bucket is the key
	opContent    byte = 6 // no row: the key is a digest, the value its bytes; see kept.go
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendOp adds an operation on a bucket to the body of a record.
func appendOp(b []byte, kind byte, at place, key, value []byte) []byte {
	b = append(b, kind, byte(len(at.path)))
	for _, name := range at.path {
		b = putBytes(b, name)
	}
	b = putBytes(b, key)
	if kind == opPut || kind == opContent {
		b = putBytes(b, value)
	}
	return b
}

func putBytes(b, v []byte) []byte { return append(binary.AppendUvarint(b, uint64(len(v))), v...) }

func applyOp(btx *bbolt.Tx, parent *bbolt.Bucket, kind byte, key, value []byte) (err error) {
	switch {
	case kind == opMake && parent == nil:
		_, err = btx.CreateBucketIfNotExists(key)
	case parent == nil:
		err = damaged("operation of kind %d at the top", kind)
	case kind == opMake:
		_, err = parent.CreateBucketIfNotExists(key)
	case kind == opDrop:
		err = parent.DeleteBucket(key)
	case kind == opPut:
		err = parent.Put(key, value)
	case kind == opRemove:
		err = parent.Delete(key)
	case kind == opNext && len(key) == 8:
		err = parent.SetSequence(binary.BigEndian.Uint64(key))
	default:
		err = damaged("operation of kind %d", kind)
	}
	return err
}

// record is one transaction of a log.
type record struct {
	seal
	ops []byte
}

// redo is the log that is written. It belongs to the writer of the index.
type redo struct {
	file File
	base uint64 // seq of the index when it was begun
	redoEnd
	size  int64 // of the file
	ended bool  // the mark of an orderly end follows
	torn  bool  // bytes follow that are no record
	undo  redoEnd
}

// redoEnd is an end of a log.
type redoEnd struct {
	last  uint64 // seq of the last record
	sum   uint64 // that it has
	at    int64  // where the next one goes
	chain uint32 // checksum of the last record
}

func newLogHeader(magic string, base uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte(magic), base)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// newRedo begins a log at path for an index of that seq.
func (s *Store) newRedo(path string, base uint64) (*redo, error) {
	if err := s.fs.Remove(path); err != nil && !isAbsent(err) {
		return nil, err
	}
	f, err := s.fs.Create(path)
	if err != nil {
		return nil, err
	}
	b := make([]byte, redoChunk)
	header := newLogHeader(logMagic, base)
	copy(b, header)
	if _, err = writeFull(f, b, 0); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), s.fs.Remove(path))
	}
	end := redoEnd{last: base, at: int64(logHeader), chain: binary.BigEndian.Uint32(header[logHeader-4:])}
	return &redo{file: f, base: base, redoEnd: end, size: redoChunk}, nil
}

// write adds a record durably.
func (l *redo) write(r record) error {
	if err := l.tidy(); err != nil {
		return err
	}
	body := binary.AppendUvarint(nil, r.seq)
	body = append(binary.BigEndian.AppendUint64(body, r.sum), r.ops...)
	b := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	chain := crc32.Update(l.chain, castagnoli, body)
	b = append(binary.BigEndian.AppendUint32(b, chain), body...)
	end := l.at + int64(len(b)) + recordHeader
	if end > maxRedo {
		return fmt.Errorf("store: log of %d bytes", end)
	}
	if end > l.size { // with zeros behind it, so that it ends there
		b = append(b, make([]byte, int64(redoChunk))...)
	}
	l.torn = true // unless all of it gets there
	if _, err := writeFull(l.file, b, l.at); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return err
	}
	l.undo, l.torn = l.redoEnd, false
	l.size = max(l.size, l.at+int64(len(b)))
	l.redoEnd = redoEnd{r.seq, r.sum, end - recordHeader, chain}
	return nil
}

func (l *redo) sync() error {
	if omitIndexSync {
		return nil
	}
	return syncData(l.file)
}

// tidy makes the log end with its last record, durably, so that nothing behind it looks like more, and a process that is
// at work does not look like one that ended.
func (l *redo) tidy() error {
	if !l.ended && !l.torn {
		return nil
	}
	if _, err := writeFull(l.file, make([]byte, max(l.size-l.at, recordHeader)), l.at); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return err
	}
	l.size = max(l.size, l.at+recordHeader)
	l.ended, l.torn = false, false
	return nil
}

// takeBack removes the last record: its transaction was not committed.
func (l *redo) takeBack() error {
	l.redoEnd, l.torn = l.undo, true
	return l.tidy()
}

// endChain is the checksum of the mark of an orderly end.
func endChain(chain uint32) uint32 { return crc32.Update(chain, castagnoli, []byte("end")) }

// end notes an orderly end.
func (l *redo) end() error {
	if err := l.tidy(); err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, endMark), endChain(l.chain))
	if _, err := writeFull(l.file, b, l.at); err != nil {
		return err
	}
	l.ended = true
	return l.sync()
}

// redoLog is what was read of a log.
type redoLog struct {
	redo
	records []record
	old     bool // of a release that synced the index too
	unread  bool // nobody had to look at it yet
	cut     bool // it ends as one that was being written: nothing that looks like a record follows
}

// span is what the log has.
func (l *redoLog) span() span { return span{l.base, l.last} }

// working reports a log whose process did not end in order: its index may be in any state.
func (l *redoLog) working() bool { return l.at > 0 && !l.old && !l.ended }

// readRedo reads a log as far as it is sound; one that cannot be read has no records.
func (s *Store) readRedo(name string) redoLog {
	l, err := s.parseRedo(s.path(name))
	if err == nil {
		return l
	}
	if !isAbsent(err) {
		s.log.Error("a log of the index cannot be used", "log", name, "error", err)
	}
	return redoLog{}
}

func (s *Store) parseRedo(path string) (l redoLog, err error) {
	f, info, err := openStat(s.fs, path, false)
	if err != nil {
		return l, err
	}
	defer f.Close()
	b := make([]byte, min(info.Size(), maxRedo))
	if n, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return l, err
	} else if b = b[:n]; n < logHeader {
		return l, damaged("log of %d bytes", n)
	}
	l.size = int64(len(b))
	l.base = binary.BigEndian.Uint64(b[len(logMagic):])
	l.old = slices.Equal(b[:logHeader], newLogHeader(oldLogMagic, l.base))
	if !l.old && !slices.Equal(b[:logHeader], newLogHeader(logMagic, l.base)) {
		return l, damaged("log without its header")
	}
	l.redoEnd = redoEnd{last: l.base, at: int64(logHeader), chain: binary.BigEndian.Uint32(b[logHeader-4:])}
	for l.next(b[l.at:]) {
	}
	l.torn = !l.ended && !isZero(b[l.at:])
	return l, nil
}

// next reads the record at the beginning of rest, which is all that follows the one before; false at the end.
func (l *redoLog) next(rest []byte) bool {
	l.cut = isZero(rest)
	if len(rest) < recordHeader || l.cut {
		return false
	}
	n, check := int64(binary.BigEndian.Uint32(rest)), binary.BigEndian.Uint32(rest[4:])
	l.ended = n == endMark && check == endChain(l.chain)
	l.cut = n > int64(len(rest)-recordHeader) || n > 0 && isZero(rest[recordHeader+n:])
	if l.ended || n == 0 || n > int64(len(rest)-recordHeader) {
		return false
	}
	body := rest[recordHeader : recordHeader+n]
	chain := crc32.Update(l.chain, castagnoli, body)
	seq, m := binary.Uvarint(body)
	if chain != check || m <= 0 || len(body) < m+8 || seq != l.last+1 {
		return false
	}
	sum := binary.BigEndian.Uint64(body[m:])
	l.records = append(l.records, record{seal{seq, sum}, body[m+8:]})
	l.redoEnd = redoEnd{seq, sum, l.at + recordHeader + n, chain}
	return true
}

// abandon keeps a log from being taken for whole, as far as the disk lets it.
func (l *redo) abandon() {
	if _, err := writeFull(l.file, []byte{0, 0, 0, 0, 1, 1, 1, 1}, l.at); err == nil {
		_ = l.sync()
	}
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// replayChunk is how many bytes of operations are one transaction of a replay on a copy: bbolt slows down with the size of
// a transaction.
const replayChunk = 256 << 10

// replay does what the logs have beyond an index, and returns how many transactions that were. Errors: errDamaged when
// the result is not what the log says. The index is as it was then, unless it is a copy of a snapshot, which may be left
// in any state, also by a power cut in the middle: its sum tells.
func replay(db *bbolt.DB, logs []redoLog, isCopy bool) (n int, err error) {
	var from seal
	ok := false
	err = db.View(func(btx *bbolt.Tx) error { from, ok = readSeal(btx); return nil })
	if err != nil || !ok {
		return 0, err // a new one, or of before there were logs
	}
	var list []record
	next := from.seq + 1
	for _, l := range slices.Backward(logs) {
		for _, r := range l.records {
			if r.seq == next {
				list = append(list, r)
				next++
			}
		}
	}
	if isCopy {
		db.NoSync = true
		defer func() {
			db.NoSync = false
			err = errors.Join(err, db.Sync())
		}()
	}
	for n < len(list) {
		err := db.Update(func(btx *bbolt.Tx) error {
			for size := 0; n < len(list) && (!isCopy || size < replayChunk); n++ {
				size += len(list[n].ops)
				if err := apply(btx, list[n].ops); err != nil {
					return err
				}
			}
			if n < len(list) {
				return nil
			}
			last := list[n-1].seal
			if sum := sumIndex(btx); sum != last.sum {
				return damaged("after its log the index has another sum than transaction %d", last.seq)
			}
			return btx.Bucket(bucketMeta).Put(keySeal, last.encode())
		})
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

// resume goes on with the current log when it ends where the index is; otherwise there is none until the next snapshot.
func (s *Store) resume(logs []redoLog, end seal) {
	s.endRedo()
	if len(logs) < len(redoNames) {
		return
	}
	l := logs[0]
	s.behind = nil
	if !logs[1].unread {
		behind := logs[1].span()
		s.behind = &behind
	}
	if l.at == 0 || l.old || l.last != end.seq || len(l.records) > 0 && l.sum != end.sum {
		return
	}
	f, err := s.fs.Open(s.path(redoNames[0]), true)
	if err != nil {
		s.log.Warn("the log of the index cannot be written; a snapshot takes its place", "error", err)
		return
	}
	current := l.redo // without its records
	current.file = f
	s.redo = &current
}

// endRedo ends the log; its file stays.
func (s *Store) endRedo() {
	if s.redo != nil {
		_ = s.redo.file.Close()
		s.redo = nil
	}
}

// logged writes a transaction to the log, durably; the result is to be called after the commit with its outcome. A log
// that cannot be written ends there: the index goes on without one, with syncs of its own, until the snapshot that is
// asked for.
func (s *Store) logged(t *tx, r record) (done func(committed bool), err error) {
	done = func(bool) {}
	err = errors.New("there is none for this index")
	if s.redo != nil && r.seq == s.redo.last+1 {
		err = s.redo.write(r)
	}
	if err != nil {
		s.dropRedo(err)
		if !t.kept {
			return done, nil
		}
		return done, s.flush(0)
	}
	return func(committed bool) {
		l := s.redo
		if committed {
			if l.at > redoLimit(s.opts.redoLong, s.indexSize.Load()) {
				s.want()
			}
			return
		}
		if err := l.takeBack(); err != nil {
			s.dropRedo(err)
		}
	}, nil
}

// dropRedo ends a log that is not whole and asks for a snapshot, which begins the next one.
func (s *Store) dropRedo(err error) {
	if s.redo != nil {
		s.log.Warn("the log of the index cannot be written: until its next snapshot nothing stands in for a lost index", "error", err)
		s.redo.abandon()
	}
	s.endRedo()
	s.uncover()
}
