package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"runtime/debug"
)

// The layout of a bbolt file, as its internal/common package has it (bbolt 1.x, file version 2). Numbers are in the
// order of the machine; all of our targets are little-endian.
const (
	boltMagic        = 0xED0CDAED
	boltVersion      = 2
	pageHeaderSize   = 16 // id u64, flags u16, count u16, overflow u32
	elementSize      = 16 // branch: pos u32, ksize u32, pgid u64; leaf: flags u32, pos u32, ksize u32, vsize u32
	bucketHeaderSize = 16 // root u64, sequence u64
	metaChecked      = 56 // bytes of a meta before its checksum
	pageBranch       = 1
	pageLeaf         = 2
	leafBucket       = 1
	maxTreeDepth     = 32
	maxPageSize      = 16 << 20
)

// verifier walks every page that can be reached from the newest meta page. bbolt trusts its file: a bad page panics,
// in a goroutine of its own while the file is opened, where no caller can recover. So the walk comes first.
type verifier struct {
	f        io.ReaderAt
	pageSize int64
	pages    uint64 // page ids are below this
	seen     []uint64
	buffers  [maxTreeDepth + 1][]byte
	depth    int
	at       place  // of the bucket that is walked
	sum      uint64 // of its rows and those before
	used     int64  // bytes of entries in pages, without the gaps in and between pages
	end      []byte // the seal
	version  []byte // of the schema
}

// inspectIndex checks an index file of so many bytes, and returns what it saw. Errors: errDamaged, and those of reading.
func inspectIndex(f io.ReaderAt, size int64) (*verifier, error) {
	readAhead(f, size)
	v := &verifier{f: f, at: root}
	root, err := v.meta(size)
	if err != nil {
		return v, err
	}
	if v.pages > uint64(size/v.pageSize) {
		return v, damaged("%d pages in a file of %d bytes", v.pages, size)
	}
	v.seen = make([]uint64, v.pages/64+1)
	if err := v.page(root, nil, nil); err != nil {
		return v, err
	}
	return v, v.sealed()
}

// sealed compares the rows with their sum.
func (v *verifier) sealed() error {
	s, ok := decodeSeal(v.end)
	version, _ := binary.Uvarint(v.version)
	switch {
	case v.end == nil && (v.sum == 0 || version == 1): // a new index, and one of before there was a seal
		return nil
	case !ok:
		return damaged("the seal cannot be read")
	case s.sum != v.sum:
		return damaged("its rows have another sum than when they were written")
	}
	return nil
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDamaged, fmt.Sprintf(format, args...))
}

// meta chooses between the two meta pages as bbolt does and returns the page of the root bucket.
func (v *verifier) meta(size int64) (root uint64, err error) {
	var txid uint64
	found := false
	read := func(offset int64) error {
		buf := make([]byte, pageHeaderSize+metaChecked+8)
		if _, err := v.f.ReadAt(buf, offset); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		m := buf[pageHeaderSize:]
		sum := fnv.New64a()
		_, _ = sum.Write(m[:metaChecked])
		le := binary.LittleEndian
		if le.Uint32(m) != boltMagic || le.Uint32(m[4:]) != boltVersion || le.Uint64(m[metaChecked:]) != sum.Sum64() {
			return nil
		}
		pageSize := int64(le.Uint32(m[8:]))
		if pageSize < 1024 || pageSize > maxPageSize || (offset != 0 && offset != pageSize) {
			return nil
		}
		if id := le.Uint64(m[48:]); !found || id > txid {
			found, txid, v.pageSize = true, id, pageSize
			root, v.pages = le.Uint64(m[16:]), le.Uint64(m[40:])
		}
		return nil
	}
	if err := read(0); err != nil {
		return 0, err
	}
	for offset := int64(1024); offset <= maxPageSize && offset < size; offset *= 2 {
		if err := read(offset); err != nil {
			return 0, err
		}
	}
	if !found {
		return 0, damaged("no valid meta page")
	}
	return root, nil
}

// page checks a page, what is below it, and that its keys are in [lower, upper); nil is no bound.
func (v *verifier) page(id uint64, lower, upper []byte) error {
	if v.depth >= maxTreeDepth {
		return damaged("tree deeper than %d", maxTreeDepth)
	}
	v.depth++
	defer func() { v.depth-- }()
	buf, err := v.read(id)
	if err != nil {
		return err
	}
	return v.elements(buf, id, lower, upper)
}

// read returns the bytes of a page with its overflow and takes its ids as used.
func (v *verifier) read(id uint64) ([]byte, error) {
	if id < 2 || id >= v.pages {
		return nil, damaged("page %d of %d", id, v.pages)
	}
	buf := v.buffer(v.pageSize)
	if _, err := v.f.ReadAt(buf, int64(id)*v.pageSize); err != nil {
		return nil, endIsDamage(err)
	}
	if got := binary.LittleEndian.Uint64(buf); got != id {
		return nil, damaged("page %d identifies as %d", id, got)
	}
	n := uint64(binary.LittleEndian.Uint32(buf[12:])) + 1
	if id+n > v.pages {
		return nil, damaged("page %d overflows the file", id)
	}
	for i := id; i < id+n; i++ {
		if v.seen[i/64]&(1<<(i%64)) != 0 {
			return nil, damaged("page %d is used twice", i)
		}
		v.seen[i/64] |= 1 << (i % 64)
	}
	if n > 1 {
		buf = v.buffer(int64(n) * v.pageSize)
		if _, err := v.f.ReadAt(buf, int64(id)*v.pageSize); err != nil {
			return nil, endIsDamage(err)
		}
	}
	return buf, nil
}

// buffer is of so many bytes, for a page at this depth.
func (v *verifier) buffer(size int64) []byte {
	if int64(cap(v.buffers[v.depth])) < size {
		v.buffers[v.depth] = make([]byte, size)
	}
	return v.buffers[v.depth][:size]
}

func endIsDamage(err error) error {
	if errors.Is(err, io.EOF) {
		return damaged("file ends early")
	}
	return err
}

// elements checks the entries of a page or, for id 0, of a bucket inside a value.
func (v *verifier) elements(buf []byte, id uint64, lower, upper []byte) error {
	le := binary.LittleEndian
	kind, count := le.Uint16(buf[8:]), int(le.Uint16(buf[10:]))
	if kind != pageLeaf && (kind != pageBranch || id == 0 || count == 0) {
		return damaged("page %d has type %#x", id, kind)
	}
	if pageHeaderSize+count*elementSize > len(buf) {
		return damaged("page %d is too small for %d entries", id, count)
	}
	key := func(i int) ([]byte, []byte, bool) { // key and value
		at := pageHeaderSize + i*elementSize
		e := buf[at:]
		pos, ksize, vsize := uint64(le.Uint32(e)), uint64(le.Uint32(e[4:])), uint64(0)
		if kind == pageLeaf {
			pos, ksize, vsize = uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		}
		start := uint64(at) + pos
		if start+ksize+vsize > uint64(len(buf)) || pos < uint64((count-i)*elementSize) {
			return nil, nil, false
		}
		return buf[start : start+ksize], buf[start+ksize : start+ksize+vsize], true
	}
	previous := lower
	for i := range count {
		k, value, ok := key(i)
		if !ok {
			return damaged("entry %d of page %d is out of bounds", i, id)
		}
		if c := bytes.Compare(previous, k); previous != nil && (c > 0 || (c == 0 && i > 0)) || upper != nil && bytes.Compare(k, upper) >= 0 {
			return damaged("entry %d of page %d is out of order", i, id)
		}
		previous = k
		if id != 0 { // else it is part of a value
			v.used += int64(elementSize + len(k) + len(value))
		}
		e := buf[pageHeaderSize+i*elementSize:]
		var err error
		switch {
		case kind == pageBranch:
			next := upper
			if i+1 < count {
				if next, _, ok = key(i + 1); !ok {
					return damaged("entry %d of page %d is out of bounds", i+1, id)
				}
			}
			err = v.page(le.Uint64(e[8:]), k, next)
		case le.Uint32(e) == leafBucket && id != 0:
			err = v.bucket(k, value)
		case kind == pageLeaf && le.Uint32(e) == 0:
			v.row(k, value)
		default:
			err = damaged("entry %d of page %d has flags %#x", i, id, le.Uint32(e))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// row takes a row into the sum.
func (v *verifier) row(key, value []byte) {
	if isSeal(v.at, key) {
		v.end = bytes.Clone(value)
		return
	}
	if len(v.at.path) == 1 && bytes.Equal(v.at.path[0], bucketMeta) && bytes.Equal(key, keySchemaVersion) {
		v.version = bytes.Clone(value)
	}
	v.sum += v.at.row(key, value)
}

// bucket checks a bucket: a page of its own, or entries inside the value.
func (v *verifier) bucket(name, value []byte) error {
	if len(value) < bucketHeaderSize {
		return damaged("bucket of %d bytes", len(value))
	}
	above := v.at
	v.at = above.in(name)
	defer func() { v.at = above }()
	v.sum += v.at.self(binary.LittleEndian.Uint64(value[8:]))
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return v.page(root, nil, nil)
	}
	inline := value[bucketHeaderSize:]
	if len(inline) < pageHeaderSize {
		return damaged("bucket of %d bytes", len(value))
	}
	return v.elements(inline, 0, nil, nil)
}

// guard turns a panic or a bus fault of bbolt into errDamaged.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damaged("%v", p)
		}
	}()
	return fn()
}
