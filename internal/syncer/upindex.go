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

	// What the parent said before an entry left is of before the change: it must not undo it.
	commit sync.RWMutex   // held by those who carry out the parent's word, and by who takes an entry out
	count  uint64         // entries that left
	left   map[key]uint64 // which of them was the last of a tag
	floor  uint64         // of entries up to here it is not known
}

// mark is to be taken before the parent is asked, for what is done with its answer.
func (x *queueIndex) mark() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.count
}

// isOld reports whether an answer of the parent is of before an entry of the tag left. The caller holds mu.
func (x *queueIndex) isOld(k key, mark uint64) bool { return mark < x.floor || mark < x.left[k] }

// carryOut moves tags by the parent's word of the given mark, without those whose entry left since.
func (x *queueIndex) carryOut(ctx context.Context, image registry.Image, mark uint64, move func(registry.Image) ([]string, error)) ([]string, error) {
	x.commit.RLock()
	defer x.commit.RUnlock()
	var old []string
	x.mu.Lock()
	image.Tags = slices.DeleteFunc(slices.Clone(image.Tags), func(tag string) bool {
		if x.isOld(key{repo: image.Repository, tag: tag}, mark) {
			old = append(old, tag)
			return true
		}
		return false
	})
	x.mu.Unlock()
	if len(old) == 0 {
		return move(image)
	}
	if err := x.c.resync(ctx); err != nil || len(image.Tags) == 0 {
		return old, err
	}
	kept, err := move(image)
	return append(kept, old...), err
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
	if x.count++; e.Tag != "" {
		if len(x.left) >= maxKnown {
			clear(x.left)
			x.floor = x.count
		}
		x.left[key{repo: e.Repository, tag: e.Tag}] = x.count
	}
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
		for k := range x.passed {
			if k.repo == e.Repository && k.tag != "" && x.tags[k] == 0 { // see overlook
				delete(x.passed, k)
				passed = true
			}
		}
	}
	return passed
}

// overlook notes the tags of which the parent's word was passed over because a delete here takes them there too: it has no
// tag of its own. One that left a moment ago makes the parent tell again.
func (x *queueIndex) overlook(ctx context.Context, kept map[string][]string, local map[string][]registry.LocalTag) error {
	if x.c.outbox == nil {
		return nil
	}
	late := false
	for repo, tags := range kept {
		here := byTag(local[repo])
		for _, tag := range tags {
			if here[tag].Digest != "" {
				continue // it was pushed here, or is locked
			}
			queued, err := x.overlookOne(ctx, repo, tag)
			if err != nil {
				return err
			}
			late = late || !queued
		}
	}
	if !late {
		return nil
	}
	return x.c.resync(ctx)
}

func (x *queueIndex) overlookOne(ctx context.Context, repo, tag string) (queued bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.read(ctx); err != nil {
		return false, err
	}
	for k := range x.deleted {
		if k.repo == repo {
			x.passed[key{repo: repo, tag: tag}] = true
			return true, nil
		}
	}
	return false, nil
}

// yield takes out of a listing what entries of the outbox stand between. A tag that stands at the parent as it does here
// is left in: that settles its entry where it is tried no more.
func (x *queueIndex) yield(ctx context.Context, l *listing, local map[string][]registry.LocalTag) error {
	x.mu.Lock()
	x.changed = nil // entries may have been superseded
	x.mu.Unlock()
	again := false
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
			x.mu.Lock()
			old := x.isOld(key{repo: repo, tag: tag}, l.mark)
			x.mu.Unlock()
			if kept || old {
				delete(tags, tag)
			}
			again = again || old
		}
	}
	if again {
		if err := x.c.resync(ctx); err != nil {
			return err
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
