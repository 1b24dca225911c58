//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// silent is for servers whose connections are cut on purpose.
var silent = log.New(io.Discard, "", 0)

// Times to live of distribution's pull-through cache: its default, and one that can be waited for.
const (
	week  = 168 * time.Hour
	brief = 10 * time.Second
)

var siteNames = []string{"ours", "distribution", "regsync"}

// field is an upstream registry, one link to it, and a site below.
type field struct {
	b    *bench
	up   *instance
	link *link
	site site
	name string
}

func (b *bench) field(ctx context.Context, name string, ttl time.Duration) (*field, error) {
	up, err := b.upstream(ctx)
	if err != nil {
		return nil, err
	}
	l, err := newLink(up.addr)
	if err != nil {
		return nil, err
	}
	s, err := b.newSite(ctx, name, l.Addr(), ttl)
	return &field{b: b, up: up, link: l, site: s, name: name}, err
}

// upstream is olareg as the cloud registry; it runs on the clients' cores.
func (b *bench) upstream(ctx context.Context) (*instance, error) {
	dir, err := b.scratch("upstream")
	if err != nil {
		return nil, err
	}
	up, err := b.instance(b.peer("olareg"), dir, certificate{})
	if err != nil {
		return nil, err
	}
	up.far = true
	return up, up.start(ctx)
}

func (f *field) end() error { return errors.Join(f.site.end(), f.link.close(), f.up.end()) }

// put pushes to the upstream registry and returns what the site then has to have.
func (f *field) put(ctx context.Context, repo, tag string, image registrytest.Image) (wanted, error) {
	p := f.up.pusher()
	defer p.client.CloseIdleConnections()
	return wanted{repo, tag, image}, p.image(ctx, repo, tag, image)
}

// carry fetches, counts and checks what is there then.
func (f *field) carry(ctx context.Context, r *row, unique int64, want wanted) error {
	before := f.link.used()
	n, err := f.site.fetch(ctx, f.b.Tries, want)
	return f.carried(ctx, r, unique, want, before, n, err)
}

// carried is the second half of carry.
func (f *field) carried(ctx context.Context, r *row, unique int64, want wanted, before used, n int, err error) error {
	if ctx.Err() != nil || errors.Is(err, errWrong) {
		return errors.Join(err, ctx.Err())
	}
	u := f.link.used().since(before)
	x := float64(u.down) / float64(unique)
	text := fmt.Sprintf("%.1f MiB %.3fx, %d req", float64(u.down)/mib, x, u.requests)
	if err != nil {
		r.set(f.name, x, "never: %s, %d tries", text, n)
		if f.name == "ours" {
			return err
		}
		return nil
	}
	if n > 1 {
		text += fmt.Sprintf(", %d tries", n)
	}
	r.set(f.name, x, "%s", text)
	if err := f.link.Set(linkproxy.Plan{}); err != nil {
		return err
	}
	client := f.site.serves().client(30 * time.Second)
	defer client.CloseIdleConnections()
	return f.site.serves().pullAll(ctx, client, map[string]bool{}, true, []wanted{want})
}

// content of an image and its manifests.
func content(image registrytest.Image) int64 {
	n := image.Size
	for _, b := range image.Blobs {
		n += b.Size
	}
	for _, c := range image.Children {
		n += content(c)
	}
	return n
}

// bytes is what crosses the link, and what clients see, when it is good and when it is not.
func (b *bench) bytes(ctx context.Context) error {
	t := b.table("bytes", "the link: bytes down, to the content that was new; requests", siteNames...)
	t.note("distribution is its pull-through cache, regsync fills olareg; upstream is olareg. All pass the same counting proxy, which breaks the link")
	t.note("a try is an iteration of ours, a pull by a client that keeps whole layers, a run of regsync; %d at most", b.Tries)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, len(siteNames))
	for _, name := range siteNames { // bytes do not depend on what else runs
		go func() { failed <- b.cases(ctx, t, name) }()
	}
	for range siteNames {
		if err := <-failed; err != nil {
			return err
		}
	}
	t.finish()
	return nil
}

// cases are those of one site.
func (b *bench) cases(ctx context.Context, t *section, name string) error {
	for _, c := range []struct {
		name string
		run  func(context.Context, *section, *field) error
		ttl  time.Duration
	}{
		{"versions", b.versions, week},
		{"cuts", b.cuts, week},
		{"kill", b.killed, week},
		{"herd", b.herd, week},
		{"kinds", b.kinds, week},
		{"states", b.states, brief},
	} {
		b.say("bytes: %s, %s", name, c.name)
		f, err := b.field(ctx, name, c.ttl)
		if err == nil {
			err = c.run(ctx, t, f)
		}
		if err != nil {
			return fmt.Errorf("%s, %s: %w", name, c.name, err)
		}
		if err := f.end(); err != nil {
			return err
		}
	}
	return nil
}

// versions are images that share a base.
func (b *bench) versions(ctx context.Context, t *section, f *field) error {
	base := registrytest.NewBlob(100, 64*mib)
	image := func(seed uint64) registrytest.Image {
		return registrytest.NewImageOf(seed, base, registrytest.NewBlob(seed<<8, 4*mib))
	}
	for _, c := range []struct {
		name, repo, tag string
		seed            uint64
		limit           float64
	}{
		{"an image of 68 MiB", "app", "v1", 101, 1.005},
		{"its next version on the same 64 MiB (4 MiB new)", "app", "v2", 102, 1.02},
		{"another repository on the same 64 MiB (4 MiB new)", "other", "v1", 103, 1.02},
	} {
		img := image(c.seed)
		unique := content(img)
		if c.tag == "v2" || c.repo == "other" {
			unique -= base.Size
		}
		w, err := f.put(ctx, c.repo, c.tag, img)
		if err != nil {
			return err
		}
		if err := f.carry(ctx, t.row(c.name, "", atMost(c.limit)), unique, w); err != nil {
			return err
		}
	}
	return nil
}

// cuts are connections that end too early, always again.
func (b *bench) cuts(ctx context.Context, t *section, f *field) error {
	for n, c := range []struct {
		percent int
		by      linkproxy.CutBy
	}{{30, linkproxy.FIN}, {30, linkproxy.RST}, {10, linkproxy.FIN}, {10, linkproxy.RST}} {
		every := b.LayerMiB * c.percent / 100
		name := fmt.Sprintf("a layer of %d MiB, %s every %d MiB", b.LayerMiB, map[linkproxy.CutBy]string{linkproxy.FIN: "FIN", linkproxy.RST: "RST"}[c.by], every)
		img := registrytest.NewImage(uint64(200+n), b.LayerMiB*mib)
		w, err := f.put(ctx, "big", fmt.Sprintf("v%d", n), img)
		if err != nil {
			return err
		}
		if err := f.link.Set(linkproxy.Plan{CutAfter: int64(every) * mib, CutBy: c.by}); err != nil {
			return err
		}
		// regsync takes whole repositories: what failed before is left out of its way.
		if f.name != "ours" {
			w.repo = fmt.Sprintf("big%d", n)
			if w, err = f.put(ctx, w.repo, w.tag, img); err != nil {
				return err
			}
		}
		if err := f.carry(ctx, t.row(name, "", atMost(1.01)), content(img), w); err != nil {
			return err
		}
	}
	return nil
}

// killed is a process that ends at 60 % of a layer.
func (b *bench) killed(ctx context.Context, t *section, f *field) error {
	img := registrytest.NewImage(300, b.LayerMiB*mib)
	w, err := f.put(ctx, "big", "v1", img)
	if err != nil {
		return err
	}
	before := f.link.used()
	part := int64(b.LayerMiB) * mib / 10
	half, arrived := f.link.Reached(before.down+5*part), f.link.Reached(before.down+6*part)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = f.site.fetch(ctx, 1, w) // it is killed
	}()
	// The last tenth comes slower than its reader reads, so that what was counted has arrived.
	for _, reached := range []<-chan struct{}{half, arrived} {
		select {
		case <-reached:
		case <-ended:
			return errors.New("the fetch ended before it was killed")
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := f.link.Set(linkproxy.Plan{BytesPerSecond: 4 * mib}); err != nil {
			return err
		}
	}
	f.site.kill()
	<-ended
	if err := f.link.Set(linkproxy.Plan{}); err != nil {
		return err
	}
	if err := f.site.revive(ctx); err != nil {
		return err
	}
	n, err := f.site.fetch(ctx, f.b.Tries, w)
	return f.carried(ctx, t.row(fmt.Sprintf("a layer of %d MiB, kill -9 at 60 %%, again", b.LayerMiB), "", atMost(1.01)), content(img), w, before, n, err)
}

// herd is three clients that pull first.
func (b *bench) herd(ctx context.Context, t *section, f *field) error {
	r := t.row(fmt.Sprintf("3 first pulls of %d MiB at once", b.LayerMiB), "", atMost(1.005))
	if f.name == "regsync" {
		return nil // it fetches nothing that a client asks for
	}
	img := registrytest.NewImage(400, b.LayerMiB*mib)
	w, err := f.put(ctx, "big", "v1", img)
	if err != nil {
		return err
	}
	before := f.link.used()
	var group sync.WaitGroup
	failed := make(chan error, 3)
	for range cap(failed) {
		group.Go(func() {
			client := f.site.serves().client(time.Minute)
			defer client.CloseIdleConnections()
			failed <- f.site.serves().pullAll(ctx, client, map[string]bool{}, true, []wanted{w})
		})
	}
	group.Wait()
	close(failed)
	for e := range failed {
		err = errors.Join(err, e)
	}
	return f.carried(ctx, r, content(img), w, before, 1, err)
}

// kinds are an index of three platforms and a Docker schema 2 image, whose digests have to stay.
func (b *bench) kinds(ctx context.Context, t *section, f *field) error {
	index := registrytest.NewIndex(registrytest.NewImage(501, 10*mib), registrytest.NewImage(502, 10*mib), registrytest.NewImage(503, 10*mib))
	for _, c := range []struct {
		name, repo string
		image      registrytest.Image
	}{
		{"an index of 3 x 10 MiB, digests kept", "multi", index},
		{"a Docker image of 8 MiB, digest kept", "docker", registrytest.NewDockerImage(504, 8*mib)},
	} {
		w, err := f.put(ctx, c.repo, "v1", c.image)
		if err != nil {
			return err
		}
		if err := f.carry(ctx, t.row(c.name, "", atMost(1.005)), content(c.image), w); err != nil {
			return err
		}
	}
	return nil
}

// states are those of a link while a client asks for a tag that is here.
func (b *bench) states(ctx context.Context, t *section, f *field) error {
	w, err := f.put(ctx, "app", "v1", registrytest.NewImage(600, mib))
	if err != nil {
		return err
	}
	if _, err := f.site.fetch(ctx, 1, w); err != nil {
		return err
	}
	for _, c := range []struct {
		name string
		plan linkproxy.Plan
		wait time.Duration
	}{
		{"upstream resets", linkproxy.Plan{Fault: linkproxy.Reset}, 0},
		{"upstream refuses", linkproxy.Plan{Fault: linkproxy.Refuse}, 0},
		{"upstream is a black hole", linkproxy.Plan{Fault: linkproxy.BlackHole}, 0},
		{fmt.Sprintf("upstream refuses, after %v", brief), linkproxy.Plan{Fault: linkproxy.Refuse}, brief + 3*time.Second},
	} {
		if err := f.link.Set(c.plan); err != nil {
			return err
		}
		time.Sleep(c.wait) // distribution forgets what it has not asked for in that time
		took, err := f.cached(ctx, w)
		r := t.row("a tag that is here, "+c.name, "ms", atMost(50))
		var status statusError
		switch ms := took; {
		case errors.Is(err, errWrong) || ctx.Err() != nil:
			return errors.Join(err, ctx.Err())
		case err == nil:
			r.set(f.name, ms, "%s, %d", number(ms), http.StatusOK)
		case errors.As(err, &status):
			r.set(f.name, 1e9, "%s, %v", number(ms), status)
		default:
			r.set(f.name, 1e9, "no answer in %s", number(ms))
		}
	}
	return nil
}

// cached pulls a tag and its layer that are here, some times, and returns the median in ms; it ends with the first failure.
func (f *field) cached(ctx context.Context, w wanted) (float64, error) {
	var all []float64
	i := f.site.serves()
	for range 5 {
		client := i.client(f.b.Hang)
		began := time.Now()
		err := i.pullOne(ctx, client, true, "/v2/app/manifests/v1", w.image.Digest.String(), w.image.Size)
		all = append(all, time.Since(began).Seconds()*1000)
		if layer := w.image.Blobs[1].Descriptor; err == nil {
			err = i.pullOne(ctx, client, true, "/v2/app/blobs/"+layer.Digest.String(), layer.Digest.String(), layer.Size)
		}
		client.CloseIdleConnections()
		if err != nil {
			return all[len(all)-1], err
		}
	}
	return median(all), nil
}
