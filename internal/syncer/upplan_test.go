package syncer

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// TestQueueOrder draws entries and a parent that takes, refuses and puts off, and checks that no two entries that have
// something in common are under way at once or overtake each other, and that all get their turn.
func TestQueueOrder(t *testing.T) {
	digests := make([]registry.Digest, 5)
	for i := range digests {
		digests[i] = digest.FromString(fmt.Sprint(i))
	}
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1000, 0)
		uses := map[registry.Digest][]registry.Digest{digests[3]: {digests[0], digests[1]}, digests[4]: {digests[0]}}
		q := newQueue(func(e registry.OutboxEntry) []registry.Digest { return uses[e.Digest] })
		var all []registry.OutboxEntry
		for i := range rapid.IntRange(1, 30).Draw(t, "entries") {
			e := registry.OutboxEntry{
				Seq: uint64(i + 1), Repository: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "repo"), State: registry.OutboxWaiting,
				Action: rapid.SampledFrom([]registry.OutboxAction{registry.OutboxPush, registry.OutboxUntag, registry.OutboxDelete}).Draw(t, "action"),
				Digest: rapid.SampledFrom(digests).Draw(t, "digest"), Tag: rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "tag"),
			}
			all = append(all, e)
			q.add(e)
		}
		meet := func(a, b registry.OutboxEntry) bool {
			if a.Repository != b.Repository {
				return false
			}
			untag := a.Action == registry.OutboxUntag || b.Action == registry.OutboxUntag
			return (a.Tag != "" && a.Tag == b.Tag) || (!untag && (a.Digest == b.Digest || slices.Contains(uses[a.Digest], b.Digest) || slices.Contains(uses[b.Digest], a.Digest)))
		}
		var running []registry.OutboxEntry
		through := map[uint64]bool{}
		for steps := 0; len(through) < len(all); steps++ {
			if steps > 2000 {
				t.Fatalf("%d of %d are through", len(through), len(all))
			}
			if e, ok := q.next(now); ok {
				for _, o := range all {
					if o.Seq < e.Seq && !through[o.Seq] && meet(o, e) {
						t.Fatalf("%+v overtakes %+v", e, o)
					}
				}
				running = append(running, e)
				continue
			}
			if len(running) == 0 {
				now = now.Add(time.Minute)
				if rapid.Bool().Draw(t, "read again") {
					fresh := newQueue(q.uses)
					for _, e := range all {
						if i, ok := q.at[e.Seq]; ok && !q.rows[i].gone {
							fresh.add(q.rows[i].OutboxEntry)
						}
					}
					q.replace(fresh)
				} else {
					q.again()
				}
				continue
			}
			i := rapid.IntRange(0, len(running)-1).Draw(t, "ends")
			e := running[i]
			running = slices.Delete(running, i, i+1)
			switch rapid.IntRange(0, 3).Draw(t, "result") {
			case 0:
				e.NextAttempt = now.Add(30 * time.Second)
				q.finished(e, false)
			case 1:
				e.State = registry.OutboxRefused
				through[e.Seq] = true
				q.finished(e, false)
			default:
				through[e.Seq] = true
				q.finished(e, true)
			}
		}
	})
}

// TestQueueClockSetBack reads a queue with a clock that was days ahead when it was written, or years: it does not wait for
// that time to come again.
func TestQueueClockSetBack(t *testing.T) {
	q := newQueue(func(registry.OutboxEntry) []registry.Digest { return nil })
	written := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	e := registry.OutboxEntry{Seq: 1, Repository: "a", Tag: "x", Action: registry.OutboxPush, State: registry.OutboxWaiting, NextAttempt: written.Add(10 * time.Minute)}
	q.add(e)
	if _, ok := q.next(written); ok || q.due(written) || q.pause(written) != lookAgain {
		t.Errorf("before its time: taken %v, due %v, pause %v", ok, q.due(written), q.pause(written))
	}
	for _, now := range []time.Time{written.Add(-26 * time.Hour), time.Unix(0, 0)} {
		q.again()
		if !q.due(now) || q.pause(now) != lookAgain {
			t.Errorf("at %v: due %v, pause %v", now, q.due(now), q.pause(now))
		}
		if got, ok := q.next(now); !ok || got.Seq != 1 {
			t.Errorf("at %v: not taken", now)
		}
		q.finished(e, false)
	}
}
