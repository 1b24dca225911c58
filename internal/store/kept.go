package store

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// smallContent is the size up to which the log has the bytes of new content, in bytes: they are durable with the row, by
	// the one sync of the log. The file is there at once and synced before the log goes.
	smallContent = 16 << 10
	// sentAhead is how many such files are worth it to have the disk begin with all of them first.
	sentAhead = 16
)

// kept is the content whose bytes are in the log, and may not be on the disk in their file yet.
type kept struct {
	flushing sync.Mutex
	held     atomic.Int64 // how many have their bytes in memory
	mu       sync.Mutex
	pending  map[registry.Digest]*unsynced
}

// unsynced is one file of these.
type unsynced struct {
	body  []byte      // where the file has to be written again, or may have to be: it is served from here meanwhile. Under mu
	doubt atomic.Bool // after an end that was none: nobody has looked at the file yet
}

func (k *kept) add(d registry.Digest, body []byte) *unsynced {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pending == nil {
		k.pending = map[registry.Digest]*unsynced{}
	}
	if u := k.pending[d]; u != nil {
		k.hold(u, nil)
	}
	u := &unsynced{}
	k.hold(u, body)
	k.pending[d] = u
	return u
}

// hold gives an entry its bytes, or takes them away; under mu.
func (k *kept) hold(u *unsynced, body []byte) {
	if u.body != nil {
		k.held.Add(-1)
	}
	if body != nil {
		k.held.Add(1)
	}
	u.body = body
}

// set is hold for an entry that is of the store still.
func (k *kept) set(d registry.Digest, u *unsynced, body []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pending[d] == u {
		k.hold(u, body)
	}
}

// bytes are those of content that has no sound file now, because the disk did not take it back after a power cut; nil for
// all other content.
func (k *kept) bytes(d registry.Digest) []byte {
	if k.held.Load() == 0 {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if u := k.pending[d]; u != nil {
		return u.body
	}
	return nil
}

func (k *kept) list() map[registry.Digest]*unsynced {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.pending)
}

// done forgets a file, unless another has come in its place meanwhile.
func (k *kept) done(d registry.Digest, u *unsynced) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pending[d] == u {
		k.hold(u, nil)
		delete(k.pending, d)
	}
}

// memory is a file of content that is served from memory.
type memory struct{ *bytes.Reader }

func (memory) Close() error                       { return nil }
func (memory) Sync() error                        { return nil }
func (memory) Truncate(int64) error               { return fs.ErrPermission }
func (memory) WriteAt([]byte, int64) (int, error) { return 0, fs.ErrPermission }
func (m memory) Stat() (fs.FileInfo, error)       { return memoryInfo{m.Reader.Size()}, nil }

type memoryInfo struct{ size int64 }

func (memoryInfo) Name() string       { return "" }
func (i memoryInfo) Size() int64      { return i.size }
func (memoryInfo) Mode() fs.FileMode  { return 0o400 }
func (memoryInfo) ModTime() time.Time { return time.Time{} }
func (memoryInfo) IsDir() bool        { return false }
func (memoryInfo) Sys() any           { return nil }

// keep adds the bytes of content to the record of the transaction.
func (t *tx) keep(d registry.Digest, body []byte) {
	if !omitContent {
		t.ops = appendOp(t.ops, opContent, root, digestKey(d), body)
	}
	t.kept = true
	t.writes++
}

// small returns the bytes of new content that go into the log; nil for content that is to be synced: large, known, or while
// there is no log. The caller has announced d.
func (s *Store) small(f File, d registry.Digest, size int64) ([]byte, error) {
	if size > smallContent || !s.covered.Load() || s.index.Load().inPlace(s.path(indexName), s.indexSize.Load()) != nil {
		return nil, nil
	}
	known := false
	if err := s.view(func(t *tx) error { _, known = t.blob(d); return nil }); err != nil || known {
		return nil, err
	}
	body := make([]byte, size)
	if err := readFull(f, body); err != nil {
		return nil, diskError(err)
	}
	return body, nil
}

// nameKept brings a file under the name of its content without a sync; false when there is a file of that name, which
// must not make room for one that is not durable yet.
func (s *Store) nameKept(path string, d registry.Digest) (bool, error) {
	s.naming.Lock()
	defer s.naming.Unlock()
	if _, err := s.fs.Lstat(s.contentPath(d)); !isAbsent(err) {
		return false, err
	}
	if err := s.fs.Rename(path, s.contentPath(d)); err != nil {
		return false, err
	}
	s.kept.add(d, nil)
	return true, nil
}

// look finds out which files are as they should be after an end that was none, for so long at most; 0 is without a limit.
// Errors: of the time, and of the index.
func (s *Store) look(patience time.Duration) error {
	began := s.uptime()
	for d, u := range s.kept.list() {
		if !u.doubt.Load() {
			continue
		}
		if patience > 0 && s.uptime()-began > patience {
			return context.DeadlineExceeded
		}
		known := false
		if err := s.view(func(t *tx) error { _, known = t.blob(d); return nil }); err != nil {
			return err
		}
		if body := s.kept.bytes(d); !known || body != nil && d.Algorithm().FromBytes(body) != d {
			s.kept.done(d, u)
			continue
		}
		if _, err := s.readKept(d); err == nil {
			s.kept.set(d, u, nil)
		}
		u.doubt.Store(false)
	}
	return nil
}

// flush makes the files durable whose bytes are in the log only, for so long at most; 0 is without a limit.
func (s *Store) flush(patience time.Duration) error {
	s.kept.flushing.Lock()
	defer s.kept.flushing.Unlock()
	if omitFlush {
		return nil
	}
	began := s.uptime()
	if err := s.look(patience); err != nil {
		return err
	}
	files := s.kept.list()
	s.sendAhead(files)
	dirs := map[string]bool{}
	restored := 0
	for d, u := range files {
		if patience > 0 && s.uptime()-began > patience {
			return context.DeadlineExceeded
		}
		again, err := s.flushFile(d, u)
		if err != nil {
			return err
		}
		if again {
			restored++
		}
		dirs[s.shard(d)] = true
	}
	if restored > 0 {
		s.log.Info("content was written again from the log", "files", restored)
	}
	for dir := range dirs {
		if err := s.fs.SyncDir(dir); err != nil {
			return err
		}
	}
	for d, u := range files {
		s.kept.done(d, u)
	}
	return nil
}

// sendAhead has the disk begin with many files at once: the sync of the first then finds most of the others on the disk,
// which is several times as fast as one after the other.
func (s *Store) sendAhead(files map[registry.Digest]*unsynced) {
	if len(files) < sentAhead {
		return
	}
	for d := range files {
		if f, err := s.fs.Open(s.contentPath(d), true); err == nil {
			startWriteback(f, 0, smallContent)
			_ = f.Close()
		}
	}
}

// flushFile syncs a file, or writes it again.
func (s *Store) flushFile(d registry.Digest, u *unsynced) (again bool, err error) {
	body := s.kept.bytes(d)
	if body == nil {
		err := s.syncKept(d)
		if err == nil || isAbsent(err) { // removed meanwhile
			return false, nil
		}
		// A second sync may succeed without the bytes: they are written to another file.
		if body, err = s.readKept(d); err != nil {
			return false, err
		}
		s.kept.set(d, u, body)
	}
	return true, s.restore(d, body)
}

func (s *Store) syncKept(d registry.Digest) error {
	f, err := s.fs.Open(s.contentPath(d), true)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// readKept reads small content from its file. Errors: errDamaged for other bytes.
func (s *Store) readKept(d registry.Digest) ([]byte, error) {
	f, info, err := openStat(s.fs, s.contentPath(d), false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if !info.Mode().IsRegular() || info.Size() > smallContent {
		return nil, errDamaged
	}
	body := make([]byte, info.Size())
	if err := readFull(f, body); err != nil {
		return nil, err
	}
	if d.Algorithm().FromBytes(body) != d {
		return nil, errDamaged
	}
	return body, nil
}

// restore writes the file of small content, durably but for its name, while a row wants it.
func (s *Store) restore(d registry.Digest, body []byte) error {
	defer s.content.publish(d)()
	known := false
	if err := s.view(func(t *tx) error { _, known = t.blob(d); return nil }); err != nil || !known {
		return err
	}
	if err := s.makeShard(d); err != nil {
		return err
	}
	path := s.path(dirUploads, s.tempPrefix+s.randomID())
	f, err := s.fs.Create(path)
	if err != nil {
		return err
	}
	_, err = writeFull(f, body, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		s.naming.Lock()
		err = s.fs.Rename(path, s.contentPath(d))
		s.naming.Unlock()
	}
	if err != nil {
		_ = s.fs.Remove(path)
	}
	return err
}

// restoreKept takes the bytes that the logs have after an end that was none. Whether they are wanted still, and whether
// their files are there, is looked at beside everything else, which may be a matter of minutes on a slow disk; those that
// are not there are written again, and all are served from memory until then. What the disk does not take is tried again
// with the next snapshot, and the log stays until then.
func (s *Store) restoreKept(logs []redoLog) error {
	for _, l := range logs {
		for _, r := range l.records {
			err := eachOp(r.ops, func(kind byte, _ [][]byte, key, value []byte) error {
				if d, ok := keyDigest(key); kind == opContent && ok {
					s.kept.add(d, value).doubt.Store(true)
					s.want()
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// eachOp calls fn for each operation of a record. Errors: errDamaged, and those of fn.
func eachOp(ops []byte, fn func(kind byte, path [][]byte, key, value []byte) error) error {
	for r := (reader{b: ops}); len(r.b) > 0; {
		kind, depth := r.b[0], 0
		if len(r.b) > 1 {
			depth = int(r.b[1])
		}
		r.b = r.b[min(2, len(r.b)):]
		path := make([][]byte, 0, depth)
		for range depth {
			path = append(path, []byte(r.text()))
		}
		key, value := []byte(r.text()), []byte(nil)
		if kind == opPut || kind == opContent {
			value = []byte(r.text())
		}
		if r.bad {
			return damaged("operation that ends early")
		}
		if err := fn(kind, path, key, value); err != nil {
			return err
		}
	}
	return nil
}

// apply does the operations of a record on an index.
func apply(btx *bbolt.Tx, ops []byte) error {
	return eachOp(ops, func(kind byte, path [][]byte, key, value []byte) error {
		if kind == opContent {
			return nil
		}
		var parent *bbolt.Bucket
		for i, name := range path {
			if i == 0 {
				parent = btx.Bucket(name)
			} else {
				parent = parent.Bucket(name)
			}
			if parent == nil {
				return damaged("operation on a bucket that is not there")
			}
		}
		return applyOp(btx, parent, kind, key, value)
	})
}
