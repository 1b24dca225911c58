package edgetwin

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/edgesim"
)

// moody is a cloud that can be away, and that refuses one tag.
type moody struct {
	addr string
	away atomic.Bool
}

func newMoody(t *testing.T, to string) *moody {
	t.Helper()
	m := &moody{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case m.away.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/manifests/fixed"):
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"errors":[{"code":"DENIED","message":"the quota of the plant is used up"}]}`))
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	m.addr = strings.TrimPrefix(s.URL, "http://")
	return m
}

// TestModuleTellsOfItsQueue: a tag moves at the cloud as well as here, a push is refused, and one is not delivered within
// messageTtl, all while edgeHub is away. Each is told of once by an event of its own, and the twin says what to do.
func TestModuleTellsOfItsQueue(t *testing.T) {
	above, err := cloud.Start("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = above.Close() })
	put := func(name string) string {
		t.Helper()
		layer, err := cloud.Layer(name, 100)
		if err != nil {
			t.Fatal(err)
		}
		img, err := cloud.Image(layer)
		if err == nil {
			err = cloud.Push(t.Context(), above.Addr, "acme/app:moves", img)
		}
		if err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d.String()
	}
	parent := newMoody(t, above.Addr)
	put("base")
	d := newDevice(t, map[string]any{
		"schemaVersion": "1.0", "mode": "ReadWrite", "repositories": map[string]any{"app": "acme/app"},
		"notifications": map[string]any{"a": "*:expired", "b": "*:refused", "c": "*:conflict"},
		"parent": map[string]any{
			"gatewayEndpoint": parent.addr, "protocol": "http",
			"syncProperties": map[string]any{"schedule": "* * * * *", "messageTtl": "P1D"},
		},
	})
	var offset atomic.Int64
	dir := t.TempDir()
	start := func() *running {
		return run(t, d, dir, func(o *module.Options) {
			o.AllowInsecureParent, o.ConfirmAfter = true, -1
			o.Clock = clock.Func(func() time.Time { return time.Now().Add(time.Duration(offset.Load())) })
		})
	}
	r := start()
	r.until("it is in sync", func() bool {
		resp, err := http.Get("http://" + r.addr + "/v2/acme/app/tags/list")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	r.until("the twin is in force", func() bool { return strings.Contains(r.reported(), `"notifications":{"ac":200`) })
	d.SetFaults(func(f *edgesim.Faults) { f.HubDown = true })
	parent.away.Store(true)
	ours, fixed, late := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100), registrytest.NewImage(3, 100)
	r.push("acme/app", "moves", ours)
	r.push("acme/app", "fixed", fixed)
	theirs := put("theirs")
	parent.away.Store(false)
	stuck := func(state registry.OutboxState, n int) func() bool {
		return func() bool {
			var page module.OutboxPage
			err := module.Control(t.Context(), dir, http.MethodPost, "/methods/outboxList", map[string]int{"limit": 10}, &page)
			return err == nil && len(page.Entries) == n && !slices.ContainsFunc(page.Entries, func(e registry.OutboxEntry) bool { return e.State != state })
		}
	}
	again := map[string]bool{"all": true}
	if err := module.Control(t.Context(), dir, http.MethodPost, "/methods/outboxRetry", again, &struct{}{}); err != nil {
		t.Fatal(err)
	}
	r.until("one is refused and the other delivered", stuck(registry.OutboxRefused, 1))
	var dropped registry.OutboxEntry
	if err := module.Control(t.Context(), dir, http.MethodPost, "/methods/outboxDrop", map[string]int{"entry": 2}, &dropped); err != nil {
		t.Fatal(err)
	}
	parent.away.Store(true)
	r.push("acme/app", "late", late)
	r.stop()
	offset.Store(int64(25 * time.Hour))
	r = start()
	r.until("one is expired", stuck(registry.OutboxExpired, 1))
	d.SetFaults(func(f *edgesim.Faults) { f.HubDown = false })
	want := []string{
		fmt.Sprintf("ConnectedRegistry.TagConflict acme/app:moves %s entry 1 by floor, newestWins over %s, lost %[2]s", ours.Digest, theirs),
		fmt.Sprintf("ConnectedRegistry.ChangeRefused acme/app:fixed %s entry 2 by floor: the quota", fixed.Digest),
		fmt.Sprintf("ConnectedRegistry.ChangeExpired acme/app:late %s entry 3 by floor", late.Digest),
	}
	told := func() (list []string) {
		seen := map[string]bool{}
		for _, e := range r.sent() {
			if seen[e.ID] || e.Outbox == nil { // one that was sent again has its id
				continue
			}
			seen[e.ID] = true
			o := e.Outbox
			text := fmt.Sprintf("%s %s:%s %s entry %d by %s", e.Type(), e.Repository, e.Tag, e.Target.Digest, o.Entry, o.Principal)
			if o.Conflict != "" {
				text += fmt.Sprintf(", %s over %s, lost %s", o.Conflict, o.Parent, o.Overwritten)
			}
			if strings.Contains(o.Error, "the quota") {
				text += ": the quota"
			}
			list = append(list, text)
		}
		return list
	}
	r.until("the last event arrives", func() bool { return len(told()) >= len(want) })
	got := told()
	slices.Sort(got) // the first two are of the same moment
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("events:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r.until("the twin says what to do", func() bool { return strings.Contains(r.reported(), "outbox retry --expired") })
	parent.away.Store(false)
	if err := module.Control(t.Context(), dir, http.MethodPost, "/methods/outboxRetry", map[string]bool{"expired": true}, &struct{}{}); err != nil {
		t.Fatal(err)
	}
	r.until("what was expired is in the cloud", func() bool {
		resp, err := http.Head("http://" + above.Addr + "/v2/acme/app/manifests/late")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.Header.Get("Docker-Content-Digest") == late.Digest.String()
	})
}
