package store

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// A snapshot is an index file that nobody looks into: a header and the file, compressed to a fifth or less. A digest
// stands in several rows, far from each other, which a window of 2 MiB finds and the 32 KiB of deflate do not. What was
// written is read again before it gets its name, and its checksum is that of the bytes that were looked through.

const (
	packMagic  = "crsnap1\n"
	packHeader = len(packMagic) + 2*8 + 4
	packWindow = 2 << 20 // bytes; packing takes twice as much memory, unpacking a bit more than that
)

// packed is the header of a snapshot.
type packed struct {
	seq  uint64 // of the last transaction
	size int64  // bytes of the index
}

func (p packed) encode() []byte {
	b := binary.BigEndian.AppendUint64([]byte(packMagic), p.seq)
	b = binary.BigEndian.AppendUint64(b, uint64(p.size))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodePacked(b []byte) (packed, bool) {
	p := packed{binary.BigEndian.Uint64(b[len(packMagic):]), int64(binary.BigEndian.Uint64(b[len(packMagic)+8:]))}
	return p, slices.Equal(b, p.encode())
}

// pack writes the first bytes of an index file to a new snapshot, durably but for its name.
func (s *Store) pack(from io.ReaderAt, path string, p packed) error {
	f, err := s.fs.Create(path)
	if err != nil {
		return err
	}
	w := &appender{f: f}
	if _, err = w.Write(p.encode()); err == nil {
		err = compress(w, io.NewSectionReader(from, 0, p.size))
	}
	if err == nil && !omitPackSync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func compress(to io.Writer, from io.Reader) error {
	z, err := zstd.NewWriter(to, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(packWindow),
		zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return err
	}
	_, err = io.Copy(z, from)
	return errors.Join(err, z.Close())
}

// unpack writes the index of a snapshot, and returns what it is. What is written is not to be used after an error. A
// snapshot of a release before is the index itself. Errors: errDamaged, and those of reading and writing.
func (s *Store) unpack(path string, to io.Writer) (p packed, err error) {
	f, info, err := openStat(s.fs, path, false)
	if err != nil {
		return p, err
	}
	defer f.Close()
	head := make([]byte, packHeader)
	if err := readFull(f, head); err != nil {
		return p, endIsDamage(err)
	}
	if string(head[:len(packMagic)]) != packMagic {
		v, err := inspectIndex(f, info.Size())
		if err != nil {
			return p, err
		}
		m := v.mark()
		_, err = io.Copy(to, io.NewSectionReader(f, 0, m.size))
		return packed{m.seq, m.size}, err
	}
	p, ok := decodePacked(head)
	if !ok {
		return p, damaged("snapshot with a header that cannot be read")
	}
	from := &noted{r: io.NewSectionReader(f, int64(packHeader), info.Size()-int64(packHeader))}
	into := &noted{w: to}
	n, err := decompress(into, from, p.size)
	switch {
	case from.err != nil || into.err != nil:
		return p, errors.Join(from.err, into.err)
	case err != nil:
		return p, damaged("snapshot: %v", err)
	case n != p.size:
		return p, damaged("snapshot of %d bytes that has another number of them", p.size)
	}
	return p, nil
}

// decompress writes a byte more than limit at most.
func decompress(to io.Writer, from io.Reader, limit int64) (n int64, err error) {
	return n, guard(func() error {
		z, err := zstd.NewReader(from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(packWindow))
		if err != nil {
			return err
		}
		defer z.Close()
		n, err = io.Copy(to, io.LimitReader(z, limit+1))
		return err
	})
}

// noted passes on what it reads or writes, and remembers what went wrong with that.
type noted struct {
	r   io.Reader
	w   io.Writer
	err error
}

func (n *noted) Read(p []byte) (int, error) {
	k, err := n.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		n.err = err
	}
	return k, err
}

func (n *noted) Write(p []byte) (int, error) {
	k, err := n.w.Write(p)
	if err != nil {
		n.err = err
	}
	return k, err
}
