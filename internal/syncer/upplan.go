package syncer

import (
	"cmp"
	"slices"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// queue is the order in which entries are delivered. It does no I/O of its own.
//
// Two entries of a repository that have a tag or a manifest in common go one after the other, as they were acknowledged:
// two moves of a tag, a manifest and what deletes it, an index and its children, a subject and what refers to it. All
// others are independent: an entry that fails keeps only those that come after it in this sense.
type queue struct {
	rows   []row          // in order of Seq
	at     map[uint64]int // by Seq
	uses   func(registry.OutboxEntry) []registry.Digest
	cursor int
	held   map[key]hold // by the rows before the cursor
	passed bool         // one of them was passed over
}

// row is an entry with what orders it.
type row struct {
	registry.OutboxEntry
	taken, gone bool
	read        bool
	change      []key // what it moves, brings or removes
	needs       []key // what it refers to
}

// wait is how long the row may not be tried yet. What lies further ahead than any pause is from a clock that was ahead,
// before the device was started again without one: it is due, since one attempt too many costs a question.
func (r *row) wait(now time.Time) time.Duration {
	if wait := r.NextAttempt.Sub(now); wait <= backoffCap {
		return wait
	}
	return 0
}

// key is a tag or a manifest of a repository.
type key struct {
	repo, tag string
	digest    registry.Digest
}

// hold is how many entries that are not through yet change a thing, and how many need it.
type hold struct{ change, need int }

func newQueue(uses func(registry.OutboxEntry) []registry.Digest) *queue {
	return &queue{uses: uses, at: map[uint64]int{}, held: map[key]hold{}}
}

func (q *queue) add(e registry.OutboxEntry) {
	q.at[e.Seq] = len(q.rows)
	q.rows = append(q.rows, row{OutboxEntry: e})
}

// keys fills in what a row touches, once.
func (q *queue) keys(r *row) {
	if r.read {
		return
	}
	r.read = true
	if r.Tag != "" {
		r.change = append(r.change, key{repo: r.Repository, tag: r.Tag})
	}
	if r.Action == registry.OutboxUntag {
		return
	}
	r.change = append(r.change, key{repo: r.Repository, digest: r.Digest})
	for _, d := range q.uses(r.OutboxEntry) {
		r.needs = append(r.needs, key{repo: r.Repository, digest: d})
	}
}

// next takes the first entry that is due and that none before it keeps.
func (q *queue) next(now time.Time) (registry.OutboxEntry, bool) {
	for ; q.cursor < len(q.rows); q.cursor++ {
		r := &q.rows[q.cursor]
		if r.gone {
			continue
		}
		q.keys(r)
		kept := r.taken || r.wait(now) > 0 || q.blocked(r)
		if kept && !r.taken && r.State == registry.OutboxDelivered {
			continue // it is at the parent: what comes after it may go
		}
		q.hold(r, 1)
		if kept {
			q.passed = q.passed || !r.taken
			continue
		}
		r.taken = true
		q.cursor++
		return r.OutboxEntry, true
	}
	return registry.OutboxEntry{}, false
}

func (q *queue) blocked(r *row) bool {
	return slices.ContainsFunc(r.change, func(k key) bool { return q.held[k] != hold{} }) ||
		slices.ContainsFunc(r.needs, func(k key) bool { return q.held[k].change > 0 })
}

func (q *queue) hold(r *row, n int) {
	for _, k := range r.change {
		h := q.held[k]
		h.change += n
		q.keep(k, h)
	}
	for _, k := range r.needs {
		h := q.held[k]
		h.need += n
		q.keep(k, h)
	}
}

func (q *queue) keep(k key, h hold) {
	if h == (hold{}) {
		delete(q.held, k)
		return
	}
	q.held[k] = h
}

// finished gives back an entry: it is gone, or it is kept as it is now.
func (q *queue) finished(e registry.OutboxEntry, gone bool) {
	i, ok := q.at[e.Seq]
	if !ok {
		return // the queue was read again and has it no more
	}
	r := &q.rows[i]
	r.OutboxEntry, r.taken = e, false
	r.gone = gone || !isUnderWay(e)
	if r.gone && !q.passed {
		q.hold(r, -1) // nothing waits for it: the search goes on where it is
		return
	}
	q.again()
}

// again begins the search anew.
func (q *queue) again() {
	q.cursor, q.passed = 0, false
	clear(q.held)
}

// replace takes the entries of a queue that was read later. What is on its way stays taken.
func (q *queue) replace(fresh *queue) {
	for i := range fresh.rows {
		r := &fresh.rows[i]
		if j, ok := q.at[r.Seq]; ok {
			old := q.rows[j]
			r.taken, r.read, r.change, r.needs = old.taken, old.read, old.change, old.needs
		}
	}
	for _, r := range q.rows {
		if _, ok := fresh.at[r.Seq]; !ok && r.taken { // superseded while it is on its way: it keeps its place
			fresh.rows = append(fresh.rows, r)
		}
	}
	slices.SortFunc(fresh.rows, func(a, b row) int { return cmp.Compare(a.Seq, b.Seq) })
	for i, r := range fresh.rows {
		fresh.at[r.Seq] = i
	}
	q.rows, q.at = fresh.rows, fresh.at
	q.again()
}

// due reports whether any entry may be tried now.
func (q *queue) due(now time.Time) bool {
	return slices.ContainsFunc(q.rows, func(r row) bool { return !r.gone && r.wait(now) <= 0 })
}

// pause is how long no entry may be tried.
func (q *queue) pause(now time.Time) time.Duration {
	pause := lookAgain
	for _, r := range q.rows {
		if wait := r.wait(now); wait > 0 && !r.gone {
			pause = min(pause, wait)
		}
	}
	return pause
}
