package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

const (
	product = "connected-registry"
	vision  = "factory/vision"
	mib     = 1 << 20
	// patience bounds each wait for a layer. A layer asks a parent that is not one of ours once a minute.
	patience = 90 * time.Second
)

// cloudLink is the plan of the link to the cloud: slow enough to watch.
var cloudLink = linkproxy.Plan{BytesPerSecond: 12 * mib, Latency: 10 * time.Millisecond}

// demo is the story and what it has started.
type demo struct {
	out  *screen
	root string // of the repository
	dir  string // temporary

	image  v1.ImageIndex // version 1 of the product
	next   v1.ImageIndex // version 2
	sbom   v1.Image      // refers to image
	camera v1.Image      // the second repository, on the same base
	unique cloud.Unique  // of all that was pushed

	cloud  *cloud.Cloud
	links  []*linkproxy.Proxy // links[i] is above layers[i]
	layers []*layer.Layer     // top first
	times  [][]string         // rows of the last table
}

func (d *demo) run(ctx context.Context) error {
	d.out.say("A registry in the cloud, and three layers of a site below it:\n\n" +
		"  cloud  <-- link --  L5  <-- link --  L4  <-- link --  L3  <-- a client on the floor")
	begin := time.Now()
	for _, step := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"Build the container image: three platforms, FROM scratch, no Docker", d.build},
		{"Start a cloud registry (olareg) and push two repositories to it", d.push},
		{"Start three layers: L5 under the cloud, L4 under L5, L3 under L4", d.start},
		{"Synchronise down the chain", d.sync},
		{"Pull at the bottom, and compare with the cloud", d.compare},
		{"Cut the link to the cloud, and pull the plug of the bottom layer", d.cut},
		{"Bring the link back, with a new version in the cloud", d.heal},
		{"What it cost", d.report},
	} {
		d.out.step(step.title)
		begin := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("step %d, %s: %w", d.out.steps, step.title, err)
		}
		if d.out.steps < 8 {
			d.out.say("(%s)", took(time.Since(begin)))
		}
	}
	d.out.say("\nAll steps succeeded, in %s. What was started is ended, what was written is removed.\n`make run` keeps one registry running for you to try.", took(time.Since(begin)))
	return nil
}

// close ends what was started, the bottom first.
func (d *demo) close() error {
	var err error
	for i := len(d.layers) - 1; i >= 0; i-- {
		err = errors.Join(err, d.layers[i].Close())
	}
	for _, l := range d.links {
		err = errors.Join(err, l.Close())
	}
	if d.cloud != nil {
		err = errors.Join(err, d.cloud.Close())
	}
	return err
}

func (d *demo) build(ctx context.Context) error {
	image := filepath.Join(d.dir, "image")
	if err := buildImage(ctx, d.out, d.root, image, d.binaries()); err != nil {
		return err
	}
	l, err := layout.FromPath(image)
	if err != nil {
		return err
	}
	top, err := l.ImageIndex()
	if err != nil {
		return err
	}
	m, err := top.IndexManifest()
	if err != nil {
		return err
	}
	d.image, err = top.ImageIndex(m.Manifests[0].Digest)
	return err
}

func (d *demo) binaries() string { return filepath.Join(d.dir, "bin") }

// push makes the content and fills the cloud. The second repository and version 2 stand on layers that are there already.
func (d *demo) push(ctx context.Context) error {
	var err error
	if d.cloud, err = cloud.Start(filepath.Join(d.dir, "cloud")); err != nil {
		return err
	}
	if d.sbom, err = cloud.Artifact(d.image, "application/spdx+json", `{"spdxVersion":"SPDX-2.3","name":"connected-registry"}`); err != nil {
		return err
	}
	sbomDigest, err := d.sbom.Digest()
	if err != nil {
		return err
	}
	m, err := d.image.IndexManifest()
	if err != nil {
		return err
	}
	base, err := d.image.Image(m.Manifests[0].Digest)
	if err != nil {
		return err
	}
	model, err := cloud.Layer("model.bin", 32*mib)
	if err != nil {
		return err
	}
	if d.camera, err = mutate.AppendLayers(base, model); err != nil {
		return err
	}
	patch, err := cloud.Layer("patch.bin", mib)
	if err != nil {
		return err
	}
	if d.next, err = cloud.Extend(d.image, patch); err != nil {
		return err
	}
	rows := [][]string{{"repository", "what", "bytes not there yet"}}
	add := func(repo, what string, n int64, err error) error {
		rows = append(rows, []string{repo, what, size(n)})
		return err
	}
	n, err := d.unique.Index(d.image)
	err = errors.Join(add(product+":1", "index of three images", n, err), cloud.Push(ctx, d.cloud.Addr, product+":1", d.image))
	n, uerr := d.unique.Image(d.sbom)
	err = errors.Join(err, add("  referrer", "SBOM of "+product+":1", n, uerr), cloud.Push(ctx, d.cloud.Addr, product+"@"+sbomDigest.String(), d.sbom))
	n, uerr = d.unique.Image(d.camera)
	err = errors.Join(err, add(vision+":1", "image on the same base", n, uerr), cloud.Push(ctx, d.cloud.Addr, vision+":1", d.camera))
	d.out.table(rows...)
	return err
}

func (d *demo) start(ctx context.Context) error {
	target := d.cloud.Addr
	rows := [][]string{{"layer", "address", "parent", "process"}}
	for i, name := range []string{"L5", "L4", "L3"} {
		link, err := linkproxy.New(target)
		if err != nil {
			return err
		}
		d.links = append(d.links, link)
		if i == 0 {
			if err := link.Set(cloudLink); err != nil {
				return err
			}
		}
		l, err := layer.New(layer.Options{
			Binary: hostBinary(d.binaries()), Dir: filepath.Join(d.dir, name), Name: name, Parent: link.Addr(),
			Repositories: map[string]string{"bootstrap": product, "factory": vision},
		})
		if err != nil {
			return err
		}
		d.layers = append(d.layers, l)
		begin := time.Now()
		if err := l.Start(ctx); err != nil {
			return err
		}
		d.time("cold start of "+name+" until it answers", begin)
		rows = append(rows, []string{name, l.Addr, link.Addr() + " (link to " + []string{"the cloud", "L5", "L4"}[i] + ")", fmt.Sprint(l.Pid())})
		target = l.Addr
	}
	d.out.table(rows...)
	return nil
}

// sync shows each layer's own account of what it has received, until each holds both tags.
func (d *demo) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no layer may take longer than %v", patience))
	defer cancel()
	begin := time.Now()
	var bars []bar
	for _, l := range d.layers {
		bars = append(bars, bar{l.Name, func(ctx context.Context) (int64, string, bool, error) {
			ok, s, err := l.Has(ctx, 2)
			return s.Traffic.BytesReceived, string(s.ConnectionState), ok, err
		}})
	}
	if err := d.out.progress(ctx, d.unique.Bytes(), bars); err != nil {
		return err
	}
	d.time("first synchronisation, cloud to bottom", begin)
	return nil
}

func (d *demo) compare(ctx context.Context) error {
	begin := time.Now()
	err := errors.Join(
		d.same(ctx, product+":1", d.image),
		d.same(ctx, vision+":1", d.camera),
	)
	if err != nil {
		return err
	}
	d.time("pull of both at the bottom, every byte checked", begin)
	subject, err := d.image.Digest()
	if err != nil {
		return err
	}
	want, err := d.sbom.Digest()
	if err != nil {
		return err
	}
	got, err := cloud.Referrers(ctx, d.bottom().Addr, product, subject)
	if err != nil {
		return err
	}
	if len(got) != 1 || got[0] != want {
		return fmt.Errorf("the referrers of %s:1 at the bottom are %v, in the cloud %v", product, got, want)
	}
	d.out.say("SBOM that refers to %s:1\n  cloud    %s\n  bottom   %s   equal", product, want, got[0])
	return nil
}

func (d *demo) bottom() *layer.Layer { return d.layers[len(d.layers)-1] }

// same pulls with go-containerregistry at the bottom and compares with what was pushed to the cloud.
func (d *demo) same(ctx context.Context, ref string, pushed interface{ Digest() (v1.Hash, error) }) error {
	want, err := pushed.Digest()
	if err != nil {
		return err
	}
	got, err := cloud.Pull(ctx, d.bottom().Addr, ref)
	if err != nil {
		return fmt.Errorf("pull %s at the bottom: %w", ref, err)
	}
	if got.Digest != want {
		return fmt.Errorf("%s is %s in the cloud and %s at the bottom", ref, want, got.Digest)
	}
	d.out.say("%s (images: %d, layers: %s)\n  cloud    %s\n  bottom   %s   equal", ref, got.Images, size(got.Bytes), want, got.Digest)
	return nil
}

func (d *demo) cut(ctx context.Context) error {
	if err := d.links[0].Set(linkproxy.Plan{Fault: linkproxy.Refuse}); err != nil {
		return err
	}
	l := d.bottom()
	d.out.say("The link is cut: connections to the cloud are refused.")
	pid := l.Pid()
	if err := l.Kill(); err != nil {
		return err
	}
	begin := time.Now()
	if err := l.Start(ctx); err != nil {
		return err
	}
	d.time("start of the bottom layer after SIGKILL", begin)
	d.out.say("L3 was killed (process %d) and started again (process %d): it answers after %s.", pid, l.Pid(), took(time.Since(begin)))
	begin = time.Now()
	if err := errors.Join(d.same(ctx, product+":1", d.image), d.same(ctx, vision+":1", d.camera)); err != nil {
		return err
	}
	d.time("the same pull with the cloud away", begin)
	return nil
}

func (d *demo) heal(ctx context.Context) error {
	n, err := d.unique.Index(d.next)
	if err != nil {
		return err
	}
	if err := cloud.Push(ctx, d.cloud.Addr, product+":2", d.next); err != nil {
		return err
	}
	d.out.say("%s:2 is in the cloud: %s that are not below yet, on the same base.", product, size(n))
	before := d.links[0].Counters().Down
	if err := d.links[0].Set(cloudLink); err != nil {
		return err
	}
	begin := time.Now()
	d.out.say("The link is back. `connected-registry sync` lets L5 look now; the layers below hear of it by themselves.")
	if err := d.within(ctx, d.layers[0].Sync); err != nil {
		return err
	}
	for _, l := range d.layers {
		err := d.within(ctx, func(ctx context.Context) error {
			return l.Until(ctx, product+":2 is there", func(ctx context.Context) (bool, error) {
				ok, _, err := l.Has(ctx, 3)
				return ok, err
			})
		})
		if err != nil {
			return err
		}
		d.out.say("%s has it after %s.", l.Name, took(time.Since(begin)))
	}
	d.time("a new version, from the link's return to the bottom", begin)
	d.out.say("%s came over the link for it.", size(d.links[0].Counters().Down-before))
	return d.same(ctx, product+":2", d.next)
}

func (d *demo) report(context.Context) error {
	rows := [][]string{{"link", "bytes down", "unique bytes", "ratio", "bytes up", "memory of the layer below", "at its peak"}}
	for i, l := range d.layers {
		c := d.links[i].Counters()
		now, peak := l.RSS()
		rows = append(rows, []string{
			[]string{"cloud -> L5", "L5 -> L4", "L4 -> L3"}[i], fmt.Sprint(c.Down), fmt.Sprint(d.unique.Bytes()),
			fmt.Sprintf("%.4f", float64(c.Down)/float64(d.unique.Bytes())), fmt.Sprint(c.Up), size(now), size(peak),
		})
	}
	d.out.table(rows...)
	d.out.say("Bytes are those of the TCP streams, with headers; unique bytes count each manifest, config and layer once.\n")
	d.out.table(d.times...)
	for i := range d.links {
		if c := d.links[i].Counters(); float64(c.Down) > 1.02*float64(d.unique.Bytes()) {
			return fmt.Errorf("link %d carried more than 1.02 of the unique bytes", i+1)
		}
	}
	return nil
}

// time notes how long something took.
func (d *demo) time(what string, begin time.Time) {
	d.times = append(d.times, []string{what, took(time.Since(begin))})
}

// within bounds a wait.
func (d *demo) within(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("it took longer than %v", patience))
	defer cancel()
	return do(ctx)
}
