// Command demo is the newcomer's first minute: a chain of three registries under a cloud registry, on loopback, from
// the container image to the cut link. With -run it keeps one registry running instead.
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

func main() {
	keep := flag.Bool("run", false, "keep one registry running")
	listen := flag.String("listen", "127.0.0.1:5000", "address of -run")
	root := flag.String("root", "..", "root of the repository")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := choose(ctx, *keep, *root, *listen); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted; everything was cleaned up")
		}
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		stop()
		os.Exit(1)
	}
}

func choose(ctx context.Context, keep bool, root, listen string) error {
	out := newScreen(os.Stdout)
	if keep {
		return keepRunning(ctx, out, root, listen)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the demo took longer than %v", limit))
	defer cancel()
	dir, err := os.MkdirTemp("", "connected-registry-demo-")
	if err != nil {
		return err
	}
	d := &demo{out: out, root: root, dir: dir}
	err = d.run(ctx)
	return errors.Join(err, d.close(), os.RemoveAll(dir))
}
