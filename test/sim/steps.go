package sim

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// kinds are all that can happen. A new kind changes the plans of all seeds; those that once failed are kept with what
// they failed for, and are made anew where a kind is added.
var kinds = []*kind{
	{name: "push cloud", weight: 12, content: true, do: (*world).cloudPush},
	{name: "referrer cloud", weight: 3, content: true, do: (*world).cloudReferrer},
	{name: "untag cloud", weight: 2, content: true, do: (*world).cloudUntag},
	{name: "delete cloud", weight: 2, content: true, do: (*world).cloudDelete},
	{name: "pull", weight: 8, layer: true, content: true, do: (*world).pull},
	{name: "crowd", weight: 3, layer: true, content: true, do: (*world).crowd},
	{name: "push", weight: 6, layer: true, content: true, do: (*world).push},
	{name: "push twice", weight: 3, layer: true, content: true, do: (*world).pushTwice},
	{name: "slow push", weight: 3, layer: true, content: true, do: (*world).slowPush},
	{name: "duel", weight: 2, layer: true, content: true, do: (*world).duel},
	{name: "race", weight: 2, layer: true, content: true, do: (*world).race},
	{name: "build", weight: 2, layer: true, content: true, do: (*world).build},
	{name: "parent cut", weight: 3, fault: true, layer: true, content: true, do: (*world).parentCut},
	{name: "cloud cut", weight: 1, fault: true, do: (*world).cloudCut},
	{name: "cloud busy", weight: 3, fault: true, do: (*world).cloudBusy},
	{name: "untag", weight: 2, layer: true, content: true, do: (*world).untag},
	{name: "delete", weight: 2, layer: true, content: true, do: (*world).remove},
	{name: "sync", weight: 3, layer: true, do: (*world).sync},
	{name: "collect", weight: 2, layer: true, do: (*world).collect},
	{name: "settle", weight: 3, do: (*world).settle},
	{name: "pass", weight: 5, do: (*world).pass},
	{name: "configure", weight: 3, layer: true, do: (*world).configure},
	{name: "clock", weight: 2, layer: true, fault: true, do: (*world).clock},
	{name: "stop", weight: 2, layer: true, fault: true, do: (*world).stop},
	{name: "crash", weight: 4, layer: true, fault: true, do: (*world).crash},
	{name: "crash soon", weight: 6, layer: true, fault: true, do: (*world).crashSoon},
	{name: "disk", weight: 3, layer: true, fault: true, do: (*world).disk},
	{name: "link", weight: 7, layer: true, fault: true, do: (*world).link},
	{name: "cut", weight: 6, layer: true, fault: true, do: func(w *world, s step) string { return w.cut(s, down) }},
	{name: "cut up", weight: 4, layer: true, fault: true, do: func(w *world, s step) string { return w.cut(s, up) }},
}

// laterKinds are put into plans that were made without them.
var laterKinds = []*kind{
	{name: "late put", fault: true, layer: true, content: true, do: (*world).latePut},
	{name: "parent cut twice", fault: true, layer: true, content: true, do: (*world).parentCutTwice},
	{name: "late put, moved", fault: true, layer: true, content: true, do: (*world).latePutMoved},
}

// cloudPush gives a tag of the cloud another image.
func (w *world) cloudPush(s step) string {
	repo, tag := repositories[s.repo], tags[s.tag]
	a := w.content.artifact(s.image)
	for _, pushed := range w.pushedAt[1:] {
		if pushed[repo+":"+tag][a.root()] { // it may look like the cloud that lost what came after it
			w.returned[repo+"/manifests/"+tag]++
			break
		}
	}
	w.record(0, repo, tag, a)
	v, err := w.desk.push(repo, tag, a)
	if v != done {
		w.failf("the cloud did not take %s:%s: %v", repo, tag, err)
	}
	w.wrote(0, repo, tag, a.root())
	return short(a.root())
}

// cloudReferrer says something about what a tag of the cloud is.
func (w *world) cloudReferrer(s step) string {
	repo, tag := repositories[s.repo], tags[s.tag]
	r, err := w.desk.ask(http.MethodGet, "/v2/"+repo+"/manifests/"+tag, "", nil)
	if err != nil || r.status != http.StatusOK {
		return "no tag"
	}
	d := digestOf(r.body)
	a := w.content.referrer(s.n, manifest{r.header.Get("Content-Type"), r.body})
	w.record(0, repo, "", a)
	if v, err := w.desk.push(repo, "", a); v != done {
		w.failf("the cloud did not take a referrer: %v", err)
	}
	if i := repo + "@" + d.String(); !slices.Contains(w.about[i], a.root()) {
		w.about[i] = append(w.about[i], a.root())
	}
	return short(a.root())
}

// cloudUntag takes a tag away.
func (w *world) cloudUntag(s step) string {
	repo, tag := repositories[s.repo], tags[s.tag]
	if _, ok := w.desk.resolve(repo, tag); !ok {
		return "no tag"
	}
	if v, err := w.desk.drop(repo, tag); v != done {
		w.failf("the cloud did not untag %s:%s: %v", repo, tag, err)
	}
	w.wrote(0, repo, tag, "")
	return ""
}

// cloudDelete takes a manifest away with all tags on it.
func (w *world) cloudDelete(s step) string {
	repo, tag := repositories[s.repo], tags[s.tag]
	d, ok := w.desk.resolve(repo, tag)
	if !ok {
		return "no tag"
	}
	if v, err := w.desk.drop(repo, d.String()); v != done {
		w.failf("the cloud did not delete %s@%s: %v", repo, d, err)
	}
	delete(w.about, repo+"@"+d.String())
	w.deleted(repo, d)
	return short(d)
}

// pull reads a tag at a layer. What is here already has to come at once, whatever the links do.
func (w *world) pull(s step) string {
	return w.pullBy(s, w.floor[s.layer])
}

func (w *world) pullBy(s step, by *client) string {
	l, repo, tag := w.layers[s.layer], repositories[s.repo], tags[s.tag]
	here := w.holds(l, repo, tag)
	t, err := by.pull(repo, tag)
	w.judge(l, repo, tag, t, err)
	switch {
	case err != nil:
		return "failed"
	case t.absent != "":
		if here && l.isReady() && w.holds(l, repo, tag) {
			w.failf("%s has %s:%s and answers %s", l.name, repo, tag, t.absent)
		}
		return "absent"
	}
	if here && t.slowest > time.Second {
		w.failf("%s has %s:%s and takes %v to serve it", l.name, repo, tag, t.slowest)
	}
	return short(t.root)
}

// judge looks for what a client may never see.
func (w *world) judge(l *layer, repo, tag string, t tree, err error) {
	if isFatal(err) {
		w.failf("%s: pull of %s:%s: %v", l.name, repo, tag, err)
	}
	if t.root != "" && !w.history[repo+":"+tag][t.root] {
		w.failf("%s serves %s:%s as %s, which it never was", l.name, repo, tag, t.root)
	}
}

// crowd is some pulls of one tag at once: the link carries it once.
func (w *world) crowd(s step) string {
	results := make([]string, 3)
	var group sync.WaitGroup
	for i := range results {
		group.Go(func() { results[i] = w.pullBy(s, w.net.client(fmt.Sprintf("host%d", i), w.layers[s.layer].name)) })
	}
	group.Wait()
	slices.Sort(results)
	return strings.Join(results, " ")
}

// push gives a tag of a layer another image.
func (w *world) push(s step) string {
	repo, tag := repositories[s.repo], tags[s.tag]
	a := w.content.artifact(s.image)
	w.record(s.layer+1, repo, tag, a)
	v, err := w.floor[s.layer].push(repo, tag, a)
	return w.pushed(s, a, v, err)
}

// pushed notes what a client was told.
func (w *world) pushed(s step, a artifact, v verdict, err error) string {
	l, repo, tag := w.layers[s.layer], repositories[s.repo], tags[s.tag]
	if isFatal(err) {
		w.failf("%s: push of %s:%s: %v", l.name, repo, tag, err)
	}
	own := w.own[s.layer]
	switch v {
	case done:
		if l.mode == registry.ReadOnly {
			w.failf("%s is ReadOnly and took a push of %s:%s", l.name, repo, tag)
		}
		own.tags[repo+":"+tag] = []registry.Digest{a.root()}
		own.manifests[repo+"@"+a.root().String()] = true
		w.wrote(s.layer+1, repo, tag, a.root())
		w.pushes[s.layer][repo+"/manifests/"+tag]++
		for _, m := range a.manifests {
			w.pushes[s.layer][repo+"/manifests/"+digestOf(m.body).String()]++
		}
	case unknown:
		w.unsure(s.layer+1, repo, tag, a.root())
		own.tags[repo+":"+tag] = append(own.either(repo+":"+tag), a.root())
	case refused:
		if l.mode == registry.ReadWrite && l.isReady() {
			w.failf("%s refuses a push of %s:%s: %v", l.name, repo, tag, err)
		}
	}
	return string(v) + " " + short(a.root())
}

// slowPush is a client that pushes its layers, comes back the next day, finds them there and goes on. Between its
// question and the manifest garbage is collected. Mostly the day is one of the wall clock alone, which costs nothing.
func (w *world) slowPush(s step) string {
	l, by, repo, tag := w.layers[s.layer], w.floor[s.layer], repositories[s.repo], tags[s.tag]
	if l.mode == registry.ReadOnly {
		return "ReadOnly"
	}
	a := w.content.artifact(100 + s.image)
	w.record(s.layer+1, repo, tag, a)
	for _, wait := range []time.Duration{20 * time.Hour, 5 * time.Hour} {
		for _, b := range a.blobs {
			if v, err := by.pushBlob(repo, b); v != done {
				return w.pushed(s, a, v, err)
			}
		}
		if s.n%8 == 0 {
			time.Sleep(wait)
		} else {
			w.jump(l, wait)
		}
	}
	w.method(l, "gc")
	for i, m := range a.manifests {
		ref := digestOf(m.body).String()
		if i == len(a.manifests)-1 {
			ref = tag
		}
		r, err := by.ask(http.MethodPut, "/v2/"+repo+"/manifests/"+ref, m.media, m.body)
		if v := r.verdict(err); v != done {
			return w.pushed(s, a, v, r.explain(err))
		}
	}
	return w.pushed(s, a, done, nil)
}

// untag takes a tag of a layer away.
func (w *world) untag(s step) string {
	repo, tag := repositories[s.repo], tags[s.tag]
	w.place(s.layer+1, repo+":"+tag, "") // it climbs, and may come to a layer above after a push there
	v, err := w.floor[s.layer].drop(repo, tag)
	switch v {
	case done:
		w.wrote(s.layer+1, repo, tag, "")
	case unknown:
		w.unsure(s.layer+1, repo, tag, "")
	case refused:
	}
	return w.dropped(s, v, err, func(own *acknowledged) { delete(own.tags, repo+":"+tag) })
}

// remove takes away what a tag of a layer points at.
func (w *world) remove(s step) string {
	repo, tag := repositories[s.repo], tags[s.tag]
	var d registry.Digest
	if either := w.own[s.layer].tags[repo+":"+tag]; len(either) > 0 {
		d = either[0]
	} else if l := w.layers[s.layer]; w.holds(l, repo, tag) {
		here, err := l.content().ResolveManifest(context.Background(), repo, registry.TagReference(tag))
		if err == nil {
			d = here.Digest
		}
	}
	if d == "" {
		return "no tag"
	}
	v, err := w.floor[s.layer].drop(repo, d.String())
	name := repo + "@" + d.String()
	if v == done && !w.pushedNow[name] {
		w.removed[name] = true
	}
	return w.dropped(s, v, err, func(*acknowledged) { w.deleted(repo, d) })
}

// deleted forgets a manifest that somebody deleted somewhere: when and where else it goes depends on who hears of it
// first.
func (w *world) deleted(repo string, d registry.Digest) {
	w.mixed[repo], w.deletes = true, w.deletes+1
	delete(w.atCloud, repo+"@"+d.String())
	for _, own := range w.own {
		delete(own.manifests, repo+"@"+d.String())
		for name, either := range own.tags {
			if strings.HasPrefix(name, repo+":") && slices.Contains(either, d) {
				delete(own.tags, name)
			}
		}
	}
}

// dropped notes what a client was told; what nobody told may be or not be.
func (w *world) dropped(s step, v verdict, err error, forget func(*acknowledged)) string {
	l := w.layers[s.layer]
	if isFatal(err) {
		w.failf("%s: delete: %v", l.name, err)
	}
	if v == done && l.mode == registry.ReadOnly {
		w.failf("%s is ReadOnly and took a delete", l.name)
	}
	if v != refused {
		forget(w.own[s.layer])
	}
	return string(v)
}

// sync asks for an iteration now.
func (w *world) sync(s step) string {
	return w.method(w.layers[s.layer], "sync")
}

// collect asks for a collection now.
func (w *world) collect(s step) string {
	return w.method(w.layers[s.layer], "gc")
}

// method calls a method over the control socket.
func (w *world) method(l *layer, name string) string {
	r, err := w.net.client("operator", l.name+"-control").ask(http.MethodPost, "/methods/"+name, "", nil)
	if isFatal(err) {
		w.failf("%s: %s: %v", l.name, name, err)
	}
	return string(r.verdict(err))
}

// pass lets time go by: minutes, hours, now and then days.
func (w *world) pass(s step) string {
	d := []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute, 20 * time.Minute, 2 * time.Hour, 7 * time.Hour, 26 * time.Hour}[min(s.n%12, s.n/12%7)]
	time.Sleep(d)
	return d.String()
}

// configure changes one setting of a layer.
func (w *world) configure(s step) string {
	l := w.layers[s.layer]
	w.events[s.layer]++
	w.configured = true
	switch s.n % 4 {
	case 0:
		l.scope = scopes[s.n/4%len(scopes)]
	case 1:
		l.cron = crons[s.n/4%len(crons)]
		l.round = rounds[s.n/4%len(crons)]
	case 2:
		l.pull = !l.pull
	default: // a ReadOnly parent has no ReadWrite child
		switch {
		case l.mode == registry.ReadOnly && (s.layer == 0 || w.layers[w.plan.above(s.layer)].mode == registry.ReadWrite):
			l.mode = registry.ReadWrite
		case l.mode == registry.ReadWrite && w.readers(s.layer):
			l.mode = registry.ReadOnly
		}
	}
	l.configure()
	time.Sleep(time.Second) // until it is in force
	return fmt.Sprintf("%s, %q, %s, pull-through %v", l.mode, l.scope, l.cron, l.pull)
}

// clock sets the wall clock of a layer forward while it runs, or back while it does not, as a device does that was
// without power: a clock that is set back under a process does not change what it measures.
func (w *world) clock(s step) string {
	l := w.layers[s.layer]
	w.events[s.layer]++
	d := []time.Duration{time.Minute, time.Hour, 26 * time.Hour, 40 * 24 * time.Hour}[s.n%4]
	if s.n%3 == 0 {
		if err := l.volume.crashNow(crashKill); err != nil {
			w.failf("%s: %v", l.name, err)
		}
		d = -d
	}
	w.jump(l, d)
	return d.String()
}

// jump sets a clock. By it a layer knows for how long a request of its own may be on its way: none is.
func (w *world) jump(l *layer, d time.Duration) {
	w.net.dropLate(l.name)
	l.jump(d)
}

// stop ends a layer as SIGTERM does, for some steps.
func (w *world) stop(s step) string {
	l := w.layers[s.layer]
	if l.running == nil {
		return "stopped"
	}
	w.events[s.layer]++
	w.end(l)
	l.down = s.n % 4
	return fmt.Sprint("for ", l.down)
}

// crash kills a layer or cuts its power, at a moment at which nothing is under way on its disk.
func (w *world) crash(s step) string {
	l := w.layers[s.layer]
	w.events[s.layer]++
	c := crash(1 + s.n%2)
	w.lost(s.layer, c)
	if err := l.volume.crashNow(c); err != nil {
		w.failf("%s: %v", l.name, err)
	}
	return c.String()
}

// crashSoon is a crash at one of the next operations on the disk.
func (w *world) crashSoon(s step) string {
	l := w.layers[s.layer]
	w.events[s.layer]++
	c, n := crash(1+s.n%2), 1+s.n/2%40
	w.lost(s.layer, c)
	l.volume.arm(n, c)
	return fmt.Sprintf("%s after %d operations", c, n)
}

// lost notes that the bytes that are on their way to a volume may be lost.
func (w *world) lost(layer int, c crash) {
	if c == crashPower {
		w.losses[layer]++
	}
}

// disk fills the volume or makes its syncs fail, until the next such step or until all is healed.
func (w *world) disk(s step) string {
	l := w.layers[s.layer]
	w.events[s.layer]++
	full, failing := s.n%3 == 0, s.n%3 == 1
	w.refetch[s.layer] = w.refetch[s.layer] || failing
	l.volume.set(full, failing)
	return fmt.Sprintf("full %v, sync fails %v", full, failing)
}

// link changes the link above a layer until the next such step or until all is healed.
func (w *world) link(s step) string {
	l := w.layers[s.layer]
	w.events[s.layer]++
	mode, rate, latency := linkUp, 0, 5*time.Millisecond
	switch s.n % 5 {
	case 1:
		mode = linkRefuse
	case 2:
		mode = linkHole
	case 3:
		rate = 4000 << (s.n / 5 % 5)
	case 4:
		latency = time.Duration(1+s.n%700) * time.Millisecond
	}
	w.net.change(l.name, l.parent, func(l *link) { l.mode, l.rate, l.latency = mode, rate, latency })
	return fmt.Sprintf("%s, %d B/s, %v", []string{"up", "refused", "black hole"}[mode], rate, latency)
}

// cut breaks the connections of the link above a layer, now or after some bytes in a direction.
func (w *world) cut(s step, dir int) string {
	l := w.layers[s.layer]
	w.events[s.layer]++
	by := []error{syscall.ECONNRESET, io.EOF}[s.n%2]
	after := int64(s.n/2%8) * 12000
	if after == 0 {
		w.net.reset(l.name, l.parent, by)
	} else {
		w.net.change(l.name, l.parent, func(l *link) { l.cutAfter[dir], l.cutBy = after, by })
	}
	return fmt.Sprintf("%v after %d bytes %s", by, after, []string{"up", "down"}[dir])
}
