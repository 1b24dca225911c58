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
