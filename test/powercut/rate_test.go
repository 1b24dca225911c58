package powercut

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the driver that the configuration names
	"github.com/sirupsen/logrus"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// other holds "address directory" in the process that is distribution's registry.
const other = "POWERCUT_DISTRIBUTION"

// serveOther is that process.
func serveOther(what string) int {
	addr, dir, _ := strings.Cut(what, " ")
	logrus.SetOutput(io.Discard) // it logs each request through the global logger
	config := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem":  configuration.Parameters{"rootdirectory": dir},
		"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
	}}
	config.HTTP.Secret = "of this test"
	server := &http.Server{Addr: addr, Handler: handlers.NewApp(context.Background(), config), ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	return 1
}

// startOther runs distribution's registry on dir as a process of its own, as ours is one.
func startOther(tb testing.TB, dir string) string {
	tb.Helper()
	addr, release, err := linkproxy.ReservePort()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), other+"="+addr+" "+dir)
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		release()
	})
	c := newClient(addr)
	defer c.close()
	for begin := time.Now(); ; {
		if a, err := c.do(tb.Context(), "GET", "/v2/", "", nil); err == nil && a.status == 200 {
			return addr
		}
		if time.Since(begin) > 30*time.Second {
			tb.Fatal("distribution does not start")
		}
		time.Sleep(10 * time.Millisecond) // it says nothing when it is ready
	}
}

// rate pushes small images from four clients for so long and returns the acknowledged blobs and manifests per second.
func rate(tb testing.TB, addr string, next *atomic.Uint64, long time.Duration) float64 {
	tb.Helper()
	var acks atomic.Int64
	var group sync.WaitGroup
	begin := time.Now()
	for i := range pushers {
		group.Go(func() {
			c := newClient(addr)
			defer c.close()
			for time.Since(begin) < long {
				n := next.Add(1)
				image := registrytest.NewImage(n, 4000, 9000)
				if err := c.push(tb.Context(), fmt.Sprint("rate/app", i), fmt.Sprint("t", n%16), image); err != nil {
					tb.Error(err)
					return
				}
				acks.Add(int64(len(image.Blobs)) + 1)
			}
		})
	}
	group.Wait()
	return float64(acks.Load()) / time.Since(begin).Seconds()
}

// TestDurableRate pushes to this registry and to distribution's, which is the other one that loses nothing, on the same
// disk in turns.
func TestDurableRate(t *testing.T) {
	if count(t, 0, 1) == 0 {
		t.Skip("runs with POWERCUT=n (make test-chaos-short)")
	}
	base := t.TempDir()
	r, err := newRig(t.Context(), base, binary(t), "", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	theirs := filepath.Join(base, "theirs")
	if err := os.Mkdir(theirs, 0o700); err != nil {
		t.Fatal(err)
	}
	addr := startOther(t, theirs)
	var next atomic.Uint64
	next.Store(1 << 30)
	var ours, others float64
	for range 3 {
		ours += rate(t, r.layer.Addr, &next, time.Second) / 3
		others += rate(t, addr, &next, time.Second) / 3
	}
	t.Logf("acknowledged blobs and manifests per second, 4 clients: ours %.0f, distribution %.0f", ours, others)
	if ours <= others {
		t.Errorf("ours %.0f, distribution %.0f: both are durable, and ours is the slower one", ours, others)
	}
}
