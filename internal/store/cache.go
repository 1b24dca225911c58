package store

import (
	"container/list"
	"sync"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxCached is the largest manifest that is cached, in bytes.
const maxCached = 256 << 10

// cache keeps the bytes of manifests that were asked for last. Content never changes, so nothing has to be removed for
// correctness: who may see it is decided by the index.
type cache struct {
	mu    sync.Mutex
	limit int
	used  int
	order *list.List // of cached, newest first
	byKey map[registry.Digest]*list.Element
}

type cached struct {
	digest registry.Digest
	body   []byte
}

func newCache(limit int) *cache {
	return &cache{limit: limit, order: list.New(), byKey: map[registry.Digest]*list.Element{}}
}

// get returns bytes that nobody may change.
func (c *cache) get(d registry.Digest) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[d]
	if !ok {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(cached).body
}

func (c *cache) put(d registry.Digest, body []byte) {
	if len(body) > maxCached || len(body) > c.limit {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byKey[d]; ok {
		return
	}
	c.byKey[d] = c.order.PushFront(cached{d, body})
	for c.used += len(body); c.used > c.limit; {
		c.drop(c.order.Back())
	}
}

func (c *cache) remove(d registry.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byKey[d]; ok {
		c.drop(e)
	}
}

func (c *cache) drop(e *list.Element) {
	v := c.order.Remove(e).(cached)
	delete(c.byKey, v.digest)
	c.used -= len(v.body)
}

// maxFound bounds the references that are remembered; one is a name, a tag or digest, and a row of a few words.
const maxFound = 1024

// resolved remembers what references led to. All of it is forgotten with the next commit: nothing has to be found out
// about which of it a transaction changed.
type resolved struct {
	mu    sync.RWMutex
	at    moment
	found map[asked]found
}

// moment is a state of the index.
type moment struct {
	index   *index
	version uint64
}

type asked struct {
	repo string
	ref  registry.Reference
}

// found is what a pull needs of the row of a manifest.
type found struct {
	digest    registry.Digest
	mediaType string
	size      int64
}

// moment is the state of the index now; false while a commit may be changing it.
func (s *Store) moment() (moment, bool) {
	m := moment{s.index.Load(), s.version.Load()}
	return m, m.version%2 == 0
}

// get returns what was found at that moment.
func (r *resolved) get(at moment, a asked) (found, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.at != at {
		return found{}, false
	}
	f, ok := r.found[a]
	return f, ok
}

// put remembers what was read since that moment; where the index has changed meanwhile nobody asks for it.
func (r *resolved) put(at moment, a asked, f found) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at != at || len(r.found) >= maxFound {
		r.at, r.found = at, map[asked]found{}
	}
	r.found[a] = f
}
