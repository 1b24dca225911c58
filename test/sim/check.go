package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
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
		w.account(i, l)
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

// checkAcknowledged looks for what clients of a layer were told to be there.
func (w *world) checkAcknowledged(i int, l *layer, s *store.Store) error {
	own := w.own[i]
	for _, name := range slices.Sorted(maps.Keys(own.manifests)) {
		repo, d, _ := strings.Cut(name, "@")
		if err := l.complete(s, repo, registry.Digest(d)); err != nil {
			return fmt.Errorf("acknowledged and lost: %s: %w", name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(own.tags)) {
		repo, tag, _ := strings.Cut(name, ":")
		list, err := s.TagStates(context.Background(), repo)
		if err != nil {
			return err
		}
		now := registry.LocalTag{}
		if at := slices.IndexFunc(list, func(t registry.LocalTag) bool { return t.Tag == tag }); at >= 0 {
			now = list[at]
		}
		if either := own.tags[name]; w.parents(i, name, either) && !now.Pushed {
			delete(own.tags, name) // it is the parent's too: it follows the parent
		} else if !slices.Contains(either, now.Digest) && !slices.Contains(either, "") {
			return fmt.Errorf("%s was acknowledged as %v and is %q, pushed here: %v", name, either, now.Digest, now.Pushed)
		}
	}
	return nil
}

// parents reports whether somebody above pushed one of these to the tag, too.
func (w *world) parents(i int, name string, either []registry.Digest) bool {
	for _, d := range either {
		for _, above := range w.pushedAt[:i+1] {
			if above[name][d] {
				return true
			}
		}
	}
	return false
}

// account notes which blobs came and went, for what the links may carry.
func (w *world) account(i int, l *layer) {
	for d := range w.blobs {
		here := l.volume.has(d)
		if w.present[i][d] && !here {
			w.absent[i][d]++
		}
		w.present[i][d] = here
	}
}

// has reports whether the volume has a file of the digest.
func (v *volume) has(d registry.Digest) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	hex := d.Encoded()
	return v.live[filepath.Join(v.dir, "blobs", "sha256", hex[:2])][hex] != nil
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

// settle mends all that is broken and waits until each layer has what its parent has.
func (w *world) settle(step) string {
	w.heal()
	limit := time.Minute
	for _, l := range w.layers {
		limit += l.round + 20*time.Minute
	}
	began := time.Now()
	var left string
	for pause := 100 * time.Millisecond; time.Since(began) < limit; pause = min(2*pause, 20*time.Second) {
		if left = w.difference(); left == "" {
			return "after " + time.Since(began).Round(100*time.Millisecond).String()
		}
		time.Sleep(pause)
	}
	w.failf("all is well since %v, and %s", limit, left)
	return "never"
}

// heal mends links and disks, and starts what does not run.
func (w *world) heal() {
	for _, l := range w.layers {
		l.volume.arm(0, crashKill)
		l.volume.set(false, false)
		l.down = 0
		w.net.change(l.name, l.parent, func(k *link) {
			k.mode, k.rate, k.latency, k.cutAfter = linkUp, 0, 5*time.Millisecond, 0
		})
	}
	w.reap()
	for _, l := range w.layers {
		if !l.running.wait(l.running.ready) {
			w.failf("%s is not ready %v after all was healed", l.name, readiness)
		}
	}
}

// difference is the first thing in which a layer differs from its parent; empty when all agree.
func (w *world) difference() string {
	above := w.cloudTags
	for i, l := range w.layers {
		here := map[string]map[string]registry.LocalTag{}
		for _, repo := range repositories {
			here[repo] = map[string]registry.LocalTag{}
		}
		err := eachTag(l.content(), func(repo string, t registry.LocalTag) error {
			here[repo][t.Tag] = t
			return nil
		})
		if err != nil {
			return l.name + ": " + err.Error()
		}
		if d := w.differs(i, l, above, here); d != "" {
			return d
		}
		if d := w.referrers(i, l, above); d != "" {
			return d
		}
		above = map[string]map[string]registry.Digest{}
		for repo, list := range here {
			above[repo] = map[string]registry.Digest{}
			for tag, t := range list {
				above[repo][tag] = t.Digest
			}
		}
	}
	return ""
}

// differs compares the tags of a layer with those of its parent.
func (w *world) differs(i int, l *layer, above map[string]map[string]registry.Digest, here map[string]map[string]registry.LocalTag) string {
	scope := l.rules()
	for _, repo := range repositories {
		for tag, d := range above[repo] {
			t, ok := here[repo][tag]
			if scope.MatchTag(repo, tag) && !t.Pushed && !w.own[i].dropped[repo+":"+tag] && (!ok || t.Digest != d) {
				return fmt.Sprintf("%s:%s is %s at the parent of %s, which has %q", repo, tag, d, l.name, t.Digest)
			}
		}
		for tag, t := range here[repo] {
			if _, ok := above[repo][tag]; l.mode == registry.ReadOnly && !t.Pushed && !(ok && scope.MatchTag(repo, tag)) {
				return fmt.Sprintf("%s still has %s:%s, which its parent has not or which is out of scope", l.name, repo, tag)
			}
		}
	}
	return ""
}

// referrers looks whether what the cloud's referrers tell of a tag of the cloud came down to a layer.
func (w *world) referrers(i int, l *layer, above map[string]map[string]registry.Digest) string {
	if !w.plan.connected {
		return ""
	}
	for name, list := range w.about {
		repo, subject, _ := strings.Cut(name, "@")
		tagged := false
		for tag, d := range above[repo] {
			tagged = tagged || d.String() == subject && l.rules().MatchTag(repo, tag)
		}
		if !tagged {
			continue
		}
		got, err := l.content().Referrers(context.Background(), repo, registry.Digest(subject), "")
		if err != nil {
			return err.Error()
		}
		for _, want := range list {
			if !slices.ContainsFunc(got, func(d registry.Descriptor) bool { return d.Digest == want }) {
				return fmt.Sprintf("%s lacks %s, which refers to %s", l.name, want, name)
			}
		}
	}
	return ""
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
	if i > 0 {
		events += w.events[i-1]
	}
	var excess int64
	for d, got := range k.blobs {
		want := int64(w.blobs[registry.Digest(d)])*int64(1+w.absent[i][registry.Digest(d)]) + int64(k.gets[d])*header
		if got > want {
			excess += got - want
		}
		if events == 0 && (got > want || k.gets[d] > 1+w.absent[i][registry.Digest(d)]) {
			w.failf("the link above %s carried %d bytes in %d answers for the %d of %s", l.name, got, k.gets[d], w.blobs[registry.Digest(d)], d)
		}
	}
	// A cut wastes what each of a few connections had read and not written; a power cut what was not synced.
	if most := int64(events)*24<<10 + int64(w.losses[i])*400<<10; excess > most && !w.refetch[i] {
		w.failf("the link above %s carried %d bytes too much in %d faults, where %d are to be expected", l.name, excess, events, most)
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
