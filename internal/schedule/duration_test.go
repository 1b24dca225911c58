package schedule_test

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/schedule"
)

func TestParseDuration(t *testing.T) {
	const low, high = time.Hour, 7 * schedule.Day
	good := map[string]time.Duration{
		"PT1H": time.Hour, "PT3H": 3 * time.Hour, "P7D": 7 * schedule.Day, "P1W": 7 * schedule.Day, "P2D": 2 * schedule.Day,
		"P1DT6H30M": 30*time.Hour + 30*time.Minute, "PT3600S": time.Hour, "PT3600.5S": time.Hour + 500*time.Millisecond, "PT168H": 7 * schedule.Day,
	}
	for text, want := range good {
		if got, err := schedule.ParseDuration(text, low, high); err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	bad := []string{
		"", "P", "PT", "P1DT", "4h", "PT4", "pt4h", "-PT4H", "PT-4H", "P2D ", "PT4H4H", "P1D1D", "PPT4H", "P1H", "PT1D", "PT½H",
		"PT59M59S", "P7DT1S", "P8D", "PT0S", "P1M", "P1Y", "PT169H",
		"PT999999999999999999H", "P999999999Y", "PT999999999H", "P999999999Y999999999M999999999DT999999999H", "PT1e9H", "P1.5D",
		"P292Y100000DT166175H9273.709551616S", // 2^64 ns and two hours
	}
	for _, text := range bad {
		if got, err := schedule.ParseDuration(text, low, high); err == nil {
			t.Errorf("ParseDuration(%q) = %v, want an error", text, got)
		}
	}
}

func TestDurationRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := time.Duration(rapid.Int64Range(0, int64(400*schedule.Day)).Draw(t, "ns"))
		if rapid.Bool().Draw(t, "whole") {
			want = want.Truncate(time.Second)
		}
		text := schedule.FormatDuration(want)
		got, err := schedule.ParseDuration(text, 0, math.MaxInt64)
		if err != nil || got != want {
			t.Fatalf("%d -> %q -> %d, %v", want, text, got, err)
		}
	})
}

func TestDurationStaysWithinLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`-?P([0-9]{1,20}[YMWD]){0,3}(T([0-9]{1,20}[HMS]){0,3})?`).Draw(t, "text")
		if got, err := schedule.ParseDuration(text, time.Hour, math.MaxInt64); err == nil && got < time.Hour {
			t.Fatalf("ParseDuration(%q) = %v", text, got)
		}
	})
}

func TestFormatDuration(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"PT0S": 0, "P2D": 48 * time.Hour, "PT4H": 4 * time.Hour, "P7D": 7 * schedule.Day, "P1DT1H1M1S": 25*time.Hour + 61*time.Second, "PT0.5S": time.Second / 2, "PT10S": 10 * time.Second,
	} {
		if got := schedule.FormatDuration(d); got != want {
			t.Errorf("FormatDuration(%v) = %s, want %s", d, got, want)
		}
	}
	if got := schedule.FormatDuration(-1); got != "PT0S" {
		t.Errorf("FormatDuration(-1) = %s", got)
	}
}
