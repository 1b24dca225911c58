package schedule_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/schedule"
)

func plan(t *testing.T, cron string, window time.Duration) schedule.Plan {
	t.Helper()
	s, err := schedule.Parse(cron)
	if err != nil {
		t.Fatal(err)
	}
	return schedule.Plan{Schedule: s, Window: window}
}

func TestPlanAt(t *testing.T) {
	const night, continuous = "0 2 * * *", "* * * * *"
	tests := []struct {
		name, cron     string
		window         time.Duration
		now, lastDone  string
		open           bool
		until, nextRun string
	}{
		{"done in this window", night, 3 * time.Hour, "2026-11-21 03:00:00", "2026-11-21 02:10:00", false, "", "2026-11-22 02:00:00"},
		{"due as the window opens", night, 3 * time.Hour, "2026-11-21 02:00:00", "2026-11-20 02:10:00", true, "2026-11-21 05:00:00", "2026-11-22 02:00:00"},
		{"still due inside the window", night, 3 * time.Hour, "2026-11-21 04:59:59", "2026-11-20 02:10:00", true, "2026-11-21 05:00:00", "2026-11-22 02:00:00"},
		{"before the window", night, 3 * time.Hour, "2026-11-21 01:59:59", "2026-11-20 02:10:00", false, "", "2026-11-21 02:00:00"},
		{"missed: made up for with a whole window", night, 3 * time.Hour, "2026-11-21 12:00:00", "2026-11-20 02:10:00", true, "2026-11-21 15:00:00", "2026-11-22 02:00:00"},
		{"many missed: made up for once", night, 3 * time.Hour, "2026-11-21 12:00:00", "2026-08-01 02:10:00", true, "2026-11-21 15:00:00", "2026-11-22 02:00:00"},
		{"at the very end of the window it is missed", night, 3 * time.Hour, "2026-11-21 05:00:00", "2026-11-20 02:10:00", true, "2026-11-21 08:00:00", "2026-11-22 02:00:00"},
		{"ended by its window", night, 3 * time.Hour, "2026-11-21 05:00:01", "2026-11-21 05:00:00", false, "", "2026-11-22 02:00:00"},
		{"never done", night, 3 * time.Hour, "2026-11-21 12:00:00", "", true, "2026-11-21 15:00:00", "2026-11-22 02:00:00"},
		{"windows that overlap: the latest counts", "*/15 * * * *", 4 * time.Hour, "2026-11-21 12:20:00", "2026-11-21 12:01:00", true, "2026-11-21 16:15:00", "2026-11-21 12:30:00"},
		{"done just as the next one is due", "*/15 * * * *", 4 * time.Hour, "2026-11-21 12:15:00", "2026-11-21 12:15:00", false, "", "2026-11-21 12:30:00"},
		{"continuous, done in this minute", continuous, 0, "2026-11-21 12:00:40", "2026-11-21 12:00:30", false, "", "2026-11-21 12:01:00"},
		{"continuous, next minute", continuous, 0, "2026-11-21 12:01:00", "2026-11-21 12:00:30", true, "", "2026-11-21 12:02:00"},
		{"continuous has no window", continuous, time.Hour, "2026-11-21 12:01:00", "", true, "", "2026-11-21 12:02:00"},
		{"no window", night, 0, "2026-11-21 12:00:00", "2026-11-20 02:10:00", true, "", "2026-11-22 02:00:00"},
		{"done in the future by a wrong clock", night, 3 * time.Hour, "2026-11-21 12:00:00", "2099-01-01 00:00:00", true, "2026-11-21 15:00:00", "2026-11-22 02:00:00"},
		{"clock fell back to 1970", night, 3 * time.Hour, "1970-01-01 00:00:10", "2026-11-21 02:10:00", true, "1970-01-01 03:00:10", "1970-01-01 02:00:00"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			parse := func(s string) time.Time {
				if s == "" {
					return time.Time{}
				}
				return date(s)
			}
			got := plan(t, tt.cron, tt.window).At(date(tt.now), parse(tt.lastDone))
			want := schedule.State{Open: tt.open, Until: parse(tt.until), Next: parse(tt.nextRun)}
			if got != want {
				t.Errorf("At = %+v\nwant %+v", got, want)
			}
		})
	}
}

// Whatever the clock does, a caller that runs what is due runs each time the clock reaches a new occurrence, never
// spins, and its window is never over already.
func TestPlanSurvivesAnyClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := schedule.Plan{Schedule: anySchedule(t), Window: time.Duration(rapid.Int64Range(0, int64(7*schedule.Day)).Draw(t, "window"))}
		var lastDone time.Time
		for range rapid.IntRange(1, 10).Draw(t, "steps") {
			now := instant(t, "now")
			s := p.At(now, lastDone)
			if !s.Next.After(now) {
				t.Fatalf("next %s is not after now %s", s.Next, now)
			}
			if !s.Until.IsZero() && (!s.Open || !s.Until.After(now) || s.Until.After(now.Add(p.Window))) {
				t.Fatalf("at %s: %+v", now, s)
			}
			if missed := lastDone.IsZero() || lastDone.After(now) || !p.Schedule.Next(lastDone).After(now); s.Open != missed {
				t.Fatalf("%s at %s, last done %s: open %v", p.Schedule, now, lastDone, s.Open)
			}
			if s.Open {
				lastDone = now
			}
			if again := p.At(now, lastDone); again.Open {
				t.Fatalf("%s at %s: due again at once", p.Schedule, now)
			}
			if later := p.At(s.Next, lastDone); !later.Open {
				t.Fatalf("%s: not due at %s", p.Schedule, s.Next)
			}
		}
	})
}
