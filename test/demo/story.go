package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/edgesim"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// patience bounds each wait for a layer.
const patience = 90 * time.Second

// cloudLink is the plan of the link to the cloud: slow enough to watch.
var cloudLink = linkproxy.Plan{BytesPerSecond: 12 * mib, Latency: 10 * time.Millisecond}

// demo is the story and what it has started.
type demo struct {
	out    *screen
	root   string // of the repository
	dir    string // temporary
	ground ground
	site   site

	content   *content
	secrets   secrets
	authority *edgesim.Authority // the root that all devices of the site have in common
	cloud     *cloud.Cloud
	guarded   *httptest.Server   // the cloud as the top layer sees it
	links     []*linkproxy.Proxy // links[i] is above devices[i]
	devices   []*device          // top first
	floor     *http.Transport    // of the client on the floor
	times     [][]string         // rows of the last table
}

func (d *demo) run(ctx context.Context) error {
	d.out.say("A registry in the cloud, and the three layers of a site below it, each an IoT Edge device with a registry:\n\n" +
		"  cloud  <-- link --  L5  <-- link --  L4  <-- link --  L3  <-- a client on the floor\n\n" +
		"The registries are the product, as deployment-manifests/ deploys it. Emulated are the devices around them: edgeHub, the\n" +
		"workload API and IoT Hub (test/edgesim). In place of the API proxy the registries speak TLS themselves.")
	if !d.ground.twins() {
		d.out.say("\nThe ports of edgeHub, 443 and 8883, cannot be had here, nor a network of one's own: %v.\n"+
			"So the registries take the desired properties of the manifests from files, not from module twins. To see the twins, run it\n"+
			"as root, in a container, or after: sudo sysctl net.ipv4.ip_unprivileged_port_start=443", d.ground.noTwins)
	}
	begin := time.Now()
	operate := "Operate it from the cloud: a direct method, and updates of module twins"
	if !d.ground.twins() {
		operate = "Operate it on site: the command line, and changes of the files"
	}
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"Build the container image: three platforms, FROM scratch, no Docker", d.build},
		{"Start a cloud registry (olareg) and push to it", d.push},
		{"Start three IoT Edge devices: L5 under the cloud, L4 under L5, L3 under L4", d.start},
		{"Synchronise down the chain", d.sync},
		{"Pull at the bottom, and compare with the cloud", d.compare},
		{operate, d.operate},
		{"Cut the links to the cloud, and pull the plug of the bottom layer", d.cut},
		{"Bring the links back, with a new version in the cloud", d.heal},
		{"What it cost", d.report},
	}
	for i, step := range steps {
		d.out.step(step.title)
		begin := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("step %d, %s: %w", d.out.steps, step.title, err)
		}
		if i < len(steps)-1 {
			d.out.say("(%s)", took(time.Since(begin)))
		}
	}
	d.out.say("\nAll steps succeeded, in %s. What was started is ended, what was written is removed.\n`make run` keeps one registry running for you to try.", took(time.Since(begin)))
	return nil
}

func (d *demo) build(ctx context.Context) error {
	if err := buildImage(ctx, d.out, d.root, d.imageDir(), d.binaries()); err != nil {
		return err
	}
	var err error
	d.content, err = makeContent(d.imageDir())
	return err
}

func (d *demo) binaries() string { return filepath.Join(d.dir, "bin") }

func (d *demo) push(ctx context.Context) error {
	var err error
	if d.cloud, err = cloud.Start(filepath.Join(d.dir, "cloud")); err != nil {
		return err
	}
	return d.pushContent(ctx)
}

// source is where the modules have their configuration from.
func (d *demo) source() string {
	if d.ground.twins() {
		return "twin"
	}
	return "file"
}

func (d *demo) start(ctx context.Context) error {
	d.secrets = secrets{}
	var err error
	if d.authority, err = edgesim.NewAuthority(); err != nil {
		return err
	}
	if err := d.startCloudLink(); err != nil {
		return err
	}
	rows := [][]string{{"device", "address", "manifest", "mode", "parent", "process"}}
	for i := range d.site.layers {
		v, err := d.newDevice(i)
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := v.Start(ctx); err != nil {
			return err
		}
		answers := time.Now()
		if err := d.within(ctx, func(ctx context.Context) error { return v.configured(ctx, d.source()) }); err != nil {
			return err
		}
		d.times = append(d.times,
			[]string{"cold start of " + v.short + " until it answers", took(answers.Sub(begin))},
			[]string{"  until the configuration of its " + d.source() + " is in force", took(time.Since(begin))})
		s, err := v.Status(ctx)
		if err != nil {
			return err
		}
		rows = append(rows, []string{
			v.short, v.host, v.file, string(s.Mode), s.Parent.GatewayEndpoint, fmt.Sprint(v.Pid()),
		})
	}
	d.out.table(rows...)
	d.out.say("Modes, scopes and tokens come from the %ss. Each layer signs in to its parent with its sync token, over TLS: the\n"+
		"certificates are made by the devices' workload API, whose trust bundle the layer below trusts. Nothing else was configured.", d.source())
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(d.authority.Bundle())
	d.floor = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	return nil
}

// sync shows each layer's own account of what it has received, until each holds all that its manifest takes.
func (d *demo) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no layer may take longer than %v", patience))
	defer cancel()
	begin := time.Now()
	var bars []bar
	for i, v := range d.devices {
		tags, total := tagsUpper, d.content.upper.Bytes()
		if i == len(d.devices)-1 {
			tags, total = tagsLower, d.content.lower.Bytes()
		}
		bars = append(bars, bar{v.short, total, func(ctx context.Context) (int64, string, bool, error) {
			ok, s, err := v.Has(ctx, tags)
			return s.Traffic.BytesReceived, string(s.ConnectionState), ok, err
		}})
	}
	if err := d.out.progress(ctx, bars); err != nil {
		return err
	}
	d.time("first synchronisation, cloud to bottom", begin)
	return nil
}

func (d *demo) compare(ctx context.Context) error {
	begin := time.Now()
	d.out.say("The client signs in to %s with the client token %s.", d.bottom().at(d.bottom().proxyPort), floorToken)
	if err := d.same(ctx, vision+":1.0", d.content.camera); err != nil {
		return err
	}
	d.time("pull at the bottom, every byte checked", begin)
	return nil
}

func (d *demo) bottom() *device { return d.devices[len(d.devices)-1] }

// who is the client on the floor.
func (d *demo) who() []remote.Option {
	return []remote.Option{
		remote.WithAuth(&authn.Basic{Username: floorToken, Password: d.secrets.of(floorToken)}), remote.WithTransport(d.floor),
	}
}

// same pulls with go-containerregistry at the bottom and compares with what was pushed to the cloud.
func (d *demo) same(ctx context.Context, ref string, pushed interface{ Digest() (v1.Hash, error) }) error {
	want, err := pushed.Digest()
	if err != nil {
		return err
	}
	v := d.bottom()
	got, err := cloud.Pull(ctx, v.at(v.proxyPort), ref, d.who()...)
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
	for _, v := range d.devices {
		v.edge.SetCloud(false)
	}
	d.out.say("The links are cut: connections to the cloud registry are refused, and no device reaches IoT Hub.")
	if err := d.devices[0].Sync(ctx); err == nil {
		return errors.New("connected-registry sync succeeds on L5 although its parent is away")
	}
	d.out.say("Somebody on site tries `connected-registry sync` on L5. It fails, and from now on L5 tries again by itself.")
	v := d.bottom()
	pid := v.Pid()
	if err := v.Kill(); err != nil {
		return err
	}
	begin := time.Now()
	if err := v.Start(ctx); err != nil {
		return err
	}
	d.time("start of the bottom layer after SIGKILL", begin)
	d.out.say("L3 was killed (process %d) and started again (process %d): it answers after %s.", pid, v.Pid(), took(time.Since(begin)))
	begin = time.Now()
	if err := errors.Join(d.same(ctx, product+":"+version, d.content.image), d.same(ctx, vision+":1.0", d.content.camera)); err != nil {
		return err
	}
	d.time("pull of both with the cloud away", begin)
	return nil
}

func (d *demo) heal(ctx context.Context) error {
	n, err := d.content.upper.Image(d.content.next)
	_, lower := d.content.lower.Image(d.content.next)
	if err := errors.Join(err, lower); err != nil {
		return err
	}
	if err := cloud.Push(ctx, d.cloud.Addr, vision+":1.1", d.content.next); err != nil {
		return err
	}
	d.out.say("%s:1.1 is in the cloud: %s that are not below yet, on the same base.", vision, size(n))
	before := d.links[0].Counters().Down
	if err := d.links[0].Set(cloudLink); err != nil {
		return err
	}
	for _, v := range d.devices {
		v.edge.SetCloud(true)
	}
	begin := time.Now()
	d.out.say("The links are back. Nobody does anything more.")
	for i, v := range d.devices {
		tags := tagsUpper + 1
		if i == len(d.devices)-1 {
			tags = tagsLower + tagsProduct + 1
		}
		err := d.within(ctx, func(ctx context.Context) error {
			return v.Until(ctx, vision+":1.1 is there", func(ctx context.Context) (bool, error) {
				ok, _, err := v.Has(ctx, tags)
				return ok, err
			})
		})
		if err != nil {
			return err
		}
		d.out.say("%s has it after %s.", v.short, took(time.Since(begin)))
	}
	d.time("a new version, from the links' return to the bottom", begin)
	d.out.say("%s came over the link for it.", size(d.links[0].Counters().Down-before))
	return d.same(ctx, vision+":1.1", d.content.next)
}

func (d *demo) report(context.Context) error {
	rows := [][]string{{"link", "bytes down", "unique bytes", "ratio", "bytes up", "memory of the layer below", "at its peak"}}
	unique := []int64{d.content.upper.Bytes(), d.content.upper.Bytes(), d.content.lower.Bytes()}
	worst := 0.0
	for i, v := range d.devices {
		c := d.links[i].Counters()
		now, peak := v.RSS()
		ratio := float64(c.Down) / float64(unique[i])
		worst = max(worst, ratio)
		rows = append(rows, []string{
			[]string{"cloud -> L5", "L5 -> L4", "L4 -> L3"}[i], fmt.Sprint(c.Down), fmt.Sprint(unique[i]),
			fmt.Sprintf("%.4f", ratio), fmt.Sprint(c.Up), size(now), size(peak),
		})
	}
	d.out.table(rows...)
	d.out.say("Bytes are those of the TCP streams, with headers and TLS; unique bytes count each manifest, config and layer once.\n")
	d.out.table(d.times...)
	if worst > 1.02 {
		return errors.New("a link carried more than 1.02 of the unique bytes")
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

// operate asks L4 whether L3 could be deployed from it, and brings another repository into the scope of L3.
func (d *demo) operate(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("it took longer than %v", patience))
	defer cancel()
	if err := d.askReadiness(ctx); err != nil {
		return err
	}
	begin := time.Now()
	if err := d.widen(ctx); err != nil {
		return err
	}
	bottom := d.bottom()
	err := bottom.Until(ctx, product+" is there", func(ctx context.Context) (bool, error) {
		ok, _, err := bottom.Has(ctx, tagsLower+tagsProduct)
		return ok, err
	})
	if err != nil {
		return err
	}
	d.time("another repository, from the update to the bottom", begin)
	d.out.say("The repository is at the bottom after %s.", took(time.Since(begin)))
	_, index := d.content.lower.Index(d.content.image)
	_, sbom := d.content.lower.Image(d.content.sbom)
	if err := errors.Join(index, sbom, d.same(ctx, product+":"+version, d.content.image)); err != nil {
		return err
	}
	return d.sameReferrer(ctx)
}

// askReadiness is what an operator does before deploying the layer below.
func (d *demo) askReadiness(ctx context.Context) error {
	above, below := d.devices[1], d.bottom()
	manifest := below.render(map[string]string{"PLATFORM": arch}) // without a secret
	r, err := above.readiness(ctx, d.ground.twins(), manifest)
	if err != nil {
		return err
	}
	how := "az iot hub invoke-module-method -d L4 -m connected-registry --mn getReadiness"
	if !d.ground.twins() {
		how = "connected-registry readiness"
	}
	d.out.say("Could L3 be deployed from L4 with the cloud away? The manifest of L3 is the payload of\n  %s", how)
	rows := [][]string{}
	for _, i := range r.Images {
		rows = append(rows, []string{"  " + i.Image, string(i.State), i.Reason})
	}
	d.out.table(rows...)
	if !r.Ready {
		return errors.New("L4 does not have all images of the manifest of L3")
	}
	return nil
}

// change is an update of desired properties.
type change struct {
	device  *device
	what    string
	desired map[string]any
}

// widen changes desired properties of two devices at once, and shows how they answer for it.
func (d *demo) widen(ctx context.Context) error {
	top, bottom := d.devices[0], d.bottom()
	changes := []change{
		{top, `parent.syncProperties.schedule = "* * * * *", which is continuous, and no syncWindow`, map[string]any{
			"parent": map[string]any{"syncProperties": map[string]any{"schedule": "* * * * *", "syncWindow": nil}},
		}},
		{bottom, `repositories.lineB = "` + product + `:0.1*", logging.logLevel = "Warning"`, map[string]any{
			"repositories": map[string]any{"lineB": product + ":0.1*"},
			"logging":      map[string]any{"logLevel": "Warning"},
		}},
	}
	var group errgroup.Group
	begin := time.Now()
	acks := make([]map[string]ack, len(changes))
	for i, c := range changes {
		d.out.say("The update of %s: %s", c.device.short, c.what)
		group.Go(func() (err error) {
			if !d.ground.twins() {
				return c.device.edit(ctx, c.desired)
			}
			acks[i], err = c.device.operator.update(ctx, c.desired)
			return err
		})
	}
	if err := group.Wait(); err != nil || !d.ground.twins() {
		return err
	}
	d.out.say("Their reported properties after %s:", took(time.Since(begin)))
	for i, c := range changes {
		for _, section := range slices.Sorted(maps.Keys(acks[i])) {
			a := acks[i][section]
			d.out.say("  %s %-13s {value: %v, ac: %d, av: %d}", c.device.short, section, a.Value, a.Code, a.Seen)
			if a.Code != http.StatusOK {
				return fmt.Errorf("%s: %s is not applied: %s", c.device.short, section, a.Text)
			}
		}
	}
	return nil
}

// sameReferrer compares what refers to the product's image.
func (d *demo) sameReferrer(ctx context.Context) error {
	subject, err := d.content.image.Digest()
	if err != nil {
		return err
	}
	want, err := d.content.sbom.Digest()
	if err != nil {
		return err
	}
	v := d.bottom()
	got, err := cloud.Referrers(ctx, v.at(v.proxyPort), product, subject, d.who()...)
	if err != nil {
		return err
	}
	if len(got) != 1 || got[0] != want {
		return fmt.Errorf("the referrers of %s:%s at the bottom are %v, in the cloud %v", product, version, got, want)
	}
	d.out.say("SBOM that refers to %s:%s\n  cloud    %s\n  bottom   %s   equal", product, version, want, got[0])
	return nil
}
