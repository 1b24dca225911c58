// Package powercut holds the registry to its first promise: what it acknowledged is there after a power cut, byte for
// byte, and what it serves is whole. Clients push, delete and pull and a parent is synchronised from, on a file system
// of its own; at a random moment that file system stops writing (FS_IOC_SHUTDOWN), the process is killed, the volume is
// mounted again, and everything is read back.
//
//	POWERCUT=50 go test ./powercut     as root: so many cuts on ext4 and on XFS
//	POWERCUT_SEED=7                    the seed of the run, which each run prints
//	CHAOS=long                         1,000 cuts each
package powercut

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

const (
	user        = "line-a"
	password    = "of this test"
	syncedRepo  = "parent/app"
	pushers     = 4
	syncedTags  = 3
	ackPatience = 30 * time.Second
	maxAcks     = 150 // acknowledged requests before a cut, at most
)

// long is a run at length.
var long = os.Getenv("CHAOS") == "long"

// ending is how a round ends.
type ending int

const (
	powerCut  ending = iota // the file system stops writing, then the process is killed
	killed                  // kill -9
	terminate               // SIGTERM
	leaving                 // SIGTERM, and a power cut while the process ends
)

// rig is a registry on a volume, under a parent that is elsewhere.
type rig struct {
	volume *volume // nil without a file system of its own
	cloud  *cloud.Cloud
	link   *linkproxy.Proxy
	layer  *layer.Layer
	client *client
	oracle *oracle

	seed     uint64
	next     atomic.Uint64 // numbers content
	stopping atomic.Bool   // the end of a round has begun: requests may fail from now on
	slowest  time.Duration // longest start
	drained  time.Duration // longest orderly end
	synced   atomic.Int64  // iterations that succeeded
}

// newRig starts the registry in base; kind is the file system of its volume, "" for a directory.
func newRig(ctx context.Context, base, binary, kind, options string, seed uint64) (r *rig, err error) {
	r = &rig{oracle: newOracle(), seed: seed}
	r.next.Store(seed << 20)
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.cloud, err = cloud.Start(""); err != nil {
		return r, err
	}
	if r.link, err = linkproxy.New(r.cloud.Addr); err != nil {
		return r, err
	}
	doc, err := json.Marshal(map[string]any{
		"schemaVersion": "1.0", "mode": registry.ReadWrite,
		"repositories": map[string]string{"parent": syncedRepo},
		"scopeMaps":    map[string]any{"all": layer.Everything("*")},
		"clientTokens": map[string]any{user: layer.Token("all", password)},
		"serve":        map[string]any{"pullThrough": false}, // what is lost must not come back unseen
		"storage":      map[string]any{"reserveMiB": 0},
		"parent":       map[string]any{"gatewayEndpoint": r.link.Addr(), "protocol": "http", "syncProperties": map[string]string{"schedule": "* * * * *"}},
	})
	if err != nil {
		return r, err
	}
	data := filepath.Join(base, "data")
	err = errors.Join(os.MkdirAll(data, 0o700), os.WriteFile(filepath.Join(base, "config.json"), doc, 0o600))
	if err != nil {
		return r, err
	}
	if kind != "" {
		if r.volume, err = newVolume(ctx, base, data, kind, options); err != nil {
			return r, err
		}
	}
	if options == large {
		if err = fill(ctx, data); err != nil {
			return r, err
		}
	}
	if r.layer, err = layer.New(layer.Options{Binary: binary, Dir: base, Name: "cut", Mode: registry.ReadWrite}); err != nil {
		return r, err
	}
	r.client = newClient(r.layer.Addr)
	return r, r.start(ctx)
}

func (r *rig) close() error {
	var err error
	if r.client != nil {
		r.client.close()
	}
	if r.layer != nil {
		err = r.layer.Close()
	}
	if r.link != nil {
		err = errors.Join(err, r.link.Close())
	}
	if r.cloud != nil {
		err = errors.Join(err, r.cloud.Close())
	}
	if r.volume != nil {
		err = errors.Join(err, r.volume.unmount())
	}
	return err
}

func (r *rig) start(ctx context.Context) error {
	begin := time.Now()
	if err := r.layer.Start(ctx); err != nil {
		return err
	}
	r.slowest = max(r.slowest, time.Since(begin))
	ctx, cancel := context.WithTimeout(ctx, ackPatience)
	defer cancel()
	return r.layer.Until(ctx, "the clients are known", func(ctx context.Context) (bool, error) {
		a, err := r.client.do(ctx, "GET", "/v2/", "", nil)
		if err != nil || a.status != 200 {
			return false, err
		}
		_, err = r.outbox(ctx)
		return err == nil, nil // the control socket may be the last to listen
	})
}

// round works until a random moment, ends the registry there, starts it again and reads everything back.
func (r *rig) round(ctx context.Context, end ending, number uint64) error {
	rng := rand.New(rand.NewPCG(r.seed, number))
	if err := r.publish(ctx); err != nil {
		return err
	}
	if err := r.link.Set(linkproxy.Plan{}); err != nil {
		return err
	}
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	r.stopping.Store(false)
	var group sync.WaitGroup
	errs := make(chan error, pushers+2)
	run := func(fn func(context.Context) error) {
		group.Go(func() {
			if err := fn(work); err != nil && !r.stopping.Load() {
				errs <- err
			}
		})
	}
	for i := range pushers {
		run(r.pusher(i, rand.New(rand.NewPCG(r.seed, number<<8|uint64(i)))).work)
	}
	run(r.sync)
	run(r.watch)
	target := r.oracle.count() + 1 + rng.IntN(maxAcks)
	err := r.await(ctx, target, time.Duration(rng.IntN(4000))*time.Microsecond, errs)
	r.stopping.Store(true)
	err = errors.Join(err, r.end(end, time.Duration(rng.IntN(250))*time.Millisecond))
	cancel()
	group.Wait()
	r.client.close()
	if err != nil {
		return err
	}
	return r.again(ctx, end)
}

// await returns a moment after so many requests were acknowledged.
func (r *rig) await(ctx context.Context, acks int, moment time.Duration, errs <-chan error) error {
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	deadline := time.After(ackPatience)
	for r.oracle.count() < acks {
		select {
		case err := <-errs:
			return fmt.Errorf("before the end of the round: %w", err)
		case <-deadline:
			return fmt.Errorf("%d of %d requests were acknowledged in %s", r.oracle.count(), acks, ackPatience)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	time.Sleep(moment) // the moment of the cut is what is random here, nothing is waited for
	return nil
}

// end ends the process in one of the ways; the power of one that is leaving is cut after so long.
func (r *rig) end(how ending, after time.Duration) error {
	switch how {
	case powerCut:
		return errors.Join(r.volume.cut(), r.layer.Kill())
	case killed:
		return r.layer.Kill()
	case leaving:
		pid, cut := r.layer.Pid(), make(chan error, 1)
		time.AfterFunc(after, func() {
			cut <- r.volume.cut()
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		})
		_ = r.layer.Stop() // killed, or in order
		return <-cut
	}
	begin := time.Now()
	err := r.layer.Stop()
	r.drained = max(r.drained, time.Since(begin))
	return err
}

// again starts the registry anew, without its parent, and reads everything back.
func (r *rig) again(ctx context.Context, how ending) error {
	if how == powerCut || how == leaving {
		if err := r.volume.remount(ctx); err != nil {
			return err
		}
	}
	if err := r.link.Set(linkproxy.Plan{Fault: linkproxy.Refuse}); err != nil {
		return err
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := errors.Join(r.oracle.verify(ctx, r.client), r.oracle.walk(ctx, r.client)); err != nil {
		return err
	}
	queue, err := r.outbox(ctx)
	if err != nil {
		return err
	}
	return r.climbed(ctx, queue)
}

// publish gives the parent new versions: each tag is an index of two images that share a layer with the version before.
func (r *rig) publish(ctx context.Context) error {
	up := newClient(r.cloud.Addr)
	defer up.close()
	for i := range syncedTags {
		n := r.next.Add(1)
		shared := registrytest.NewBlob(r.seed+uint64(i), 20_000)
		index := registrytest.NewIndex(
			registrytest.NewImageOf(n<<1, shared, registrytest.NewBlob(n, 30_000)),
			registrytest.NewImageOf(n<<1+1, shared, registrytest.NewBlob(n<<20, 9_000)),
		)
		r.oracle.try(index.Digest.String(), tagPath(syncedRepo, fmt.Sprint("s", i)))
		if err := up.push(ctx, syncedRepo, fmt.Sprint("s", i), index); err != nil {
			return fmt.Errorf("at the parent: %w", err)
		}
	}
	return nil
}

func tagPath(repo, tag string) string { return "/v2/" + repo + "/manifests/" + tag }

// sync asks for one iteration after the other.
func (r *rig) sync(ctx context.Context) error {
	for ctx.Err() == nil {
		err := module.Control(ctx, r.layer.DataDir(), "POST", "/methods/sync", struct{}{}, &struct{}{})
		if err == nil {
			r.synced.Add(1)
		}
		select { // an iteration without news costs nothing but requests
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// watch reads the tags that come from the parent: what a client has seen must not go back.
func (r *rig) watch(ctx context.Context) error {
	c := newClient(r.layer.Addr)
	defer c.close()
	seen := map[string]string{}
	for ctx.Err() == nil {
		for i := range syncedTags {
			path := tagPath(syncedRepo, fmt.Sprint("s", i))
			a, err := c.do(ctx, "GET", path, "", nil)
			if err != nil {
				return err
			}
			if a.status != 200 || a.short {
				continue
			}
			if d := digestOf(a.body).String(); seen[path] != d {
				if !r.oracle.saw(path, d) {
					return fmt.Errorf("%s: %s was not published after what was seen before", path, d)
				}
				seen[path] = d
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}
