package store

import (
	"bytes"
	"encoding/binary"

	"go.etcd.io/bbolt"
)

// bbolt has no checksum for its pages, so the index has one of its own: the sum of the hashes of all rows and buckets,
// each with its path, kept beside them in the same transaction. Whoever changes, drops, moves or adds a row behind bbolt's
// back changes the sum; what is not part of any row changes nothing that is served. A sum is cheap to keep: a row that is
// written costs two hashes, whatever else there is.

// place is a bucket of the index.
type place struct {
	path [][]byte
	seed uint64 // hash of the path
}

// root is the place of the buckets at the top.
var root = place{seed: fnvOffset}

// in is a bucket of that name below p.
func (p place) in(name []byte) place {
	path := make([][]byte, 0, len(p.path)+1)
	return place{path: append(append(path, p.path...), bytes.Clone(name)), seed: fold(p.seed, name)}
}

// self is what a bucket and its sequence add to the sum.
func (p place) self(sequence uint64) uint64 { return mix((p.seed ^ 1) + sequence*fnvPrime) }

// row is what a row in the bucket adds to the sum.
func (p place) row(key, value []byte) uint64 { return mix(fold(fold(p.seed, key), value)) }

// FNV-1a of 64 bits: a change of one byte always changes it.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// fold adds a text and its length to a hash.
func fold(h uint64, b []byte) uint64 {
	for n := uint64(len(b)); ; n >>= 8 {
		h = (h ^ n&0xff) * fnvPrime
		if n < 0x100 {
			break
		}
	}
	for _, c := range b {
		h = (h ^ uint64(c)) * fnvPrime
	}
	return h
}

// mix spreads a hash over all bits, so that sums of hashes are as unlike as hashes.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// seal is the row that closes a transaction.
type seal struct {
	seq uint64 // of the transaction: one more than that of the one before
	sum uint64 // of all rows but this one
}

const sealSize = 24

func (s seal) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, s.seq)
	b = binary.BigEndian.AppendUint64(b, s.sum)
	return binary.BigEndian.AppendUint64(b, mix(fold(fnvOffset, b)))
}

func decodeSeal(b []byte) (s seal, ok bool) {
	if len(b) != sealSize || binary.BigEndian.Uint64(b[16:]) != mix(fold(fnvOffset, b[:16])) {
		return s, false
	}
	return seal{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}, true
}

// isSeal reports whether a row is the seal, which is not part of the sum.
func isSeal(p place, key []byte) bool {
	return len(p.path) == 1 && bytes.Equal(p.path[0], bucketMeta) && bytes.Equal(key, keySeal)
}

// sumBucket is what a bucket with all that is in it adds to the sum.
func sumBucket(p place, b *bbolt.Bucket) (sum uint64) {
	sum = p.self(b.Sequence())
	_ = b.ForEach(func(k, v []byte) error {
		switch {
		case v == nil:
			sum += sumBucket(p.in(k), b.Bucket(k))
		case !isSeal(p, k):
			sum += p.row(k, v)
		}
		return nil
	})
	return sum
}

// sumIndex is the sum of all rows.
func sumIndex(btx *bbolt.Tx) (sum uint64) {
	_ = btx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		sum += sumBucket(root.in(name), b)
		return nil
	})
	return sum
}

// readSeal reads the seal of an index; false for an index of before there was one, and for a damaged one.
func readSeal(btx *bbolt.Tx) (seal, bool) {
	meta := btx.Bucket(bucketMeta)
	if meta == nil {
		return seal{}, false
	}
	return decodeSeal(meta.Get(keySeal))
}

// reseal makes the sum anew, for what changes rows without a tx.
func reseal(btx *bbolt.Tx) error {
	old, _ := readSeal(btx)
	return btx.Bucket(bucketMeta).Put(keySeal, seal{seq: old.seq + 1, sum: sumIndex(btx)}.encode())
}

// Bucket opens a bucket at the top.
func (t *tx) Bucket(name []byte) *bbolt.Bucket {
	return t.known(t.Tx.Bucket(name), root, name)
}

// known remembers where a bucket is, for the rows that are written to it.
func (t *tx) known(b *bbolt.Bucket, parent place, name []byte) *bbolt.Bucket {
	if b == nil || t.places == nil {
		return b
	}
	if _, ok := t.places[b]; !ok {
		t.places[b] = parent.in(name)
	}
	return b
}

// bucket opens a bucket below another.
func (t *tx) bucket(parent *bbolt.Bucket, name []byte) *bbolt.Bucket {
	return t.known(parent.Bucket(name), t.places[parent], name)
}

// makeBucket makes a bucket, at the top for a nil parent, unless it is there.
func (t *tx) makeBucket(parent *bbolt.Bucket, name []byte) (*bbolt.Bucket, error) {
	at := t.places[parent] // root for nil
	if parent == nil {
		if b := t.Bucket(name); b != nil {
			return b, nil
		}
		at = root
	} else if b := t.bucket(parent, name); b != nil {
		return b, nil
	}
	var b *bbolt.Bucket
	var err error
	if parent == nil {
		b, err = t.CreateBucket(name)
	} else {
		b, err = parent.CreateBucket(name)
	}
	if err != nil {
		return nil, err
	}
	t.writes++
	t.sum += at.in(name).self(0)
	t.ops = appendOp(t.ops, opMake, at, name, nil)
	return t.known(b, at, name), nil
}

// dropBucket removes a bucket with all that is in it.
func (t *tx) dropBucket(parent *bbolt.Bucket, name []byte) error {
	at, err := t.place(parent)
	if err != nil {
		return err
	}
	t.sum -= sumBucket(at.in(name), parent.Bucket(name))
	t.writes++
	t.ops = appendOp(t.ops, opDrop, at, name, nil)
	return parent.DeleteBucket(name)
}

// next takes the next number of the sequence of a bucket.
func (t *tx) next(b *bbolt.Bucket) (uint64, error) {
	at, err := t.place(b)
	if err != nil {
		return 0, err
	}
	old := b.Sequence()
	n, err := b.NextSequence()
	t.sum += at.self(n) - at.self(old)
	t.ops = appendOp(t.ops, opNext, at, seqKey(n), nil)
	return n, err
}
