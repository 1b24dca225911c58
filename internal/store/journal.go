package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxJournal bounds the events that wait to be told; beyond it the oldest are dropped and counted.
const maxJournal = 10_000

// journalActions has the code of each action in the journal as its index.
var journalActions = []registry.EventAction{
	registry.EventPush, registry.EventDelete, registry.EventExpired, registry.EventRefused, registry.EventConflict,
}

// journalRow is what came or went, a manifest by digest or a tag with its manifest, or what became of a row of the outbox.
type journalRow struct {
	action    registry.EventAction
	at        int64 // unix seconds
	repo, tag string
	digest    registry.Digest
	mediaType string
	size      int64
	outbox    *registry.EventOutbox
}

func (r journalRow) encode() []byte {
	b := putText(putText(putInt(putInt(nil, int64(slices.Index(journalActions, r.action))), r.at), r.repo), r.tag)
	b = putInt(putMediaType(putDigest(b, r.digest), r.mediaType), r.size)
	if o := r.outbox; o != nil {
		b = putInt(putText(putInt(b, int64(o.Entry)), string(o.Action)), o.Time.Unix())
		b = putText(putText(putText(b, o.Principal), o.Error), string(o.Conflict))
		b = putDigest(putDigest(b, o.Parent), o.Overwritten)
	}
	return b
}

func decodeJournal(b []byte) (row journalRow, err error) {
	r := reader{b: b}
	if n := r.uint(); n < uint64(len(journalActions)) {
		row.action = journalActions[n]
	} else {
		r.bad = true
	}
	row.at, row.repo, row.tag, row.digest = r.int(), r.text(), r.text(), r.optionalDigest()
	row.mediaType, row.size = r.mediaType(), r.int()
	if row.action != registry.EventPush && row.action != registry.EventDelete {
		row.outbox = &registry.EventOutbox{
			Entry: uint64(r.int()), Action: registry.OutboxAction(r.text()), Time: time.Unix(r.int(), 0).UTC(), Principal: r.text(), Error: r.text(),
			Conflict: registry.Conflict(r.text()), Parent: r.optionalDigest(), Overwritten: r.optionalDigest(),
		}
	}
	return row, r.err()
}

// JournalPage is a part of what came and went here and was not told yet, in the order in which it happened.
type JournalPage struct {
	Events  []registry.Event // without topic and registry; the ID is the same each time that an event is read
	Seqs    []uint64         // number of each event, for JournalTold
	Waiting int              // events that wait, these included
	Dropped int64            // older events that were dropped for want of room since JournalTold was called last
}

// SetJournal says whether somebody wants to be told what comes and goes here, durably. When nobody does any more, what
// waits is dropped; what came before somebody wants to know is no news.
func (s *Store) SetJournal(ctx context.Context, on bool) error {
	s.journaling.Store(on)
	is := func(t *tx) bool {
		meta, b := t.Bucket(bucketMeta), t.Bucket(bucketJournal)
		return on && meta.Get(keyJournal) != nil || !on && b == nil && meta.Get(keyJournal) == nil && meta.Get(keyJournalDropped) == nil
	}
	if s.already(is) {
		return ctx.Err()
	}
	return s.update(ctx, func(t *tx) error {
		meta, b := t.Bucket(bucketMeta), t.Bucket(bucketJournal)
		if on {
			return t.put(meta, keyJournal, []byte{1})
		}
		if err := t.remove(meta, keyJournal); err != nil || b == nil {
			return err
		}
		if err := t.remove(meta, keyJournalDropped); err != nil {
			return err
		}
		for k, _ := b.Cursor().First(); k != nil; k, _ = b.Cursor().First() {
			if err := t.remove(b, k); err != nil {
				return err
			}
		}
		return nil
	})
}

// JournalChanged returns a channel that is closed when an event was added after the call.
func (s *Store) JournalChanged() <-chan struct{} {
	s.changedMu.Lock()
	defer s.changedMu.Unlock()
	return s.journaled
}

// Journal returns the oldest events that were not told yet, at most limit (1 to registry.MaxPage).
func (s *Store) Journal(ctx context.Context, limit int) (page JournalPage, err error) {
	if err := ctx.Err(); err != nil {
		return page, err
	}
	limit = min(max(limit, 1), registry.MaxPage)
	err = s.view(func(t *tx) error {
		b := t.Bucket(bucketJournal)
		if b == nil {
			return nil
		}
		page.Dropped = int64(t.number(keyJournalDropped))
		c := b.Cursor()
		for k, v := c.First(); k != nil && len(page.Events) < limit; k, v = c.Next() {
			row, err := decodeJournal(v)
			if len(k) != 8 || err != nil {
				continue
			}
			page.Seqs = append(page.Seqs, binary.BigEndian.Uint64(k))
			page.Events = append(page.Events, row.event(k, v))
		}
		page.Waiting = waiting(b)
		return nil
	})
	return page, err
}

// waiting is the number of rows: their numbers have no gaps, for they go from the front.
func waiting(b *bbolt.Bucket) int {
	k, _ := b.Cursor().First()
	if len(k) != 8 {
		return 0
	}
	return int(b.Sequence() - binary.BigEndian.Uint64(k) + 1)
}

// event is the row as others see it. Its ID follows from all of it and its number.
func (r journalRow) event(key, value []byte) registry.Event {
	sum := sha256.Sum256(append(append([]byte{}, key...), value...))
	return registry.Event{
		ID: hex.EncodeToString(sum[:16]), Time: time.Unix(r.at, 0).UTC(), Action: r.action, Repository: r.repo, Tag: r.tag,
		Target: registry.Descriptor{MediaType: r.mediaType, Digest: r.digest, Size: r.size}, Outbox: r.outbox,
	}
}

// JournalTold takes out the events up to a number, which were told, and counts what is dropped anew.
func (s *Store) JournalTold(ctx context.Context, seq uint64) error {
	return s.update(ctx, func(t *tx) error {
		b := t.Bucket(bucketJournal)
		if b == nil {
			return nil
		}
		for k, _ := b.Cursor().First(); len(k) == 8 && binary.BigEndian.Uint64(k) <= seq; k, _ = b.Cursor().First() {
			if err := t.remove(b, k); err != nil {
				return err
			}
		}
		return t.remove(t.Bucket(bucketMeta), keyJournalDropped)
	})
}

// tell notes what came or went, in the transaction in which it does. Every manifest that can be pulled from now on is
// told of, with its tag where it comes under one and by digest otherwise; every move of a tag; every tag that goes, with
// the digest that it had; and every manifest that goes, whoever did it: a client, synchronisation or collection.
func (r *repoTx) tell(deleted bool, tag string, d registry.Digest, m manifestRow) error {
	action := registry.EventPush
	if deleted {
		action = registry.EventDelete
	}
	return r.t.journal(journalRow{action: action, repo: r.name, tag: tag, digest: d, mediaType: m.mediaType, size: m.size})
}

// tellOutbox notes what became of a row of the outbox. Of a conflict how it was decided, and where the tag stood at the
// parent, is in o.
func (q *outboxTx) tellOutbox(action registry.EventAction, seq uint64, row outboxRow, o registry.EventOutbox) error {
	o.Entry, o.Action, o.Time, o.Principal, o.Error = seq, outboxActions[row.action], time.Unix(row.at, 0), row.principal, row.failure
	told := journalRow{action: action, repo: row.repo, tag: row.tag, digest: row.digest, mediaType: row.mediaType, outbox: &o}
	if r, err := q.t.repo(row.repo); err == nil {
		if m, err := r.manifest(row.digest); err == nil {
			told.mediaType, told.size = m.mediaType, m.size
		}
	}
	return q.t.journal(told)
}

// journal appends a row, unless nobody wants to know.
func (t *tx) journal(row journalRow) error {
	if !t.s.journaling.Load() {
		return nil
	}
	b, err := t.makeBucket(nil, bucketJournal)
	if err != nil {
		return err
	}
	if waiting(b) >= maxJournal {
		k, _ := b.Cursor().First()
		if err := t.remove(b, k); err != nil {
			return err
		}
		dropped := t.number(keyJournalDropped) + 1
		if dropped == 1 {
			t.s.log.Warn("events wait for edgeHub and there is no room for more: the oldest are dropped", "kept", maxJournal)
		}
		if err := t.putNumber(keyJournalDropped, dropped); err != nil {
			return err
		}
	}
	seq, err := t.next(b)
	if err != nil {
		return err
	}
	t.told = true
	row.at = t.now
	return t.put(b, seqKey(seq), row.encode())
}

// tellTag is tell for a tag.
func (r *repoTx) tellTag(deleted bool, tag string, d registry.Digest) error {
	if !r.t.s.journaling.Load() {
		return nil
	}
	m, _ := r.manifest(d) // without its row, of a damaged index, the event has neither size nor media type
	return r.tell(deleted, tag, d, m)
}
