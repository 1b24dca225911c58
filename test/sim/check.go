package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/store"
)

// check looks at every layer that runs, after each step. It reads the store and not the API: a registry that is asked
// for what it lacks would fetch it.
func (w *world) check() {
	for i, l := range w.layers {
		s := l.content()
		if !l.isReady() || s == nil {
			continue
		}
		err := w.checkServed(l, s)
		if err == nil {
			err = w.checkAcknowledged(i, l, s)
		}
		if err != nil && !l.volume.ended() { // it may crash while it is looked at
			w.failf("%s: %v", l.name, err)
		}
	}
}

// checkServed looks at all tags: each was pushed to somebody, and all below it is here with the right bytes.
func (w *world) checkServed(l *layer, s *store.Store) error {
	return eachTag(s, func(repo string, t registry.LocalTag) error {
		if !w.history[repo+":"+t.Tag][t.Digest] {
			return fmt.Errorf("%s:%s is %s, which it never was", repo, t.Tag, t.Digest)
		}
		if err := l.complete(s, repo, t.Digest); err != nil {
			return fmt.Errorf("tag %s:%s: %w", repo, t.Tag, err)
		}
		return nil
	})
}

func eachTag(s *store.Store, do func(repo string, t registry.LocalTag) error) error {
	ctx := context.Background()
	repos, err := s.Repositories(ctx, "", registry.MaxPage)
	if err != nil {
		return err
	}
	for _, repo := range repos {
		list, err := s.TagStates(ctx, repo)
		if err != nil {
			return err
		}
		for _, t := range list {
			if t.Digest == "" { // taken away here, and the parent has not been told
				continue
			}
			if err := do(repo, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// complete reads a manifest and all below it.
func (l *layer) complete(s *store.Store, repo string, d registry.Digest) error {
	ctx := context.Background()
	m, err := s.GetManifest(ctx, repo, registry.DigestReference(d))
	if err != nil {
		return fmt.Errorf("manifest %s: %w", d, err)
	}
	if digestOf(m.Bytes) != d {
		return fmt.Errorf("manifest %s: %w", d, errLie)
	}
	refs, err := registry.ParseManifest(m.MediaType, m.Bytes)
	if err != nil {
		return err
	}
	for _, child := range refs.Manifests {
		if err := l.complete(s, repo, child.Digest); err != nil {
			return err
		}
	}
	for _, b := range refs.Blobs {
		if err := l.readable(s, repo, b); err != nil {
			return fmt.Errorf("blob %s of %s: %w", b.Digest, d, err)
		}
	}
	return nil
}

// readable opens a blob, and hashes it the first time.
func (l *layer) readable(s *store.Store, repo string, b registry.Descriptor) error {
	r, err := s.GetBlob(context.Background(), repo, b.Digest)
	if err != nil {
		return err
	}
	defer r.Close()
	if l.sound[b.Digest] {
		return nil
	}
	body, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if digestOf(body) != b.Digest {
		return errLie
	}
	l.sound[b.Digest] = true
	return nil
}

// lost is how often content that was here was removed, by collection or by a crash.
func (v *volume) lost(d registry.Digest) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.went[d.Encoded()]
}

// holds reports whether a layer has a tag, complete, without asking its parent.
func (w *world) holds(l *layer, repo, tag string) bool {
	s := l.content()
	if !l.isReady() || s == nil {
		return false
	}
	d, err := s.ResolveManifest(context.Background(), repo, registry.TagReference(tag))
	return err == nil && l.complete(s, repo, d.Digest) == nil
}

// finish heals, waits, and looks at all from outside.
func (w *world) finish() {
	w.trace = append(w.trace, "settled "+w.settle(step{}))
	w.check()
	if len(w.failures) > 0 {
		return
	}
	for _, l := range w.layers { // what is here is served without anybody
		w.net.change(l.name, l.parent, func(k *link) { k.mode = linkHole })
	}
	for i, l := range w.layers {
		err := eachTag(l.content(), func(repo string, t registry.LocalTag) error {
			got, err := w.floor[i].pull(repo, t.Tag)
			if err == nil && got.root != t.Digest {
				err = fmt.Errorf("%s instead of %s %s", got.root, t.Digest, got.absent)
			}
			if err == nil && got.slowest > time.Second {
				err = errors.New("it took " + got.slowest.String())
			}
			if err != nil {
				return fmt.Errorf("pull of %s:%s: %w", repo, t.Tag, err)
			}
			return nil
		})
		if err != nil {
			w.failf("%s: %v", l.name, err)
		}
		w.carried(i, l)
		w.climbed(i, l)
	}
	for _, l := range w.layers {
		w.net.change(l.name, l.parent, func(k *link) { k.mode = linkUp })
		w.net.reset(l.name, l.parent, syscall.ECONNRESET)
	}
}

// carried compares what came down a link with what was to be carried: each blob once, and again when it was removed
// meanwhile. What was on its way when something broke may come twice.
func (w *world) carried(i int, l *layer) {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	k := w.net.link(l.name, l.parent)
	const header = 600 // bytes of an answer's
	events := w.events[i]
	if j := w.plan.above(i); j >= 0 {
		events += w.events[j]
	}
	var excess int64
	for d, got := range k.blobs {
		want := int64(w.blobs[registry.Digest(d)])*int64(1+l.volume.lost(registry.Digest(d))) + int64(k.gets[d])*header
		if got > want {
			excess += got - want
		}
		if events == 0 && (got > want || k.gets[d] > 1+l.volume.lost(registry.Digest(d))) {
			w.failf("the link above %s carried %d bytes in %d answers for the %d of %s", l.name, got, k.gets[d], w.blobs[registry.Digest(d)], d)
		}
	}
	// A cut wastes what each of a few connections had read and not written; a power cut what was not synced.
	if most := int64(events)*24<<10 + int64(w.losses[i])*400<<10; excess > most && !w.refetch[i] {
		w.failf("the link above %s carried %d bytes too much in %d faults, where %d are to be expected", l.name, excess, events, most)
	}
}

// climbed counts what was sent up a link on which nothing went wrong: a blob once, a tag and a manifest by its digest not more
// often than it was pushed below, and once more where somebody gave the tag in the cloud back to what it was before.
func (w *world) climbed(i int, l *layer) {
	if w.deletes > 0 || slices.Max(w.events[:]) > 0 {
		return
	}
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	for what, n := range w.net.link(l.name, l.parent).puts {
		path := strings.TrimPrefix(what, "/v2/")
		most := 0
		for j, below := range w.pushes {
			if w.plan.below(j, i) {
				most += below[path]
			}
		}
		if n > max(most, 1)+w.returned[path] || strings.Contains(what, "/manifests/") && !strings.Contains(what, "/sha256:") && most == 0 {
			w.failf("%s sent %s %d times, where it was pushed %d times", l.name, what, n, most)
		}
	}
}

// rules are the scope of a layer.
func (l *layer) rules() registry.Scope {
	var scope registry.Scope
	for _, word := range strings.Fields(l.scope) {
		repo, tag, _ := strings.Cut(word, ":")
		scope = append(scope, registry.RepositoryRule{Repository: repo, Tag: tag})
	}
	return scope
}
