package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxJournal bounds the events that wait to be told; beyond it the oldest are dropped and counted.
const maxJournal = 10_000

// journalRow is what came or went: a manifest by digest, or a tag with its manifest.
type journalRow struct {
	deleted   bool
	at        int64 // unix seconds
	repo, tag string
	digest    registry.Digest
	mediaType string
	size      int64
}

func (r journalRow) encode() []byte {
	b := putText(putText(putInt(putInt(nil, bit(r.deleted, 1)), r.at), r.repo), r.tag)
	return putInt(putMediaType(putDigest(b, r.digest), r.mediaType), r.size)
}

func decodeJournal(b []byte) (row journalRow, err error) {
	r := reader{b: b}
	row.deleted = r.uint()&1 != 0
	row.at, row.repo, row.tag, row.digest = r.int(), r.text(), r.text(), r.optionalDigest()
	row.mediaType, row.size = r.mediaType(), r.int()
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
	e := registry.Event{
		ID: hex.EncodeToString(sum[:16]), Time: time.Unix(r.at, 0).UTC(), Action: registry.EventPush, Repository: r.repo, Tag: r.tag,
		Target: registry.Descriptor{MediaType: r.mediaType, Digest: r.digest, Size: r.size},
	}
	if r.deleted {
		e.Action = registry.EventDelete
	}
	return e
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
	t := r.t
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
	row := journalRow{deleted: deleted, at: t.now, repo: r.name, tag: tag, digest: d, mediaType: m.mediaType, size: m.size}
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
