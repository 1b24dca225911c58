package registry_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
)

func at(text string) time.Time {
	t, err := time.Parse("2006-01-02 15:04", text)
	if err != nil {
		panic(err)
	}
	return t
}

func TestRates(t *testing.T) {
	c := registry.TransferConfig{MaxKiBps: 1000, Rates: map[string]registry.RateWindow{}}
	for name, text := range map[string]string{"shift": "06:00-22:00 mon-fri 100", "lunch": "12:00-13:00 50", "night": "22:00-06:00 sat 7"} {
		w, err := registry.ParseRateWindow(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		c.Rates[name] = w
	}
	for text, want := range map[string]int{ // 2026-11-23 is a Monday
		"2026-11-23 05:59": 1000, "2026-11-23 06:00": 100, "2026-11-23 21:59": 100, "2026-11-23 22:00": 1000,
		"2026-11-23 12:30": 50, "2026-11-22 12:30": 50, "2026-11-22 11:00": 1000, "2026-11-21 23:00": 7, "2026-11-22 05:00": 7,
		"2026-11-22 06:00": 1000, "2026-11-22 23:00": 1000, "2026-11-21 05:00": 1000,
	} {
		if got := c.KiBpsAt(at(text)); got != want {
			t.Errorf("%s: %d KiB/s, want %d", text, got, want)
		}
	}
	for _, text := range []string{
		"", "06:00-22:00", "6:00-22:00 100", "06:00-25:00 100", "24:00-06:00 100", "06:60-07:00 1", "06:00-22:00 mon 0", "06:00-22:00 monday 1",
		"06:00-22:00 mon- 1", "06:00-22:00 104857601", "06:00-22:00 100 mon", "06:00 - 22:00 1",
	} {
		if w, err := registry.ParseRateWindow(text); err == nil {
			t.Errorf("%q is taken for %v", text, w)
		}
	}
}

// TestRateWindowRoundTrip spells any window and reads it again.
func TestRateWindowRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := registry.RateWindow{
			From: rapid.IntRange(0, 1439).Draw(t, "from"), To: rapid.IntRange(0, 1439).Draw(t, "to"),
			Days: rapid.Uint8Range(1, 127).Draw(t, "days"), KiBps: rapid.IntRange(1, registry.MaxKiBps).Draw(t, "rate"),
		}
		got, err := registry.ParseRateWindow(w.String())
		if err != nil || got != w {
			t.Fatalf("%q: %+v, %v; want %+v", w, got, err, w)
		}
	})
}
