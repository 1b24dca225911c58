package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path/filepath"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// copyBuffer is the size of reads when content is hashed again, in bytes.
const copyBuffer = 256 << 10

// shardCount is how many directories hold the content of an algorithm.
const shardCount = 256

// contentPath is the file of content.
func (s *Store) contentPath(d registry.Digest) string {
	hex := d.Encoded()
	return s.path(dirBlobs, d.Algorithm().String(), hex[:2], hex)
}

// shard is the directory of content.
func (s *Store) shard(d registry.Digest) string { return filepath.Dir(s.contentPath(d)) }

// eachShard calls fn for the directories that hold content, until it returns false.
func (s *Store) eachShard(fn func(dir string) (bool, error)) error {
	for _, alg := range []string{"sha256", "sha512"} {
		for i := range shardCount {
			more, err := fn(s.path(dirBlobs, alg, fmt.Sprintf("%02x", i)))
			if err != nil && !isAbsent(err) { // they are made when they are needed
				return err
			}
			if err == nil && !more {
				return nil
			}
		}
	}
	return nil
}

// shards knows the directories whose names are durable since this process asked for it: one that is there may be what a
// killed process made and did not sync.
type shards struct {
	mu      sync.Mutex
	durable map[string]bool // by algorithm
}

// makeShard makes the directories of an algorithm durable before the first content of this process gets its name: all
// of them with one sync, so that no later commit waits for that.
func (s *Store) makeShard(d registry.Digest) error {
	alg := d.Algorithm().String()
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	if s.shards.durable[alg] {
		return nil
	}
	all := s.path(dirBlobs, alg)
	list, err := s.fs.ReadDir(all, 0)
	if err != nil {
		return err
	}
	if len(list) < shardCount {
		for i := range shardCount {
			if _, err := s.mkdir(filepath.Join(all, fmt.Sprintf("%02x", i))); err != nil {
				return err
			}
		}
	}
	if err := s.fs.SyncDir(all); err != nil {
		return err
	}
	if s.shards.durable == nil {
		s.shards.durable = map[string]bool{}
	}
	s.shards.durable[alg] = true
	return nil
}

// contentLocks orders those who make content visible and those who remove its file. A publisher that comes between the
// removal of a row and of its file takes the file back, so that no row ever points at a file that was just removed.
type contentLocks struct {
	mu         sync.Mutex
	publishing map[registry.Digest]int
	doomed     map[registry.Digest]bool
	touched    map[registry.Digest]struct{} // since collection began to mark; nil when there is none
}

// publish announces that content is about to become visible; the returned function ends that.
func (c *contentLocks) publish(d registry.Digest) (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.publishing == nil {
		c.publishing = map[registry.Digest]int{}
	}
	c.publishing[d]++
	delete(c.doomed, d)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.publishing[d]--; c.publishing[d] == 0 {
			delete(c.publishing, d)
		}
	}
}

// doom announces that the file of d is about to be removed; false when somebody publishes it.
func (c *contentLocks) doom(d registry.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.publishing[d] > 0 {
		return false
	}
	if c.doomed == nil {
		c.doomed = map[registry.Digest]bool{}
	}
	c.doomed[d] = true
	return true
}

// execute runs remove unless somebody published d since doom.
func (c *contentLocks) execute(d registry.Digest, remove func() error) (removed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.doomed[d] {
		return false, nil
	}
	delete(c.doomed, d)
	return true, remove()
}

// spare takes back doom.
func (c *contentLocks) spare(d registry.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.doomed, d)
}

// touch tells a collection that is marking that d is in use.
func (s *Store) touch(d registry.Digest) {
	s.content.mu.Lock()
	defer s.content.mu.Unlock()
	if s.content.touched != nil {
		s.content.touched[d] = struct{}{}
	}
}

// maxLeases bounds the memory of leases; beyond it only the time in the rows protects.
const maxLeases = 100_000

// leases remembers by the monotonic clock what was committed or asked for lately: on a device whose clock is set after
// the boot, the times in the rows may seem years old.
type leases struct {
	mu sync.Mutex
	at map[registry.Digest]time.Duration
}

func (l *leases) add(d registry.Digest, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil {
		l.at = map[registry.Digest]time.Duration{}
	}
	if _, ok := l.at[d]; ok || len(l.at) < maxLeases {
		l.at[d] = now
	}
}

func (l *leases) fresh(d registry.Digest, now, grace time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.at[d]
	return ok && now-at < grace
}

func (l *leases) prune(now, grace time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for d, at := range l.at {
		if now-at >= grace {
			delete(l.at, d)
		}
	}
}

// publish makes a complete, verified file visible as content d and writes its row, and what fn adds, in one
// transaction. The file is closed in any case. When the transaction fails and no row owns the content, the file goes
// back to its path, so that its bytes are not lost; back reports that. A failed fsync removes it.
func (s *Store) publish(ctx context.Context, f File, path string, d registry.Digest, row blobRow, fn func(*tx) error) (back bool, err error) {
	defer s.content.publish(d)()
	logged := false
	body, err := s.small(f, d, row.size)
	if err != nil {
		return true, errors.Join(err, f.Close())
	}
	rows := func(t *tx) error {
		if _, had := t.blob(d); !had {
			if err := s.quota(t.counts.bytes + row.size); err != nil {
				return err
			}
		}
		row.at = t.now
		if err := t.putBlob(d, row); err != nil {
			return err
		}
		if logged {
			t.keep(d, body)
		}
		return fn(t)
	}
	if omitOrder {
		_ = s.update(ctx, rows)
	}
	if logged, err = s.place(f, path, d, body != nil); err != nil {
		_, statErr := s.fs.Lstat(path)
		return statErr == nil, diskError(err)
	}
	err = s.update(ctx, rows)
	if err == nil {
		s.leases.add(d, s.uptime())
		s.warned.Delete(d)
		s.sound.add(d) // the bytes were hashed on their way here
		return false, nil
	}
	return s.unpublish(path, d), diskError(err)
}

// place brings a file under the name of its content, durably: fsync, rename, fsync of the directory. Only what is small
// gets its name without them where nothing has that name yet: its bytes are in the log then, which logged reports. The
// caller has announced d. On an error the file is where it was, except that a file whose fsync failed is gone.
func (s *Store) place(f File, path string, d registry.Digest, small bool) (logged bool, err error) {
	if err := s.makeShard(d); err != nil {
		return false, errors.Join(err, f.Close())
	}
	if small {
		logged, err = s.nameKept(path, d)
	}
	if err == nil && !logged {
		return false, s.placeSynced(f, path, d)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		if err = s.step("renamed"); err != nil {
			s.unpublish(path, d)
		}
	}
	return logged, err
}

func (s *Store) placeSynced(f File, path string, d registry.Digest) (err error) {
	if !omitFileSync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = s.fs.Remove(path) // a second fsync may succeed without the bytes
		return err
	}
	if err := s.step("synced"); err != nil {
		return err
	}
	s.naming.Lock()
	err = s.fs.Rename(path, s.contentPath(d))
	s.naming.Unlock()
	if err != nil {
		return err
	}
	err = s.step("renamed")
	if err == nil && !omitDirSync {
		err = s.fs.SyncDir(s.shard(d))
	}
	if err == nil {
		err = s.step("named")
	}
	if err != nil {
		s.unpublish(path, d)
	}
	return err
}

// unpublish moves a file back that no row owns and nobody else is about to own.
func (s *Store) unpublish(path string, d registry.Digest) bool {
	return s.unowned(d, func() error { return s.fs.Rename(s.contentPath(d), path) })
}

// unowned runs undo while the file of d has no row and the caller is the only one who publishes it. A file whose owner
// is in doubt stays; collection finds it.
func (s *Store) unowned(d registry.Digest, undo func() error) bool {
	s.content.mu.Lock()
	defer s.content.mu.Unlock()
	if s.content.publishing[d] != 1 || s.unbroken() != nil {
		return false
	}
	owned := true
	if err := s.view(func(t *tx) error { _, owned = t.blob(d); return nil }); err != nil || owned {
		return false
	}
	return undo() == nil
}

// stat reports the size of content when row and file agree. It tells the log once when they do not.
func (s *Store) stat(d registry.Digest, size int64) bool {
	if body := s.kept.bytes(d); body != nil && int64(len(body)) == size {
		return true
	}
	info, err := s.fs.Lstat(s.contentPath(d))
	if err == nil && info.Mode().IsRegular() && (info.Size() == size || omitSizeCheck) {
		return true
	}
	s.missing(d, err)
	return false
}

// missing reports content whose file is not what its row says; it counts as absent until it comes again.
func (s *Store) missing(d registry.Digest, err error) {
	if _, known := s.warned.LoadOrStore(d, struct{}{}); !known {
		s.log.Error("content is missing or damaged on the data volume; it counts as absent until it is fetched or pushed again",
			"digest", d.String(), "error", err)
		s.suspect() // it may be the row that is wrong
	}
}

// open opens content and checks its size.
func (s *Store) open(d registry.Digest, size int64) (File, error) {
	if body := s.kept.bytes(d); body != nil && int64(len(body)) == size {
		return memory{bytes.NewReader(body)}, nil
	}
	f, err := s.fs.Open(s.contentPath(d), false)
	if err != nil {
		if !isAbsent(err) {
			s.missing(d, err)
			return nil, diskError(err)
		}
		s.missing(d, err)
		return nil, registry.ErrBlobUnknown.WithDetail(map[string]string{"digest": d.String()})
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() && (info.Size() == size || omitSizeCheck) {
		return f, nil
	}
	_ = f.Close()
	s.missing(d, err)
	return nil, registry.ErrBlobUnknown.WithDetail(map[string]string{"digest": d.String()})
}

// newHash returns the hash of a digest's algorithm.
func newHash(alg string) hash.Hash {
	if alg == "sha512" {
		return sha512.New()
	}
	return sha256.New()
}

// running is the hash of the first n bytes of a file. Bytes that it did not see written it reads again at the end.
type running struct {
	alg string
	h   hash.Hash
	n   int64
}

func newRunning(alg string) *running { return &running{alg: alg, h: newHash(alg)} }

// wrote takes bytes that were appended at offset.
func (r *running) wrote(p []byte, offset int64) {
	if r.n == offset {
		_, _ = r.h.Write(p)
		r.n += int64(len(p))
	}
}

// sum returns the digest of the first size bytes of f.
func (r *running) sum(ctx context.Context, f io.ReaderAt, alg string, size int64) (registry.Digest, error) {
	if r.alg != alg || r.n > size {
		*r = *newRunning(alg)
	}
	buf := make([]byte, min(copyBuffer, max(size-r.n, 1)))
	for r.n < size {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-r.n)], r.n)
		r.wrote(buf[:n], r.n)
		if err != nil && r.n < size {
			return "", diskError(err)
		}
	}
	return r.digest(), nil
}

// digest is that of the bytes so far.
func (r *running) digest() registry.Digest {
	return registry.Digest(r.alg + ":" + hex.EncodeToString(r.h.Sum(nil)))
}

// readFull fills p from the start of a file.
func readFull(f io.ReaderAt, p []byte) error {
	n, err := f.ReadAt(p, 0)
	if n == len(p) {
		return nil
	}
	return errors.Join(err, io.ErrUnexpectedEOF)
}
