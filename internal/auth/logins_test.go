package auth

import (
	"testing"
	"time"
)

// TestRefusalsOvertake: requests at once read the clock in one order and are counted in another.
func TestRefusalsOvertake(t *testing.T) {
	var l logins
	begin := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	told := 0
	for i := range 1000 {
		at := begin.Add(time.Duration(i^1) * time.Microsecond) // each pair the wrong way round
		if _, tell := l.refusal(at); tell {
			told++
		}
	}
	if told != refusalBurst {
		t.Errorf("%d refusals of 1,000 are told of, want %d", told, refusalBurst)
	}
	if _, tell := l.refusal(begin.Add(-time.Hour)); !tell {
		t.Error("after the clock was set back nothing is told of")
	}
}
