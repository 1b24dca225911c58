package syncer

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// word is what the parent said of tags.
type word struct {
	mark   uint64 // of before it was asked, see tags.mark
	client bool   // for a client, which was given the image; else in a list
}

// tags remembers what stands between the parent's word of a tag and this registry. Its rules are in tagrules.go.
type tags struct {
	queue queued
	again func(context.Context) error // has the parent asked anew for all it has

	// The order of the locks: commit, then mu.
	commit sync.RWMutex // held by who moves a tag by the parent's word, and exclusively by who changes what that is decided by
	mu     sync.Mutex

	changed <-chan struct{}  // closed when entries came after the queue was read; nil before
	entries map[uint64][]key // what each entry is about
	about   map[key]int      // and how many are about that
	isFresh bool             // what was passed over may be so for an entry that went before the queue was read last
	passed  map[key]bool     // of which the parent's word was passed over for one of them

	count uint64         // entries that left, and tags that moved for a client
	last  map[key]uint64 // which of them was the last about a tag or a manifest
	floor uint64         // of those up to here it is not known

	asked map[key]*askedTag // tags of which the parent is being asked for a client
	given map[key]givenTag  // tags that clients were given, whose images are on their way
}

// askedTag is a tag of which the parent is being asked.
type askedTag struct {
	said registry.Digest // by a list of the parent meanwhile
	done chan struct{}
}

// givenTag is where a tag stands by the answer to a client, and until when that is told to others.
type givenTag struct {
	digest registry.Digest
	until  time.Time
}

// queued tells of the queue.
type queued interface {
	// each calls f for all entries, in order.
	each(ctx context.Context, f func(registry.OutboxEntry)) error
	// changes returns a channel that is closed when entries come; nil for a registry that has no queue.
	changes() <-chan struct{}
}

func newTags(queue queued, again func(context.Context) error) *tags {
	return &tags{
		queue: queue, again: again, passed: map[key]bool{}, last: map[key]uint64{},
		asked: map[key]*askedTag{}, given: map[key]givenTag{},
	}
}

// keys are what an entry may be about that stands before a tag at a digest. Either may be empty.
func keys(repo, tag string, d registry.Digest) (list []key) {
	if tag != "" {
		list = append(list, key{repo: repo, tag: tag})
	}
	if d != "" {
		list = append(list, key{repo: repo, digest: d})
	}
	return list
}

// isAbout is what an entry is about: its tag, or the manifest that it deletes and the tags that go with that.
func isAbout(e registry.OutboxEntry) []key {
	if e.Action != registry.OutboxDelete {
		return keys(e.Repository, e.Tag, "")
	}
	list := keys(e.Repository, "", e.Digest)
	for _, tag := range e.Tags {
		list = append(list, key{repo: e.Repository, tag: tag})
	}
	return list
}

// mark is to be taken before the parent is asked, for what is done with its answer.
func (t *tags) mark() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count
}

// read reads the queue again if entries came since: others may have gone by that. The caller holds mu.
func (t *tags) read(ctx context.Context) error {
	if t.changed != nil {
		select {
		case <-t.changed:
		default:
			return nil
		}
	}
	changed := t.queue.changes()
	if changed == nil {
		return nil
	}
	entries, about := map[uint64][]key{}, map[key]int{}
	err := t.queue.each(ctx, func(e registry.OutboxEntry) {
		entries[e.Seq] = isAbout(e)
		for _, k := range entries[e.Seq] {
			about[k]++
		}
	})
	if err == nil {
		t.changed, t.entries, t.about, t.isFresh = changed, entries, about, true
	}
	return err
}

// queued reports whether an entry is about a tag, or deletes a manifest.
func (t *tags) queued(ctx context.Context, repo, tag string, d registry.Digest) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.isQueued(ctx, keys(repo, tag, d), false)
}

// isQueued does that, and notes when the parent's word is passed over because of it. The caller holds mu.
func (t *tags) isQueued(ctx context.Context, list []key, pass bool) (bool, error) {
	err := t.read(ctx)
	i := slices.IndexFunc(list, func(k key) bool { return t.about[k] > 0 })
	if i >= 0 && pass {
		t.passed[list[i]] = true
	}
	return i >= 0, err
}

// decide decides about the parent's word that a tag stands at a digest. While the answer is wait, until is closed when it
// is worth to ask again. The caller holds mu.
func (t *tags) decide(ctx context.Context, repo, tag string, d registry.Digest, w word) (v verdict, until <-chan struct{}, err error) {
	list, name := keys(repo, tag, d), key{repo: repo, tag: tag}
	k := known{given: t.given[name].digest}
	if k.queued, err = t.isQueued(ctx, list, false); err != nil {
		return keep, nil, err
	}
	k.later = w.mark < t.floor || slices.ContainsFunc(list, func(k key) bool { return w.mark < t.last[k] })
	if a := t.asked[name]; a != nil {
		k.asked, until = true, a.done
	}
	return k.verdict(d, w.client), until, nil
}

// carryOut moves the tags of an image by the parent's word, as far as they may, and makes the rest of it visible where it is
// for others. It returns the tags that stay as they are because of the queue or a lock.
func (t *tags) carryOut(ctx context.Context, image registry.Image, w word, commit func(context.Context, registry.Image) ([]string, error)) ([]string, error) {
	root := image.Root().Digest
	return t.sorted(ctx, image.Repository, image.Tags, root, w, func(may, old []string) ([]string, error) {
		if w.client {
			t.mu.Lock()
			for _, tag := range image.Tags {
				t.supersede(keys(image.Repository, tag, ""))
			}
			t.mu.Unlock()
		}
		if len(old) > 0 && len(may) == 0 {
			return nil, nil // the entry that left may have deleted it
		}
		image.Loose = len(may)+len(old) < len(image.Tags)
		image.Tags = may
		kept, err := commit(ctx, image)
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, tag := range kept { // for an entry that came a moment ago, or a lock
			_, rerr := t.isQueued(ctx, keys(image.Repository, tag, root), true)
			err = errors.Join(err, rerr)
		}
		return kept, err
	})
}

// takeAway removes tags by the parent's word, as far as they may.
func (t *tags) takeAway(ctx context.Context, repo string, names []string, w word, untag func(may []string) error) error {
	_, err := t.sorted(ctx, repo, names, "", w, func(may, _ []string) ([]string, error) { return nil, untag(may) })
	return err
}

// sorted calls move with the tags that may move and those of which the parent's word is old, while nothing changes that. Of
// the latter it is asked anew, and they are added to what move returns.
func (t *tags) sorted(
	ctx context.Context, repo string, names []string, d registry.Digest, w word, move func(may, old []string) ([]string, error),
) ([]string, error) {
	for {
		t.commit.RLock()
		may, old, until, err := t.sort(ctx, repo, names, d, w)
		if until == nil {
			defer t.commit.RUnlock()
			if len(old) > 0 {
				err = errors.Join(err, t.again(ctx))
			}
			if err != nil {
				return old, err
			}
			kept, err := move(may, old)
			return append(kept, old...), err
		}
		t.commit.RUnlock()
		select {
		case <-until:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (t *tags) sort(ctx context.Context, repo string, names []string, d registry.Digest, w word) (may, old []string, until <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tag := range names {
		v, until, err := t.decide(ctx, repo, tag, d, w)
		switch {
		case err != nil || v == wait:
			return nil, nil, until, err
		case v == keep && w.client: // it may be of before the entry, and settles none
			if _, err := t.isQueued(ctx, keys(repo, tag, d), true); err != nil {
				return nil, nil, nil, err
			}
		case v == move, v == keep: // the store decides of the queue, as it is in the transaction
			may = append(may, tag)
		case v == stale:
			old = append(old, tag)
		}
	}
	return may, old, nil, nil
}

// leave takes an entry out by how, and reports whether the parent's word was passed over because of it.
func (t *tags) leave(ctx context.Context, e registry.OutboxEntry, how func(context.Context, uint64) error) (passed bool, err error) {
	t.commit.Lock()
	defer t.commit.Unlock()
	t.mu.Lock()
	err = t.read(ctx)
	t.mu.Unlock()
	if err == nil {
		err = how(ctx, e.Seq)
	}
	if err != nil {
		return false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	was := isAbout(e)
	t.supersede(was)
	for _, k := range t.entries[e.Seq] {
		t.about[k]--
	}
	was = append(was, t.entries[e.Seq]...)
	delete(t.entries, e.Seq)
	return t.release(was), nil
}

// supersede makes what the parent said before now of tags and manifests count no more. The caller holds mu.
func (t *tags) supersede(list []key) {
	t.count++
	if len(t.last) >= maxKnown {
		clear(t.last)
		t.floor = t.count
	}
	for _, k := range list {
		t.last[k] = t.count
	}
}

// release forgets of what the parent's word was passed over, where no entry is about it any more, and reports whether there
// was any. Since the queue was read that may be so of more than the list. The caller holds mu.
func (t *tags) release(list []key) (any bool) {
	if t.isFresh {
		list, t.isFresh = append(list, slices.Collect(maps.Keys(t.passed))...), false
	}
	for _, k := range list {
		if t.about[k] > 0 {
			continue
		}
		delete(t.about, k)
		any = any || t.passed[k]
		delete(t.passed, k)
	}
	return any
}

// hear takes out of a listing what entries of the queue stand before, and what is of before one left. A tag that stands at
// the parent as it does here is left in: that settles its entry where it is tried no more.
func (t *tags) hear(ctx context.Context, l *listing, local map[string][]registry.LocalTag) error {
	again, err := t.strike(ctx, l, local)
	if again && err == nil {
		err = t.again(ctx)
	}
	return err
}

// strike does that, and reports whether the parent is to be asked anew.
func (t *tags) strike(ctx context.Context, l *listing, local map[string][]registry.LocalTag) (again bool, failed error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed = nil // entries may have been superseded, which nothing tells of
	if err := t.read(ctx); err != nil {
		return false, err
	}
	again = t.release(nil)
	out := func(repo, tag string, d registry.Digest) bool {
		v, _, err := t.decide(ctx, repo, tag, d, word{mark: l.mark})
		if v == keep && err == nil {
			_, err = t.isQueued(ctx, keys(repo, tag, d), true)
		}
		again, failed = again || v == stale, errors.Join(failed, err)
		return v == keep || v == stale
	}
	for repo, tags := range l.tags {
		here := byTag(local[repo])
		maps.DeleteFunc(tags, func(tag string, d registry.Digest) bool { return here[tag].Digest != d && out(repo, tag, d) })
	}
	l.referrers = slices.DeleteFunc(slices.Clone(l.referrers), func(c registry.Change) bool { return out(c.Repository, "", c.Digest) })
	for repo, tags := range l.gone {
		l.gone[repo] = slices.DeleteFunc(slices.Clone(tags), func(tag string) bool { return out(repo, tag, "") })
	}
	return again, failed
}

// asking notes that the parent is being asked of a tag for a client, until done is called.
func (t *tags) asking(repo, tag string) (done func()) {
	name, a := key{repo: repo, tag: tag}, &askedTag{done: make(chan struct{})}
	t.commit.Lock()
	defer t.commit.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked[name] = a
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.asked, name)
		close(a.done)
	}
}

// agrees reports whether no list said otherwise of a tag than what the parent now answered, since it was asked of the tag,
// or since that was reported last.
func (t *tags) agrees(repo, tag string, d registry.Digest) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.asked[key{repo: repo, tag: tag}]
	said := a.said
	a.said = ""
	return said == "" || said == d
}

// dispute is a tag of which a list says other than a client was given.
type dispute struct {
	key
	said, given registry.Digest
}

// disputes tells those who ask the parent of a tag what a list says of it, and returns the tags that it says otherwise of
// than clients were given.
func (t *tags) disputes(l listing) (list []dispute) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, a := range t.asked {
		a.said = cmp.Or(l.says(name.repo, name.tag), a.said)
	}
	for name, given := range t.given {
		if said := l.says(name.repo, name.tag); said != "" && said != given.digest {
			list = append(list, dispute{name, said, given.digest})
		}
	}
	return list
}

// settle settles a dispute by what the parent has now, saysGone for nothing, empty where it gave no answer. Where that is
// neither of the two, both were said before it changed.
func (t *tags) settle(x dispute, now registry.Digest) {
	if now == x.given {
		return
	}
	t.took(x.repo, x.tag, x.given)
	if now != "" && now != x.said {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.supersede([]key{x.key})
	}
}

// give notes that clients are given a digest under a tag. It is called before the asking of the tag is done.
func (t *tags) give(repo, tag string, g givenTag) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.given[key{repo: repo, tag: tag}] = g
}

// gave is where a tag stands by what clients were given; empty when that is not to be told to others any more.
func (t *tags) gave(repo, tag string, now time.Time) registry.Digest {
	t.mu.Lock()
	defer t.mu.Unlock()
	if g := t.given[key{repo: repo, tag: tag}]; !now.After(g.until) {
		return g.digest
	}
	return ""
}

// took forgets what clients were given: the image is here, or something newer takes its place.
func (t *tags) took(repo, tag string, d registry.Digest) {
	t.commit.Lock()
	defer t.commit.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if name := (key{repo: repo, tag: tag}); t.given[name].digest == d {
		delete(t.given, name)
	}
}
