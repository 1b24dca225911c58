package powercut

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/mounts"
)

// perVolume is how many rounds there are on one file system before a fresh one.
const perVolume = 5

var (
	workDir  string
	binaries = map[string]bool{} // that were built
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run starts this test anew in a mount namespace of its own, where that is possible, and else runs here: then the tests
// that need mounts say why they do not run.
func run(m *testing.M) int {
	if what := os.Getenv(other); what != "" {
		return serveOther(what)
	}
	if code, done := mounts.Enter(); done {
		return code
	}
	dir, err := os.MkdirTemp("", "connected-registry-powercut-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	workDir = dir
	return m.Run()
}

// binary builds the registry once.
func binary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(workDir, "connected-registry")
	if err := build(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

func build(ctx context.Context, path string) error {
	if binaries[path] {
		return nil
	}
	err := layer.Build(ctx, path)
	binaries[path] = err == nil
	return err
}

// count is how many rounds to run: POWERCUT, or what the run has by itself.
func count(t *testing.T, normal, atLength int) int {
	t.Helper()
	if text := os.Getenv("POWERCUT"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("POWERCUT=%s: %v", text, err)
		}
		return n
	}
	if long {
		return atLength
	}
	return normal
}

// seed is that of the run.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := uint64(time.Now().UnixNano()) & 0xffff
	if text := os.Getenv("POWERCUT_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			t.Fatalf("POWERCUT_SEED=%s: %v", text, err)
		}
		s = n
	}
	t.Logf("to run this again: POWERCUT_SEED=%d", s)
	return s
}

// total is what several rigs found.
type total struct {
	rounds, acks, facts, served int
	synced                      int64
	slowest, drained            time.Duration
	problems                    []string
}

func (x *total) String() string {
	return fmt.Sprintf("%d rounds, %d requests acknowledged, %d paths read back, %d tags walked, %d syncs, longest start %s: %d problems",
		x.rounds, x.acks, x.facts, x.served, x.synced, x.slowest.Round(time.Millisecond), len(x.problems))
}

// rounds runs n rounds, with a fresh volume now and then; options take turns.
func rounds(t *testing.T, binary, kind string, end ending, n int, options ...string) *total {
	t.Helper()
	ctx, x, s := t.Context(), &total{}, seed(t)
	for v := 0; x.rounds < n; v++ {
		base, err := os.MkdirTemp(workDir, kind+"-")
		if err != nil {
			t.Fatal(err)
		}
		option := options[v%len(options)]
		r, err := newRig(ctx, base, binary, kind, option, s+uint64(v))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < perVolume && x.rounds < n && err == nil; i++ {
			err = r.round(ctx, end, uint64(x.rounds))
			x.rounds++
		}
		if err == nil {
			err = r.heal(ctx)
		}
		x.acks += r.oracle.count()
		x.facts += len(r.oracle.facts)
		x.served += r.oracle.served
		x.synced += r.synced.Load()
		x.slowest, x.drained = max(x.slowest, r.slowest), max(x.drained, r.drained)
		x.problems = append(x.problems, r.oracle.problems()...)
		log, _ := os.ReadFile(r.layer.LogFile())
		if closed := r.close(); err == nil {
			err = closed
		}
		if err != nil {
			t.Fatalf("volume %d (%q), seed %d: %v\n%s", v, option, s, err, tail(log))
		}
		if err := os.RemoveAll(base); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

func tail(log []byte) string {
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

// clean fails the test when anything was lost.
func (x *total) clean(t *testing.T) {
	t.Helper()
	t.Log(x)
	for i, p := range x.problems {
		if i == 10 {
			t.Errorf("and %d more", len(x.problems)-i)
			break
		}
		t.Error(p)
	}
	if x.acks < x.rounds || x.served == 0 || x.synced == 0 {
		t.Errorf("too little happened to say anything: %s", x)
	}
}

func mustMount(t *testing.T, kind string) {
	t.Helper()
	if reason := mounts.Forbidden(); reason != "" {
		t.Skip("no power cuts: " + reason)
	}
	if reason := forbidden(context.Background(), kind); reason != "" {
		t.Skip("no power cuts: " + reason)
	}
}

// TestPowerCut cuts the power at random moments.
func TestPowerCut(t *testing.T) {
	n := count(t, 2, 1000)
	path := binary(t)
	for kind, options := range map[string][]string{"ext4": {"", "commit=1", "commit=1000"}, "xfs": {""}} {
		t.Run(kind, func(t *testing.T) {
			mustMount(t, kind)
			t.Parallel()
			rounds(t, path, kind, powerCut, n, options...).clean(t)
		})
	}
}

// TestPowerCutAtTheEnd cuts the power while the process ends in order, with logs that are long for this build: the end
// writes the index anew, and two snapshots of it.
func TestPowerCutAtTheEnd(t *testing.T) {
	n := max(1, count(t, 5, 1000)/5)
	path := crippled(t)
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			mustMount(t, kind)
			t.Parallel()
			rounds(t, path, kind, leaving, n, "").clean(t)
		})
	}
}

// TestKill kills the process at random moments.
func TestKill(t *testing.T) {
	x := rounds(t, binary(t), "", killed, count(t, 5, 1000), "")
	x.clean(t)
}

// TestTerminate ends the process in order while clients work: edgeAgent kills it after 10 s.
func TestTerminate(t *testing.T) {
	x := rounds(t, binary(t), "", terminate, max(1, count(t, 5, 1000)/5), "")
	x.clean(t)
	if x.drained >= 8*time.Second {
		t.Errorf("the longest end took %s, want less than 8 s", x.drained)
	}
	t.Logf("longest end: %s", x.drained.Round(time.Millisecond))
}
