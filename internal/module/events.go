package module

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// eventOutput is the module's output that carries the events.
	eventOutput = "registryEvents"
	// eventPage is how many events are told between two writes of what was told.
	eventPage = 100
	// eventRetry is the pause after edgeHub did not take one.
	eventRetry = 10 * time.Second
)

// tell sends an event for each manifest and tag that came or went here and that a notification pattern selects. The
// store's journal is the queue: durable, in order and bounded. While edgeHub is away events wait there; an event that
// was sent and is not known to have arrived is sent again with the same id.
func (m *Module) tell(ctx context.Context) {
	if m.hub == nil {
		return
	}
	for ctx.Err() == nil {
		changed := m.store.JournalChanged()
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
		case <-m.tellChanged:
		case <-changed:
		case <-retry:
		}
		timer.Stop()
	}
}

// queueChanges says to the store what it has to keep for others: events, where a pattern selects some and there is an
// edgeHub to tell, and what clients change, where a parent takes it.
func (m *Module) queueChanges(ctx context.Context, c registry.Config) {
	climbing := c.Mode == registry.ReadWrite && c.Parent.GatewayEndpoint != ""
	err := errors.Join(m.store.SetJournal(ctx, m.hasTwin() && len(c.Notifications) > 0), m.store.SetClimbing(ctx, climbing))
	if err != nil && ctx.Err() == nil {
		m.log.Error("what is queued for edgeHub and the parent may be incomplete until the next start", "error", err)
	}
}

// tellPage tells a page of events; more is whether there is another.
func (m *Module) tellPage(ctx context.Context) (more bool, err error) {
	m.mu.Lock()
	patterns := registry.ParseNotifications(m.config.Notifications)
	m.mu.Unlock()
	if len(patterns) == 0 {
		return false, nil
	}
	page, err := m.store.Journal(ctx, eventPage)
	if err != nil || len(page.Events) == 0 {
		return false, err
	}
	told := 0
	for _, e := range page.Events {
		if err = m.send(ctx, e, patterns); err != nil {
			break
		}
		told++
	}
	if told == 0 {
		return false, err
	}
	if page.Dropped > 0 {
		m.log.Warn("events were dropped while edgeHub was away: there was no room for them", "dropped", page.Dropped)
	}
	return page.Waiting > told, errors.Join(err, m.store.JournalTold(ctx, page.Seqs[told-1]))
}

// send sends one event, if anybody wants it.
func (m *Module) send(ctx context.Context, e registry.Event, patterns registry.Notifications) error {
	e.Registry, e.Topic = m.name, registry.EventTopic("", m.name)
	if !patterns.Match(e) {
		return nil
	}
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return m.hub.Output(ctx, eventOutput, body)
}

// droppedEvents is the entry of the status for events that were dropped and that nobody was told of yet.
func (m *Module) droppedEvents(ctx context.Context) []registry.StatusDetail {
	page, err := m.store.Journal(ctx, 1)
	if err != nil || page.Dropped == 0 {
		return nil
	}
	return []registry.StatusDetail{{
		Type: "Parent", Code: "EventsDropped", Timestamp: m.clock.Now(),
		Description: fmt.Sprintf("edgeHub takes no events: %d wait, and %d older ones were dropped, for there was no room for them. "+
			"Look after edgeHub, or select fewer events with notifications.", page.Waiting, page.Dropped),
	}}
}
