package store

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"os"
)

// An index that is looked through for damage at each start makes the first answer wait for all of its rows. So a process
// that ends looks it through then, and leaves the checksum of its bytes: a start that finds these bytes has nothing to look
// through, whatever happened in between, and any other bytes are looked at as if there were no mark. A mark that is old,
// torn or missing costs time only; it is not synced.

const (
	markName  = "checked"
	markMagic = "crmark1\n"
	markSize  = len(markMagic) + 3*8 + 2*4
	markChunk = 128 << 10 // bytes that are read at once
)

// mark is what is known of the bytes of an index.
type mark struct {
	seq  uint64 // of its last transaction
	size int64  // bytes from the beginning of the file that its pages ever took: bbolt makes it larger in steps of up to 16 MiB
	used int64  // as in verifier
	sum  uint32 // of these bytes
}

func (m mark) encode() []byte {
	b := binary.BigEndian.AppendUint64([]byte(markMagic), m.seq)
	b = binary.BigEndian.AppendUint64(b, uint64(m.size))
	b = binary.BigEndian.AppendUint64(b, uint64(m.used))
	b = binary.BigEndian.AppendUint32(b, m.sum)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeMark(b []byte) (m mark, ok bool) {
	if len(b) != markSize || string(b[:len(markMagic)]) != markMagic {
		return m, false
	}
	end := markSize - 4
	n := b[len(markMagic):]
	m = mark{
		seq: binary.BigEndian.Uint64(n), size: int64(binary.BigEndian.Uint64(n[8:])), used: int64(binary.BigEndian.Uint64(n[16:])),
		sum: binary.BigEndian.Uint32(n[24:]),
	}
	return m, binary.BigEndian.Uint32(b[end:]) == crc32.Checksum(b[:end], castagnoli) && m.size > 0
}

// sumBytes is the checksum of the first bytes of a file.
func sumBytes(f io.ReaderAt, size int64) (sum uint32, err error) {
	buf := make([]byte, min(size, markChunk))
	for at := int64(0); at < size; {
		n, err := f.ReadAt(buf[:min(size-at, markChunk)], at)
		if n == 0 && err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, castagnoli, buf[:n])
		at += int64(n)
	}
	return sum, nil
}

// examine finds out whether an index is sound, by its mark or by looking through all of it. Errors: errDamaged, and those
// of reading.
func (s *Store) examine(f *os.File, size int64) (mark, error) {
	s.marked = mark{}
	if m, ok := s.readMark(); ok && m.size <= size {
		sum, err := sumBytes(f, m.size)
		if err == nil && sum == m.sum {
			s.marked = m
			return m, nil
		}
	}
	v, err := inspectIndex(f, size)
	if err != nil {
		return mark{}, err
	}
	return v.mark(), nil
}

// mark is what the walk saw; without a seal the sequence is one that no log has.
func (v *verifier) mark() mark {
	m := mark{seq: math.MaxUint64, size: int64(v.pages) * v.pageSize, used: v.used}
	if end, ok := decodeSeal(v.end); ok {
		m.seq = end.seq
	}
	return m
}

func (s *Store) readMark() (m mark, ok bool) {
	f, err := s.fs.Open(s.path(markName), false)
	if err != nil {
		return m, false
	}
	defer f.Close()
	b := make([]byte, markSize+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return m, false
	}
	return decodeMark(b[:n])
}

// leaveMark looks through the index, which is at rest, and leaves a mark of it. Without one the next start takes longer.
func (s *Store) leaveMark() {
	ix := s.index.Load()
	if s.broken.Load() != nil || ix.stuck.Load() || s.marked.size > 0 && s.marked.seq == s.sealed.Load() {
		return
	}
	info, err := ix.file.Stat()
	if err != nil {
		return
	}
	v, err := inspectIndex(ix.file, info.Size())
	if err != nil {
		return // the next start finds it out again, and mends it
	}
	m := v.mark()
	if m.sum, err = sumBytes(ix.file, m.size); err != nil {
		return
	}
	path := s.path(markName)
	if err := s.fs.Remove(path); err != nil && !isAbsent(err) {
		return
	}
	f, err := s.fs.Create(path)
	if err != nil {
		return
	}
	_, err = writeFull(f, m.encode(), 0)
	if errors.Join(err, f.Close()) != nil {
		_ = s.fs.Remove(path)
	}
}
