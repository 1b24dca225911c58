package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// outboxModel is a floor, its parent, and what the floor's clients were told.
type outboxModel struct {
	ctx     context.Context
	dir     string
	now     *testTime
	s       *Store
	parent  registry.Registry
	images  []registrytest.Image
	pushed  map[registry.Digest]bool // acknowledged, and not deleted since
	deletes []int                    // images that nobody needs as a child
	swept   map[string]bool          // tags of others that went at the parent with a manifest that was deleted here
	foreign map[string]bool          // tags that others moved at the parent, and the floor does not know of
}

func newOutboxModel(rt *rapid.T, dir string) *outboxModel {
	a, b, c := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100, 50), registrytest.NewImage(3)
	index := registrytest.NewIndex(a, b)
	m := &outboxModel{
		ctx: context.Background(), dir: dir, now: &testTime{}, parent: registrytest.NewMemory(), pushed: map[registry.Digest]bool{},
		images: []registrytest.Image{a, b, c, index, registrytest.NewReferrer(4, c.Descriptor, "application/vnd.example")}, deletes: []int{2, 3, 4}, swept: map[string]bool{}, foreign: map[string]bool{},
	}
	m.open(rt)
	return m
}

func (m *outboxModel) open(rt *rapid.T) {
	var err error
	if m.s, err = Open(m.ctx, m.dir, m.now.options()); err == nil {
		err = m.s.SetClimbing(m.ctx, true)
	}
	if err != nil {
		rt.Fatal(err)
	}
}

func (m *outboxModel) push(rt *rapid.T, tag string, image registrytest.Image) {
	if err := registrytest.Push(m.ctx, m.s, testRepo, tag, image); err != nil {
		rt.Fatalf("push: %v", err)
	}
	m.pushed[image.Digest] = true
	for _, c := range image.Children {
		m.pushed[c.Digest] = true
	}
}

// climb delivers the entry at a place of the queue, with or without telling the store.
func (m *outboxModel) climb(rt *rapid.T, lost bool) bool {
	entries, err := m.s.OutboxEntries(m.ctx, 0, 1)
	if err != nil {
		rt.Fatal(err)
	}
	if len(entries) == 0 {
		return false
	}
	for tag, d := range tagsAt(rt, m.ctx, m.parent) {
		if entries[0].Action == registry.OutboxDelete && d == entries[0].Digest {
			m.swept[tag] = true
		}
	}
	if e := entries[0]; e.Action == registry.OutboxPush && e.Tag != "" {
		e.Base, e.Put = tagsAt(rt, m.ctx, m.parent)[e.Tag], e.Digest
		if ok, err := m.s.OutboxAttempt(m.ctx, e, false); !ok || err != nil {
			rt.Fatalf("%+v: %t, %v", e, ok, err)
		}
	}
	if err := deliver(m.ctx, m.s, m.parent, entries[0]); err != nil {
		rt.Fatalf("%+v: %v", entries[0], err)
	}
	delete(m.foreign, entries[0].Tag)
	if !lost {
		if err := m.s.OutboxDone(m.ctx, entries[0].Seq); err != nil {
			rt.Fatal(err)
		}
	}
	return true
}

// sync brings what the parent has under its tags.
func (m *outboxModel) sync(rt *rapid.T) {
	tags, err := m.parent.Tags(m.ctx, testRepo, "", 100)
	if err != nil && !errors.Is(err, registry.ErrNameUnknown) {
		rt.Fatal(err)
	}
	for _, tag := range tags {
		d, err := m.parent.ResolveManifest(m.ctx, testRepo, registry.TagReference(tag))
		if err != nil {
			rt.Fatal(err)
		}
		i := slices.IndexFunc(m.images, func(i registrytest.Image) bool { return i.Digest == d.Digest })
		for _, c := range m.images[i].Children {
			for _, b := range c.Blobs {
				if err := fetchBlob(b).do(m.ctx, m.s, newOracle()); err != nil {
					rt.Fatal(err)
				}
			}
		}
		if err := synced(m.ctx, m.s, testRepo, tag, m.images[i]); err != nil {
			rt.Fatalf("sync: %v", err)
		}
	}
}

// tags of a registry, by name.
func tagsAt(rt *rapid.T, ctx context.Context, r registry.Registry) map[string]registry.Digest {
	all := map[string]registry.Digest{}
	tags, err := r.Tags(ctx, testRepo, "", 100)
	if err != nil && !errors.Is(err, registry.ErrNameUnknown) {
		rt.Fatal(err)
	}
	for _, tag := range tags {
		d, err := r.ResolveManifest(ctx, testRepo, registry.TagReference(tag))
		if err != nil {
			rt.Fatal(err)
		}
		all[tag] = d.Digest
	}
	return all
}

// check looks for every acknowledged push: it is at the parent or in the queue.
func (m *outboxModel) check(rt *rapid.T) {
	checkOutbox(rt, m.s)
	entries, err := m.s.OutboxEntries(m.ctx, 0, registry.MaxPage)
	if err != nil {
		rt.Fatal(err)
	}
	for d := range m.pushed {
		_, err := m.parent.ResolveManifest(m.ctx, testRepo, registry.DigestReference(d))
		waits := slices.ContainsFunc(entries, func(e registry.OutboxEntry) bool { return e.Action == registry.OutboxPush && e.Digest == d })
		if err != nil && !waits {
			rt.Fatalf("%s is acknowledged, not at the parent and not queued: %v", short(d), queued(rt, m.s))
		}
		if here, err := m.s.ResolveManifest(m.ctx, testRepo, registry.DigestReference(d)); waits && (err != nil || here.Digest != d) {
			rt.Fatalf("%s is queued and not here: %v", short(d), err)
		}
	}
}

// TestOutboxModel lets clients change a floor while its queue is delivered now and then, with answers that get lost,
// restarts, collections and synchronisation from the parent. At the end nothing that was removed here is left at the
// parent, and floor and parent are equal.
func TestOutboxModel(t *testing.T) {
	tags := []string{"latest", "v1", "v2"}
	rapid.Check(t, func(rt *rapid.T) {
		m := newOutboxModel(rt, t.TempDir())
		defer func() { closeChecked(t, m.s) }()
		image := func(rt *rapid.T) registrytest.Image {
			return m.images[rapid.IntRange(0, len(m.images)-1).Draw(rt, "image")]
		}
		rt.Repeat(map[string]func(*rapid.T){
			"push":           func(rt *rapid.T) { m.push(rt, rapid.SampledFrom(tags).Draw(rt, "tag"), image(rt)) },
			"push by digest": func(rt *rapid.T) { m.push(rt, "", image(rt)) },
			"untag": func(rt *rapid.T) {
				err := m.s.DeleteTag(m.ctx, testRepo, rapid.SampledFrom(tags).Draw(rt, "tag"))
				if err != nil && !errors.Is(err, registry.ErrManifestUnknown) {
					rt.Fatal(err)
				}
			},
			"delete": func(rt *rapid.T) {
				d := m.images[rapid.SampledFrom(m.deletes).Draw(rt, "image")].Digest
				err := m.s.DeleteManifest(m.ctx, testRepo, d)
				if err != nil && !errors.Is(err, registry.ErrManifestUnknown) {
					rt.Fatal(err)
				}
				if err == nil {
					delete(m.pushed, d)
				}
			},
			"deliver": func(rt *rapid.T) { m.climb(rt, false) },
			"deliver, to be asked once more": func(rt *rapid.T) {
				entries, err := m.s.OutboxEntries(m.ctx, 0, 1)
				if err == nil && m.climb(rt, true) {
					entries[0].State = registry.OutboxDelivered
					err = m.s.OutboxNote(m.ctx, entries[0])
				}
				if err != nil {
					rt.Fatal(err)
				}
			},
			"deliver and lose the answer": func(rt *rapid.T) { m.climb(rt, true) },
			"move at the parent": func(rt *rapid.T) {
				tag := rapid.SampledFrom(tags).Draw(rt, "tag")
				m.foreign[tag] = true
				if err := registrytest.Push(m.ctx, m.parent, testRepo, tag, image(rt)); err != nil {
					rt.Fatal(err)
				}
			},
			"sync": m.sync,
			"refuse": func(rt *rapid.T) {
				if entries, err := m.s.OutboxEntries(m.ctx, 0, 1); err != nil || len(entries) == 1 {
					entries[0].State = rapid.SampledFrom([]registry.OutboxState{registry.OutboxWaiting, registry.OutboxExpired, registry.OutboxRefused}).Draw(rt, "state")
					if err := m.s.OutboxNote(m.ctx, entries[0]); err != nil {
						rt.Fatal(err)
					}
				}
			},
			"collect": func(rt *rapid.T) {
				m.now.pass(30 * time.Hour)
				if _, err := m.s.GC(m.ctx, GCOptions{}); err != nil {
					rt.Fatal(err)
				}
			},
			"restart": func(rt *rapid.T) {
				closeChecked(t, m.s)
				m.open(rt)
			},
			"": m.check,
		})
		for m.climb(rt, false) {
			m.check(rt)
		}
		floor := tagsAt(rt, m.ctx, m.s)
		for tag, d := range tagsAt(rt, m.ctx, m.parent) {
			if floor[tag] == "" && !m.foreign[tag] {
				rt.Fatalf("%s was removed here and is at %s at the parent", tag, short(d))
			}
		}
		m.sync(rt)
		floor, parent := tagsAt(rt, m.ctx, m.s), tagsAt(rt, m.ctx, m.parent)
		for tag := range m.swept { // in ReadWrite mode such a tag stays on the floor
			if _, there := parent[tag]; !there {
				delete(floor, tag)
			}
		}
		if fmt.Sprint(floor) != fmt.Sprint(parent) {
			rt.Fatalf("floor %v, parent %v", floor, parent)
		}
		for d := range m.pushed {
			if _, err := m.parent.ResolveManifest(m.ctx, testRepo, registry.DigestReference(d)); err != nil {
				rt.Fatalf("%s is not at the parent: %v", short(d), err)
			}
		}
	})
}
