// Command demo is the newcomer's first minute: a chain of three IoT Edge devices under a cloud registry, on loopback,
// from the container image to the cut link. The devices are emulated (test/edgesim), their registries are the product,
// deployed by the manifests in deployment-manifests. With -run it keeps one registry running instead.
//
// It needs Go and nothing else, ends by itself, leaves nothing behind, and exits with 1 when a step fails.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// limit is far above what the demo takes; it ends a demo that hangs.
const limit = 10 * time.Minute

// options are the flags.
type options struct {
	keep   bool
	listen string
	root   string
	files  bool
	inside bool
	probe  bool
}

func main() {
	var o options
	flag.BoolVar(&o.keep, "run", false, "keep one registry running")
	flag.StringVar(&o.listen, "listen", "127.0.0.1:5000", "address of -run")
	flag.StringVar(&o.root, "root", "..", "root of the repository")
	flag.BoolVar(&o.files, "files", false, "configuration files in place of module twins, as where edgeHub's ports cannot be had")
	flag.BoolVar(&o.inside, "inside", false, "used by the demo itself: it is in a network of its own")
	flag.BoolVar(&o.probe, "probe", false, "used by the demo itself: only say whether that is of use")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := choose(ctx, o); err != nil {
		if ctx.Err() != nil && !errors.Is(err, errTold) {
			err = errors.New("interrupted; everything was cleaned up")
		}
		if !errors.Is(err, errTold) {
			fmt.Fprintln(os.Stderr, "\ndemo:", err)
		}
		stop()
		os.Exit(1)
	}
}

func choose(ctx context.Context, o options) error {
	out := newScreen(os.Stdout)
	if o.keep {
		return keepRunning(ctx, out, o.root, o.listen)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the demo took longer than %v", limit))
	defer cancel()
	if o.inside {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	plan, err := readSite(o.root)
	if err != nil {
		return err
	}
	g, err := findGround(plan.ports()...)
	if o.probe {
		return errors.Join(err, g.noTwins)
	}
	if (err != nil || !g.twins()) && !o.inside && !o.files && canOwn(ctx) {
		return again(ctx, o.root)
	}
	if err != nil {
		return err
	}
	if o.files {
		g.noTwins = errors.New("-files is given")
	}
	dir, err := workDir(o.root)
	if err != nil {
		return err
	}
	d := &demo{out: out, root: o.root, dir: dir, ground: g, site: plan}
	err = d.run(ctx)
	return errors.Join(err, d.close(), os.RemoveAll(dir))
}

// room is what the demo needs on the disk: its content in the cloud and on each device, and what the manifests keep
// free (storage.reserveMiB).
const room = 1536 * mib

// workDir makes a directory with room, in the system's place for such or in the repository.
func workDir(root string) (string, error) {
	var free uint64
	for _, base := range []string{os.TempDir(), root} {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(base, &fs); err != nil {
			return "", err
		}
		if free = fs.Bavail * uint64(fs.Bsize); free >= room {
			return os.MkdirTemp(base, ".connected-registry-demo-")
		}
	}
	return "", fmt.Errorf("the demo needs %s on the disk, there are %s: the deployment manifests keep 1 GiB free; set TMPDIR", size(room), size(int64(free)))
}
