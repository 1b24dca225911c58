package module

import (
	"context"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// OutboxPage is a page of what waits for the parent.
type OutboxPage struct {
	Entries []registry.OutboxEntry `json:"entries"`
	// Held is why all that waits does so, and NextTry when that is looked at again; empty when each entry is tried by itself.
	Held    string    `json:"held,omitempty"`
	NextTry time.Time `json:"nextTry,omitzero"`
	After   uint64    `json:"after,omitempty"` // ask again with this for the next page
}

// methodOutboxList returns a page of the outbox: {"after": 0, "limit": 100}.
func (m *Module) methodOutboxList(ctx context.Context, payload []byte) (any, error) {
	req := struct {
		After uint64 `json:"after"`
		Limit int    `json:"limit"`
	}{Limit: 100}
	if err := parsePayload(payload, &req); err != nil {
		return nil, err
	}
	if req.Limit < 1 || req.Limit > registry.MaxPage {
		return nil, badPayload("limit: %d, want 1 to %d", req.Limit, registry.MaxPage)
	}
	list, err := m.syncer.OutboxEntries(ctx, req.After, req.Limit)
	if err != nil {
		return nil, err
	}
	page := OutboxPage{Entries: list}
	if list == nil {
		page.Entries = []registry.OutboxEntry{}
	}
	var s registry.Status
	if m.syncer.Describe(&s); s.Outbox != nil && s.Outbox.Held {
		page.Held, page.NextTry = s.Outbox.Error, s.Outbox.NextTry
	}
	if len(list) == req.Limit {
		page.After = list[len(list)-1].Seq
	}
	return page, nil
}

// OutboxRetry says which entries are sent again; exactly one of its fields is set.
type OutboxRetry struct {
	Entry   uint64 `json:"entry,omitempty"`
	All     bool   `json:"all,omitempty"`
	Expired bool   `json:"expired,omitempty"`
	Refused bool   `json:"refused,omitempty"`
}

func (r OutboxRetry) takes(e registry.OutboxEntry) bool {
	return r.All || e.Seq == r.Entry || (r.Expired && e.State == registry.OutboxExpired) || (r.Refused && e.State == registry.OutboxRefused)
}

// OutboxRetried is how many entries are sent again.
type OutboxRetried struct {
	Entries int `json:"entries"`
}

// methodOutboxRetry sends entries again: {"entry": 7}, or {"all": true}, {"expired": true}, {"refused": true}.
func (m *Module) methodOutboxRetry(ctx context.Context, payload []byte) (any, error) {
	var req OutboxRetry
	if err := parsePayload(payload, &req); err != nil {
		return nil, err
	}
	if req == (OutboxRetry{}) {
		return nil, badPayload("payload: want entry, all, expired or refused")
	}
	n, err := m.syncer.OutboxRetry(ctx, req.takes)
	if err == nil && n == 0 && req.Entry != 0 {
		err = registry.ErrNameUnknown.WithMessage("the outbox has no entry %d that could be sent again", req.Entry)
	}
	return OutboxRetried{n}, err
}

// methodOutboxDrop gives one entry up and returns it: {"entry": 7}.
func (m *Module) methodOutboxDrop(ctx context.Context, payload []byte) (any, error) {
	var req struct {
		Entry uint64 `json:"entry"`
	}
	if err := parsePayload(payload, &req); err != nil {
		return nil, err
	}
	if req.Entry == 0 {
		return nil, badPayload("payload: want entry, the number of one")
	}
	e, err := m.syncer.OutboxDrop(ctx, req.Entry)
	if err != nil {
		return nil, err
	}
	m.log.Warn("an entry of the outbox was given up by the operator: the parent will not have it",
		"entry", e.Seq, "action", e.Action, "repository", e.Repository, "tag", e.Tag, "digest", e.Digest, "pushed", e.Time, "by", e.Principal)
	m.audit.Audit(ctx, registry.AuditRecord{
		Category: registry.AuditContent, Operation: "outboxDrop", Principal: operator, Repository: e.Repository, Tag: e.Tag, Digest: e.Digest,
		Result: registry.AuditSuccess, Detail: string(e.Action) + " of " + e.Time.UTC().Format("2006-01-02T15:04:05Z") + " by " + e.Principal,
	})
	return e, nil
}
