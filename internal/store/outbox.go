package store

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// outboxBatch bounds the rows of one transaction that walks the outbox.
const outboxBatch = 500

// maxCounted bounds the memory of content whose bytes are counted in a queued row; beyond it content that rows share is
// counted for each.
const maxCounted = 50_000

// outboxCounts sums up rows.
type outboxCounts struct {
	states [4]int64 // by index of outboxStates
	bytes  int64
}

func (c *outboxCounts) add(row outboxRow, n int64) {
	c.states[row.state] += n
	c.bytes += n * row.bytes
}

// outboxState is what the store keeps in memory of its outbox.
type outboxState struct {
	mu      sync.Mutex
	counts  outboxCounts
	failure string // of the last attempt
	first   uint64 // rows with a higher number were acknowledged by this process
	counted map[registry.Digest]struct{}
	changed chan struct{}
}

// outboxDelta is what a transaction changes of it, once it is durable.
type outboxDelta struct {
	outboxCounts
	counted []registry.Digest
	woken   bool
	failure *string
}

func (t *tx) outboxDelta() *outboxDelta {
	if t.delta == nil {
		t.delta = &outboxDelta{}
	}
	return t.delta
}

// uncounted is how many bytes of a manifest and its blobs are in no row that was written lately.
func (t *tx) uncounted(m registry.Descriptor, row manifestRow) (n int64) {
	t.s.outboxed.mu.Lock()
	defer t.s.outboxed.mu.Unlock()
	d := t.outboxDelta()
	for _, b := range append([]target{{m.Digest, m.Size}}, row.blobs...) {
		if _, known := t.s.outboxed.counted[b.digest]; known || slices.Contains(d.counted, b.digest) {
			continue
		}
		d.counted = append(d.counted, b.digest)
		n += b.size
	}
	return n
}

// apply takes over what a transaction changed.
func (o *outboxState) apply(d *outboxDelta) {
	if d == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.counts.states {
		o.counts.states[i] += d.states[i]
	}
	o.counts.bytes += d.bytes
	if len(o.counted)+len(d.counted) > maxCounted || o.counted == nil || o.counts.states == [4]int64{} {
		o.counted = map[registry.Digest]struct{}{}
	}
	for _, x := range d.counted {
		o.counted[x] = struct{}{}
	}
	if d.failure != nil {
		o.failure = *d.failure
	}
	if d.woken {
		close(o.changed)
		o.changed = make(chan struct{})
	}
}

// loadOutbox reads the counters of the outbox and whether it grows.
func (s *Store) loadOutbox(t *tx) error {
	s.outboxed.mu.Lock()
	defer s.outboxed.mu.Unlock()
	s.outboxed.counts, s.outboxed.failure = outboxCounts{}, ""
	if s.outboxed.changed == nil {
		s.outboxed.changed = make(chan struct{})
	}
	meta := t.Bucket(bucketMeta) // an index that was made anew while the store runs knows of neither
	s.climbing.Store(s.climbing.Load() || meta.Get(keyClimbing) != nil)
	s.journaling.Store(s.journaling.Load() || meta.Get(keyJournal) != nil)
	q, err := t.outbox(false)
	if q == nil || err != nil {
		return err
	}
	s.outboxed.first = q.entries.Sequence()
	return q.entries.ForEach(func(_, v []byte) error {
		if row, err := decodeOutbox(v); err == nil {
			s.outboxed.counts.add(row, 1)
			if row.failure != "" {
				s.outboxed.failure = row.failure
			}
		}
		return nil
	})
}

// OutboxEntries implements registry.Outbox.
func (s *Store) OutboxEntries(ctx context.Context, after uint64, limit int) (list []registry.OutboxEntry, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	limit = min(max(limit, 1), registry.MaxPage)
	err = s.view(func(t *tx) error {
		q, err := t.outbox(false)
		if q == nil || err != nil {
			return err
		}
		c := q.entries.Cursor()
		for k, v := c.Seek(seqKey(after + 1)); k != nil && len(list) < limit; k, v = c.Next() {
			row, err := decodeOutbox(v)
			if err != nil {
				continue // the tag, which counts as pushed, gets a row again
			}
			list = append(list, row.entry(binary.BigEndian.Uint64(k)))
		}
		return nil
	})
	return list, err
}

// changeEntry runs fn for a row that is there.
func (s *Store) changeEntry(ctx context.Context, seq uint64, fn func(q *outboxTx, row outboxRow) error) error {
	return s.update(ctx, func(t *tx) error {
		q, err := t.outbox(false)
		if q == nil || err != nil {
			return err
		}
		row, ok := q.row(seq)
		if !ok {
			return nil
		}
		return fn(q, row)
	})
}

// OutboxDone implements registry.Outbox. A push whose tag was moved on meanwhile is queued by digest under the same
// number; it is done too.
func (s *Store) OutboxDone(ctx context.Context, seq uint64) error {
	return s.changeEntry(ctx, seq, func(q *outboxTx, row outboxRow) error {
		q.t.outboxDelta().failure = new(string)
		return q.settle(seq, row, false)
	})
}

// OutboxLost implements registry.Outbox, for whatever entry is given up: what an untag or a delete took away here comes
// back with synchronisation when the parent still has it.
func (s *Store) OutboxLost(ctx context.Context, seq uint64, theirs registry.Digest) error {
	return s.changeEntry(ctx, seq, func(q *outboxTx, row outboxRow) error {
		if theirs != "" {
			o := registry.EventOutbox{Conflict: registry.ParentWins, Parent: theirs}
			if row.action == rowPush {
				o.Overwritten = row.digest
			}
			if err := q.tellOutbox(registry.EventConflict, seq, row, o); err != nil {
				return err
			}
		}
		return q.settle(seq, row, true)
	})
}

// OutboxAttempt implements registry.Outbox. An attempt of which all is known already is not written again.
func (s *Store) OutboxAttempt(ctx context.Context, e registry.OutboxEntry, overwrites bool) (ok bool, err error) {
	if now, err := s.OutboxEntries(ctx, max(e.Seq, 1)-1, 1); err != nil {
		return false, err
	} else if len(now) == 1 && now[0].Seq == e.Seq && same(now[0], e) && now[0].Base == e.Base && now[0].Put == e.Put {
		return true, nil
	}
	err = s.changeEntry(ctx, e.Seq, func(q *outboxTx, row outboxRow) error {
		if ok = same(row.entry(e.Seq), e); !ok {
			return nil
		}
		if overwrites {
			o := registry.EventOutbox{Conflict: registry.NewestWins, Parent: e.Base, Overwritten: e.Base}
			if err := q.tellOutbox(registry.EventConflict, e.Seq, row, o); err != nil {
				return err
			}
		}
		row.above = above{e.Base, e.Put}
		return q.put(e.Seq, row)
	})
	return ok && err == nil, err
}

// same reports whether two entries of the same number are about the same change.
func same(a, b registry.OutboxEntry) bool {
	return a.Action == b.Action && a.Tag == b.Tag && a.Digest == b.Digest
}

// OutboxNote implements registry.Outbox. Of an entry that became another one meanwhile, because a client changed the
// tag again, nothing is noted. An entry that is made to wait again is as young as one that was just added.
func (s *Store) OutboxNote(ctx context.Context, e registry.OutboxEntry) error {
	state := slices.Index(outboxStates, e.State)
	if state < 0 {
		return registry.ErrInternal.WithMessage("outbox entry %d: state %q: want one of %v", e.Seq, e.State, outboxStates)
	}
	return s.changeEntry(ctx, e.Seq, func(q *outboxTx, row outboxRow) error {
		if !same(row.entry(e.Seq), e) {
			return nil
		}
		if state < stateExpired && !row.underWay() {
			row.requeued = q.t.now
		}
		if !e.Requeued.IsZero() {
			row.requeued = e.Requeued.Unix()
		}
		row.state, row.attempts, row.next = byte(state), int64(max(e.Attempts, 0)), 0
		if !e.NextAttempt.IsZero() {
			row.next = max(e.NextAttempt.UnixMilli(), 1)
		}
		row.failure = e.Error
		if len(row.failure) > maxFailure {
			row.failure = strings.ToValidUTF8(row.failure[:maxFailure], "")
		}
		q.t.outboxDelta().failure = &row.failure
		if old, _ := q.row(e.Seq); e.State == registry.OutboxRefused && old.state != row.state {
			if err := q.tellOutbox(registry.EventRefused, e.Seq, row, registry.EventOutbox{}); err != nil {
				return err
			}
		}
		return q.put(e.Seq, row)
	})
}

// OutboxExpire implements registry.Outbox, at most outboxBatch entries in one transaction; without any it writes nothing.
// Expired entries keep their content and can be made to wait again. What was acknowledged by this process is no older
// than the process, whatever the wall clock says: a device that boots with an old time sets its clock later.
func (s *Store) OutboxExpire(ctx context.Context, before time.Time) (expired int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	young := s.uptime() < s.clock.Now().Sub(before)
	old := func(seq uint64, row outboxRow) bool {
		return row.state == stateWaiting && row.since() < before.Unix() && !(young && seq > s.outboxed.first)
	}
	var due []uint64
	err = s.view(func(t *tx) error {
		q, err := t.outbox(false)
		if q == nil || err != nil {
			return err
		}
		return q.entries.ForEach(func(k, v []byte) error {
			if row, err := decodeOutbox(v); err == nil && len(k) == 8 && old(binary.BigEndian.Uint64(k), row) {
				due = append(due, binary.BigEndian.Uint64(k))
			}
			return nil
		})
	})
	for batch := range slices.Chunk(due, outboxBatch) {
		n := 0
		if err == nil {
			err = s.update(ctx, func(t *tx) (err error) { n, err = t.expire(batch, old); return err })
		}
		if err == nil {
			expired += n
		}
	}
	return expired, err
}

// expire marks those of the rows as expired that are old.
func (t *tx) expire(seqs []uint64, old func(uint64, outboxRow) bool) (n int, err error) {
	q, err := t.outbox(false)
	if q == nil || err != nil {
		return 0, err
	}
	for _, seq := range seqs {
		row, ok := q.row(seq)
		if !ok || !old(seq, row) {
			continue
		}
		row.state = stateExpired
		if err := q.tellOutbox(registry.EventExpired, seq, row, registry.EventOutbox{}); err != nil {
			return 0, err
		}
		if err := q.put(seq, row); err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// OutboxChanged implements registry.Outbox.
func (s *Store) OutboxChanged() <-chan struct{} {
	s.outboxed.mu.Lock()
	defer s.outboxed.mu.Unlock()
	return s.outboxed.changed
}

// OutboxStatus implements registry.Outbox. It reads counters and one row. Bytes is the content of queued pushes, each
// blob once; the parent may have some of it.
func (s *Store) OutboxStatus(ctx context.Context) (registry.OutboxStatus, error) {
	if err := ctx.Err(); err != nil {
		return registry.OutboxStatus{}, err
	}
	s.outboxed.mu.Lock()
	c, failure := s.outboxed.counts, s.outboxed.failure
	s.outboxed.mu.Unlock()
	out := registry.OutboxStatus{
		Pending: int(c.states[0] + c.states[1]), Delivered: int(c.states[1]), Expired: int(c.states[2]), Refused: int(c.states[3]), Bytes: max(c.bytes, 0), Error: failure,
	}
	err := s.view(func(t *tx) error {
		q, err := t.outbox(false)
		if q == nil || err != nil {
			return err
		}
		if k, v := q.entries.Cursor().First(); k != nil {
			if row, err := decodeOutbox(v); err == nil {
				out.Oldest = time.Unix(row.at, 0).UTC()
			}
		}
		return nil
	})
	return out, err
}
