package sim

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// duel is two clients that push the same tag at two layers at once.
func (w *world) duel(s step) string {
	repo, tag := repositories[s.repo], tags[s.tag]
	two := [2]step{s, s}
	two[1].layer, two[1].image = (s.layer+1+s.n%2)%layers, s.image+1
	var made [2]artifact
	var v [2]verdict
	var errs [2]error
	var group sync.WaitGroup
	for i, s := range two {
		made[i] = w.content.artifact(s.image)
		w.record(s.layer+1, repo, tag, made[i])
		group.Go(func() { v[i], errs[i] = w.floor[s.layer].push(repo, tag, made[i]) })
	}
	group.Wait()
	return w.pushed(two[0], made[0], v[0], errs[0]) + ", " + w.pushed(two[1], made[1], v[1], errs[1])
}

// pushTwice is a push and, before it can have been delivered, another of the same tag.
func (w *world) pushTwice(s step) string {
	result := w.push(s)
	s.image++
	return result + ", " + w.push(s)
}

// race is a push at a layer while it takes from its parent what the cloud has of the same tag.
func (w *world) race(s step) string {
	result := w.cloudPush(s)
	var group sync.WaitGroup
	group.Go(func() { w.sync(s) })
	time.Sleep(time.Duration(s.n%60) * time.Millisecond)
	next := s
	next.image++
	result += ", " + w.push(next)
	group.Wait()
	return result
}

// build is a push of an image on a base that is in the cloud: what the layer says it has is not sent to it.
func (w *world) build(s step) string {
	result := w.cloudPush(s)
	a := w.content.derived(s.image, s.n)
	s.tag = (s.tag + 1) % len(tags)
	repo, tag := repositories[s.repo], tags[s.tag]
	w.record(s.layer+1, repo, tag, a)
	v, err := w.floor[s.layer].push(repo, tag, a)
	return result + ", " + w.pushed(s, a, v, err)
}

// parentCut is a push, and a loss of power of the parent as soon as it has answered for it.
func (w *world) parentCut(s step) string {
	return w.pushThrough(s) + ", " + w.cutAbove(s)
}

// parentCutTwice is two pushes of a tag, and a loss of power of the parent that may take both.
func (w *world) parentCutTwice(s step) string {
	result := w.pushThrough(s)
	s.image++
	return result + ", " + w.pushThrough(s) + ", " + w.cutAbove(s)
}

// pushThrough is a push, and a wait until the parent has answered for it.
func (w *world) pushThrough(s step) string {
	result := w.push(s)
	for range 100 {
		if !w.waits(s) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return result
}

// waits reports whether the parent of a layer has yet to answer for a tag.
func (w *world) waits(s step) bool {
	l, repo, tag := w.layers[s.layer], repositories[s.repo], tags[s.tag]
	list := []registry.OutboxEntry{}
	if c := l.content(); l.isReady() && c != nil {
		list, _ = queue(c) // a layer that ends meanwhile waits no more
	}
	return slices.ContainsFunc(list, func(e registry.OutboxEntry) bool {
		return e.Repository == repo && e.Tag == tag && e.State == registry.OutboxWaiting
	})
}

// cutAbove cuts the power of the parent of a layer.
func (w *world) cutAbove(s step) string {
	above := w.plan.above(s.layer)
	if above < 0 {
		return w.cloudCut(s)
	}
	s.layer, s.n = above, 1
	return fmt.Sprintf("%s of %s", w.crash(s), w.layers[above].name)
}

// latePut is two pushes of a tag. What the layer sends of the first arrives at its parent when the layer has given that up,
// and maybe when the second went through.
func (w *world) latePut(s step) string {
	l := w.layers[s.layer]
	w.events[s.layer]++
	hold := []time.Duration{50 * time.Second, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute}[s.n%4]
	w.net.change(l.name, l.parent, func(k *link) { k.hold = hold })
	result := w.push(s)
	given := false
	for range 90 {
		armed, late := w.net.isHeld(l.name, l.parent)
		if given = late; late || armed && !w.waits(s) {
			break
		}
		time.Sleep(time.Second)
	}
	w.net.change(l.name, l.parent, func(k *link) { k.hold = 0 })
	s.image++
	return fmt.Sprintf("%s, given up %v, arrives after %v, %s", result, given, hold, w.push(s))
}

// latePutMoved is a push of which a request arrives late: the layer has sent it again, the parent has answered for that, and
// somebody moved the tag there. At a parent of our own kind that stays, and comes to all others.
func (w *world) latePutMoved(s step) string {
	l, above, name := w.layers[s.layer], w.plan.above(s.layer), repositories[s.repo]+":"+tags[s.tag]
	by := w.desk
	if above >= 0 {
		by = w.floor[above]
	}
	w.events[s.layer]++
	hold := time.Minute + time.Duration(s.n%50)*time.Second // a server closes what is idle for longer
	x := w.writes[name]
	_, late := w.net.isHeld("", "")
	alone := !late && (x == nil || x.place == s.layer+1 && !x.others)
	w.net.change(l.name, l.parent, func(k *link) { k.hold = hold })
	result := w.push(s)
	for range 150 {
		if armed, _ := w.net.isHeld(l.name, l.parent); !armed && !w.queues(s) {
			break
		}
		time.Sleep(time.Second)
	}
	armed, late := w.net.isHeld(l.name, l.parent)
	w.net.change(l.name, l.parent, func(k *link) { k.hold = 0 })
	a := w.content.artifact(2000 + s.n)
	strict := alone && late && !armed && !w.queues(s) && !w.history[name][a.root()] && (above >= 0 || w.plan.connected)
	w.record(above+1, repositories[s.repo], tags[s.tag], a)
	v, err := by.push(repositories[s.repo], tags[s.tag], a)
	if above >= 0 {
		t := s
		t.layer = above
		result += ", " + w.pushed(t, a, v, err)
	} else if v == done {
		w.wrote(0, repositories[s.repo], tags[s.tag], a.root())
	}
	if strict = strict && v == done; strict {
		w.write(above+1, name).last = a.root()
	}
	return fmt.Sprintf("%s, late %v, moved to %s, which stays: %v", result, late, short(a.root()), strict)
}

// queues reports whether a layer that runs may have a tag to tell its parent of.
func (w *world) queues(s step) bool {
	l := w.layers[s.layer]
	c := l.content()
	if !l.isReady() || c == nil {
		return true
	}
	list, err := queue(c)
	return err != nil || slices.ContainsFunc(list, func(e registry.OutboxEntry) bool {
		return e.Repository == repositories[s.repo] && (e.Tag == tags[s.tag] || slices.Contains(e.Tags, tags[s.tag]))
	})
}
