package edgetwin

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/test/cloud"
)

// TestModuleWithAWrongClock: the clock of the device is in 1970, is set to the right time, falls back to 2000, jumps to
// 2100 and comes back. The module never ends and never stops serving and taking pushes, each new twin is put in force,
// and each synchronisation brings what the parent has.
func TestModuleWithAWrongClock(t *testing.T) {
	parent, err := cloud.Start("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := parent.Close(); err != nil {
			t.Error(err)
		}
	})
	d := newDevice(t, map[string]any{
		"schemaVersion": "1.0", "mode": "ReadWrite", "repositories": map[string]any{"app": "acme/app"},
		"parent": map[string]any{"gatewayEndpoint": parent.Addr, "protocol": "http", "syncProperties": map[string]any{"schedule": "0 5 * * *", "syncWindow": "P1D"}},
	})
	right := time.Now()
	var offset atomic.Int64
	set := func(now time.Time) { offset.Store(int64(time.Until(now))) }
	set(time.Unix(0, 0))
	r := run(t, d, t.TempDir(), func(o *module.Options) {
		o.AllowInsecureParent = true
		o.Clock = clock.Func(func() time.Time { return time.Now().Add(time.Duration(offset.Load())) })
		o.Built = right
	})
	for i, year := range []int{1970, right.Year(), 2000, 2100, right.Year()} {
		if year == right.Year() {
			set(time.Now())
		} else {
			set(time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC))
		}
		what := fmt.Sprintf("step %d, in %d: ", i, year)
		version, err := d.UpdateDesired(id, map[string]any{"storage": map[string]any{"reserveMiB": 100 + i}})
		if err != nil {
			t.Fatal(err)
		}
		r.until(what+"the new twin is in force", func() bool {
			return strings.Contains(r.reported(), fmt.Sprintf(`"storage":{"ac":200,"av":%d`, version))
		})
		layer, err := cloud.Layer(fmt.Sprint("layer", i), 1000)
		if err != nil {
			t.Fatal(err)
		}
		img, err := cloud.Image(layer)
		if err != nil {
			t.Fatal(err)
		}
		tag := fmt.Sprint("v", i)
		if err := cloud.Push(t.Context(), parent.Addr, "acme/app:"+tag, img); err != nil {
			t.Fatal(err)
		}
		r.until(what+"the parent's image comes", func() bool {
			r.method("sync", "")
			resp, err := http.Get("http://" + r.addr + "/v2/acme/app/manifests/" + tag)
			if err != nil {
				return false
			}
			_ = resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
		r.push("line/app", tag, registrytest.NewImage(uint64(i+1), 1000))
		if resp := r.method("gc", ""); resp.Status != http.StatusOK {
			t.Errorf("%sgc: %d %s", what, resp.Status, resp.Payload)
		}
		if !r.serves() {
			t.Errorf("%sit does not serve", what)
		}
	}
	for i := range 5 {
		resp, err := http.Get("http://" + r.addr + "/v2/line/app/manifests/v" + fmt.Sprint(i))
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("what was pushed in step %d: %v %v", i, resp, err)
		}
		_ = resp.Body.Close()
	}
}
