package sim

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// wall bounds one run in real time: one that hangs in something that a bubble does not see ends the test with its seed.
const wall = 3 * time.Minute

// number reads an environment variable.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// command repeats a run.
func command(seed uint64) string {
	return fmt.Sprintf("cd test && SIM_SEED=%d go test -count=1 -v -run '^TestSeeds$' ./sim", seed)
}

// outcome is what is left of a run.
type outcome struct {
	trace    []string
	failures []string
	lasted   time.Duration
}

// ground is where the volumes are: in memory where the machine has that.
func ground(t *testing.T) string {
	t.Helper()
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		if base, err := os.MkdirTemp("/dev/shm", "connected-registry-sim-"); err == nil {
			t.Cleanup(func() { _ = os.RemoveAll(base) })
			return base
		}
	}
	return t.TempDir()
}

// once runs a plan in a bubble of its own.
func once(t *testing.T, p plan) (out outcome) {
	t.Helper()
	log := func(string) *slog.Logger { return slog.New(slog.DiscardHandler) }
	if os.Getenv("SIM_LOG") != "" {
		log = func(name string) *slog.Logger {
			return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", name)
		}
	}
	base := ground(t)
	dog := time.AfterFunc(wall, func() {
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
		panic(fmt.Sprintf("seed %d hangs; to see it again: %s", p.seed, command(p.seed)))
	})
	defer dog.Stop()
	synctest.Test(t, func(*testing.T) {
		w, err := newWorld(p, base, log)
		if err != nil {
			w.failf("%v", err)
		} else {
			w.run()
		}
		w.shut()
		out = outcome{trace: w.trace, failures: w.failures, lasted: time.Since(w.began)}
	})
	_ = os.RemoveAll(base)
	return out
}

// TestSeeds runs plans: those that once failed, then SIM_SEEDS of them (10) from SIM_FROM (1) on; or SIM_SEED alone,
// with all that happened in it.
func TestSeeds(t *testing.T) {
	if os.Getenv("SIM_SEED") != "" {
		repeat(t, newPlan(number(t, "SIM_SEED", 0)))
		return
	}
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			p, err := readPlan(name)
			if err != nil {
				t.Fatal(err)
			}
			if out := once(t, p); len(out.failures) > 0 {
				t.Errorf("%s\n%s", strings.Join(out.trace, "\n"), strings.Join(out.failures, "\n"))
			}
		})
	}
	from := number(t, "SIM_FROM", 1)
	for seed := from; seed < from+number(t, "SIM_SEEDS", 10); seed++ {
		t.Run(fmt.Sprintf("seed-%d", seed), func(t *testing.T) {
			t.Parallel()
			p := newPlan(seed)
			out := once(t, p)
			if len(out.failures) == 0 {
				return
			}
			t.Errorf("%s\n%s\nto see it again: %s", strings.Join(out.trace, "\n"), strings.Join(out.failures, "\n"), command(seed))
			if err := p.write(fmt.Sprintf("testdata/seed-%d.json", seed)); err != nil {
				t.Error(err)
			}
		})
	}
}

// repeat runs a plan and, when it fails, looks for the fewest steps that still do.
func repeat(t *testing.T, p plan) {
	out := once(t, p)
	t.Logf("%s\nlasted %v of simulated time", strings.Join(out.trace, "\n"), out.lasted)
	if len(out.failures) == 0 {
		return
	}
	t.Errorf("%s", strings.Join(out.failures, "\n"))
	if os.Getenv("SIM_SHRINK") == "" {
		return
	}
	for i := len(p.steps) - 1; i >= 0; i-- {
		less := p
		less.steps = append(append([]step{}, p.steps[:i]...), p.steps[i+1:]...)
		if again := once(t, less); len(again.failures) > 0 {
			p, out = less, again
		}
	}
	t.Logf("the fewest steps:\n%s", strings.Join(out.trace, "\n"))
}

// TestSameAgain runs plans twice: the same steps have the same results. Crashes at the n-th operation of a disk are left
// out: operations of several goroutines at one moment have no order.
func TestSameAgain(t *testing.T) {
	for seed := range number(t, "SIM_SAME", 5) {
		if slices.ContainsFunc(newPlan(seed).steps, func(s step) bool { return s.kind.name == "crash soon" }) {
			continue
		}
		t.Run(fmt.Sprintf("seed-%d", seed), func(t *testing.T) {
			t.Parallel()
			a, b := once(t, newPlan(seed)), once(t, newPlan(seed))
			for i := range max(len(a.trace), len(b.trace)) {
				if i >= len(a.trace) || i >= len(b.trace) || result(a.trace[i]) != result(b.trace[i]) {
					t.Errorf("line %d:\n%s\n%s", i, line(a.trace, i), line(b.trace, i))
					break
				}
			}
		})
	}
}

// result is a line of the trace without its moment.
func result(line string) string { return line[min(len(line), 13):] }

func line(list []string, i int) string {
	if i < len(list) {
		return list[i]
	}
	return "(end)"
}

// savedPlan is a plan as it is kept in a file: it means the same when kinds were added.
type savedPlan struct {
	Seed             uint64
	Connected, Quiet bool
	Fork             bool `json:",omitempty"`
	Writers          int
	Scope, Cron      [layers]int
	Pull             bool
	ParentWins       bool `json:",omitempty"`
	Steps            []savedStep
}

type savedStep struct {
	Kind                       string
	Pause                      time.Duration
	Layer, Repo, Tag, Image, N int
}

func (p plan) write(name string) error {
	s := savedPlan{Seed: p.seed, Connected: p.connected, Quiet: p.quiet, Fork: p.fork, Writers: p.writers, Scope: p.scope, Cron: p.cron, Pull: p.pull, ParentWins: p.parentWins}
	for _, x := range p.steps {
		s.Steps = append(s.Steps, savedStep{x.kind.name, x.pause, x.layer, x.repo, x.tag, x.image, x.n})
	}
	body, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return os.WriteFile(name, append(body, '\n'), 0o600)
}

func readPlan(name string) (plan, error) {
	body, err := os.ReadFile(name)
	if err != nil {
		return plan{}, err
	}
	var s savedPlan
	if err := json.Unmarshal(body, &s); err != nil {
		return plan{}, err
	}
	p := plan{seed: s.Seed, connected: s.Connected, quiet: s.Quiet, fork: s.Fork, writers: s.Writers, scope: s.Scope, cron: s.Cron, pull: s.Pull, parentWins: s.ParentWins}
	for _, x := range s.Steps {
		var k *kind
		for _, known := range slices.Concat(kinds, laterKinds) {
			if known.name == x.Kind {
				k = known
			}
		}
		if k == nil {
			return p, fmt.Errorf("%s: there is no step %q", name, x.Kind)
		}
		p.steps = append(p.steps, step{k, x.Pause, x.Layer, x.Repo, x.Tag, x.Image, x.N})
	}
	return p, nil
}
