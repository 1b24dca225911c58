package syncer

import (
	"context"
	"slices"
	"sync"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// queueIndex knows which tags and manifests have an entry in the outbox: on them the parent's word does not count until
// it has had ours.
type queueIndex struct {
	c  *climber
	mu sync.Mutex

	changed <-chan struct{} // closed when entries came after the index was read; nil before
	tags    map[key]int     // entries of a tag
	deleted map[key]int     // entries that delete a manifest
	passed  map[key]bool    // tags of which the parent's word was passed over
}

// read reads the outbox again if entries came since. The caller holds mu.
func (x *queueIndex) read(ctx context.Context) error {
	if x.changed != nil {
		select {
		case <-x.changed:
		default:
			return nil
		}
	}
	changed := x.c.outbox.OutboxChanged()
	tags, deleted := map[key]int{}, map[key]int{}
	err := x.c.each(ctx, func(e registry.OutboxEntry) {
		if e.Tag != "" {
			tags[key{repo: e.Repository, tag: e.Tag}]++
		}
		if e.Action == registry.OutboxDelete {
			deleted[key{repo: e.Repository, digest: e.Digest}]++
		}
	})
	if err != nil {
		return err
	}
	x.changed, x.tags, x.deleted = changed, tags, deleted
	return nil
}

// keeps reports whether an entry stands between the parent's word of a tag, or of a manifest, and this registry. With pass
// it is noted that the word was passed over.
func (x *queueIndex) keeps(ctx context.Context, repo, tag string, d registry.Digest, pass bool) (bool, error) {
	if x.c.outbox == nil {
		return false, nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.read(ctx); err != nil {
		return false, err
	}
	for _, k := range []key{{repo: repo, tag: tag}, {repo: repo, digest: d}} {
		if (k.tag != "" && x.tags[k] > 0) || (k.digest != "" && x.deleted[k] > 0) {
			if pass {
				x.passed[k] = true
			}
			return true, nil
		}
	}
	return false, nil
}

// leave takes an entry out, and reports whether the parent's word was passed over because of it.
func (x *queueIndex) leave(e registry.OutboxEntry) (passed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	take := func(from map[key]int, k key) {
		if from[k]--; from[k] <= 0 {
			delete(from, k)
			passed = passed || x.passed[k]
			delete(x.passed, k)
		}
	}
	if e.Tag != "" {
		take(x.tags, key{repo: e.Repository, tag: e.Tag})
	}
	if e.Action == registry.OutboxDelete {
		take(x.deleted, key{repo: e.Repository, digest: e.Digest})
	}
	return passed
}

// yield takes out of a listing what entries of the outbox stand between. A tag that stands at the parent as it does here
// is left in: that settles its entry.
func (x *queueIndex) yield(ctx context.Context, l *listing, local map[string][]registry.LocalTag) error {
	x.mu.Lock()
	x.changed = nil // entries may have been superseded
	x.mu.Unlock()
	for repo, tags := range l.tags {
		here := byTag(local[repo])
		for tag, d := range tags {
			if here[tag].Digest == d {
				continue
			}
			kept, err := x.keeps(ctx, repo, tag, d, true)
			if err != nil {
				return err
			}
			if kept {
				delete(tags, tag)
			}
		}
	}
	for i := len(l.referrers) - 1; i >= 0; i-- {
		kept, err := x.keeps(ctx, l.referrers[i].Repository, "", l.referrers[i].Digest, true)
		if err != nil {
			return err
		}
		if kept {
			l.referrers = slices.Delete(slices.Clone(l.referrers), i, i+1)
		}
	}
	for repo, tags := range l.gone {
		rest := tags[:0:0]
		for _, tag := range tags {
			kept, err := x.keeps(ctx, repo, tag, "", true)
			if err != nil {
				return err
			}
			if !kept {
				rest = append(rest, tag)
			}
		}
		l.gone[repo] = rest
	}
	return nil
}
