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

// Beside the index stands a log of what each transaction did to it since a snapshot of it was begun: an index that is
// lost is its snapshot and the log. What is acknowledged is in both, durably: the log's sync runs beside the commit.
//
// A log begins with logMagic, the seq of the index at that time, and a checksum. A record is the length of its body, a
// checksum over the one before it and the body, and the body: seq and sum of the transaction, then its operations. It ends
// where no record fits. There are two logs, so that the snapshot before the last can be used too; records are found by
// their seq, whatever file they are in.

// redoNames are the logs, the one that is written first.
var redoNames = []string{"redo-1", "redo-2"}

const (
	redoTemp          = "redo.new"
	logMagic          = "crredo1\n"
	logHeader         = len(logMagic) + 8 + 4
	recordHeader      = 8
	redoChunk         = 128 << 10 // bytes by which a log grows, so that not each record changes the size of the file
	redoLong          = 4 << 20   // bytes of a log that a snapshot makes short again; more for a larger index
	maxRedo           = 64 << 20  // bytes of a log that is read
	opPut        byte = 1
	opRemove     byte = 2
	opMake       byte = 3
	opDrop       byte = 4
	opNext       byte = 5 // the sequence of the bucket is the key
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendOp adds an operation on a bucket to the body of a record.
func appendOp(b []byte, kind byte, at place, key, value []byte) []byte {
	b = append(b, kind, byte(len(at.path)))
	for _, name := range at.path {
		b = putBytes(b, name)
	}
	b = putBytes(b, key)
	if kind == opPut {
		b = putBytes(b, value)
	}
	return b
}

func putBytes(b, v []byte) []byte { return append(binary.AppendUvarint(b, uint64(len(v))), v...) }

// apply does the operations of a record.
func apply(btx *bbolt.Tx, ops []byte) error {
	for r := (reader{b: ops}); len(r.b) > 0; {
		kind, depth := r.b[0], 0
		if len(r.b) > 1 {
			depth = int(r.b[1])
		}
		r.b = r.b[min(2, len(r.b)):]
		var parent *bbolt.Bucket
		for i := range depth {
			name := []byte(r.text())
			if i == 0 {
				parent = btx.Bucket(name)
			} else {
				parent = parent.Bucket(name)
			}
			if parent == nil || r.bad {
				return damaged("operation on a bucket that is not there")
			}
		}
		key, value := []byte(r.text()), []byte(nil)
		if kind == opPut {
			value = []byte(r.text())
		}
		if r.bad {
			return damaged("operation that ends early")
		}
		if err := applyOp(btx, parent, kind, key, value); err != nil {
			return err
		}
	}
	return nil
}

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
	file  File
	base  uint64 // seq of the index when it was begun
	last  uint64 // seq of its last record
	at    int64  // where the next one goes
	size  int64  // of the file
	chain uint32 // checksum of the last record
	undo  redoEnd
}

// redoEnd is an end of a log.
type redoEnd struct {
	last  uint64
	at    int64
	chain uint32
}

func newLogHeader(base uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte(logMagic), base)
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
	header := newLogHeader(base)
	copy(b, header)
	if _, err = writeFull(f, b, 0); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), s.fs.Remove(path))
	}
	return &redo{
		file: f, base: base, last: base, at: int64(logHeader), size: redoChunk,
		chain: binary.BigEndian.Uint32(header[logHeader-4:]),
	}, nil
}

// write adds a record. It is durable after sync.
func (l *redo) write(r record) error {
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
	} else {
		b = append(b, make([]byte, recordHeader)...)
	}
	if _, err := writeFull(l.file, b, l.at); err != nil {
		return err
	}
	l.undo = redoEnd{l.last, l.at, l.chain}
	l.size = max(l.size, l.at+int64(len(b)))
	l.last, l.chain, l.at = r.seq, chain, end-recordHeader
	return nil
}

// takeBack removes the last record: its transaction was not committed.
func (l *redo) takeBack() error {
	l.last, l.at, l.chain = l.undo.last, l.undo.at, l.undo.chain
	_, err := writeFull(l.file, make([]byte, recordHeader), l.at)
	return err
}

// redoLog is what was read of a log.
type redoLog struct {
	redo
	records []record
}

// readRedo reads a log as far as it is sound.
func (s *Store) readRedo(path string) (l redoLog, err error) {
	f, err := s.fs.Open(path, false)
	if err != nil {
		return l, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return l, err
	}
	b := make([]byte, min(info.Size(), maxRedo))
	if n, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return l, err
	} else if b = b[:n]; n < logHeader {
		return l, damaged("log of %d bytes", n)
	}
	l.size = int64(len(b))
	l.base = binary.BigEndian.Uint64(b[len(logMagic):])
	if !slices.Equal(b[:logHeader], newLogHeader(l.base)) {
		return l, damaged("log without its header")
	}
	l.chain, l.last, l.at = binary.BigEndian.Uint32(b[logHeader-4:]), l.base, int64(logHeader)
	for {
		rest := b[l.at:]
		if len(rest) < recordHeader {
			return l, nil
		}
		n := int64(binary.BigEndian.Uint32(rest))
		if n == 0 || n > int64(len(rest)-recordHeader) {
			return l, nil
		}
		body := rest[recordHeader : recordHeader+n]
		chain := crc32.Update(l.chain, castagnoli, body)
		if chain != binary.BigEndian.Uint32(rest[4:]) {
			return l, nil
		}
		seq, m := binary.Uvarint(body)
		if m <= 0 || len(body) < m+8 || seq != l.last+1 {
			return l, nil
		}
		l.records = append(l.records, record{seal{seq, binary.BigEndian.Uint64(body[m:])}, body[m+8:]})
		l.last, l.chain, l.at = seq, chain, l.at+recordHeader+n
	}
}

// readRedos reads both logs; what cannot be read has no records.
func (s *Store) readRedos() (logs []redoLog) {
	for _, name := range redoNames {
		l, err := s.readRedo(s.path(name))
		if err != nil && !isAbsent(err) {
			s.log.Error("a log of the index cannot be used", "log", name, "error", err)
		}
		if err != nil {
			l = redoLog{}
		}
		logs = append(logs, l)
	}
	return logs
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
func (s *Store) resume(l redoLog, seq uint64) {
	s.endRedo()
	if l.at == 0 || l.last != seq {
		return
	}
	f, err := s.fs.Open(s.path(redoNames[0]), true)
	if err != nil {
		s.log.Warn("the log of the index cannot be written; a snapshot takes its place", "error", err)
		return
	}
	l.file = f
	s.redo = &l.redo
}

// endRedo ends the log; its file stays.
func (s *Store) endRedo() {
	if s.redo != nil {
		_ = s.redo.file.Close()
		s.redo = nil
	}
}

// logged writes a transaction to the log and begins its sync; the result is to be called after the commit with its
// outcome. A log that cannot be written ends there: the index goes on without one until the snapshot that is asked for.
func (s *Store) logged(r record) (done func(committed bool)) {
	if s.redo == nil || r.seq != s.redo.last+1 {
		s.dropRedo(errors.New("there is none for this index"))
		return func(bool) {}
	}
	l := s.redo
	if err := l.write(r); err != nil {
		s.dropRedo(err)
		return func(bool) {}
	}
	synced := make(chan error, 1)
	go func() {
		if omitIndexSync {
			synced <- nil
			return
		}
		synced <- syncData(l.file)
	}()
	return func(committed bool) {
		err := <-synced
		if err == nil && !committed {
			err = l.takeBack()
		}
		if err != nil {
			s.dropRedo(err)
			return
		}
		if l.at > max(redoLong, s.indexSize.Load()) {
			s.want()
		}
	}
}

// dropRedo ends a log that is not whole and asks for a snapshot, which begins the next one.
func (s *Store) dropRedo(err error) {
	if s.redo != nil {
		s.log.Warn("the log of the index cannot be written: until its next snapshot nothing stands in for a lost index", "error", err)
	}
	s.endRedo()
	s.want()
}
