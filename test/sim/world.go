package sim

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// world is one run: the chain, and what its clients know of it.
type world struct {
	plan    plan
	net     *network
	layers  []*layer
	cloud   *layer   // when it is of our own kind
	foreign *foreign // when it is not
	close   func()
	desk    *client   // at the cloud
	floor   []*client // one at each layer
	content *content
	began   time.Time

	history  map[string]map[registry.Digest]bool             // by repository:tag: all that it ever was anywhere
	pushedAt [1 + layers]map[string]map[registry.Digest]bool // the same, of the cloud and of each layer
	about    map[string][]registry.Digest                    // referrers in the cloud, by repository@subject
	atCloud  map[string]bool                                 // by repository@digest: seen there
	writes   map[string]*writes                              // by repository:tag: since all agreed the last time
	mixed    map[string]bool                                 // repositories in which somebody deleted since then
	agreed   map[string]registry.Digest

	configured bool                                     // some layer, since all agreed the last time
	conflicts  [layers]map[registry.OutboxConflict]bool // that were told before that

	pushedNow map[string]bool // by repository@digest: by somebody since all agreed the last time
	removed   map[string]bool // deleted at a layer since then, and not pushed since then
	own       [layers]*acknowledged
	returned  map[string]int         // tags that the cloud was given back to a digest that a layer had pushed, by repository/manifests/tag
	pushes    [layers]map[string]int // acknowledged, by repository/manifests/tag, and with each of its manifests, by digest
	deletes   int
	events    [layers]int             // what may have cost bytes of the link above a layer
	losses    [layers]int             // those of them that may have cost all that was on its way
	refetch   [layers]bool            // its disk refused to sync: what was fetched is not believed, and fetched again and again
	blobs     map[registry.Digest]int // size of each

	trace    []string
	failures []string
}

// acknowledged is what clients of a layer were told to be there.
type acknowledged struct {
	manifests map[string]bool              // by repository@digest
	tags      map[string][]registry.Digest // by repository:tag: it is one of these; an empty digest is anything
}

// either are the possible values of a tag, before another is added by a push of which nobody told the result.
func (a *acknowledged) either(name string) []registry.Digest {
	if len(a.tags[name]) == 0 {
		return []registry.Digest{""}
	}
	return a.tags[name]
}

// failf notes a violation.
func (w *world) failf(format string, args ...any) {
	w.failures = append(w.failures, fmt.Sprintf(format, args...))
	w.tracef("VIOLATION: "+format, args...)
}

func (w *world) tracef(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%12s ", time.Since(w.began).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

// isFatal reports what no fault excuses.
func isFatal(err error) bool { return errors.Is(err, errHang) || errors.Is(err, errLie) }

func short(d registry.Digest) string { return strings.TrimPrefix(d.String(), "sha256:")[:8] }

// String is the crash in the words of the trace.
func (c crash) String() string {
	return map[crash]string{crashKill: "kill", crashPower: "power cut"}[c]
}

// newWorld starts the chain of a plan, below the directory base.
func newWorld(p plan, base string, log func(name string) *slog.Logger) (*world, error) {
	w := &world{
		plan: p, net: newNetwork(), content: newContent(p.seed), began: time.Now(), close: func() {},
		history: map[string]map[registry.Digest]bool{}, atCloud: map[string]bool{},
		writes: map[string]*writes{}, mixed: map[string]bool{}, pushedNow: map[string]bool{}, removed: map[string]bool{}, agreed: map[string]registry.Digest{},
		about: map[string][]registry.Digest{}, returned: map[string]int{}, blobs: map[registry.Digest]int{},
	}
	for i := range w.pushedAt {
		w.pushedAt[i] = map[string]map[registry.Digest]bool{}
	}
	if err := w.startCloud(base, log); err != nil {
		return w, err
	}
	w.desk = w.net.client("desk", "cloud")
	for i := range layers {
		l, err := w.newLayer(fmt.Sprintf("layer%d", top-i), base, log)
		if err != nil {
			return w, err
		}
		l.parent, l.seed = "cloud", p.seed*8+uint64(i)
		if j := p.above(i); j >= 0 {
			l.parent = w.layers[j].name
		}
		l.mode, l.scope, l.cron, l.round, l.pull = p.mode(i), scopes[p.scope[i]], crons[p.cron[i]], rounds[p.cron[i]], p.pull
		l.parentWins = p.parentWins
		l.configure()
		w.own[i] = &acknowledged{manifests: map[string]bool{}, tags: map[string][]registry.Digest{}}
		w.pushes[i] = map[string]int{}
		w.layers = append(w.layers, l)
		w.floor = append(w.floor, w.net.client("floor", l.name))
		w.net.change(l.name, l.parent, func(k *link) { k.latency = 5 * time.Millisecond })
		if !l.start() {
			return w, fmt.Errorf("%s does not start", l.name)
		}
	}
	return w, nil
}

func (w *world) newLayer(name, base string, log func(name string) *slog.Logger) (*layer, error) {
	v, err := newVolume(filepath.Join(base, name), rand.New(rand.NewPCG(w.plan.seed, uint64(len(w.layers)))))
	if err != nil {
		return nil, err
	}
	v.onEnd = func() { w.net.kill(name) }
	return &layer{name: name, net: w.net, volume: v, log: log(name), source: &source{changed: make(chan struct{})}}, nil
}

// record notes what is about to be pushed to the cloud (0) or to a layer (1 and more).
func (w *world) record(at int, repo, tag string, a artifact) {
	for _, b := range a.blobs {
		w.blobs[digestOf(b)] = len(b)
	}
	for _, m := range a.manifests {
		name := repo + "@" + digestOf(m.body).String()
		w.pushedNow[name] = true
		delete(w.removed, name)
	}
	key := repo + ":" + tag
	if w.history[key] == nil {
		w.history[key] = map[registry.Digest]bool{}
	}
	w.history[key][a.root()] = true
	w.place(at, key, a.root())
}

// place notes what a tag may become at the layers above because of what a client did at a place: the last that arrives
// wins, and nobody knows which. An empty digest is no tag.
func (w *world) place(at int, name string, d registry.Digest) {
	if w.pushedAt[at][name] == nil {
		w.pushedAt[at][name] = map[registry.Digest]bool{}
	}
	w.pushedAt[at][name][d] = true
}

// run does all steps and leaves the world healed and ended.
func (w *world) run() {
	for i, s := range w.plan.steps {
		w.until(s.pause)
		w.reap()
		at := len(w.trace)
		w.trace = append(w.trace, "")
		began := time.Since(w.began).Round(time.Millisecond)
		result := s.kind.do(w, s)
		w.trace[at] = fmt.Sprintf("%12s %2d %s: %s", began, i, s, result)
		synctest.Wait()
		w.check()
		if len(w.failures) > 0 {
			return
		}
	}
	w.finish()
}

// until lets a pause pass and goes on with a whole second, so that what a step before it took a moment longer for does
// not move all that comes after.
func (w *world) until(pause time.Duration) {
	if pause == 0 {
		return
	}
	time.Sleep(pause)
	now := time.Since(w.began)
	time.Sleep((now + time.Second - 1).Truncate(time.Second) - now)
}

// reap starts what has crashed, and what was stopped for long enough.
func (w *world) reap() {
	for _, l := range w.layers {
		switch {
		case l.volume.ended():
			w.end(l)
			w.begin(l)
		case l.running == nil && l.down > 0:
			l.down--
		case l.running == nil:
			w.begin(l)
		}
	}
}

// end ends what is left of a process.
func (w *world) end(l *layer) {
	if err := l.end(); err != nil && (!l.volume.ended() || errors.Is(err, errHang)) {
		w.failf("%s: %v", l.name, err)
	}
}

func (w *world) begin(l *layer) {
	if err := l.volume.again(); err != nil {
		w.failf("%s: %v", l.name, err)
		return
	}
	for i := range w.layers {
		if w.layers[i] == l {
			w.events[i]++
		}
	}
	ok := l.start()
	w.tracef("%s starts, ready %v", l.name, ok)
	if !ok && !l.volume.ended() && !l.volume.sick() {
		w.failf("%s is not ready in %v", l.name, readiness)
	}
}

// shut ends all.
func (w *world) shut() {
	for i := len(w.layers) - 1; i >= 0; i-- {
		w.end(w.layers[i])
	}
	if w.cloud != nil {
		w.end(w.cloud)
	}
	w.close()
	// An http.Transport goes on to dial when its request has given up, until the dialer's own time-out: into a black hole
	// as well, and a bubble ends only when nobody is left in it.
	time.Sleep(readiness)
}
