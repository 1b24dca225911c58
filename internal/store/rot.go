package store

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"sync"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxSound bounds the memory of what was hashed; what is beyond it is hashed each time.
const maxSound = 200_000

// errOtherBytes is why a file is set aside.
var errOtherBytes = errors.New("the hash of the bytes on the disk is another")

// sound is content that this process has hashed, by the first 8 bytes of its hash, which is enough to leave out a check.
type sound struct {
	mu  sync.Mutex
	set map[uint64]struct{}
}

func soundKey(d registry.Digest) uint64 {
	var key [8]byte
	_, _ = hex.Decode(key[:], []byte(d.Encoded()[:16])) // digests are parsed before they come here
	return binary.LittleEndian.Uint64(key[:])
}

func (s *sound) has(d registry.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.set[soundKey(d)]
	return ok
}

func (s *sound) add(d registry.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		s.set = map[uint64]struct{}{}
	}
	if len(s.set) < maxSound {
		s.set[soundKey(d)] = struct{}{}
	}
}

func (s *sound) remove(d registry.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.set, soundKey(d))
}

// quarantinePath is where a damaged file waits for somebody who wants to look at it, until the next collection.
func (s *Store) quarantinePath(d registry.Digest) string {
	return s.path(dirQuarantine, strings.Replace(d.String(), ":", "-", 1))
}

// quarantine takes a file out of the content that was read and has other bytes than its name says, so that it is absent
// for all and comes again. A file that was published meanwhile is another one and stays.
func (s *Store) quarantine(f File, d registry.Digest, reason error) {
	s.sound.remove(d)
	s.missing(d, reason)
	if !s.content.doom(d) {
		return
	}
	_, err := s.content.execute(d, func() error {
		mine, err := f.Stat()
		if err != nil {
			return err
		}
		there, err := s.fs.Lstat(s.contentPath(d))
		if err != nil || !os.SameFile(mine, there) {
			return err
		}
		if err := s.fs.Rename(s.contentPath(d), s.quarantinePath(d)); err != nil {
			return s.fs.Remove(s.contentPath(d))
		}
		return nil
	})
	if err != nil && !isAbsent(err) {
		s.log.Warn("damaged content was not removed", "digest", d.String(), "error", err)
	}
}

// Damaged implements registry.Replica.
func (s *Store) Damaged(ctx context.Context) (list []registry.Damage, err error) {
	lost := map[registry.Digest]bool{}
	s.warned.Range(func(k, _ any) bool { lost[k.(registry.Digest)] = true; return true })
	if len(lost) == 0 {
		return nil, ctx.Err()
	}
	err = s.view(func(t *tx) error {
		repos := t.Bucket(bucketRepos)
		return repos.ForEachBucket(func(name []byte) error {
			r, err := t.repo(string(name))
			if err != nil {
				return err
			}
			for d := range lost {
				if damage, ok := r.damage(d); ok {
					list = append(list, damage)
					delete(lost, d)
				}
			}
			return ctx.Err()
		})
	})
	if err != nil {
		return nil, err
	}
	for d := range lost { // nothing needs it
		s.warned.Delete(d)
	}
	still := list[:0]
	for _, damage := range list {
		if info, err := s.fs.Lstat(s.contentPath(damage.Digest)); err == nil && info.Mode().IsRegular() && info.Size() == damage.Size {
			s.warned.Delete(damage.Digest)
			continue
		}
		still = append(still, damage)
	}
	return still, nil
}

// damage describes content if the repository needs it.
func (r *repoTx) damage(d registry.Digest) (registry.Damage, bool) {
	out := registry.Damage{Repository: r.name, Descriptor: registry.Descriptor{MediaType: mediaTypeBlob, Digest: d}}
	if v := r.manifests.Get(digestKey(d)); v != nil {
		row, err := decodeManifest(v)
		out.MediaType, out.Size, out.Manifest = row.mediaType, row.size, true
		return out, err == nil
	}
	if r.links.Get(digestKey(d)) == nil {
		return out, false
	}
	row, ok := r.t.blob(d)
	out.Size = row.size
	return out, ok
}

// quarantined removes damaged files.
func (g *collection) quarantined() error {
	list, err := g.s.fs.ReadDir(g.s.path(dirQuarantine), 0)
	if err != nil {
		return err
	}
	for _, e := range list {
		g.res.Files++
		if info, err := e.Info(); err == nil {
			g.res.Bytes += info.Size()
		}
		if g.dryRun {
			continue
		}
		if err := g.s.fs.Remove(g.s.path(dirQuarantine, e.Name())); err != nil && !isAbsent(err) {
			return err
		}
	}
	return nil
}
