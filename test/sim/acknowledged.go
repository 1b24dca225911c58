package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/store"
)

// writes is who changed a tag since all agreed on it, and what it may be now if nobody else does.
type writes struct {
	place  int               // 0 is the cloud
	others bool              // several places did: then the last that is delivered wins
	either []registry.Digest // empty digest: no tag
	last   registry.Digest   // what the tag is in the end, whoever changed it before; empty: that is not known
}

// wrote notes a change of a tag that was acknowledged at a place; an empty digest takes the tag away.
func (w *world) wrote(place int, repo, tag string, d registry.Digest) {
	w.write(place, repo+":"+tag).either = []registry.Digest{d}
}

// unsure notes a change of which nobody told whether it was made.
func (w *world) unsure(place int, repo, tag string, d registry.Digest) {
	x := w.write(place, repo+":"+tag)
	x.either = append(x.either, d)
}

func (w *world) write(place int, name string) *writes {
	x := w.writes[name]
	if x == nil {
		x = &writes{place: place, either: []registry.Digest{w.agreed[name]}}
		w.writes[name] = x
	}
	x.others, x.last = x.others || x.place != place, ""
	return x
}

// checkAcknowledged looks for what clients of a layer were told to be there: here, or, when it has climbed, above.
func (w *world) checkAcknowledged(i int, l *layer, s *store.Store) error {
	own := w.own[i]
	for _, name := range slices.Sorted(maps.Keys(own.manifests)) {
		if err := w.checkManifest(i, name); err != nil {
			return fmt.Errorf("acknowledged and lost: %s: %w", name, err)
		}
	}
	queued, err := queue(s)
	if err != nil {
		return err
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
		waits := slices.ContainsFunc(queued, func(e registry.OutboxEntry) bool { return e.Repository == repo && e.Tag == tag })
		if either := own.tags[name]; !now.Pushed && !waits || w.pushedBelow(i, name, now.Digest) {
			delete(own.tags, name) // it is the parent's too and follows the parent, or a push from below came later
		} else if !slices.Contains(either, now.Digest) && !slices.Contains(either, "") {
			return fmt.Errorf("%s of %s was acknowledged as %v and is %q, pushed here: %v", name, l.name, either, now.Digest, now.Pushed)
		}
	}
	return nil
}

// pushedBelow reports whether a client of a layer below pushed this to the tag.
func (w *world) pushedBelow(i int, name string, d registry.Digest) bool {
	for j := range layers {
		if j != i && w.plan.below(j, i) && w.pushedAt[j+1][name][d] {
			return true
		}
	}
	return false
}

// checkManifest looks for an image that was pushed to a layer: it is complete at one of the layers from there upwards and
// in a queue of one of them, or it is in the cloud.
func (w *world) checkManifest(i int, name string) error {
	repo, digest, _ := strings.Cut(name, "@")
	if w.atCloud[name] {
		return nil
	}
	held, queued := false, 0
	var failed error
	for j := i; j >= 0; j = w.plan.above(j) {
		l := w.layers[j]
		s := l.content()
		if !l.isReady() || s == nil {
			return nil // it cannot be asked
		}
		err := l.complete(s, repo, registry.Digest(digest))
		held, failed = held || err == nil, errors.Join(failed, err)
		list, err := queue(s)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(list, func(e registry.OutboxEntry) bool {
			return e.Action == registry.OutboxPush && e.Repository == repo && e.Digest.String() == digest
		}) {
			queued++
		}
	}
	if held && queued > 0 {
		return nil
	}
	if d, ok := w.desk.resolve(repo, digest); ok && d.String() == digest {
		w.atCloud[name] = true
		return nil
	}
	if !held {
		return failed
	}
	return errors.New("it is in no queue and not in the cloud")
}

// queue lists what a registry still has to tell its parent.
func queue(s *store.Store) ([]registry.OutboxEntry, error) {
	return s.OutboxEntries(context.Background(), 0, registry.MaxPage)
}

// readers reports whether all below a layer is ReadOnly and has nothing that waits for its parent.
func (w *world) readers(i int) bool {
	for j, l := range w.layers {
		if j == i || !w.plan.below(j, i) {
			continue
		}
		s := l.content()
		if l.mode == registry.ReadWrite || !l.isReady() || s == nil {
			return false
		}
		if list, err := queue(s); err != nil || len(list) > 0 {
			return false
		}
	}
	return true
}

// has reports whether the cloud has a manifest.
func (w *world) has(repo, digest string) bool {
	_, ok := w.desk.resolve(repo, digest)
	return ok
}

// strangers looks for conflicts that were told of a tag that nobody moved but the clients of one place.
func (w *world) strangers() {
	for i, l := range w.layers {
		var told []registry.OutboxConflict
		raw, err := l.content().Document(context.Background(), "sync/conflicts")
		if err == nil && raw != nil {
			err = json.Unmarshal(raw, &told)
		}
		if err != nil {
			w.failf("the conflicts of %s: %v", l.name, err)
		}
		now := map[registry.OutboxConflict]bool{}
		for _, c := range told {
			now[c] = true
			x := w.writes[c.Repository+":"+c.Tag]
			if w.conflicts[i][c] || w.configured || w.mixed[c.Repository] || x != nil && x.others || !l.rules().MatchTag(c.Repository, c.Tag) {
				continue
			}
			w.failf("%s says that somebody else moved %s:%s: %+v", l.name, c.Repository, c.Tag, c)
		}
		w.conflicts[i] = now
	}
}

// decided compares the tags of the cloud with what was last pushed, where only one place pushed, and begins anew.
func (w *world) decided(cloud map[string]map[string]registry.Digest) {
	for _, name := range slices.Sorted(maps.Keys(w.writes)) {
		repo, tag, _ := strings.Cut(name, ":")
		x := w.writes[name]
		// A layer that has never heard of a tag of the parent leaves it to the parent, where that wins.
		left := w.plan.parentWins && x.place > 0 && (w.configured || !w.reaches(x.place-1, repo, tag))
		if now := cloud[repo][tag]; !x.others && !w.mixed[repo] && !left && !slices.Contains(x.either, now) {
			w.failf("%s was last changed at place %d to %v, and all agree on %q", name, x.place, x.either, now)
		}
		if now := cloud[repo][tag]; x.last != "" && !w.mixed[repo] && !w.configured && now != x.last {
			w.failf("%s was moved to %s when all that was pushed before had been answered for, and all agree on %q", name, x.last, now)
		}
	}
	for name := range w.removed {
		if repo, d, _ := strings.Cut(name, "@"); w.has(repo, d) {
			w.failf("%s was deleted at a layer, and the cloud has it", name)
		}
	}
	w.strangers()
	clear(w.removed)
	clear(w.pushedNow)
	clear(w.writes)
	clear(w.mixed)
	w.configured = false
	clear(w.agreed)
	for _, at := range w.pushedAt { // nothing is on its way any more that could bring an old value back
		clear(at)
	}
	for repo, list := range cloud {
		for tag, d := range list {
			w.agreed[repo+":"+tag] = d
		}
	}
}
