package syncer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// sessionsDocument holds the uploads at the parent that a later process can go on with.
	sessionsDocument = "sync/uploads"
	// maxSessions bounds them; the oldest are given up.
	maxSessions = 64
	// noteEvery is how often a session is written while it advances.
	noteEvery = 2 * time.Second
	// conflictsDocument holds the last conflicts that were decided.
	conflictsDocument = "sync/conflicts"
	maxConflicts      = 20
	// maxKnown bounds what is remembered of single tags and blobs at the parent; forgetting costs a question.
	maxKnown = 50_000
	// maxHolders bounds the repositories that a blob is looked for in.
	maxHolders = 8
)

// locks let one at a time work on a digest.
type locks struct {
	mu   sync.Mutex
	held map[registry.Digest]chan struct{}
}

func (l *locks) lock(ctx context.Context, d registry.Digest) error {
	for {
		l.mu.Lock()
		other := l.held[d]
		if other == nil {
			l.held[d] = make(chan struct{})
			l.mu.Unlock()
			return nil
		}
		l.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *locks) unlock(d registry.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.held[d])
	delete(l.held, d)
}

// uploadSession is an upload at the parent.
type uploadSession struct {
	Parent     string          `json:"parent"`
	Repository string          `json:"repository"`
	Digest     registry.Digest `json:"digest"`
	Session    string          `json:"session"`
}

// sessions are the uploads at the parent, oldest first.
type sessions struct {
	mu    sync.Mutex
	list  []uploadSession
	noted time.Time
}

func (s *sessions) get(parent, repo string, d registry.Digest) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.list {
		if u.Parent == parent && u.Repository == repo && u.Digest == d {
			return u.Session
		}
	}
	return ""
}

// set keeps where a session stands, an empty one as ended, and returns what is to be written; nil for nothing.
func (s *sessions) set(now time.Time, u uploadSession) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.list, func(o uploadSession) bool {
		return o.Parent == u.Parent && o.Repository == u.Repository && o.Digest == u.Digest
	})
	switch {
	case i < 0 && u.Session == "", i >= 0 && s.list[i].Session == u.Session:
		return nil
	case u.Session == "":
		s.list = slices.Delete(s.list, i, i+1)
	case i >= 0:
		s.list[i] = u
		if d := now.Sub(s.noted); d >= 0 && d < noteEvery {
			return nil // its beginning is written, and most registries go on from there
		}
	default:
		s.list = append(s.list, u)
		s.list = s.list[max(0, len(s.list)-maxSessions):]
	}
	s.noted = now
	body, err := json.Marshal(s.list)
	if err != nil {
		return nil
	}
	return body
}

// noteSession keeps where a push stands at the parent.
func (c *climber) noteSession(ctx context.Context, parent, repo string, d registry.Digest, session string) {
	body := c.sessions.set(c.s.o.Clock.Now(), uploadSession{parent, repo, d, session})
	if body == nil {
		return
	}
	if err := c.s.store.PutDocument(context.WithoutCancel(ctx), sessionsDocument, body); err != nil {
		c.s.o.Logger.Warn("where an upload stands cannot be kept; after a restart it begins anew", "digest", d, "error", err)
	}
}

// load reads what an earlier process kept. What it passed over of the parent's list because of an entry is not known any
// more: with entries in the queue the list is taken anew.
func (c *climber) load(ctx context.Context) {
	if raw, err := c.s.store.Document(ctx, sessionsDocument); err == nil && raw != nil {
		_ = json.Unmarshal(raw, &c.sessions.list) // what cannot be read is none
	}
	if raw, err := c.s.store.Document(ctx, conflictsDocument); err == nil && raw != nil {
		c.mu.Lock()
		_ = json.Unmarshal(raw, &c.told)
		c.mu.Unlock()
	}
	if list, err := c.outbox.OutboxEntries(ctx, 0, 1); err == nil && len(list) > 0 {
		_ = c.resync(ctx) // the index is read-only: nothing is written then, this either
	}
}

// resync has the next iteration take the whole list of the parent, soon.
func (c *climber) resync(ctx context.Context) error {
	if err := c.dropCursor(ctx); err != nil {
		return local(err)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.triggers = append(c.s.triggers, make(chan error, 1)) // nobody waits for it
	close(c.s.wake)
	c.s.wake = make(chan struct{})
	return nil
}

// dropCursor forgets up to where the parent's list is known, also for an iteration that is under way.
func (c *climber) dropCursor(ctx context.Context) error {
	c.cursor.Lock()
	defer c.cursor.Unlock()
	c.drops++
	return c.s.store.PutDocument(ctx, cursorDocument, []byte{})
}

// dropped is how often the cursor was forgotten.
func (c *climber) dropped() uint64 {
	c.cursor.Lock()
	defer c.cursor.Unlock()
	return c.drops
}

// leave takes an entry out of the queue.
func (c *climber) leave(ctx context.Context, e registry.OutboxEntry, how func(context.Context, uint64) error) error {
	passed, err := c.s.tags.leave(ctx, e, how)
	if err != nil {
		return local(err)
	}
	c.confirmed(ctx, e)
	if passed {
		return c.resync(ctx)
	}
	return nil
}

// has remembers that the parent has a blob.
func (c *climber) has(d registry.Digest, repo string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.had) >= maxKnown {
		clear(c.had)
	}
	c.had[d] = repo
}

// holders lists repositories that the parent may have a blob in, likeliest first.
func (c *climber) holders(ctx context.Context, repo string, d registry.Digest) []string {
	var list []string
	c.mu.Lock()
	if known := c.had[d]; known != "" && known != repo {
		list = append(list, known)
	}
	c.mu.Unlock()
	if c.s.o.Holders == nil {
		return list
	}
	all, err := c.s.o.Holders(ctx, d, maxHolders)
	if err != nil {
		return list
	}
	for _, r := range all {
		if r != repo && !slices.Contains(list, r) {
			list = append(list, r)
		}
	}
	return list
}

// sending shows what of an entry is on its way.
func (c *climber) sending(f *flight, b registry.Descriptor, moved int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.blob, f.moved = b, moved
}

// tell keeps how a conflict was decided, and logs it.
func (c *climber) tell(ctx context.Context, x registry.OutboxConflict) {
	decided := "ours was put over the parent's, which stays there under its digest"
	if x.ParentWins {
		decided = "the parent's stays, ours is kept under its digest"
	}
	c.s.o.Logger.Warn("a tag moved at the parent as well as here: "+decided,
		"repository", x.Repository, "tag", x.Tag, "ours", x.Ours, "parent", x.Theirs, "by", x.Principal)
	c.mu.Lock()
	c.told = append(c.told, x)
	c.told = slices.Clone(c.told[max(0, len(c.told)-maxConflicts):])
	body, err := json.Marshal(c.told)
	c.mu.Unlock()
	if err == nil {
		err = c.s.store.PutDocument(ctx, conflictsDocument, body)
	}
	if err != nil {
		c.s.o.Logger.Warn("a conflict cannot be kept for the status", "error", err)
	}
}

// describe adds the outbox to the status.
func (c *climber) describe(out *registry.Status) {
	if c.outbox == nil {
		return
	}
	status, err := c.outbox.OutboxStatus(c.s.base)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil && status.Pending > 0 {
		status.Error, status.Held, status.NextTry = message(c.err), true, c.retryAt
	}
	status.Conflicts = slices.Clone(c.told)
	out.Outbox = &status
	for _, f := range c.flights {
		if f.blob.Digest != "" {
			out.Transfers = append(out.Transfers, registry.TransferStatus{
				Repository: f.entry.Repository, Digest: f.blob.Digest, Size: f.blob.Size, Received: f.moved, Up: true,
			})
		}
	}
	now := c.s.o.Clock.Now()
	detail := func(is bool, code, format string, args ...any) {
		if !is {
			delete(c.since, code)
			return
		}
		if c.since[code].IsZero() {
			c.since[code] = now
		}
		out.StatusDetails = append(out.StatusDetails, registry.StatusDetail{
			Type: "Outbox", Code: code, Description: fmt.Sprintf(format, args...), Timestamp: c.since[code],
		})
	}
	isHeld := status.Held && !errors.Is(c.err, registry.ErrUnavailable) && !errors.Is(c.err, registry.ErrBudget)
	detail(isHeld, "OutboxHeld", "%d changes wait, all for one reason: %s. They are kept, and go on by themselves once that is over.",
		status.Pending, strings.TrimSuffix(status.Error, "."))
	detail(status.Expired > 0, "OutboxExpired",
		"%d changes were not delivered to the parent within messageTtl. They are kept: see \"outbox list\", send them again with \"outbox retry --expired\".", status.Expired)
	detail(status.Refused > 0, "OutboxRefused",
		"%d changes were refused by the parent. They are kept: \"outbox list\" says why; then \"outbox retry --refused\", or \"outbox drop\".", status.Refused)
}

// errNoOutbox is the answer of a store without one.
var errNoOutbox = registry.ErrUnsupported.WithMessage("this registry has no outbox")

// OutboxEntries lists what waits for the parent, as registry.Outbox does.
func (s *Syncer) OutboxEntries(ctx context.Context, after uint64, limit int) ([]registry.OutboxEntry, error) {
	if s.o.Outbox == nil {
		return nil, errNoOutbox
	}
	return s.o.Outbox.OutboxEntries(ctx, after, limit)
}

// OutboxRetry makes entries that which takes waiting again, and tries them now; their messageTtl begins anew. It returns
// how many.
func (s *Syncer) OutboxRetry(ctx context.Context, which func(registry.OutboxEntry) bool) (n int, err error) {
	if s.o.Outbox == nil {
		return 0, errNoOutbox
	}
	var list []registry.OutboxEntry
	err = s.up.each(ctx, func(e registry.OutboxEntry) {
		if e.State != registry.OutboxDelivered && which(e) {
			list = append(list, e)
		}
	})
	for _, e := range list {
		e.State, e.Attempts, e.NextAttempt, e.Requeued = registry.OutboxWaiting, 0, time.Time{}, s.o.Clock.Now()
		if nerr := s.o.Outbox.OutboxNote(ctx, e); nerr != nil {
			return n, errors.Join(err, nerr)
		}
		n++
	}
	s.up.nudge()
	return n, err
}

// OutboxDrop gives an entry up: it will not climb. What was pushed stays here under its digest until the grace of garbage
// collection ends, and the tag follows the parent again.
//
// Errors: NAME_UNKNOWN when there is no such entry.
func (s *Syncer) OutboxDrop(ctx context.Context, seq uint64) (registry.OutboxEntry, error) {
	if s.o.Outbox == nil {
		return registry.OutboxEntry{}, errNoOutbox
	}
	e, ok := s.up.entry(ctx, seq)
	if !ok {
		return registry.OutboxEntry{}, registry.ErrNameUnknown.WithMessage("the outbox has no entry %d", seq)
	}
	s.up.mu.Lock()
	if f := s.up.flights[seq]; f != nil {
		f.cancel()
	}
	s.up.mu.Unlock()
	if err := s.up.leave(ctx, e, func(ctx context.Context, seq uint64) error { return s.o.Outbox.OutboxLost(ctx, seq, "") }); err != nil {
		return registry.OutboxEntry{}, err
	}
	return e, s.up.resync(ctx)
}
