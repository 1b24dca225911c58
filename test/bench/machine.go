//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/connected-registry/connected-registry/test/layer"
)

// header says where and of what the figures are.
type header struct {
	When       time.Time         `json:"when"`
	Mode       string            `json:"mode"`
	Plan       plan              `json:"plan"`
	Processor  string            `json:"processor"`
	Cores      int               `json:"cores"`
	Pinned     string            `json:"pinned"`
	MemoryMiB  uint64            `json:"memoryMiB"`
	Kernel     string            `json:"kernel"`
	FileSystem string            `json:"fileSystem"`
	Go         string            `json:"go"`
	Versions   map[string]string `json:"versions"`
	LoadBefore string            `json:"loadBefore"`
	LoadAfter  string            `json:"loadAfter"`
	Seconds    float64           `json:"seconds"`
	Hurried    bool              `json:"hurried,omitempty"` // rounds were left out
}

func (b *bench) header(_ context.Context, mode string) header {
	h := header{
		When: time.Now().UTC(), Mode: mode, Plan: b.plan, Processor: processor(), Cores: cores, Pinned: pinning(), Go: runtime.Version(),
		Versions: map[string]string{}, LoadBefore: load(),
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		h.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		h.MemoryMiB = info.Totalram * uint64(info.Unit) >> 20
	}
	var fs unix.Statfs_t
	if unix.Statfs(b.dir, &fs) == nil {
		h.FileSystem = fileSystems[uint32(fs.Type)]
		if h.FileSystem == "" {
			h.FileSystem = fmt.Sprintf("type %#x", uint32(fs.Type))
		}
	}
	for _, s := range append([]subject{b.ours, b.regsync}, b.peers...) {
		h.Versions[s.name] = s.version
	}
	return h
}

var fileSystems = map[uint32]string{0xef53: "ext4", 0x58465342: "xfs", 0x01021994: "tmpfs: not a disk", 0x9123683e: "btrfs", 0x794c7630: "overlayfs"}

func (h header) print(w io.Writer) {
	v := h.Versions
	fmt.Fprintf(w, "%s  bench, %s: rounds %d, A/B/A/B; figures are medians, ratios are medians (lowest-highest) of the rounds\n", h.When.Format(time.DateTime), h.Mode, h.Plan.Rounds)
	fmt.Fprintf(w, "machine   %s, %d cores, %d MiB, Linux %s, %s, %s; load average %s\n", h.Processor, h.Cores, h.MemoryMiB, h.Kernel, h.FileSystem, h.Go, h.LoadBefore)
	fmt.Fprintf(w, "cores     %s\n", h.Pinned)
	fmt.Fprintf(w, "ours      %s\nbeside    distribution %s, olareg %s, regsync %s\n", v["ours"], v["distribution"], v["olareg"], v["regsync"])
	fmt.Fprintln(w, "floor     a bare net/http server: files by sendfile, manifests in a map, no index, no sync; floorfs: the same, file and directory synced")
}

// cores of the machine, as it was before this process took some of them.
var cores = runtime.NumCPU()

const pinnedEnv = "CONNECTED_REGISTRY_BENCH_CORES"

// meterSet is the one of the clients' cores that belongs to who measures while others of this process work.
var serverSet, clientSet, meterSet unix.CPUSet

// pinClient gives this process the upper half of the cores, and what it starts by pinned the lower half. With less than
// four cores all share all.
func pinClient() error {
	var all unix.CPUSet
	if v := os.Getenv(pinnedEnv); v != "" {
		if _, err := fmt.Sscanf(v, "%d", &cores); err != nil {
			return err
		}
		for i := range cores {
			if i < cores/2 {
				serverSet.Set(i)
			} else {
				clientSet.Set(i)
			}
		}
		meterSet.Set(cores / 2)
		return nil
	}
	if err := unix.SchedGetaffinity(0, &all); err != nil || cores < 4 || all.Count() != cores || !all.IsSet(0) || !all.IsSet(cores-1) {
		return nil // shared; the header says so
	}
	for i := cores / 2; i < cores; i++ {
		clientSet.Set(i)
	}
	runtime.LockOSThread()
	if err := unix.SchedSetaffinity(0, &clientSet); err != nil {
		return nil // as above
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, os.Args, append(os.Environ(), fmt.Sprintf("%s=%d", pinnedEnv, cores)))
}

func pinning() string {
	if serverSet.Count() == 0 {
		return "shared by servers and clients"
	}
	return fmt.Sprintf("servers on 0-%d, clients and upstream registries on %d-%d", cores/2-1, cores/2, cores-1)
}

// pinned runs f, and what f starts gets the servers' cores.
func pinned(f func() error) error {
	if serverSet.Count() == 0 {
		return f()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.SchedSetaffinity(0, &serverSet); err != nil {
		return fmt.Errorf("set affinity: %w", err)
	}
	defer func() { _ = unix.SchedSetaffinity(0, &clientSet) }()
	return f()
}

func processor() string {
	body, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(body)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

func load() string {
	body, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	f := strings.Fields(string(body))
	return strings.Join(f[:min(3, len(f))], " ")
}

// processorTime is what the processors of the machine have done since it started, in ticks of the system's clock.
type processorTime struct{ all, stolen uint64 }

// spentTime reads it: the first line of /proc/stat is user, nice, system, idle, iowait, irq, softirq and steal, which is
// what the host of a virtual machine gave to others, and then guests, who are in user already.
func spentTime() (t processorTime) {
	body, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t
	}
	line, _, _ := strings.Cut(string(body), "\n")
	for n, f := range strings.Fields(line) {
		v, err := strconv.ParseUint(f, 10, 64)
		if err != nil || n > 8 {
			continue
		}
		t.all += v
		if n == 8 {
			t.stolen = v
		}
	}
	return t
}

// stolenSince is which part of the time the host took; not ok where nothing is known.
func (t processorTime) stolenSince(before processorTime) (part float64, ok bool) {
	if before.all == 0 || t.all <= before.all {
		return 0, false
	}
	return float64(t.stolen-before.stolen) / float64(t.all-before.all), true
}

// revision of the product that is built.
func revision(ctx context.Context) string {
	root, err := layer.Root(ctx)
	if err != nil {
		return "unknown"
	}
	cmd := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// allocated returns the bytes of the blocks below dir.
func allocated(dir string) (float64, error) {
	var sum float64
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += float64(st.Blocks) * 512
		}
		return nil
	})
	return sum, err
}
