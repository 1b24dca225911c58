package store

import (
	"bytes"
	"maps"
	"slices"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// The outbox holds what clients want the parent to become, not a log of what they did. Of a repository there is at most
// one row that decides about a tag and at most one delete of a manifest, so that rows of different tags and manifests
// may be delivered in any order without one undoing another; in order of their numbers content comes before what refers
// to it. The rules:
//
//	push of tag t to d    replaces what the queue has about t; a push of t to another manifest stays as a push of that
//	                      manifest by its digest, under its number, for it was acknowledged. The same push again
//	                      changes nothing, and makes a row wait again that was delivered, expired or refused.
//	push of d by digest   adds nothing when a push of d is queued.
//	either of them        ends a queued delete of d: of that stays what it would have done to the tags, as untags.
//	untag of t            replaces what the queue has about t in the same way, and always adds an untag: whether an
//	                      attempt that is under way has reached the parent is unknown.
//	delete of d           takes out every push of d, and what the queue has about the tags that pointed at d here; it
//	                      always adds a delete, and an untag of each of these tags that may point at another manifest
//	                      at the parent, where it would outlive d.
//
// Where a tag stands at the parent is kept with the row: where it was seen last, and what an attempt since then may have
// put there. It passes from a row to the one that replaces it. What synchronisation does adds nothing. While climbing is off, rows are replaced and
// taken out and none is added.
//
// A manifest with a queued push has its flag pushed set, which keeps it from synchronisation, eviction and collection,
// and with it its blobs and, through the index, its children.

// queuePush keeps the outbox for a manifest that a client pushes, under a tag or, without one, by digest. It is called
// before the tag moves and after the row of the manifest is written.
func (r *repoTx) queuePush(tag string, m registry.Descriptor, row manifestRow, principal string) error {
	q, err := r.t.outbox(r.t.s.climbing.Load())
	if q == nil || err != nil {
		return err
	}
	var base above
	if tag != "" {
		done, b, err := q.replace(r, tag, m.Digest)
		if done || err != nil {
			return err
		}
		base = b
	}
	if err := q.endDelete(r, m.Digest, tag, principal); err != nil {
		return err
	}
	if !r.t.s.climbing.Load() {
		return nil
	}
	if queued := q.ofDigest(r.name, m.Digest, rowPush); tag == "" && len(queued) > 0 {
		return q.revive(queued[0])
	}
	return q.add(outboxRow{
		action: rowPush, repo: r.name, tag: tag, digest: m.Digest, mediaType: m.MediaType, above: base, principal: principal,
		bytes: r.t.uncounted(m, row),
	})
}

// queueUntag keeps the outbox for a tag that a client removes; it is called before the tag goes.
func (r *repoTx) queueUntag(tag string, principal string) error {
	q, err := r.t.outbox(r.t.s.climbing.Load())
	if q == nil || err != nil {
		return err
	}
	_, base, err := q.replace(r, tag, "")
	if err != nil || !r.t.s.climbing.Load() {
		return err
	}
	row := outboxRow{action: rowUntag, repo: r.name, tag: tag, above: base, principal: principal}
	if here, err := r.tag(tag); err == nil {
		row.digest = here.digest
	}
	return q.add(row)
}

// queueDelete keeps the outbox for a manifest that a client deletes, with the tags that point at it; it is called before
// any of them goes.
func (r *repoTx) queueDelete(d registry.Digest, mediaType string, tags []string, principal string) error {
	q, err := r.t.outbox(r.t.s.climbing.Load())
	if q == nil || err != nil {
		return err
	}
	row := outboxRow{action: rowDelete, repo: r.name, digest: d, mediaType: mediaType, principal: principal}
	for _, tag := range tags {
		base, err := q.takeTag(r, tag)
		if err != nil {
			return err
		}
		if !base.elsewhere(d) {
			row.tags = append(row.tags, baseTag{tag, base})
		} else if r.t.s.climbing.Load() {
			if err := q.add(outboxRow{action: rowUntag, repo: r.name, tag: tag, digest: d, above: base, principal: principal}); err != nil {
				return err
			}
		}
	}
	for _, seq := range slices.Concat(q.ofDigest(r.name, d, rowPush), q.ofDigest(r.name, d, rowDelete)) {
		old, ok := q.row(seq)
		if !ok {
			continue
		}
		if err := q.remove(seq, old); err != nil {
			return err
		}
		row.tags = append(row.tags, old.tags...)
	}
	if !r.t.s.climbing.Load() {
		return nil
	}
	return q.add(row)
}

// queueDeleteAll keeps the outbox for a repository that a client deletes with these manifests.
func (r *repoTx) queueDeleteAll(rows map[registry.Digest]manifestRow, principal string) error {
	tags := map[registry.Digest][]string{}
	for tag, row := range r.tagRows() {
		tags[row.digest] = append(tags[row.digest], tag)
	}
	for _, d := range slices.Sorted(maps.Keys(rows)) {
		slices.Sort(tags[d])
		if err := r.queueDelete(d, rows[d].mediaType, tags[d], principal); err != nil {
			return err
		}
	}
	return nil
}

// base is where a tag without a row stands at the parent, as far as it is known here.
func (r *repoTx) base(tag string) above {
	if row, err := r.tag(tag); err == nil && !row.pushed {
		return above{base: row.digest}
	}
	return above{}
}

// takeTag takes out what the queue has about a tag and returns the tag's base. A push goes with its row.
func (q *outboxTx) takeTag(r *repoTx, tag string) (above, error) {
	seq, row, ok := q.ofTag(r.name, tag)
	if !ok {
		return r.base(tag), nil
	}
	if row.action != rowDelete {
		return row.standing(tag), q.remove(seq, row)
	}
	base := row.standing(tag)
	row.tags = slices.DeleteFunc(row.tags, func(t baseTag) bool { return t.tag == tag })
	if err := q.forgetTag(seq, r.name, tag); err != nil {
		return above{}, err
	}
	return base, q.put(seq, row)
}

// replace makes room for a newer row about a tag, which moves to d or, with an empty d, goes. done is whether the row
// that is there says the same already.
func (q *outboxTx) replace(r *repoTx, tag string, d registry.Digest) (done bool, base above, err error) {
	seq, row, ok := q.ofTag(r.name, tag)
	switch {
	case !ok || row.action != rowPush:
		base, err = q.takeTag(r, tag)
		return false, base, err
	case row.digest == d:
		return true, above{}, q.revive(seq)
	}
	base = row.standing(tag)
	if slices.Index(q.ofDigest(r.name, row.digest, rowPush), seq) > 0 {
		return false, base, q.remove(seq, row) // it is queued in an earlier place
	}
	if err := q.forgetTag(seq, r.name, tag); err != nil {
		return false, base, err
	}
	row.tag, row.above = "", above{}
	if outboxStates[row.state] == registry.OutboxRefused {
		row.wait(q.t.now) // the tag may have been the reason
	}
	return false, base, q.put(seq, row)
}

// revive makes a row wait that is expired or refused, or that the parent has answered for: somebody else may have moved the
// tag there meanwhile, and this is the newer push.
func (q *outboxTx) revive(seq uint64) error {
	row, ok := q.row(seq)
	if !ok || row.state == stateWaiting {
		return nil
	}
	row.wait(q.t.now)
	return q.put(seq, row)
}

// endDelete takes out a queued delete of a manifest that is pushed again, under the given tag or none. What it would
// have done to other tags becomes untags.
func (q *outboxTx) endDelete(r *repoTx, d registry.Digest, tag, principal string) error {
	for _, seq := range q.ofDigest(r.name, d, rowDelete) {
		row, ok := q.row(seq)
		if !ok {
			continue
		}
		if err := q.remove(seq, row); err != nil {
			return err
		}
		for _, t := range row.tags {
			if t.tag == tag || row.state == stateDelivered || !r.t.s.climbing.Load() {
				continue
			}
			if err := q.add(outboxRow{action: rowUntag, repo: r.name, tag: t.tag, digest: d, above: t.above, principal: principal}); err != nil {
				return err
			}
		}
	}
	return nil
}

// settle takes a row out that the parent has answered for. The tag that still stands there, and a manifest of which no
// push is queued any more, are the parent's from now on.
func (q *outboxTx) settle(seq uint64, row outboxRow, lost bool) error {
	if err := q.remove(seq, row); err != nil {
		return err
	}
	r, err := q.t.repo(row.repo)
	if err != nil || row.action != rowPush {
		return ignoreUnknown(err)
	}
	if here, err := r.tag(row.tag); err == nil && here.digest == row.digest {
		here.pushed = false
		if err := q.t.put(r.tags, []byte(row.tag), here.encode()); err != nil {
			return err
		}
	}
	m, err := r.manifest(row.digest)
	if err != nil || len(q.ofDigest(row.repo, row.digest, rowPush)) > 0 {
		return nil // gone already, or wanted by another row
	}
	if m.pushed = lost; lost {
		m.loose = q.t.now // collection takes it after the grace
	}
	return q.t.put(r.manifests, digestKey(row.digest), m.encode())
}

// queuedTags lists the tags that the queue will change at the parent.
func (r *repoTx) queuedTags() map[string]bool {
	q, err := r.t.outbox(false)
	if q == nil || err != nil {
		return nil
	}
	tags := map[string]bool{}
	prefix := outboxTagKey(r.name, "")
	c := q.tags.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		tags[string(k[len(prefix):])] = true
	}
	return tags
}

// syncQueued is what the outbox says to a tag that synchronisation wants at d: kept when the queue will change it at the
// parent, or delete d there. A move to d that is not tried any more is settled by that: the parent has told that the tag
// stands there. One that is under way ends as others do: the parent may have been told a moment ago, and may yet lose it
// with its power.
func (r *repoTx) syncQueued(tag string, d registry.Digest) (kept bool, err error) {
	q, err := r.t.outbox(false)
	if q == nil || err != nil {
		return false, err
	}
	seq, row, ok := q.ofTag(r.name, tag)
	switch {
	case !ok: // a manifest that will be deleted there is not taken under any tag
		return len(q.ofDigest(r.name, d, rowDelete)) > 0, nil
	case row.action == rowPush && row.digest == d && !row.underWay():
		return false, q.settle(seq, row, false)
	}
	return true, nil
}
