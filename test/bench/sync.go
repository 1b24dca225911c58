//go:build linux

package main

import (
	"context"
	"slices"
	"time"
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
