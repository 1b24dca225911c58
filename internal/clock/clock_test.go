package clock_test

import (
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
)

func TestFloored(t *testing.T) {
	epoch := time.Unix(0, 0).UTC()
	build := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	now := epoch
	c := clock.NewFloored(clock.Func(func() time.Time { return now }), build)
	if got := c.Now(); !got.Equal(build) {
		t.Errorf("clock in 1970: got %v, want the floor %v", got, build)
	}
	now = build.Add(time.Hour)
	if got := c.Now(); !got.Equal(now) {
		t.Errorf("clock set: got %v, want %v", got, now)
	}
	c.Observe(build.Add(2 * time.Hour))
	c.Observe(build) // an earlier one changes nothing
	if got, want := c.Now(), build.Add(2*time.Hour); !got.Equal(want) {
		t.Errorf("after Observe: got %v, want %v", got, want)
	}
}
