package module

import (
	"context"
	"errors"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/schedule"
	"github.com/connected-registry/connected-registry/internal/store"
)

// lastCollection is when garbage was collected last, so that a device that is off at night collects in the morning.
const lastCollection = "gc/last"

// lookAgain bounds a pause until a time of the wall clock, because that clock may be set.
const lookAgain = time.Hour

// collect runs garbage collection by its schedule.
func (m *Module) collect(ctx context.Context) {
	last := m.lastCollection(ctx)
	for {
		m.mu.Lock()
		gc := m.config.GarbageCollection
		m.mu.Unlock()
		pause := lookAgain
		if cron, err := schedule.Parse(gc.Schedule); err == nil && gc.Enabled {
			now := m.clock.Now()
			due := schedule.Plan{Schedule: cron}.At(now, last)
			if due.Open {
				last = now
				m.collectNow(ctx, now)
			}
			pause = min(pause, due.Next.Sub(now))
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-m.gcChanged:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// lastCollection returns when the last collection was. A volume that never had one begins its count now: there is
// nothing to collect on it yet.
func (m *Module) lastCollection(ctx context.Context) time.Time {
	if raw, err := m.store.Document(ctx, lastCollection); err == nil && raw != nil {
		if t, err := time.Parse(time.RFC3339, string(raw)); err == nil {
			return t
		}
	}
	return m.clock.Now()
}

func (m *Module) collectNow(ctx context.Context, now time.Time) {
	result, err := m.store.GC(ctx, store.GCOptions{})
	if errors.Is(err, registry.ErrUnavailable) {
		m.log.Warn("garbage is not collected now", "error", err)
		return
	}
	if err == nil {
		err = m.store.PutDocument(ctx, lastCollection, []byte(now.Format(time.RFC3339)))
	}
	if err != nil {
		m.log.Error("garbage collection", "error", err)
		return
	}
	m.log.Info("garbage collection", "blobs", result.Blobs, "bytes", result.Bytes, "partials", result.Partials, "uploads", result.Uploads)
}
