package store

import (
	"encoding/binary"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Actions of a row of the outbox.
const (
	rowPush   = 'P'
	rowUntag  = 'U'
	rowDelete = 'D'
)

var outboxActions = map[byte]registry.OutboxAction{
	rowPush: registry.OutboxPush, rowUntag: registry.OutboxUntag, rowDelete: registry.OutboxDelete,
}

// outboxStates has the code of each state as its index. Rows of the first two are under way.
var outboxStates = []registry.OutboxState{registry.OutboxWaiting, registry.OutboxDelivered, registry.OutboxExpired, registry.OutboxRefused}

// Codes of states.
const (
	stateWaiting   = 0
	stateDelivered = 1
	stateExpired   = 2
)

// rowTried is set in the state of an encoded row that ends with what attempts may have put under its tags. A release that
// does not know it takes the row for damaged, and queues the tag again.
const rowTried = 0x80

// maxFailure bounds the text of an error in a row, in bytes.
const maxFailure = 512

// above is where a tag stands at the parent as far as it is known here. A parent that has the tag elsewhere was changed by
// somebody else.
type above struct {
	base registry.Digest // where it stood when it was seen last
	put  registry.Digest // what an attempt since then, of which no answer came, may have put there; empty: nothing
}

// elsewhere reports whether the tag may stand at the parent at another manifest than d.
func (a above) elsewhere(d registry.Digest) bool {
	return (a.base != "" && a.base != d) || (a.put != "" && a.put != d)
}

// baseTag is a tag that went with a deleted manifest, and where it stood at the parent.
type baseTag struct {
	tag string
	above
}

// outboxRow is one change that is not at the parent yet.
type outboxRow struct {
	action    byte
	state     byte // index of outboxStates
	repo, tag string
	digest    registry.Digest // of an untag: where the tag stood here
	above
	mediaType string
	principal string
	at        int64 // unix seconds of the acknowledgement
	requeued  int64 // unix seconds of when somebody made it wait again; 0: nobody
	bytes     int64 // of its content that no row before it had
	attempts  int64
	next      int64 // unix milliseconds of the next attempt; 0: none
	failure   string
	tags      []baseTag // of a delete
}

func putDigest(b []byte, d registry.Digest) []byte {
	if d == "" {
		return putText(b, "")
	}
	return putText(b, string(digestKey(d)))
}

func (r *reader) optionalDigest() registry.Digest {
	text := r.text()
	if text == "" {
		return ""
	}
	d, ok := keyDigest([]byte(text))
	r.bad = r.bad || !ok
	return d
}

func (r outboxRow) encode() []byte {
	state := r.state
	if r.tried() {
		state |= rowTried
	}
	b := putText(putText([]byte{r.action, state}, r.repo), r.tag)
	b = putText(putMediaType(putDigest(putDigest(b, r.digest), r.base), r.mediaType), r.principal)
	for _, v := range []int64{r.at, r.requeued, r.bytes, r.attempts, r.next} {
		b = putInt(b, v)
	}
	b = putInt(putText(b, r.failure), int64(len(r.tags)))
	for _, t := range r.tags {
		b = putDigest(putText(b, t.tag), t.base)
	}
	if !r.tried() {
		return b
	}
	b = putDigest(b, r.put)
	for _, t := range r.tags {
		b = putDigest(b, t.put)
	}
	return b
}

// tried reports whether an attempt may have put anything under a tag of the row.
func (r outboxRow) tried() bool {
	return r.put != "" || slices.ContainsFunc(r.tags, func(t baseTag) bool { return t.put != "" })
}

func decodeOutbox(b []byte) (row outboxRow, err error) {
	if len(b) < 2 || outboxActions[b[0]] == "" || int(b[1]&^rowTried) >= len(outboxStates) {
		return row, errDamaged
	}
	r := reader{b: b[2:]}
	row.action, row.state = b[0], b[1]&^rowTried
	row.repo, row.tag = r.text(), r.text()
	row.digest, row.base = r.optionalDigest(), r.optionalDigest()
	row.mediaType, row.principal = r.mediaType(), r.text()
	for _, v := range []*int64{&row.at, &row.requeued, &row.bytes, &row.attempts, &row.next} {
		*v = r.int()
	}
	row.failure = r.text()
	for n := r.uint(); n > 0 && !r.bad; n-- {
		row.tags = append(row.tags, baseTag{r.text(), above{base: r.optionalDigest()}})
	}
	if b[1]&rowTried != 0 {
		row.put = r.optionalDigest()
		for i := range row.tags {
			row.tags[i].put = r.optionalDigest()
		}
	}
	return row, r.err()
}

// entry is the row as others see it.
func (r outboxRow) entry(seq uint64) registry.OutboxEntry {
	e := registry.OutboxEntry{
		Seq: seq, Action: outboxActions[r.action], Repository: r.repo, Tag: r.tag, Digest: r.digest, MediaType: r.mediaType, Base: r.base, Put: r.put,
		Principal: r.principal, Time: time.Unix(r.at, 0).UTC(), State: outboxStates[r.state], Attempts: int(r.attempts), Error: r.failure,
	}
	for _, t := range r.tags {
		e.Tags = append(e.Tags, t.tag)
	}
	if r.next != 0 {
		e.NextAttempt = time.UnixMilli(r.next).UTC()
	}
	if r.requeued != 0 {
		e.Requeued = time.Unix(r.requeued, 0).UTC()
	}
	return e
}

// underWay reports whether the row is tried.
func (r outboxRow) underWay() bool { return r.state < stateExpired }

// since is from when its age for messageTtl counts, in unix seconds.
func (r outboxRow) since() int64 { return max(r.at, r.requeued) }

// standing is where a tag of the row stands at the parent: where it did before the row, or where the row may have put it. A
// row that is delivered has put it there, unless the parent lost that with its power, which it is not known of yet.
func (r outboxRow) standing(tag string) above {
	if i := slices.IndexFunc(r.tags, func(t baseTag) bool { return t.tag == tag }); i >= 0 {
		return r.tags[i].above
	}
	if r.state == stateDelivered && r.action == rowPush {
		return above{base: r.base, put: r.digest}
	}
	return r.above
}

// wait makes a row be tried again at once.
func (r *outboxRow) wait(now int64) {
	r.state, r.requeued, r.attempts, r.next, r.failure = stateWaiting, now, 0, 0, ""
}

// outboxTx is the outbox within a transaction.
type outboxTx struct {
	t                      *tx
	entries, tags, digests *bbolt.Bucket
}

// outbox opens the outbox; nil while there was never a row. With create it is made.
func (t *tx) outbox(create bool) (*outboxTx, error) {
	b := t.Bucket(bucketOutbox)
	if b == nil {
		if !create {
			return nil, nil
		}
		var err error
		if b, err = t.makeBucket(nil, bucketOutbox); err != nil {
			return nil, err
		}
		for _, sub := range [][]byte{bucketEntries, bucketTags, bucketDigests} {
			if _, err := t.makeBucket(b, sub); err != nil {
				return nil, err
			}
		}
	}
	q := &outboxTx{t: t, entries: t.bucket(b, bucketEntries), tags: t.bucket(b, bucketTags), digests: t.bucket(b, bucketDigests)}
	if q.entries == nil || q.tags == nil || q.digests == nil {
		return nil, errDamaged
	}
	return q, nil
}

func outboxTagKey(repo, tag string) []byte { return append(append([]byte(repo), 0), tag...) }

func outboxDigestPrefix(repo string, d registry.Digest) []byte {
	return append(append([]byte(repo), 0), digestKey(d)...)
}

// row reads a row; ok is false for one that is not there or cannot be read.
func (q *outboxTx) row(seq uint64) (row outboxRow, ok bool) {
	v := q.entries.Get(seqKey(seq))
	if v == nil {
		return row, false
	}
	row, err := decodeOutbox(v)
	return row, err == nil
}

// ofTag returns the row that decides about a tag: its last move, its going, or the going of its manifest.
func (q *outboxTx) ofTag(repo, tag string) (seq uint64, row outboxRow, ok bool) {
	v := q.tags.Get(outboxTagKey(repo, tag))
	if len(v) != 8 {
		return 0, row, false
	}
	seq = binary.BigEndian.Uint64(v)
	row, ok = q.row(seq)
	return seq, row, ok
}

// ofDigest lists the rows of one action about a manifest, oldest first.
func (q *outboxTx) ofDigest(repo string, d registry.Digest, action byte) (seqs []uint64) {
	prefix := outboxDigestPrefix(repo, d)
	c := q.digests.Cursor()
	for k, v := c.Seek(prefix); len(k) == len(prefix)+8 && slices.Equal(k[:len(prefix)], prefix); k, v = c.Next() {
		if len(v) == 1 && v[0] == action {
			seqs = append(seqs, binary.BigEndian.Uint64(k[len(prefix):]))
		}
	}
	return seqs
}

// put writes a row and what finds it.
func (q *outboxTx) put(seq uint64, row outboxRow) error {
	delta := q.t.outboxDelta()
	old, had := q.row(seq)
	if had {
		delta.add(old, -1)
	}
	delta.add(row, 1)
	delta.woken = delta.woken || row.underWay() && !(had && old.underWay()) ||
		had && old.state == stateDelivered && row.state == stateWaiting && row.next == 0
	tags := row.tags
	if row.tag != "" {
		tags = []baseTag{{tag: row.tag}}
	}
	for _, t := range tags {
		if err := q.t.put(q.tags, outboxTagKey(row.repo, t.tag), seqKey(seq)); err != nil {
			return err
		}
	}
	if row.action != rowUntag {
		key := append(outboxDigestPrefix(row.repo, row.digest), seqKey(seq)...)
		if err := q.t.put(q.digests, key, []byte{row.action}); err != nil {
			return err
		}
	}
	return q.t.put(q.entries, seqKey(seq), row.encode())
}

// add appends a row.
func (q *outboxTx) add(row outboxRow) error {
	seq, err := q.t.next(q.entries)
	if err != nil {
		return err
	}
	row.at = q.t.now
	return q.put(seq, row)
}

// forgetTag takes out what finds a row by a tag.
func (q *outboxTx) forgetTag(seq uint64, repo, tag string) error {
	key := outboxTagKey(repo, tag)
	if slices.Equal(q.tags.Get(key), seqKey(seq)) {
		return q.t.remove(q.tags, key)
	}
	return nil
}

// remove takes a row out.
func (q *outboxTx) remove(seq uint64, row outboxRow) error {
	q.t.outboxDelta().add(row, -1)
	for _, t := range append([]baseTag{{tag: row.tag}}, row.tags...) {
		if err := q.forgetTag(seq, row.repo, t.tag); err != nil {
			return err
		}
	}
	if row.digest != "" {
		key := append(outboxDigestPrefix(row.repo, row.digest), seqKey(seq)...)
		if err := q.t.remove(q.digests, key); err != nil {
			return err
		}
	}
	return q.t.remove(q.entries, seqKey(seq))
}
