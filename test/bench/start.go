//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// settle is how long a process is left alone before its idle memory is read.
const settle = 2 * time.Second

// starts measures size, cold start, memory and disk, empty and with many tags.
func (b *bench) starts(ctx context.Context) error {
	t := b.table("start", "start, memory and disk", "ours", "distribution", "olareg", "floor")
	all := []subject{b.ours, b.peer("distribution"), b.peer("olareg"), b.peer("floor")}
	t.note("each tag has a manifest of its own; one config and one layer are shared. The floor keeps no manifests")
	for _, s := range all[:3] {
		info, err := os.Stat(s.binary)
		if err != nil {
			return err
		}
		t.row("binary", "MiB", atMost(19)).add(s.name, float64(info.Size())/mib)
	}
	b.say("start, empty")
	if err := b.coldStarts(ctx, t, all, 0, nil); err != nil {
		return err
	}
	b.say("%d tags to each", b.Tags)
	dirs, err := b.fillAll(ctx, all[:3])
	if err != nil {
		return err
	}
	for _, s := range all[:3] {
		used, err := allocated(filepath.Join(dirs[s.name], "data"))
		if err != nil {
			return err
		}
		t.row("disk for each tag", "KiB", atMost(5)).add(s.name, used/1024/float64(b.Tags))
	}
	b.say("start, with %d tags", b.Tags)
	if err := b.coldStarts(ctx, t, all[:3], b.Tags, dirs); err != nil {
		return err
	}
	t.finish()
	for d := range maps.Values(dirs) {
		err = errors.Join(err, os.RemoveAll(d))
	}
	return err
}

// coldStarts starts each in turn, from process to first 200.
func (b *bench) coldStarts(ctx context.Context, t *section, all []subject, tags int, dirs map[string]string) error {
	name, bars := "first start, on an empty volume", []*bar(nil)
	if tags > 0 {
		name, bars = fmt.Sprintf("start with %d tags", tags), []*bar{atMost(25), atMost(0.6).to("distribution")}
	}
	first, cost := t.row(name, "ms to 200", bars...), t.row(name, "CPU ms to 200")
	memory := t.row(fmt.Sprintf("idle memory with %d tags", tags), "MiB", atMost(20))
	for n := range b.rounds(b.Starts) {
		var running []*instance
		for _, s := range all {
			dir := dirs[s.name]
			if dir == "" {
				var err error
				if dir, err = b.scratch(s.name); err != nil {
					return err
				}
			}
			i, err := b.instance(s, dir, certificate{})
			if err != nil {
				return err
			}
			began := time.Now()
			if err := i.start(ctx); err != nil {
				return err
			}
			first.add(s.name, time.Since(began).Seconds()*1000)
			cost.add(s.name, i.cpu().Seconds()*1000)
			if n > 0 {
				if err := i.stop(syscall.SIGTERM); err != nil {
					return err
				}
				i.release()
				continue
			}
			running = append(running, i)
		}
		if n == 0 {
			time.Sleep(settle) // nobody asks for anything: that is what is measured
		}
		for _, i := range running {
			now, _ := i.rss()
			memory.add(i.name, now)
			if err := i.stop(syscall.SIGTERM); err != nil {
				return err
			}
			i.release()
		}
	}
	return nil
}

// fillAll fills registries side by side: how long that takes is not measured. It returns their directories by name.
func (b *bench) fillAll(ctx context.Context, all []subject) (map[string]string, error) {
	dirs, errs := make([]string, len(all)), make([]error, len(all))
	var group sync.WaitGroup
	for n, s := range all {
		group.Go(func() { dirs[n], errs[n] = b.fill(ctx, s) })
	}
	group.Wait()
	named := map[string]string{}
	for n, s := range all {
		named[s.name] = dirs[n]
	}
	return named, errors.Join(errs...)
}

// fill gives a registry its tags, stops it, and returns its directory.
func (b *bench) fill(ctx context.Context, s subject) (string, error) {
	i, err := b.start(ctx, s, certificate{})
	if err != nil {
		return "", err
	}
	if err := i.tags(ctx, "bench/app", b.Tags); err != nil {
		return "", err
	}
	err = i.stop(syscall.SIGTERM)
	i.release()
	return i.dir, err
}

// tags pushes so many tags with a manifest each, on one layer.
func (i *instance) tags(ctx context.Context, repo string, tags int) error {
	const clients = 16
	p := i.pusher()
	image := registrytest.NewImage(3, 2000)
	if err := p.image(ctx, repo, "v00000", image); err != nil {
		return fmt.Errorf("%s: %w", i.name, err)
	}
	manifests, err := variants(image, tags)
	if err != nil {
		return err
	}
	work := make(chan int)
	failed := make(chan error, clients)
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for n := range work {
				if err := p.manifest(ctx, repo, fmt.Sprintf("v%05d", n), manifests[n]); err != nil {
					failed <- fmt.Errorf("%s: %w", i.name, err)
					return
				}
			}
		})
	}
	for n := 1; n < tags; n++ {
		select {
		case work <- n:
		case err := <-failed:
			close(work)
			return err
		}
	}
	close(work)
	group.Wait()
	close(failed)
	if err := <-failed; err != nil {
		return err
	}
	resp, err := get(ctx, p.client, http.MethodGet, i.url(fmt.Sprintf("/v2/%s/manifests/v%05d", repo, tags-1)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Docker-Content-Digest"); resp.StatusCode != http.StatusOK || got != manifests[tags-1].Digest.String() {
		return fmt.Errorf("%s: the last tag answers %s, %s", i.name, resp.Status, got)
	}
	return nil
}

// variants are manifests that differ in an annotation.
func variants(image registrytest.Image, n int) ([]registry.Manifest, error) {
	var m map[string]any
	if err := json.Unmarshal(image.Manifest.Bytes, &m); err != nil {
		return nil, err
	}
	all := []registry.Manifest{image.Manifest}
	for k := 1; k < n; k++ {
		m["annotations"] = map[string]string{"org.example.build": fmt.Sprint(k)}
		body, err := json.Marshal(m)
		if err != nil {
			return nil, err
		}
		all = append(all, registry.Manifest{Descriptor: registrytest.BlobOf(image.MediaType, body).Descriptor, Bytes: body})
	}
	return slices.Clip(all), nil
}
