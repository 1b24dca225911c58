package syncer

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// ownDocument holds by which of our own doings a tag or a manifest may yet change at the parent.
	ownDocument = "sync/own"
	// lateAfter is for how long a request without an answer may yet arrive: a system goes on to send what it has taken for
	// a connection for 13 to 30 minutes (RFC 1122 asks for 100 s at least), and so does a proxy that holds all of it.
	lateAfter = 30 * time.Minute
	// lookAfter is how often it is looked for such a request.
	lookAfter = time.Minute
	// maxOwn bounds what is kept of all tags, maxOwnTag of earlier states of a single one; the oldest are forgotten.
	maxOwn, maxOwnTag = 512, 32
)

// own is how a tag or a manifest may come to stand at the parent by our own doing, while something else is wanted there:
// a request that we gave up may arrive after a newer one, and a parent that loses what it answered for has again what it
// had before. Neither is a change by somebody else.
type own struct {
	Parent     string          `json:"parent"`
	Repository string          `json:"repository"`
	Tag        string          `json:"tag,omitempty"`    // empty: the manifest itself
	Digest     registry.Digest `json:"digest,omitempty"` // empty: no tag
	Gone       bool            `json:"gone,omitempty"`   // the manifest is not there
	Until      time.Time       `json:"until,omitzero"`   // until when a request may arrive; zero: where the tag stood before our changes, until the last is confirmed
}

// isLate reports whether it is a request that may yet arrive. What lies further ahead than any is from a clock that was ahead.
func (o own) isLate(now time.Time) bool {
	left := o.Until.Sub(now)
	return !o.Until.IsZero() && left > 0 && left <= lateAfter
}

// undoes reports whether it stands against what an entry wants.
func (o own) undoes(e registry.OutboxEntry) bool {
	switch {
	case o.Repository != e.Repository:
		return false
	case o.Tag != "" && o.Tag == e.Tag:
		return e.Action == registry.OutboxUntag && o.Digest != "" || e.Action == registry.OutboxPush && o.Digest != e.Digest ||
			e.Action == registry.OutboxDelete && o.Digest == e.Digest
	}
	return o.Digest == e.Digest && (e.Action == registry.OutboxPush && o.Gone || e.Action == registry.OutboxDelete && !o.Gone)
}

// owns are all of them, oldest first.
type owns struct {
	mu   sync.Mutex
	list []own
}

// at lists those of a tag at a parent that still count.
func (s *owns) at(now time.Time, parent, repo, tag string) (list []own) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.list {
		if o.Parent == parent && o.Repository == repo && o.Tag == tag && (o.Until.IsZero() || o.isLate(now)) {
			list = append(list, o)
		}
	}
	return list
}

// late is until when a request may arrive that undoes an entry; zero for none.
func (s *owns) late(now time.Time, parent string, e registry.OutboxEntry) (until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.list {
		if o.Parent == parent && o.isLate(now) && o.undoes(e) && o.Until.After(until) {
			until = o.Until
		}
	}
	return until
}

// ownChange keeps more of them, and forgets those that forget takes and those whose time is over. What it says is written
// before it returns, if anything changed.
func (c *climber) ownChange(ctx context.Context, forget func(own) bool, more ...own) error {
	s, now := &c.own, c.s.o.Clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	stale := func(o own) bool { return !o.Until.IsZero() && !o.isLate(now) }
	list := slices.DeleteFunc(slices.Clone(s.list), func(o own) bool {
		return stale(o) || forget(o) || slices.ContainsFunc(more, func(n own) bool {
			isSame := n.Until.IsZero() == o.Until.IsZero()
			n.Until = o.Until
			return isSame && n == o
		})
	})
	if len(list) == len(s.list) && len(more) == 0 {
		return nil
	}
	list = append(list, more...)
	for _, n := range more {
		same := func(o own) bool {
			return n.Until.IsZero() && o.Until.IsZero() && o.Repository == n.Repository && o.Tag == n.Tag
		}
		for count(list, same) > maxOwnTag {
			i := slices.IndexFunc(list, same)
			list = slices.Delete(list, i, i+1)
		}
	}
	list = list[max(0, len(list)-maxOwn):]
	body, err := json.Marshal(list)
	if err == nil {
		err = c.s.store.PutDocument(context.WithoutCancel(ctx), ownDocument, body)
	}
	if err == nil {
		s.list = list
	}
	return err
}

func count[T any](list []T, is func(T) bool) (n int) {
	for _, x := range list {
		if is(x) {
			n++
		}
	}
	return n
}

// meets prepares for a parent that this process sends to from now on. An attempt of an earlier process that did not end may
// have been sent; what another parent has answered for says nothing of this one.
func (c *climber) meets(ctx context.Context, parent string) error {
	now := c.s.o.Clock.Now()
	var late []own
	var again []registry.OutboxEntry
	err := c.each(ctx, func(e registry.OutboxEntry) {
		switch {
		case c.parent == "" && e.State == registry.OutboxWaiting && e.Tag != "" && e.Put != "" && c.s.o.LateAfter >= 0:
			late = append(late, own{Parent: parent, Repository: e.Repository, Tag: e.Tag, Digest: e.Put, Until: now.Add(c.s.o.LateAfter)})
		case c.parent != "" && e.State == registry.OutboxDelivered:
			e.State, e.NextAttempt = registry.OutboxWaiting, time.Time{}
			again = append(again, e)
		}
	})
	if err == nil && c.parent == "" {
		err = c.ownLoad(ctx, late)
	}
	for _, e := range again {
		if err == nil {
			err = c.outbox.OutboxNote(ctx, e)
		}
	}
	if err == nil {
		c.parent = parent
	}
	return err
}

// ownLoad reads what an earlier process kept, and adds what it left behind.
func (c *climber) ownLoad(ctx context.Context, late []own) error {
	raw, err := c.s.store.Document(ctx, ownDocument)
	if err != nil {
		return err
	}
	c.own.mu.Lock()
	_ = json.Unmarshal(raw, &c.own.list) // what cannot be read is none
	c.own.mu.Unlock()
	if len(late) == 0 {
		return nil
	}
	return c.ownChange(ctx, func(own) bool { return false }, late...)
}

// write makes a request that changes the parent. One of which no answer came is remembered: it may arrive later.
func (d *delivery) write(ctx context.Context, o own, request func() error) error {
	err := request()
	d.c.s.contact(err)
	unanswered := err != nil && (ctx.Err() != nil || !isAnswer(err) || errors.Is(err, registry.ErrUnavailable))
	if !unanswered || d.c.s.o.LateAfter < 0 {
		return err
	}
	o.Parent, o.Repository, o.Until = d.set.ParentName, d.e.Repository, d.c.s.o.Clock.Now().Add(d.c.s.o.LateAfter)
	if kerr := d.c.ownChange(ctx, func(own) bool { return false }, o); kerr != nil {
		d.c.s.o.Logger.Warn("what may yet arrive at the parent cannot be kept", "error", kerr)
	}
	return err
}

// ours reports whether the tag may stand at a digest at the parent, an empty one for nowhere, without anybody else.
func (d *delivery) ours(at registry.Digest) bool {
	return at == d.e.Base || slices.ContainsFunc(d.c.own.at(d.c.s.o.Clock.Now(), d.set.ParentName, d.e.Repository, d.e.Tag), func(o own) bool {
		return o.Digest == at
	})
}

// before keeps where the tag stood before it is put somewhere else, at a parent that may yet return to any of these: now it
// stands at one digest, and the entry was known to be so before.
func (d *delivery) before(ctx context.Context, at registry.Digest, known registry.OutboxEntry) error {
	if !d.forgetful() {
		return nil
	}
	states := []registry.Digest{at}
	if known.Put != "" {
		states = append(states, known.Put, known.Base)
	} else if known.Base != "" {
		states = append(states, known.Base)
	}
	var more []own
	for _, b := range states {
		o := own{Parent: d.set.ParentName, Repository: d.e.Repository, Tag: d.e.Tag, Digest: b}
		if b != d.e.Base && b != d.e.Put && !slices.Contains(more, o) {
			more = append(more, o)
		}
	}
	if len(more) == 0 {
		return nil
	}
	if err := d.c.ownChange(ctx, func(own) bool { return false }, more...); err != nil {
		return local(err)
	}
	return nil
}

// forgetful reports whether the parent is of a kind that may lose what it answered for.
func (d *delivery) forgetful() bool { return d.kind == registry.KindOCI && d.c.s.o.ConfirmAfter >= 0 }

// confirmed forgets where a tag stood before, since its entry leaves the queue.
func (c *climber) confirmed(ctx context.Context, e registry.OutboxEntry) {
	if e.Tag == "" {
		return
	}
	err := c.ownChange(ctx, func(o own) bool { return o.Until.IsZero() && o.Repository == e.Repository && o.Tag == e.Tag })
	if err != nil {
		c.s.o.Logger.Warn("where a tag stood at the parent cannot be forgotten", "repository", e.Repository, "tag", e.Tag, "error", err)
	}
}
