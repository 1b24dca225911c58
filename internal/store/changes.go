package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	maxChanges    = 10_000 // entries of one answer
	maxScan       = 50_000 // rows that one answer reads
	maxTombstones = 20_000 // tags that went and are still told of
)

// cursor is a place among the changes of one instance: "<instanceId>.<seq>", and with ".<start>" the next page of an
// answer of everything that began when start was the last change.
type cursor struct {
	instance   string
	seq, start uint64
	full       bool
}

func (c cursor) String() string {
	if c.full {
		return fmt.Sprintf("%s.%d.%d", c.instance, c.seq, c.start)
	}
	return fmt.Sprintf("%s.%d", c.instance, c.seq)
}

func parseCursor(text string) (c cursor, ok bool) {
	parts := strings.Split(text, ".")
	if len(parts) != 2 && len(parts) != 3 {
		return c, false
	}
	c.instance, c.full = parts[0], len(parts) == 3
	var err error
	if c.seq, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return c, false
	}
	if c.full {
		if c.start, err = strconv.ParseUint(parts[2], 10, 64); err != nil {
			return c, false
		}
	}
	return c, true
}

// Changes tells what changed since a cursor of an earlier answer, in the order in which it happened, at most limit
// entries (1 to 10,000) of the repositories that match (nil takes all). A later entry for a tag overrides an earlier
// one. A cursor that is empty, of another instance or too old starts an answer of everything: Full is set on all of
// its pages, and what none of them names does not exist.
func (s *Store) Changes(ctx context.Context, since string, limit int, match func(repo string) bool) (registry.Changes, error) {
	if err := ctx.Err(); err != nil {
		return registry.Changes{}, err
	}
	limit = min(max(limit, 1), maxChanges)
	var out registry.Changes
	err := s.view(func(t *tx) error {
		last := t.number(keyChangeSeq)
		from, ok := parseCursor(since)
		if !ok || from.instance != s.InstanceID() || from.seq > last || from.start > last || from.seq < t.number(keyChangeFloor) && !from.full {
			from = cursor{instance: s.InstanceID(), start: last, full: true}
		}
		out = t.changes(from, last, limit, match)
		return nil
	})
	return out, err
}

// changes reads rows after a cursor.
func (t *tx) changes(from cursor, last uint64, limit int, match func(string) bool) registry.Changes {
	out := registry.Changes{Full: from.full}
	c := t.Bucket(bucketChanges).Cursor()
	scanned := 0
	for k, v := c.Seek(seqKey(from.seq + 1)); k != nil; k, v = c.Next() {
		if len(out.Entries) >= limit || scanned >= maxScan {
			out.More = true
			break
		}
		scanned++
		from.seq = binary.BigEndian.Uint64(k)
		row, err := decodeChange(v)
		if err != nil || (match != nil && !match(row.repo)) || (from.full && row.tombstone() && from.seq <= from.start) {
			continue
		}
		if e, ok := t.change(row); ok {
			out.Entries = append(out.Entries, e)
		}
	}
	if !out.More {
		from.seq, from.full = last, false
	}
	out.Cursor = from.String()
	return out
}

// change is what a row says now. The row of a tag or referrer goes when that moves or goes, so only a tombstone can be
// overtaken: by a tag or referrer that came back.
func (t *tx) change(row changeRow) (registry.Change, bool) {
	e := registry.Change{Repository: row.repo, Tag: row.tag, Subject: row.subject, Digest: row.digest}
	if row.kind == changeReferrer {
		return e, true
	}
	var current tagRow
	exists := false
	if r, err := t.repo(row.repo); err == nil && row.kind == changeUnrefer {
		exists = r.referrers.Get(referrerKey(row.subject, row.digest)) != nil
	} else if err == nil {
		current, err = r.tag(row.tag)
		exists = err == nil
	}
	if row.kind == changeUnrefer {
		e.Gone = true
		return e, !exists
	}
	if row.kind == changeGone {
		return e, !exists
	}
	e.Digest = current.digest
	return e, exists
}

// dropTombstones removes the oldest rows of what went when there are too many, and raises the floor below which
// cursors cannot be answered any more.
func (t *tx) dropTombstones(keep int) error {
	var gone []uint64
	err := t.Bucket(bucketChanges).ForEach(func(k, v []byte) error {
		if len(v) > 0 && (changeRow{kind: v[0]}).tombstone() {
			gone = append(gone, binary.BigEndian.Uint64(k))
		}
		return nil
	})
	if err != nil || len(gone) <= keep {
		return err
	}
	gone = gone[:len(gone)-keep]
	for _, seq := range gone {
		if err := t.remove(t.Bucket(bucketChanges), seqKey(seq)); err != nil {
			return err
		}
	}
	return t.putNumber(keyChangeFloor, gone[len(gone)-1])
}
