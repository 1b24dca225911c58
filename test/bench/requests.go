//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

const mib = 1 << 20

// startAll runs ours and those of the others that are named, side by side.
func (b *bench) startAll(ctx context.Context, cert certificate, names ...string) ([]*instance, error) {
	subjects := []subject{b.ours}
	for _, n := range names {
		subjects = append(subjects, b.peer(n))
	}
	var all []*instance
	for _, s := range subjects {
		i, err := b.start(ctx, s, cert)
		if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	return all, nil
}

func endAll(all []*instance) (err error) {
	for _, i := range all {
		if e := i.end(); e != nil {
			err = e
		}
	}
	return err
}

// manifests measures GET and HEAD by tag and by digest.
func (b *bench) manifests(ctx context.Context) error {
	all, err := b.startAll(ctx, certificate{}, "distribution", "olareg", "floor")
	if err != nil {
		return err
	}
	const repo, images = "bench/app", 64
	asks := map[string]map[*instance][]ask{}
	for _, i := range all {
		p := i.pusher()
		for n := range images {
			image, tag := registrytest.NewImage(uint64(n), 1000, 1000), fmt.Sprintf("v1.%d", n)
			if err := p.image(ctx, repo, tag, image); err != nil {
				return fmt.Errorf("%s: %w", i.name, err)
			}
			d := image.Digest.String()
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				for by, ref := range map[string]string{"tag": tag, "digest": d} {
					what := method + " by " + by
					if asks[what] == nil {
						asks[what] = map[*instance][]ask{}
					}
					asks[what][i] = append(asks[what][i], newAsk(method, i.addr, "/v2/"+repo+"/manifests/"+ref, d, image.Manifest.Bytes))
				}
			}
		}
	}
	t := b.table("manifest", "manifests: requests per second, and what they cost the server", "ours", "distribution", "olareg", "floor")
	t.note("%d images in one repository, in turn, over connections that are kept; each answer is compared byte by byte", images)
	for _, conns := range b.Conns {
		for _, what := range []string{"GET by tag", "GET by digest", "HEAD by tag", "HEAD by digest"} {
			b.say("manifest %s, %d connections", what, conns)
			name := fmt.Sprintf("%s, %d connections", what, conns)
			speed := t.row(name, "req/s", atLeast(0.6).to("floor"))
			cost := t.row(name, "CPU us/req", atMost(40), atMost(0.5).to("olareg"), atMost(0.15).to("distribution"))
			for range b.rounds(b.Rounds) {
				for _, i := range all {
					cpu := i.cpu()
					n, took, err := i.drive(ctx, conns, 16<<10, asks[what][i], func(so time.Duration) bool { return so < b.Window })
					if err != nil {
						return err
					}
					speed.add(i.name, float64(n)/took.Seconds())
					cost.add(i.name, float64((i.cpu()-cpu).Microseconds())/float64(n+int64(conns)))
				}
			}
		}
	}
	t.finish()
	return endAll(all)
}

// blobs measures a layer over one and sixteen connections, on http and TLS.
func (b *bench) blobs(ctx context.Context) error {
	t := b.table("blob", "blobs: pulled", "ours", "distribution", "olareg", "floor")
	t.note("a layer of %d MiB, %d MiB a measurement; each byte is compared, which with TLS keeps the client as busy as the server", b.BlobMiB, b.PullMiB)
	layer := registrytest.NewBlob(1, b.BlobMiB*mib)
	for _, secure := range []bool{false, true} {
		cert, scheme, cost := certificate{}, "http", []*bar{atMost(1.15).to("floor"), atMost(0.45).to("distribution")}
		if secure {
			cert, scheme, cost = b.cert, "TLS", []*bar{atMost(1.1).to("floor")}
		}
		all, err := b.startAll(ctx, cert, "distribution", "olareg", "floor")
		if err != nil {
			return err
		}
		for _, i := range all {
			if err := i.pusher().image(ctx, "bench/app", "1", registrytest.NewImageOf(1, layer)); err != nil {
				return fmt.Errorf("%s: %w", i.name, err)
			}
		}
		for _, streams := range []int{1, 16} {
			b.say("blob over %s, %d streams", scheme, streams)
			name := fmt.Sprintf("%s, %d streams", scheme, streams)
			speed, cpu := t.row(name, "GB/s"), t.row(name, "CPU s/GiB", cost...)
			for range b.rounds(b.Rounds) {
				for _, i := range all {
					if err := b.pull(ctx, i, layer, streams, speed, cpu); err != nil {
						return err
					}
				}
			}
		}
		peak := t.row("memory after it, "+scheme, "peak MiB", atMost(32))
		for _, i := range all {
			_, most := i.rss()
			peak.add(i.name, most)
		}
		if err := endAll(all); err != nil {
			return err
		}
	}
	t.finish()
	return nil
}

// pull is one measurement.
func (b *bench) pull(ctx context.Context, i *instance, layer registrytest.Blob, streams int, speed, cost *row) error {
	asks := []ask{newAsk(http.MethodGet, i.addr, "/v2/bench/app/blobs/"+layer.Digest.String(), layer.Digest.String(), layer.Bytes)}
	left := make(chan struct{}, max(streams, b.PullMiB/b.BlobMiB))
	for range cap(left) {
		left <- struct{}{}
	}
	before := i.cpu()
	n, took, err := i.drive(ctx, streams, 256<<10, asks, func(time.Duration) bool {
		select {
		case <-left:
			return true
		default:
			return false
		}
	})
	if err != nil {
		return err
	}
	bytes := float64(n) * float64(len(layer.Bytes))
	all := bytes + float64(streams*len(layer.Bytes)) // each connection has pulled it once before
	speed.add(i.name, bytes/took.Seconds()/1e9)
	cost.add(i.name, (i.cpu()-before).Seconds()/(all/(1<<30)))
	return nil
}
