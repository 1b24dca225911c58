package syncer_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// TestTroubleIsShownWithItsBeginning fails in each way for a while: the status says what is wrong and since when, and
// not when it was tried last.
func TestTroubleIsShownWithItsBeginning(t *testing.T) {
	tests := map[string]struct {
		spoil      func(*parent)
		code, kind string
		state      registry.ConnectionState
	}{
		"parent away":          {func(p *parent) { p.away = away }, "ParentUnreachable", "Parent", registry.Offline},
		"one list is refused":  {func(p *parent) { p.broken = map[string]error{"tags app": registry.ErrUnauthorized} }, "SyncFailed", "Sync", registry.Unhealthy},
		"everything is denied": {func(p *parent) { p.away = registry.ErrDenied }, "SyncFailed", "Sync", registry.Unhealthy},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				p := newParent()
				push(t, p, "app", "v1", registrytest.NewImage(1, 1000))
				r, stop := newReplica(t, dir, settings(t, p, "app"), syncer.Options{})
				defer stop()
				time.Sleep(2 * time.Minute)
				p.set(c.spoil)
				begin := time.Now()
				time.Sleep(50 * time.Minute) // within the hour after which the parent is asked who it is
				var st registry.Status
				r.Describe(&st)
				if len(st.StatusDetails) != 1 || st.ConnectionState != c.state {
					t.Fatalf("%s %+v, want %s and one detail", st.ConnectionState, st.StatusDetails, c.state)
				}
				d := st.StatusDetails[0]
				if late := d.Timestamp.Sub(begin); d.Code != c.code || d.Type != c.kind || d.Description == "" || late < 0 || late > 3*time.Minute {
					t.Errorf("%+v, %v after it began", d, late)
				}
				p.set(func(p *parent) { p.away, p.broken = nil, nil })
				time.Sleep(3*time.Minute + 30*time.Second)
				st = registry.Status{}
				if r.Describe(&st); len(st.StatusDetails) > 0 || st.ConnectionState != registry.Online {
					t.Errorf("after it was mended: %s %+v", st.ConnectionState, st.StatusDetails)
				}
			})
		})
	}
}
