//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// pushes measures what a push costs, and what it is worth when the power fails.
func (b *bench) pushes(ctx context.Context) error {
	t := b.table("push", "pushes", "ours", "distribution", "olareg", "floor", "floorfs")
	all := append([]subject{b.ours}, b.peers...)
	if err := b.syncs(ctx, t, all); err != nil {
		return err
	}
	large := registrytest.NewBlob(7, b.PushMiB*mib)
	for _, way := range []struct {
		name       string
		chunk      int
		speed, cpu []*bar
	}{
		{"in one PUT", 0, []*bar{atLeast(0.95).to("floorfs"), atLeast(1.2).to("distribution")}, []*bar{atMost(1.5)}},
		{"in chunks of 16 MiB", 16 * mib, []*bar{atLeast(1.7).to("distribution")}, []*bar{atMost(1.5)}},
	} {
		name := fmt.Sprintf("a blob of %d MiB %s", b.PushMiB, way.name)
		speed, cpu := t.row(name, "MiB/s", way.speed...), t.row(name, "CPU s/GiB", way.cpu...)
		for n := range b.rounds(b.Rounds) {
			b.say("push %s, round %d", name, n+1)
			binary.LittleEndian.PutUint64(large.Bytes, uint64(n))
			blob := registrytest.BlobOf(large.MediaType, large.Bytes)
			for k := range all { // nobody comes after the same other each time
				if err := b.pushOne(ctx, all[(k+n)%len(all)], blob, way.chunk, speed, cpu); err != nil {
					return err
				}
			}
		}
	}
	if err := b.smallImages(ctx, t, all); err != nil {
		return err
	}
	t.finish()
	return nil
}

// pushOne uploads the blob to a registry that has one small image, and reads it back.
func (b *bench) pushOne(ctx context.Context, s subject, blob registrytest.Blob, chunk int, speed, cpu *row) error {
	i, err := b.start(ctx, s, certificate{})
	if err != nil {
		return err
	}
	// The first push makes directories and the like, which takes as long as the file system has a mind to.
	if err := i.pusher().image(ctx, "bench/app", "0", registrytest.NewImage(1<<40, 40_000)); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	unix.Sync() // what others left to be written is not this one's burden
	before, began := i.cpu(), time.Now()
	if err := i.pusher().blob(ctx, "bench/app", blob, chunk); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	took := time.Since(began)
	size := float64(len(blob.Bytes))
	speed.add(s.name, size/mib/took.Seconds())
	cpu.add(s.name, (i.cpu()-before).Seconds()/(size/(1<<30)))
	w, err := i.dial(ctx, 256<<10)
	if err != nil {
		return err
	}
	defer w.conn.Close()
	d := blob.Digest.String()
	back := newAsk(http.MethodGet, i.addr, "/v2/bench/app/blobs/"+d, d, blob.Bytes)
	if err := w.do(&back); err != nil {
		return fmt.Errorf("%s, read back: %w", s.name, err)
	}
	return i.end()
}

// smallImages pushes images of two layers from one client, from four and from sixteen.
func (b *bench) smallImages(ctx context.Context, t *section, all []subject) error {
	var seed atomic.Uint64
	for _, clients := range []int{1, 4, 16} {
		name := fmt.Sprintf("%d small images, %d at once", b.Images, clients)
		images, acks := t.row(name, "images/s"), t.row(name, "acks/s")
		switch clients {
		case 1:
			images.Bars = []*bar{atLeast(3.5).to("distribution")}
		case 4:
			acks.Bars = []*bar{atLeast(200), atLeast(1).to("distribution")}
		}
		for n := range b.rounds(b.Rounds) {
			b.say("push %s, round %d", name, n+1)
			for _, s := range all {
				i, err := b.start(ctx, s, certificate{})
				if err != nil {
					return err
				}
				unix.Sync()
				began := time.Now()
				pushed, acknowledged, err := i.pushMany(ctx, b.Images, clients, &seed, began.Add(b.Stint))
				if err != nil {
					return err
				}
				took := time.Since(began).Seconds()
				images.add(s.name, float64(pushed)/took)
				acks.add(s.name, float64(acknowledged)/took)
				if pushed < int64(b.Images) {
					t.note("%s, %d at once: stopped after %s with %d of %d images", s.name, clients, b.Stint, pushed, b.Images)
				}
				if err := i.end(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// pushMany pushes so many images, or as many as can be begun until then, and returns how many images and how many blobs
// and manifests were acknowledged.
func (i *instance) pushMany(ctx context.Context, images, clients int, seed *atomic.Uint64, until time.Time) (pushed, acknowledged int64, err error) {
	var left, done, acks atomic.Int64
	left.Store(int64(images))
	var group sync.WaitGroup
	failed := make(chan error, clients)
	for c := range clients {
		group.Go(func() {
			p := i.pusher()
			for left.Add(-1) >= 0 && time.Now().Before(until) {
				n := seed.Add(1)
				image := registrytest.NewImage(n, 4000, 9000)
				if err := p.image(ctx, fmt.Sprintf("bench/app%d", c), fmt.Sprintf("t%d", n), image); err != nil {
					failed <- fmt.Errorf("%s: %w", i.name, err)
					return
				}
				done.Add(1)
				acks.Add(int64(len(image.Blobs)) + 1)
			}
		})
	}
	group.Wait()
	close(failed)
	return done.Load(), acks.Load(), <-failed
}

// syncs counts the system calls that a push of two blobs and a manifest makes so that nothing is lost.
func (b *bench) syncs(ctx context.Context, t *section, all []subject) error {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.note("who syncs what: not counted, strace is not installed")
		return nil
	}
	r := t.row("a push of three objects: syncs to disk", "calls", atMost(8))
	for _, s := range all {
		dir, err := b.scratch(s.name)
		if err != nil {
			return err
		}
		i, err := b.instance(s, dir, certificate{})
		if err != nil {
			return err
		}
		trace := filepath.Join(dir, "trace")
		i.wrap = []string{strace, "-f", "-qq", "-e", "signal=none", "-e", "trace=fsync,fdatasync,msync,syncfs,sync_file_range", "-o", trace}
		if err := i.start(ctx); err != nil {
			t.note("who syncs what: not counted, strace cannot trace here: %v", err)
			return nil
		}
		if err := i.admitted(ctx); err != nil {
			return err
		}
		p := i.pusher()
		// The first push makes directories and the like; what each further one costs is the figure.
		if err := p.image(ctx, "bench/app", "0", registrytest.NewImage(1<<40, 4000)); err != nil {
			return err
		}
		before, err := lines(trace)
		if err != nil {
			return err
		}
		if err := p.image(ctx, "bench/app", "1", registrytest.NewImage(1<<41, 9000)); err != nil {
			return err
		}
		after, err := lines(trace)
		if err != nil {
			return err
		}
		r.add(s.name, float64(after-before))
		if after == before {
			t.note("%s syncs nothing: what it acknowledged may be gone after a power cut", s.name)
		}
		_ = i.stop(syscall.SIGTERM)
		i.release()
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// lines counts finished calls in a trace.
func lines(trace string) (int, error) {
	body, err := os.ReadFile(trace)
	return bytes.Count(body, []byte(" = ")), err
}
