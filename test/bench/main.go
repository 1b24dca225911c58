//go:build linux

// Command bench starts other registries beside this one, gives each the same work in turns, and prints what came of it:
// the median of each, and our figure as a ratio to theirs from the same round, with its spread. A machine that is busy
// or slow changes the figures and hardly the ratios.
//
// A bar that is not met is printed and fails nothing. A wrong answer (status, length, bytes, digest) ends the run.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/connected-registry/connected-registry/test/layer"
)

// plan is how much is done.
type plan struct {
	Rounds   int           `json:"rounds"`
	Window   time.Duration `json:"windowNanoseconds"` // of one measurement of requests
	Conns    []int         `json:"connections"`
	BlobMiB  int           `json:"blobMiB"`         // pulled
	PullMiB  int           `json:"pullMiB"`         // in one measurement
	PushMiB  int           `json:"pushMiB"`         // one blob, pushed
	Images   int           `json:"images"`          // small ones, pushed
	Tags     int           `json:"tags"`            // for memory and start
	Starts   int           `json:"starts"`          // of each registry
	LayerMiB int           `json:"layerMiB"`        // of the byte table
	SyncMiB  int           `json:"syncMiB"`         // synced while clients pull
	Stint    time.Duration `json:"stint"`           // after which a registry stops to push small images
	Patience time.Duration `json:"patience"`        // after which each measurement has one round
	Tries    int           `json:"tries"`           // of bringing an image over a broken link
	Hang     time.Duration `json:"hangLimit"`       // after which an answer that does not come is none
	Sites    []string      `json:"sites,omitempty"` // of the table "during"; none: all
}

var plans = map[string]plan{
	"quick": {
		Rounds: 2, Window: 400 * time.Millisecond, Conns: []int{64}, BlobMiB: 64, PullMiB: 512, PushMiB: 256, Images: 60, Tags: 1000,
		Starts: 3, LayerMiB: 50, SyncMiB: 1024, Tries: 2, Stint: 10 * time.Second, Patience: 90 * time.Second, Hang: 5 * time.Second,
	},
	"full": {
		Rounds: 3, Window: 700 * time.Millisecond, Conns: []int{16, 64, 256}, BlobMiB: 64, PullMiB: 1024, PushMiB: 1024, Images: 200, Tags: 10000,
		Starts: 5, LayerMiB: 100, SyncMiB: 2048, Tries: 6, Stint: 20 * time.Second, Patience: 10 * time.Minute, Hang: 30 * time.Second,
	},
}

// bench is one run.
type bench struct {
	plan
	dir      string // of everything that is stored
	progress io.Writer
	ours     subject
	peers    []subject // distribution, olareg, floor, floorfs
	regsync  subject
	cert     certificate
	out      report

	began time.Time
	mu    sync.Mutex
	atEnd []func() // ends what still runs when the run fails
}

// sections in the order of their printing.
var sections = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"manifest", (*bench).manifests},
	{"blob", (*bench).blobs},
	{"push", (*bench).pushes},
	{"start", (*bench).starts},
	{"bytes", (*bench).bytes},
	{"unchanged", (*bench).unchanged},
	{"during", (*bench).during},
}

func main() {
	if addr := os.Getenv(floorAddr); addr != "" {
		fmt.Fprintln(os.Stderr, serveFloor(addr))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	mode := flag.String("mode", "full", "full, or quick: less of everything")
	asJSON := flag.Bool("json", false, "print JSON in place of tables")
	tools := flag.String("tools", ".tools/bin", "where the other registries are kept once they are built")
	only := flag.String("only", "", "these sections alone, with commas: manifest,blob,push,start,bytes,unchanged,during")
	sites := flag.String("sites", "", "the table \"during\" of these alone, with commas: "+strings.Join(siteNames, ","))
	binary := flag.String("binary", "", "measure this binary in place of the one of this tree: of another revision, say")
	flag.Parse()
	p, ok := plans[*mode]
	if !ok || flag.NArg() > 0 {
		return fmt.Errorf("-mode %q: want quick or full, and nothing after the flags", *mode)
	}
	if err := pinClient(); err != nil {
		return err
	}
	p.Sites = list(*sites)
	b := &bench{plan: p, progress: os.Stderr}
	if b.dir, err = os.MkdirTemp("", "connected-registry-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, end := range b.atEnd {
			end()
		}
	}()
	if err := b.prepare(ctx, *tools, *binary); err != nil {
		return err
	}
	b.out.Header = b.header(ctx, *mode)
	if !*asJSON {
		b.out.Header.print(os.Stdout)
	}
	b.began = time.Now()
	wanted := list(*only)
	for _, s := range sections {
		if len(wanted) > 0 && !slices.Contains(wanted, s.name) {
			continue
		}
		done := len(b.out.Sections)
		if err = s.run(b, ctx); err != nil {
			err = fmt.Errorf("%s: %w", s.name, errors.Join(err, context.Cause(ctx)))
			b.out.Sections, b.out.Error = b.out.Sections[:done], err.Error() // half a table says nothing
			break
		}
		for _, made := range b.out.Sections[done:] {
			if !*asJSON {
				made.print(os.Stdout)
			}
		}
	}
	b.out.Header.LoadAfter, b.out.Header.Seconds = load(), time.Since(b.began).Seconds()
	if !*asJSON {
		b.out.summary(os.Stdout)
		return err
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return errors.Join(err, e.Encode(b.out))
}

// list takes a flag apart.
func list(flag string) []string {
	return strings.FieldsFunc(flag, func(r rune) bool { return r == ',' })
}

// prepare builds what is compared.
func (b *bench) prepare(ctx context.Context, tools, binary string) (err error) {
	tools, err = filepath.Abs(tools)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(tools, 0o755); err != nil {
		return err
	}
	b.say("building")
	b.ours = subject{name: "ours", version: binary, binary: binary, command: oursCommand}
	if binary == "" {
		b.ours.version, b.ours.binary = revision(ctx), filepath.Join(b.dir, "connected-registry")
		if err := layer.Build(ctx, b.ours.binary); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	distribution, err := module{"github.com/distribution/distribution/v3", "v3.1.2", "cmd/registry"}.build(ctx, tools)
	if err != nil {
		return err
	}
	olareg, err := module{"github.com/olareg/olareg", "v0.2.2", "cmd/olareg"}.build(ctx, tools)
	if err != nil {
		return err
	}
	regsync, err := module{"github.com/regclient/regclient", "v0.11.7", "cmd/regsync"}.build(ctx, tools)
	if err != nil {
		return err
	}
	b.peers = []subject{
		{name: "distribution", version: "v3.1.2", binary: distribution, command: distributionCommand},
		{name: "olareg", version: "v0.2.2", binary: olareg, command: olaregCommand},
		{name: "floor", version: "net/http", binary: self, command: floorCommand(false)},
		{name: "floorfs", version: "net/http and fsync", binary: self, command: floorCommand(true)},
	}
	b.regsync = subject{name: "regsync", version: "v0.11.7", binary: regsync}
	b.cert, err = newCertificate(filepath.Join(b.dir, "cert"))
	return err
}

// peer returns one of the others by its name.
func (b *bench) peer(name string) subject {
	return b.peers[slices.IndexFunc(b.peers, func(s subject) bool { return s.name == name })]
}

// say tells what is being done; the tables go elsewhere.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// rounds counts them. On a machine that is too busy there is one.
func (b *bench) rounds(n int) iter.Seq[int] {
	return func(yield func(int) bool) {
		for k := range n {
			if k > 0 && time.Since(b.began) > b.Patience {
				b.out.Header.Hurried = true
				return
			}
			if !yield(k) {
				return
			}
		}
	}
}

// endsWith has f called at the end of the run at the latest.
func (b *bench) endsWith(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.atEnd = append(b.atEnd, f)
}

// scratch makes a directory that nobody has.
func (b *bench) scratch(name string) (string, error) { return os.MkdirTemp(b.dir, name+"-") }
