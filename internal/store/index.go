package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"sync"
	"syscall"

	"go.etcd.io/bbolt"
	bberrors "go.etcd.io/bbolt/errors"
)

// maxGroup bounds how many callers share one commit.
const maxGroup = 64

// tx is one transaction of the index. The functions of several callers may share one.
type tx struct {
	*bbolt.Tx
	s       *Store
	now     int64 // unix seconds
	counts  counts
	writes  int  // rows changed; 0 at the end commits nothing
	changed bool // tags or referrers changed
	relock  bool // locks changed
	told    bool // there are events to tell
	delta   *outboxDelta

	places map[*bbolt.Bucket]place // of the buckets that were opened; nil in a read transaction
	sum    uint64                  // of all rows, with what was written so far
	ops    []byte                  // for the log
	kept   bool                    // some of them are content
}

// counts is what Usage answers from.
type counts struct {
	repositories, tags, manifests, blobs, bytes int64
}

func (c counts) encode() (b []byte) {
	for _, v := range []int64{c.repositories, c.tags, c.manifests, c.blobs, c.bytes} {
		b = binary.AppendVarint(b, v)
	}
	return b
}

func decodeCounts(b []byte) (c counts) {
	for _, v := range []*int64{&c.repositories, &c.tags, &c.manifests, &c.blobs, &c.bytes} {
		x, n := binary.Varint(b)
		if n <= 0 {
			return c
		}
		*v, b = x, b[n:]
	}
	return c
}

// place is where a bucket is. Errors: for one that was not opened through the tx.
func (t *tx) place(b *bbolt.Bucket) (place, error) {
	if p, ok := t.places[b]; ok {
		return p, nil
	}
	return place{}, errors.New("store: a bucket of unknown place")
}

// put writes a row unless it is there already, so that a transaction without news costs no commit.
func (t *tx) put(b *bbolt.Bucket, key, value []byte) error {
	old := b.Get(key)
	if old != nil && bytes.Equal(old, value) {
		return nil
	}
	at, err := t.place(b)
	if err != nil {
		return err
	}
	if old != nil {
		t.sum -= at.row(key, old)
	}
	t.sum += at.row(key, value)
	t.ops = appendOp(t.ops, opPut, at, key, value)
	t.writes++
	return b.Put(key, value)
}

// remove deletes a row if it is there.
func (t *tx) remove(b *bbolt.Bucket, key []byte) error {
	old := b.Get(key)
	if old == nil {
		return nil
	}
	at, err := t.place(b)
	if err != nil {
		return err
	}
	t.sum -= at.row(key, old)
	t.ops = appendOp(t.ops, opRemove, at, key, nil)
	t.writes++
	return b.Delete(key)
}

// call is one caller's part of a shared transaction.
type call struct {
	fn   func(*tx) error
	err  error
	done chan struct{}
}

// queue groups commits: whoever comes while a commit is under way shares the next one. A caller that is alone commits
// at once, which bbolt's Batch with its delay would not do.
type queue struct {
	mu      sync.Mutex
	waiting []*call
	busy    bool
}

// update runs fn in a read-write transaction and returns when it is durable. fn may run more than once and must not
// keep what an earlier run left. Errors are those of fn, or DiskError and UNAVAILABLE.
func (s *Store) update(ctx context.Context, fn func(*tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &call{fn: fn, done: make(chan struct{})}
	s.queue.mu.Lock()
	s.queue.waiting = append(s.queue.waiting, c)
	lead := !s.queue.busy
	s.queue.busy = true
	s.queue.mu.Unlock()
	if lead {
		s.lead()
	}
	<-c.done
	return c.err
}

// lead commits one group and hands the rest to a goroutine, so that no caller works for others for long.
func (s *Store) lead() {
	s.queue.mu.Lock()
	n := min(len(s.queue.waiting), maxGroup)
	group := s.queue.waiting[:n:n]
	s.queue.waiting = s.queue.waiting[n:]
	s.queue.mu.Unlock()

	s.commit(group)
	for _, c := range group {
		close(c.done)
	}

	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	if len(s.queue.waiting) == 0 {
		s.queue.busy, s.queue.waiting = false, nil
		return
	}
	go s.lead()
}

// commit runs a group in one transaction. When that fails for a reason that may be one caller's, each runs alone.
func (s *Store) commit(group []*call) {
	err := s.transact(group)
	if err == nil {
		return
	}
	if len(group) == 1 {
		group[0].err = err
		return
	}
	for _, c := range group {
		c.err = nil
		if err := s.transact([]*call{c}); err != nil {
			c.err = err
		}
	}
}

// transact is one attempt, and a second with the reserve given back when the volume is full.
func (s *Store) transact(group []*call) error {
	err := s.attempt(group)
	if isFull(err) && s.releaseReserve() {
		err = s.attempt(group)
	}
	return diskError(err)
}

// attempt runs the group in one bbolt transaction. A caller's error that came before its first write is that caller's
// alone; any other error undoes the group.
func (s *Store) attempt(group []*call) (err error) {
	if err := s.unbroken(); err != nil {
		return err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.unbroken(); err != nil {
		return err
	}
	ix := s.index.Load()
	if err := ix.inPlace(s.path(indexName), s.indexSize.Load()); err != nil {
		return s.breakIndex(err)
	}
	s.cover(ix)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	btx, err := s.begin(ix, true)
	if err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			err = s.breakIndex(fmt.Errorf("write transaction: %v", p))
		}
		if e := guard(func() error { return ignoreClosed(btx.Rollback()) }); e != nil {
			ix.stuck.Store(true)
			err = errors.Join(err, s.breakIndex(e)) // what it read to undo itself is damaged too
		}
	}()
	last, ok := readSeal(btx)
	if !ok {
		return s.breakIndex(damaged("the seal cannot be read"))
	}
	t := s.newTx(btx)
	t.places, t.sum = map[*bbolt.Bucket]place{}, last.sum
	for _, c := range group {
		before := t.writes
		if c.err = c.fn(t); c.err != nil && t.writes != before {
			return c.err
		}
	}
	if t.writes == 0 {
		return nil
	}
	if err := t.put(t.Bucket(bucketMeta), keyCounts, t.counts.encode()); err != nil {
		return err
	}
	if err := s.finish(t, seal{last.seq + 1, t.sum}); err != nil {
		return err
	}
	s.counts.Store(&t.counts)
	if t.relock {
		if err := s.view(func(t *tx) error { s.loadLocks(t); return nil }); err != nil {
			return err
		}
	}
	s.outboxed.apply(t.delta)
	if t.changed || t.told {
		s.wake(t)
	}
	return s.step("committed")
}

// finish commits a transaction: to the log, which makes it durable, then to the index.
func (s *Store) finish(t *tx, end seal) error {
	if err := t.Bucket(bucketMeta).Put(keySeal, end.encode()); err != nil {
		return err
	}
	if err := s.step("commit"); err != nil {
		return err
	}
	done, err := s.logged(t, record{end, t.ops})
	if err != nil {
		return err
	}
	committed := false
	defer func() { done(committed) }() // also when bbolt panics
	size := t.Size()
	s.version.Add(1) // what bbolt commits is seen before Commit returns
	defer s.version.Add(1)
	if err := t.Commit(); err != nil {
		if errors.Is(err, syscall.EIO) {
			_ = s.breakIndex(err) // what a failed sync left on the disk is unknown
		}
		return err
	}
	committed = true
	s.commits.Add(1)
	s.sealed.Store(end.seq)
	s.indexSize.Store(size)
	return nil
}

// ignoreClosed leaves out that a transaction has ended already.
func ignoreClosed(err error) error {
	if errors.Is(err, bberrors.ErrTxClosed) {
		return nil
	}
	return err
}

func (s *Store) newTx(btx *bbolt.Tx) *tx {
	t := &tx{Tx: btx, s: s, now: s.clock.Now().Unix()}
	if c := s.counts.Load(); c != nil {
		t.counts = *c
	}
	return t
}

// view runs fn in a read-only transaction. A damaged page or an unreadable disk is UNAVAILABLE, not a crash.
func (s *Store) view(fn func(*tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	ix := s.index.Load()
	btx, err := s.begin(ix, false)
	for err != nil && ix != s.index.Load() { // another has taken its place meanwhile
		ix = s.index.Load()
		btx, err = s.begin(ix, false)
	}
	if err != nil {
		return diskError(err)
	}
	defer func() {
		if p := recover(); p != nil {
			err = s.breakWhile(ix, fmt.Errorf("read transaction: %v", p))
		}
		_ = btx.Rollback()
	}()
	return fn(s.newTx(btx))
}

// begin starts a transaction. bbolt reads its meta pages for that.
func (s *Store) begin(ix *index, write bool) (btx *bbolt.Tx, err error) {
	if ix.stuck.Load() {
		return nil, s.breakWhile(ix, damaged("its locks are lost"))
	}
	err = guard(func() (err error) { btx, err = ix.db.Begin(write); return err })
	if errors.Is(err, errDamaged) {
		if write || !release(ix.db) { // writers come one by one: none waits for the lock that is lost
			ix.stuck.Store(true)
		}
		err = s.breakWhile(ix, err)
	}
	return btx, err
}

// release gives back the locks that bbolt keeps when the begin of a read transaction panics: who waits for them, to begin,
// to commit or to end what it read, would wait for ever. bbolt has no word for that; false when its locks are not those
// that are known.
func release(db *bbolt.DB) bool {
	meta, mapped := lockOf[sync.Mutex](db, "metalock"), lockOf[sync.RWMutex](db, "mmaplock")
	if meta == nil || mapped == nil {
		return false
	}
	mapped.RUnlock()
	meta.Unlock()
	return true
}

// lockOf is a lock of bbolt; nil when it has none of that name and type.
func lockOf[T any](db *bbolt.DB, name string) *T {
	f := reflect.ValueOf(db).Elem().FieldByName(name)
	if !f.IsValid() || f.Type() != reflect.TypeFor[T]() {
		return nil
	}
	return (*T)(f.Addr().UnsafePointer())
}

// wake tells those who wait for what a transaction changed.
func (s *Store) wake(t *tx) {
	s.changedMu.Lock()
	defer s.changedMu.Unlock()
	if t.changed {
		close(s.changed)
		s.changed = make(chan struct{})
	}
	if t.told {
		close(s.journaled)
		s.journaled = make(chan struct{})
	}
}
