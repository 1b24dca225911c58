package module

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// eventCursor is how far the changes of the content were told as events. With the store's own record of changes
	// behind it, it is the whole queue: durable, in order, and no longer than there are tags.
	eventCursor = "events/cursor"
	// eventOutput is the module's output that carries them.
	eventOutput = "registryEvents"
	// eventPage is how many changes are told between two writes of the cursor.
	eventPage = 100
	// eventRetry is the pause after edgeHub did not take one.
	eventRetry = 10 * time.Second
)

// tell sends an event for each tag that came or went here and that a notification pattern selects. While edgeHub is
// away they wait; of several moves of one tag the last is told.
func (m *Module) tell(ctx context.Context) {
	if m.hub == nil {
		return
	}
	for ctx.Err() == nil {
		changed := m.store.Changed()
		more, err := m.tellPage(ctx)
		if more && err == nil {
			continue
		}
		var retry <-chan time.Time
		timer := time.NewTimer(eventRetry)
		if err != nil {
			m.log.Debug("events wait for edgeHub", "error", err)
			retry, changed = timer.C, nil
		}
		select {
		case <-ctx.Done():
		case <-m.tellChanged: // with the first pattern, what is here already is noted as no news
		case <-changed:
		case <-retry:
		}
		timer.Stop()
	}
}

// tellPage tells a page of changes; more is whether there is another. Without a pattern it does nothing, not even a
// write.
func (m *Module) tellPage(ctx context.Context) (more bool, err error) {
	m.mu.Lock()
	patterns := registry.ParseNotifications(m.config.Notifications)
	m.mu.Unlock()
	if len(patterns) == 0 {
		return false, nil
	}
	raw, err := m.store.Document(ctx, eventCursor)
	if err != nil {
		return false, err
	}
	since := string(raw)
	page, err := m.store.Changes(ctx, since, eventPage, func(string) bool { return true })
	if err != nil || page.Cursor == since {
		return false, err
	}
	for _, c := range page.Entries {
		e := m.event(ctx, page.Cursor, c)
		if raw == nil || !patterns.Match(e) {
			continue // what was here before the first pattern is no news
		}
		body, err := json.Marshal(e)
		if err != nil {
			return false, err
		}
		if err := m.hub.Output(ctx, eventOutput, body); err != nil {
			return false, err
		}
	}
	return page.More, m.store.PutDocument(ctx, eventCursor, []byte(page.Cursor))
}

// event makes the event of a change. Its id follows from the change, so that one that is sent twice can be known.
func (m *Module) event(ctx context.Context, cursor string, c registry.Change) registry.Event {
	sum := sha256.Sum256([]byte(cursor + "\n" + c.Repository + "\n" + c.Tag + "\n" + string(c.Digest)))
	e := registry.Event{
		ID: hex.EncodeToString(sum[:16]), Time: m.clock.Now(), Action: registry.EventPush,
		Repository: c.Repository, Tag: c.Tag, Registry: m.name, Topic: registry.EventTopic("", m.name),
	}
	if c.Digest == "" {
		e.Action = registry.EventDelete
		return e
	}
	e.Target.Digest = c.Digest
	if d, err := m.store.ResolveManifest(ctx, c.Repository, registry.DigestReference(c.Digest)); err == nil {
		e.Target = d
	}
	return e
}
