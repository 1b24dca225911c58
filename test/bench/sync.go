//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// unchanged is what it costs to learn that nothing has changed.
func (b *bench) unchanged(ctx context.Context) error {
	const tags, times = 1000, 3
	t := b.table("unchanged", "1,000 tags, nothing changed: what it costs to learn that", "ours", "ours below ours", "regsync")
	t.note("ours asks olareg; below ours it asks the registry of the layer above. For zot's sync 4,023 requests, 1,918 KiB down and")
	t.note("2,136 KiB up were measured elsewhere; it is not run here")
	up, err := b.upstream(ctx)
	if err != nil {
		return err
	}
	links, sites := map[string]*link{}, map[string]site{}
	for _, name := range t.Columns {
		kind, parent := name, up.addr
		if name == "ours below ours" {
			kind, parent = "ours", sites["ours"].serves().addr
		}
		if links[name], err = newLink(parent); err != nil {
			return err
		}
		if sites[name], err = b.newSite(ctx, kind, links[name].Addr(), week); err != nil {
			return err
		}
	}
	b.say("unchanged: %d tags", tags)
	if err := up.tags(ctx, "many", tags); err != nil {
		return err
	}
	first := t.row("the first time, all of them new", "s")
	for _, name := range t.Columns {
		b.say("unchanged: %s, first", name)
		if o, ok := sites[name].(*oursSite); ok {
			o.tags = tags - 1 // and the one that is named
		}
		began := time.Now()
		if _, err := sites[name].fetch(ctx, b.Tries, wanted{repo: "many"}); err != nil {
			return err
		}
		first.add(name, time.Since(began).Seconds())
	}
	for range times {
		for _, name := range t.Columns {
			if o, ok := sites[name].(*oursSite); ok {
				o.tags = tags - 1
			}
			before := links[name].used()
			if _, err := sites[name].fetch(ctx, 1, wanted{repo: "many"}); err != nil {
				return err
			}
			u := links[name].used().since(before)
			below := func(limit float64) *bar { x := atMost(limit); x.Of = "ours below ours"; return x }
			t.row("requests", "", atMost(1010), below(10)).add(name, float64(u.requests))
			t.row("both ways", "KiB", atMost(1).to("regsync"), below(10)).add(name, float64(u.down+u.up)/1024)
			t.row("down", "KiB").add(name, float64(u.down)/1024)
			t.row("up", "KiB").add(name, float64(u.up)/1024)
		}
	}
	t.finish()
	for _, name := range slices.Backward(t.Columns) {
		if err := sites[name].end(); err != nil {
			return err
		}
		if err := links[name].close(); err != nil {
			return err
		}
	}
	return up.end()
}

// during is what a sync at full speed costs, and what clients feel of it.
func (b *bench) during(ctx context.Context) error {
	t := b.table("during", "a sync at full speed, and local pulls meanwhile", siteNames...)
	t.note("%d MiB in 4 images, without a link between; a pull is HEAD and GET of the tag, config and a layer of 64 KiB, over a connection that is kept", b.SyncMiB)
	t.note("distribution syncs by 4 clients that pull what it has not; regsync's figures are those of regsync and olareg together")
	for n := range b.rounds(b.Rounds) {
		for _, name := range siteNames {
			b.say("sync at full speed: %s, round %d", name, n+1)
			if err := b.busy(ctx, t, name); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	t.finish()
	return nil
}

// busy is one round of one site.
func (b *bench) busy(ctx context.Context, t *section, name string) error {
	up, err := b.upstream(ctx)
	if err != nil {
		return err
	}
	s, err := b.newSite(ctx, name, up.addr, week)
	if err != nil {
		return err
	}
	if d, ok := s.(*throughSite); ok {
		d.trust = true // its client would take the time that is measured
	}
	f := &field{b: b, up: up, site: s}
	small, err := f.put(ctx, "app", "v1", registrytest.NewImage(700, 64<<10))
	if err != nil {
		return err
	}
	if _, err := s.fetch(ctx, b.Tries, small); err != nil {
		return err
	}
	for _, what := range []string{"alone", "with pulls"} {
		var big []wanted
		for n := range 4 {
			w, err := f.put(ctx, "big", fmt.Sprint(what[:4], n), registrytest.NewImage(uint64(len(what)*100+n), b.SyncMiB*mib/8, b.SyncMiB*mib/8))
			if err != nil {
				return err
			}
			big = append(big, w)
		}
		if what == "with pulls" {
			if err := b.pulls(ctx, t, name, s, small, big); err != nil {
				return err
			}
			continue
		}
		before, _ := s.spent()
		began := time.Now()
		if err := together(ctx, s, big); err != nil {
			return err
		}
		took, gib := time.Since(began).Seconds(), float64(b.SyncMiB)/1024
		cpu, peak := s.spent()
		t.row("sync alone", "MiB/s").add(name, float64(b.SyncMiB)/took)
		t.row("sync alone, all processes", "CPU s/GiB", atMost(1).to("regsync")).add(name, (cpu-before).Seconds()/gib)
		t.row("sync alone, all processes", "peak MiB", atMost(1).to("regsync")).add(name, peak)
	}
	if err := s.end(); err != nil {
		return err
	}
	return up.end()
}

// together fetches all at once where it is clients that fetch.
func together(ctx context.Context, s site, want []wanted) error {
	d, ok := s.(*throughSite)
	if !ok {
		_, err := s.fetch(ctx, 1, want...)
		return err
	}
	failed := make(chan error, len(want))
	for _, w := range want {
		go func() {
			_, err := d.fetch(ctx, 1, w)
			failed <- err
		}()
	}
	for range want {
		if err := <-failed; err != nil {
			return err
		}
	}
	return nil
}

// pulls measures pulls at rest and while a sync runs.
func (b *bench) pulls(ctx context.Context, t *section, name string, s site, small wanted, big []wanted) error {
	i := s.serves()
	w, err := i.dial(ctx, 64<<10)
	if err != nil {
		return err
	}
	defer w.conn.Close()
	d := small.image.Digest.String()
	asks := []ask{
		newAsk(http.MethodHead, i.addr, "/v2/app/manifests/v1", d, small.image.Manifest.Bytes),
		newAsk(http.MethodGet, i.addr, "/v2/app/manifests/v1", d, small.image.Manifest.Bytes),
	}
	for _, blob := range small.image.Blobs {
		asks = append(asks, newAsk(http.MethodGet, i.addr, "/v2/app/blobs/"+blob.Digest.String(), blob.Digest.String(), blob.Bytes))
	}
	measure := func(until <-chan error) ([]float64, error) {
		var all []float64
		for {
			select {
			case err := <-until:
				return all, err
			default:
			}
			began := time.Now()
			for n := range asks {
				if err := w.do(&asks[n]); err != nil {
					return all, err
				}
			}
			all = append(all, time.Since(began).Seconds()*1000)
		}
	}
	over := make(chan error, 1)
	time.AfterFunc(2*b.Window, func() { over <- nil })
	rest, err := measure(over)
	if err != nil {
		return err
	}
	go func() { over <- together(ctx, s, big) }()
	busy, err := measure(over)
	if err != nil {
		return err
	}
	slices.Sort(rest)
	slices.Sort(busy)
	at := func(v []float64, p int) float64 { return v[min(len(v)-1, len(v)*p/100)] }
	t.row("a pull at rest, p99", "ms").add(name, at(rest, 99))
	t.row("a pull during a sync, p99", "ms").add(name, at(busy, 99))
	t.row("median, during to at rest", "x").add(name, at(busy, 50)/at(rest, 50))
	t.row("p99, during to at rest", "x", atMost(2)).add(name, at(busy, 99)/at(rest, 99))
	t.row("pulls during a sync", "number").add(name, float64(len(busy)))
	return nil
}
