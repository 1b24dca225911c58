package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

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
		var cloud map[string]map[string]registry.Digest
		if cloud, left = w.difference(); left == "" {
			w.decided(cloud)
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
			k.mode, k.rate, k.latency, k.cutAfter = linkUp, 0, 5*time.Millisecond, [2]int64{}
		})
	}
	if w.foreign != nil {
		w.foreign.setBusy(0)
	}
	w.reap()
	for _, l := range w.layers {
		if !l.running.wait(l.running.ready) {
			w.failf("%s is not ready %v after all was healed", l.name, readiness)
		}
	}
}

// difference is the first thing in which a layer differs from its parent; empty when all agree. It returns what the
// cloud has.
func (w *world) difference() (map[string]map[string]registry.Digest, string) {
	cloud := map[string]map[string]registry.Digest{}
	if _, late := w.net.isHeld("", ""); late {
		return nil, "a request is still on its way"
	}
	for i, l := range w.layers {
		if list, err := queue(l.content()); err != nil || len(list) > 0 {
			return nil, fmt.Sprintf("%s has %d changes for its parent: %+v %v", w.layers[i].name, len(list), list, err)
		}
	}
	for _, repo := range repositories {
		list, err := w.desk.list(repo)
		if err != nil {
			return nil, "cloud: " + err.Error()
		}
		cloud[repo] = list
	}
	var have [layers]map[string]map[string]registry.Digest
	for i, l := range w.layers {
		above := cloud
		if j := w.plan.above(i); j >= 0 {
			above = have[j]
		}
		here := map[string]map[string]registry.LocalTag{}
		for _, repo := range repositories {
			here[repo] = map[string]registry.LocalTag{}
		}
		err := eachTag(l.content(), func(repo string, t registry.LocalTag) error {
			here[repo][t.Tag] = t
			return nil
		})
		if err != nil {
			return nil, l.name + ": " + err.Error()
		}
		if d := w.differs(l, above, here); d != "" {
			return nil, d
		}
		if d := w.referrers(i, above); d != "" {
			return nil, d
		}
		have[i] = map[string]map[string]registry.Digest{}
		for repo, list := range here {
			have[i][repo] = map[string]registry.Digest{}
			for tag, t := range list {
				have[i][repo][tag] = t.Digest
			}
		}
	}
	return cloud, ""
}

// differs compares the tags of a layer with those of its parent.
func (w *world) differs(l *layer, above map[string]map[string]registry.Digest, here map[string]map[string]registry.LocalTag) string {
	scope := l.rules()
	for _, repo := range repositories {
		for tag, d := range above[repo] {
			t, ok := here[repo][tag]
			if scope.MatchTag(repo, tag) && (!ok || t.Digest != d) {
				return fmt.Sprintf("%s:%s is %s at the parent of %s, which has %q", repo, tag, d, l.name, t.Digest)
			}
		}
		for tag, t := range here[repo] {
			_, ok := above[repo][tag]
			switch {
			case l.mode == registry.ReadOnly && !(ok && scope.MatchTag(repo, tag)):
				return fmt.Sprintf("%s still has %s:%s, which its parent has not or which is out of scope", l.name, repo, tag)
			case t.Pushed:
				return fmt.Sprintf("%s:%s was pushed to %s, and nothing in its queue tells the parent", repo, tag, l.name)
			}
		}
	}
	return ""
}

// reaches reports whether a tag of the cloud is in the scope of a layer and of all above it.
func (w *world) reaches(i int, repo, tag string) bool {
	for ; i >= 0; i = w.plan.above(i) {
		if !w.layers[i].rules().MatchTag(repo, tag) {
			return false
		}
	}
	return true
}

func lists(referrers []registry.Descriptor, d registry.Digest) bool {
	return slices.ContainsFunc(referrers, func(r registry.Descriptor) bool { return r.Digest == d })
}

// referrers looks whether what the cloud's referrers tell of a tag of the cloud came down to a layer from the one above it.
func (w *world) referrers(i int, above map[string]map[string]registry.Digest) string {
	if !w.plan.connected {
		return ""
	}
	l := w.layers[i]
	for name, list := range w.about {
		repo, subject, _ := strings.Cut(name, "@")
		tagged := false
		for tag, d := range above[repo] {
			tagged = tagged || d.String() == subject && w.reaches(i, repo, tag)
		}
		if !tagged {
			continue
		}
		got, err := l.content().Referrers(context.Background(), repo, registry.Digest(subject), "")
		if err != nil {
			return err.Error()
		}
		there := slices.Clone(list)
		if p := w.plan.above(i); p >= 0 { // what was deleted at the top before its signature came down may be kept below
			up, err := w.layers[p].content().Referrers(context.Background(), repo, registry.Digest(subject), "")
			if err != nil {
				return err.Error()
			}
			there = slices.DeleteFunc(there, func(d registry.Digest) bool { return !lists(up, d) })
		}
		for _, want := range there {
			if !lists(got, want) {
				return fmt.Sprintf("%s lacks %s, which refers to %s", l.name, want, name)
			}
		}
	}
	return ""
}
