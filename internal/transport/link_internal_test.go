package transport

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// TestMeteredUnderAnyClock sets the clock at will, in any zone, and counts a byte each time: what is used within one period
// is never forgotten, and a clock that was far ahead does not hold a budget for longer than its period.
func TestMeteredUnderAnyClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.FixedZone("", rapid.IntRange(-12, 14).Draw(t, "zone")*3600))
		link := NewLink(LinkOptions{Now: func() time.Time { return now }})
		link.Configure(registry.TransferConfig{Budget: registry.BudgetConfig{HourMiB: 1, DayMiB: 1, MonthMiB: 1}})
		var used [len(periods)]int64
		var begin [len(periods)]time.Time
		for range rapid.IntRange(1, 20).Draw(t, "jumps") {
			most := rapid.SampledFrom([]time.Duration{time.Hour, 24 * time.Hour, 400 * 24 * time.Hour}).Draw(t, "most")
			now = now.Add(time.Duration(rapid.Int64Range(-int64(most), int64(most)).Draw(t, "jump")))
			link.count(1)
			for i, p := range periods {
				b := p.begin(now.UTC())
				if b.After(begin[i]) {
					used[i] = 0
				}
				begin[i] = b
				used[i]++
			}
			for i, b := range link.Budgets() {
				if b.Used != used[i] || b.Left != b.Limit-b.Used || !b.Until.After(now) || b.Until.Sub(now) > 31*24*time.Hour {
					t.Fatalf("at %v: %+v, want %d bytes used", now, b, used[i])
				}
			}
		}
	})
}

// TestWhatIsKeptOfABudget: without a budget nothing is kept; what is kept covers what is used from the first byte on, and no
// more than a part of the smallest budget beyond it, of the one that is in force; one is made durable at a time; and who
// cannot keep it says so and goes on.
func TestWhatIsKeptOfABudget(t *testing.T) {
	var kept []byte
	var link *Link
	keeps, inside := 0, false
	link = NewLink(LinkOptions{Now: func() time.Time { return time.Unix(0, 0) }, Keep: func(b []byte) error {
		if inside {
			t.Error("two are made durable at once")
		}
		kept, keeps, inside = b, keeps+1, true
		link.count(1 << 20) // of another transfer meanwhile
		inside = false
		return errors.New("the disk is full")
	}})
	link.count(1 << 20)
	link.Close()
	if keeps > 0 {
		t.Errorf("without a budget: kept %d times", keeps)
	}
	for _, hour := range []int{640, 64} {
		link.Configure(registry.TransferConfig{Budget: registry.BudgetConfig{HourMiB: hour, DayMiB: 6400}})
		link.count(1)
		ahead := int64(hour) << 20 / leases
		used := link.Budgets()[0].Used
		again := newBudget(LinkOptions{Kept: kept})
		again.configure(link.config.Budget)
		if got := again.meters[0].Used; got != used-1<<20+ahead {
			t.Errorf("%d MiB: %d bytes are used, %d kept, want %d more", hour, used, got, ahead-1<<20)
		}
	}
}

// TestSpeedIsMeasured: the speed follows the link, at once where it is another one, and neither a pause nor a clock that is
// set makes it slower. A transfer gives way after about a second of it.
func TestSpeedIsMeasured(t *testing.T) {
	now := time.Unix(0, 0)
	link := NewLink(LinkOptions{Now: func() time.Time { return now }})
	run := func(seconds, perSecond int) {
		for range seconds * 10 {
			now = now.Add(time.Second / 10)
			link.count(perSecond / 10)
		}
	}
	near := func(when string, want, granule int64) {
		t.Helper()
		if got, _ := link.Speed(); got < want*95/100 || got > want*105/100 {
			t.Errorf("%s: %d bytes per second, want about %d", when, got, want)
		}
		if got := link.granule(); got < granule*95/100 || got > granule*105/100 {
			t.Errorf("%s: a transfer gives way after %d bytes, want about %d", when, got, granule)
		}
	}
	near("at first", 0, defaultChunk)
	run(1, 5000)
	near("after less than is told from a burst", 0, defaultChunk)
	run(10, 100_000)
	near("a slow link", 100_000, 100_000)
	run(20, 10_000_000)
	near("a fast link", 10_000_000, defaultChunk)
	link.Configure(registry.TransferConfig{ChunkKiB: 64})
	near("with a chunk", 10_000_000, 64<<10)
	now = now.Add(time.Hour)
	run(10, 10_000_000)
	near("after an hour's pause", 10_000_000, 64<<10)
	now = now.Add(-24 * time.Hour)
	run(10, 10_000_000)
	near("after the clock was set", 10_000_000, 64<<10)
	run(6, 7_000_000)
	if got, _ := link.Speed(); got <= 7_350_000 || got >= 9_500_000 {
		t.Errorf("a little slower: %d bytes per second at once", got)
	}
	run(12, 20_000)
	near("another slow link", 20_000, 20_000)
	run(60, 3000)
	near("a very slow one", 3000, minBurst)
}

// TestYieldsToEachInTurn: who gives way does so until the last of what is more urgent is quiet, each time.
func TestYieldsToEachInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := NewLink(LinkOptions{})
		for range 2 {
			began := time.Now()
			link.touch(Waiting)
			time.Sleep(time.Second)
			link.touch(First)
			if err := link.Yield(t.Context(), First); err != nil || time.Since(began) != quietAfter {
				t.Errorf("the first: after %v, %v", time.Since(began), err)
			}
			if err := link.Yield(t.Context(), Background); err != nil || time.Since(began) != time.Second+quietAfter {
				t.Errorf("the background: after %v, %v", time.Since(began), err)
			}
			link.touch(First)
			link.touch(Background)
			if err := link.Yield(t.Context(), First); err != nil || time.Since(began) != time.Second+quietAfter {
				t.Errorf("the first again: after %v, %v", time.Since(began), err)
			}
			time.Sleep(quietAfter)
		}
	})
}
