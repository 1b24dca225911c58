//go:build linux

package main

import (
	"context"
	"errors"
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
	t.note("%d MiB in 4 images, then in 16 while clients pull, without a link between; a pull is HEAD and GET of the tag, config and a layer of 64 KiB, over a connection that is kept", b.SyncMiB)
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
	for what, images := range map[string]int{"alone": 4, "with pulls": 4 * turns} {
		var big []wanted
		for n := range images {
			size := b.SyncMiB * mib / images / 2
			w, err := f.put(ctx, "big", fmt.Sprint(what[:4], n), registrytest.NewImage(uint64(len(what)*100+n), size, size))
			if err != nil {
				return err
			}
			big = append(big, w)
		}
		if what == "with pulls" {
			if err := b.pulls(ctx, t, name, f, small, big); err != nil {
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

// turns is how often rest and sync take turns, so that what the machine does besides hits both.
const turns = 4

// pulls measures pulls at rest and while a sync runs, and the same pulls of a process beside it that does nothing else:
// what those take longer during a sync, the machine takes.
func (b *bench) pulls(ctx context.Context, t *section, name string, f *field, small wanted, big []wanted) error {
	idle, err := b.start(ctx, b.peer("floor"), certificate{})
	if err != nil {
		return err
	}
	if err := idle.pusher().image(ctx, small.repo, small.tag, small.image); err != nil {
		return err
	}
	var ours, beside [2][]float64 // in ms: at rest, and during a sync
	own, err := newPuller(ctx, f.site.serves(), small.image)
	if err != nil {
		return err
	}
	defer own.conn.Close()
	other, err := newPuller(ctx, idle, small.image)
	if err != nil {
		return err
	}
	defer other.conn.Close()
	for n := range 2 * turns {
		over := make(chan error, 1)
		if n%2 == 0 {
			time.AfterFunc(b.Window, func() { over <- nil })
		} else {
			part := big[n/2*len(big)/turns : (n/2+1)*len(big)/turns]
			go func() { over <- together(ctx, f.site, part) }()
		}
		for ended := false; !ended; {
			select {
			case err := <-over:
				if err != nil {
					return err
				}
				ended = true
			default:
			}
			if err := errors.Join(own.pull(&ours[n%2]), other.pull(&beside[n%2])); err != nil {
				return err
			}
		}
	}
	p99, median := quantile(99), quantile(50)
	t.row("a pull at rest, p99", "ms").add(name, p99(ours[0]))
	t.row("a pull during a sync, p99", "ms").add(name, p99(ours[1]))
	t.row("median, during to at rest", "x").add(name, median(ours[1])/median(ours[0]))
	t.row("p99, during to at rest", "x", atMost(2)).add(name, p99(ours[1])/p99(ours[0]))
	t.row("p99, the same of an idle process", "x").add(name, p99(beside[1])/p99(beside[0]))
	t.row("pulls during a sync", "number").add(name, float64(len(ours[1])))
	return idle.end()
}

// puller pulls one image again and again.
type puller struct {
	*wire
	asks []ask
}

func newPuller(ctx context.Context, i *instance, image registrytest.Image) (*puller, error) {
	d := image.Digest.String()
	p := &puller{asks: []ask{
		newAsk(http.MethodHead, i.addr, "/v2/app/manifests/v1", d, image.Manifest.Bytes),
		newAsk(http.MethodGet, i.addr, "/v2/app/manifests/v1", d, image.Manifest.Bytes),
	}}
	for _, blob := range image.Blobs {
		p.asks = append(p.asks, newAsk(http.MethodGet, i.addr, "/v2/app/blobs/"+blob.Digest.String(), blob.Digest.String(), blob.Bytes))
	}
	var err error
	p.wire, err = i.dial(ctx, 64<<10)
	return p, err
}

// pull adds how many milliseconds a pull took.
func (p *puller) pull(to *[]float64) error {
	began := time.Now()
	for n := range p.asks {
		if err := p.do(&p.asks[n]); err != nil {
			return err
		}
	}
	*to = append(*to, time.Since(began).Seconds()*1000)
	return nil
}

func quantile(percent int) func([]float64) float64 {
	return func(v []float64) float64 {
		v = slices.Sorted(slices.Values(v))
		return v[min(len(v)-1, len(v)*percent/100)]
	}
}
