// Package clock tells the time to everybody else. A device without a battery-backed clock boots in 1970 and is offline
// for days: a clock with a floor never goes before what is known to have passed, so that tokens, certificates and
// schedules do not fall back. Durations are measured with package time's monotonic timers, which testing/synctest fakes.
package clock

import (
	"context"
	"sync"
	"time"
)

// Clock is the wall clock. Use it for dates; for time-outs use context deadlines and timers.
type Clock interface {
	Now() time.Time
}

// Func makes a Clock of a function, for tests.
type Func func() time.Time

// Now calls f.
func (f Func) Now() time.Time { return f() }

// Floored is a Clock that is never earlier than any time it was told of.
type Floored struct {
	inner Clock
	mu    sync.Mutex
	floor time.Time
}

// System is the machine's clock, in UTC.
func System() Clock { return Func(func() time.Time { return time.Now().UTC() }) }

// NewFloored returns inner with a floor; the build time of the binary and the last time seen before a restart are
// good floors.
func NewFloored(inner Clock, floor ...time.Time) *Floored {
	f := &Floored{inner: inner}
	for _, t := range floor {
		f.Observe(t)
	}
	return f
}

// Observe raises the floor to t if that is later.
func (f *Floored) Observe(t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.After(f.floor) {
		f.floor = t
	}
}

// Now returns the later of the inner clock and the floor.
func (f *Floored) Now() time.Time {
	now := f.inner.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Before(f.floor) {
		return f.floor
	}
	return now
}

// Stopwatch starts to measure and returns what tells how long it has run, by the monotonic clock: a wall clock that is
// set meanwhile does not matter.
func Stopwatch() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

// Wait waits for d, by the monotonic clock; it returns early with the context's error.
func Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
