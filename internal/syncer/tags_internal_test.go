package syncer

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// twoSides is a registry and its parent with as little as the rules need: where tags stand, what is queued, and which words
// of the parent are on their way.
type twoSides struct {
	*tags
	t           rapid.TB
	here, there map[string]registry.Digest
	base        map[string]registry.Digest // where the tags stand at the parent as far as it is known here
	version     int                        // counts the parent's changes
	changedAt   map[string]int             // by tag
	entries     []registry.OutboxEntry
	seq         uint64
	came        chan struct{}
	cursor      int  // up to where the parent's changes are known
	relist      bool // the parent is to be asked for all
	drops       int
	lists       []*told
	pulls       map[string]*told // by tag
	had         map[string]had   // by tag: what a client was given or an entry brought last, if nothing came from here since
}

// had is where a tag stood at the parent when that was told to a client, or put there from here.
type had struct {
	digest  registry.Digest
	version int
}

// told is a word on its way.
type told struct {
	word
	l        listing
	heard    bool
	version  int
	at       map[string]int // when the tags changed at the parent
	drops    int
	tags     []string // whose images are still to come
	digests  map[string]registry.Digest
	answered func()
}

func newTwoSides(t rapid.TB) *twoSides {
	s := &twoSides{
		t: t, here: map[string]registry.Digest{}, there: map[string]registry.Digest{}, base: map[string]registry.Digest{}, changedAt: map[string]int{}, came: make(chan struct{}),
		pulls: map[string]*told{}, had: map[string]had{}, relist: true,
	}
	s.tags = newTags(s, func(context.Context) error { s.relist, s.drops = true, s.drops+1; return nil })
	return s
}

// next asks the parent, or goes on with what it said.
func (s *twoSides) next(ctx context.Context) {
	if len(s.lists) == 0 {
		s.lists = append(s.lists, s.list())
	} else if s.goesOn(ctx, s.lists[0]) {
		s.lists = nil
	}
}

func (s *twoSides) changes() <-chan struct{} { return s.came }

func (s *twoSides) each(_ context.Context, f func(registry.OutboxEntry)) error {
	for _, e := range s.entries {
		f(e)
	}
	return nil
}

// add queues an entry in place of what is queued about its tags.
func (s *twoSides) add(e registry.OutboxEntry) {
	for i := range s.entries {
		s.entries[i].Tags = slices.DeleteFunc(slices.Clone(s.entries[i].Tags), func(tag string) bool { return tag == e.Tag || slices.Contains(e.Tags, tag) })
	}
	s.entries = slices.DeleteFunc(s.entries, func(o registry.OutboxEntry) bool {
		return o.Tag != "" && (o.Tag == e.Tag || slices.Contains(e.Tags, o.Tag)) ||
			o.Action == registry.OutboxDelete && e.Action != registry.OutboxUntag && o.Digest == e.Digest
	})
	s.seq++
	e.Seq, e.Repository = s.seq, "r"
	s.entries = append(s.entries, e)
	close(s.came)
	s.came = make(chan struct{})
}

// put moves a tag at the parent.
func (s *twoSides) put(tag string, d registry.Digest) {
	if s.there[tag] == d {
		return
	}
	s.version++
	s.changedAt[tag] = s.version
	if s.there[tag] = d; d == "" {
		delete(s.there, tag)
	}
}

// deliver takes the i-th entry to the parent.
func (s *twoSides) deliver(i int) {
	e := s.entries[i]
	switch e.Action {
	case registry.OutboxDelete:
		for _, tag := range slices.Sorted(maps.Keys(s.there)) {
			if s.there[tag] == e.Digest {
				s.put(tag, "")
			}
		}
		for _, tag := range e.Tags {
			s.base[tag] = ""
		}
	case registry.OutboxUntag:
		s.put(e.Tag, "")
		s.base[e.Tag] = ""
	default:
		s.put(e.Tag, e.Digest)
		s.base[e.Tag] = e.Digest
	}
	for _, tag := range append([]string{e.Tag}, e.Tags...) {
		if s.here[tag] == s.there[tag] {
			s.had[tag] = had{s.there[tag], s.changedAt[tag]}
		}
	}
	passed, err := s.leave(context.Background(), e, func(context.Context, uint64) error {
		s.entries = slices.Delete(slices.Clone(s.entries), i, i+1)
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if passed {
		_ = s.tags.again(context.Background())
	}
}

// keeps is the store's last word about a tag.
func (s *twoSides) keeps(tag string, d registry.Digest) bool {
	return slices.ContainsFunc(s.entries, func(e registry.OutboxEntry) bool {
		return e.Tag == tag || slices.Contains(e.Tags, tag) || e.Action == registry.OutboxDelete && e.Digest == d
	})
}

// move moves a tag here by a word of a version.
func (s *twoSides) move(tag string, d registry.Digest, version int) {
	if s.here[tag] == d {
		return
	}
	if h := s.had[tag]; version < h.version && d != h.digest {
		s.t.Errorf("%s moves to %q of version %d after %q of version %d", tag, d, version, h.digest, h.version)
	}
	if s.here[tag], s.base[tag] = d, d; d == "" {
		delete(s.here, tag)
	}
}

// list asks the parent what changed.
func (s *twoSides) list() *told {
	w := &told{word: word{mark: s.mark()}, l: newListing(), version: s.version, at: maps.Clone(s.changedAt), drops: s.drops}
	if w.l.mark = w.mark; s.relist {
		s.relist, s.cursor, w.l.all, w.l.complete["r"] = false, 0, true, true
	}
	w.l.tags["r"] = map[string]registry.Digest{}
	for tag, at := range s.changedAt {
		d := s.there[tag]
		switch {
		case at <= s.cursor:
		case d != "":
			w.l.add("r", tag, d)
		case !w.l.all:
			w.l.gone["r"] = append(w.l.gone["r"], tag)
		}
	}
	return w
}

// hears plans after a list, as Syncer.apply does.
func (s *twoSides) hears(ctx context.Context, w *told) {
	w.heard = true
	for _, x := range s.disputes(w.l) {
		now := cmp.Or(s.there[x.tag], saysGone)
		if s.settle(x, now); now == x.said {
			w.at[x.tag] = s.changedAt[x.tag] // it is said anew
		}
	}
	local := map[string][]registry.LocalTag{}
	for tag, d := range s.here {
		local["r"] = append(local["r"], registry.LocalTag{Tag: tag, Digest: d, Pushed: s.keeps(tag, "")})
	}
	if err := s.hear(ctx, &w.l, local); err != nil {
		s.t.Fatal(err)
	}
	set := Settings{Mode: registry.ReadOnly, Scope: registry.Scope{{Repository: "r"}}}
	p := makePlan(set, w.l, local)
	w.digests = map[string]registry.Digest{}
	for _, f := range p.fetch {
		for _, tag := range f.tags {
			w.digests[tag] = f.digest
		}
	}
	for _, tag := range p.untag["r"] {
		w.digests[tag] = ""
	}
	w.tags = slices.Sorted(maps.Keys(w.digests))
}

// goesOn carries out the next part of a list; false while it has to wait. At its end the cursor moves on.
func (s *twoSides) goesOn(ctx context.Context, w *told) (ended bool) {
	if !w.heard {
		s.hears(ctx, w)
		return false
	}
	if len(w.tags) == 0 {
		if w.drops == s.drops {
			s.cursor = max(s.cursor, w.version)
		}
		return true
	}
	tag := w.tags[0]
	if s.pulls[tag] != nil && s.pulls[tag].answered != nil {
		return false
	}
	s.carry(ctx, w, tag, w.digests[tag])
	w.tags = w.tags[1:]
	return false
}

// settles takes out a push that is tried no more, where the parent says that the tag stands as it wants; nobody is told.
func (s *twoSides) settles(tag string, d registry.Digest) {
	for i, e := range s.entries {
		if e.Tag == tag && e.Action == registry.OutboxPush && e.Digest == d && e.State == registry.OutboxExpired {
			s.base[tag] = d
			s.entries = slices.Delete(s.entries, i, i+1)
			return
		}
	}
}

// carry carries the parent's word of one tag out.
func (s *twoSides) carry(ctx context.Context, w *told, tag string, d registry.Digest) {
	var err error
	if d == "" {
		err = s.takeAway(ctx, "r", []string{tag}, w.word, func(may []string) error {
			for _, tag := range may {
				if !s.keeps(tag, "") {
					s.move(tag, "", w.at[tag])
				}
			}
			return nil
		})
	} else {
		image := registry.Image{Repository: "r", Manifests: []registry.Manifest{{Descriptor: registry.Descriptor{Digest: d}}}, Tags: []string{tag}}
		_, err = s.carryOut(ctx, image, w.word, func(_ context.Context, image registry.Image) (kept []string, err error) {
			for _, tag := range image.Tags {
				s.settles(tag, d)
				if s.keeps(tag, d) {
					kept = append(kept, tag)
					continue
				}
				s.move(tag, d, w.at[tag])
			}
			return kept, nil
		})
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// pull has a client ask for a tag, or takes it one step on.
func (s *twoSides) pull(ctx context.Context, tag string) {
	w := s.pulls[tag]
	switch {
	case w == nil:
		isQueued, err := s.queued(ctx, "r", tag, "")
		if err != nil || isQueued || s.here[tag] != "" {
			return
		}
		w = &told{word: word{mark: s.mark(), client: true}, answered: s.asking("r", tag)}
		w.digests, w.at = map[string]registry.Digest{tag: s.there[tag]}, maps.Clone(s.changedAt)
		s.pulls[tag] = w
	case w.answered != nil && w.digests[tag] != "" && !s.agrees("r", tag, w.digests[tag]):
		w.digests[tag], w.at = s.there[tag], maps.Clone(s.changedAt)
	case w.answered != nil:
		d := w.digests[tag]
		if d != "" {
			s.give("r", tag, givenTag{digest: d, until: time.Unix(1, 0)})
			s.had[tag] = had{d, w.at[tag]}
		}
		w.answered()
		if w.answered = nil; d == "" {
			delete(s.pulls, tag)
		}
	default:
		s.carry(ctx, w, tag, w.digests[tag])
		s.took("r", tag, w.digests[tag])
		delete(s.pulls, tag)
	}
}

// TestWhoMayMove lets all that concerns tags happen in any order: moves, pushes and deletes on either side, entries that
// leave the queue, lists of the parent and answers to clients of which each part may come late. No client is given an image
// and an older one after it by the parent's word; in the end both sides are equal, and nothing moves any more.
func TestWhoMayMove(t *testing.T) {
	ctx := t.Context()
	names, digests := []string{"a", "b"}, []registry.Digest{"d1", "d2", "d3"}
	anything := func(t *rapid.T) {
		s := newTwoSides(t)
		tag, digest := rapid.SampledFrom(names), rapid.SampledFrom(digests)
		t.Repeat(map[string]func(*rapid.T){
			"the parent moves":   func(t *rapid.T) { s.put(tag.Draw(t, "tag"), digest.Draw(t, "digest")) },
			"the parent deletes": func(t *rapid.T) { s.put(tag.Draw(t, "tag"), "") },
			"push": func(t *rapid.T) {
				e := registry.OutboxEntry{Action: registry.OutboxPush, Tag: tag.Draw(t, "tag"), Digest: digest.Draw(t, "digest")}
				for _, o := range s.entries {
					for _, name := range o.Tags {
						if o.Digest == e.Digest && name != e.Tag { // of a delete that ends with the push
							s.add(registry.OutboxEntry{Action: registry.OutboxUntag, Tag: name, Digest: e.Digest})
						}
					}
				}
				s.add(e)
				s.here[e.Tag], s.had[e.Tag] = e.Digest, had{}
			},
			"untag": func(t *rapid.T) {
				name := tag.Draw(t, "tag")
				if s.here[name] == "" {
					return
				}
				s.add(registry.OutboxEntry{Action: registry.OutboxUntag, Tag: name, Digest: s.here[name]})
				delete(s.here, name)
				delete(s.had, name)
			},
			"delete": func(t *rapid.T) {
				e := registry.OutboxEntry{Action: registry.OutboxDelete, Digest: digest.Draw(t, "digest")}
				for _, o := range s.entries {
					if o.Action == e.Action && o.Digest == e.Digest {
						e.Tags = append(e.Tags, o.Tags...)
					}
				}
				for _, name := range names {
					if s.here[name] != e.Digest {
						continue
					}
					if b := s.base[name]; b == "" || b == e.Digest {
						e.Tags = append(e.Tags, name)
					} else { // it would outlive the manifest there
						s.add(registry.OutboxEntry{Action: registry.OutboxUntag, Tag: name, Digest: e.Digest})
					}
					delete(s.here, name)
					delete(s.had, name)
				}
				s.add(e)
			},
			"deliver": func(t *rapid.T) {
				if len(s.entries) == 0 {
					return
				}
				s.deliver(rapid.IntRange(0, len(s.entries)-1).Draw(t, "entry"))
			},
			"expire": func(t *rapid.T) {
				if len(s.entries) > 0 {
					s.entries[rapid.IntRange(0, len(s.entries)-1).Draw(t, "entry")].State = registry.OutboxExpired
				}
			},
			"list": func(*rapid.T) { s.next(ctx) },
			"all of a list": func(*rapid.T) {
				for s.next(ctx); len(s.lists) > 0 && len(s.pulls) == 0; {
					s.next(ctx)
				}
			},
			"pull": func(t *rapid.T) { s.pull(ctx, tag.Draw(t, "tag")) },
		})
		s.ends(ctx, names)
	}
	for range 30 { // a hundred each: what goes wrong in one order of a thousand is to be found
		rapid.Check(t, anything)
	}
}

// ends lets all end that began, and compares.
func (s *twoSides) ends(ctx context.Context, names []string) {
	for len(s.entries) > 0 {
		s.deliver(0)
	}
	for len(s.pulls) > 0 {
		for _, name := range names {
			if s.pulls[name] != nil {
				s.pull(ctx, name)
			}
		}
	}
	for rounds := 0; len(s.lists) > 0 || s.relist || s.cursor < s.version; rounds++ {
		if s.next(ctx); rounds > 100 {
			s.t.Fatal("the parent is asked for ever")
		}
	}
	if !maps.Equal(s.here, s.there) {
		s.t.Fatalf("%v here, %v at the parent", s.here, s.there)
	}
}

// TestVerdicts goes through all that may be known of a tag.
func TestVerdicts(t *testing.T) {
	for n := range 1 << 4 {
		k := known{later: n&1 > 0, queued: n&2 > 0, asked: n&4 > 0}
		client := n&8 > 0
		for _, given := range []registry.Digest{"", "d", "other"} {
			k.given = given
			want := move
			switch {
			case k.later:
				want = stale
			case k.queued:
				want = keep
			case !client && k.asked:
				want = wait
			case given == "other", client && given == "":
				want = aside
			}
			if got := k.verdict("d", client); got != want {
				t.Errorf("%+v, for a client %v: %v, want %v", k, client, got, want)
			}
		}
	}
}

// TestCourses has the lines of the table about the parent.
func TestCourses(t *testing.T) {
	const ours, base, theirs = "ours", "base", "theirs"
	for _, tt := range []struct {
		answered bool // for the entry, before
		put      registry.Digest
		at       registry.Digest
		byUs     bool // may stand there by our doing
		has      bool
		unheard  bool
		push     [2]course // where the newest wins, where the parent does
		untag    [2]course
	}{
		{at: ours, has: true, push: [2]course{there, there}, untag: [2]course{send, send}},
		{at: ours, has: true, unheard: true, push: [2]course{send, send}, untag: [2]course{send, send}},
		{at: "", push: [2]course{send, send}, untag: [2]course{there, there}},
		{at: base, byUs: true, push: [2]course{send, send}, untag: [2]course{send, send}},
		{at: base, put: base, push: [2]course{send, send}, untag: [2]course{send, send}},
		{at: theirs, push: [2]course{over, lost}, untag: [2]course{over, lost}},
		{at: theirs, has: true, push: [2]course{over, lost}, untag: [2]course{over, lost}},
		{answered: true, put: ours, at: ours, has: true, push: [2]course{there, there}, untag: [2]course{send, send}},
		{answered: true, put: ours, at: theirs, has: true, push: [2]course{past, past}, untag: [2]course{past, past}},
		{answered: true, at: theirs, has: true, push: [2]course{past, gone}, untag: [2]course{past, past}},
		{answered: true, put: ours, at: base, byUs: true, has: true, push: [2]course{send, send}, untag: [2]course{send, send}},
		{answered: true, put: ours, at: theirs, push: [2]course{over, lost}, untag: [2]course{past, past}},
		{answered: true, put: ours, at: "", has: true, push: [2]course{past, past}, untag: [2]course{there, there}},
	} {
		for i, wins := range []bool{false, true} {
			e := registry.OutboxEntry{Tag: "v", Digest: ours, Put: tt.put, State: registry.OutboxWaiting}
			if tt.answered {
				e.State = registry.OutboxDelivered
			}
			f := found{OutboxEntry: e, wants: ours, at: tt.at, ours: tt.byUs, has: tt.has, unheard: tt.unheard, wins: wins}
			name := fmt.Sprintf("%+v, the parent wins %v", tt, wins)
			if got := f.course(); got != tt.push[i] {
				t.Errorf("%s: a push %v, want %v", name, got, tt.push[i])
			}
			f.wants, f.has, f.unheard = "", false, false
			if got := f.course(); got != tt.untag[i] {
				t.Errorf("%s: an untag %v, want %v", name, got, tt.untag[i])
			}
		}
	}
}
