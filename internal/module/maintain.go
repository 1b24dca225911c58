package module

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/store"
)

// maintain looks after the data volume: a snapshot of the index now and then, and a scrub of all content when its time
// has come. Each of them says itself whether there is anything to do.
func (m *Module) maintain(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	scrubbed := make(chan struct{})
	go func() {
		defer close(scrubbed)
		m.scrub(ctx)
	}()
	for _, d := range []time.Duration{startTime, roughTime} {
		if clock.Wait(ctx, d) == nil {
			m.rest()
		}
	}
	for clock.Wait(ctx, m.store.SnapshotInterval()) == nil {
		if err := m.store.Snapshot(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("the index could not be kept; the snapshot before stays", "error", err)
		}
		m.rest()
	}
	<-scrubbed
}

// startTime is by when what only the start needs is done, in most places.
// After a power cut, or an end that did not get to all, a start has more to do, and holds the small content of the log until
// that is done: roughTime later.
const (
	startTime = time.Second
	roughTime = time.Minute
)

// rest gives back memory that the index took and nobody needs now.
func (m *Module) rest() {
	if err := m.store.Rest(); err != nil {
		m.log.Debug("the pages of the index stay in memory", "error", err)
	}
	if m.o.Rest != nil {
		m.o.Rest()
	}
}

// scrub reads content again, and looks each hour whether it is time.
func (m *Module) scrub(ctx context.Context) {
	for clock.Wait(ctx, lookAgain) == nil {
		result, err := m.store.Scrub(ctx, store.ScrubOptions{})
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, registry.ErrUnavailable):
			m.log.Debug("the content is not read again now", "error", err)
		case err != nil:
			m.log.Error("reading the content again", "error", err)
		case result.Damaged > 0:
			m.log.Warn("damaged content was found; the next synchronisation fetches it again", "damaged", result.Damaged, "blobs", result.Blobs)
		case result.Blobs > 0:
			m.log.Info("all content was read again and is sound", "blobs", result.Blobs, "bytes", result.Bytes)
		}
	}
}

// damage is the entry of the status for content that the volume lost and that is not healed yet.
func (m *Module) damage(ctx context.Context) []registry.StatusDetail {
	list, err := m.store.Damaged(ctx)
	if err != nil || len(list) == 0 {
		return nil
	}
	return []registry.StatusDetail{{
		Type: "Storage", Code: "ContentDamaged", Timestamp: m.clock.Now(),
		Description: fmt.Sprintf("%d files of the data volume are missing or damaged, the first is %s of %s: they are fetched from the parent again "+
			"with the next synchronisation; what only was here has to be pushed again. Check the disk.", len(list), list[0].Digest, list[0].Repository),
	}}
}
