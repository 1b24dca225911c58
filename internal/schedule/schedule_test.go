package schedule_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/schedule"
)

func date(s string) time.Time {
	t, err := time.Parse("2006-01-02 15:04:05", s)
	if err != nil {
		panic(err)
	}
	return t
}

func TestParseNext(t *testing.T) {
	tests := []struct{ name, cron, after, next string }{
		{"continuous", "* * * * *", "2026-11-21 10:00:30", "2026-11-21 10:01:00"},
		{"an occurrence is not after itself", "0 5 * * *", "2026-11-21 05:00:00", "2026-11-22 05:00:00"},
		{"noon, not midnight", "0 12 * * *", "2026-11-21 00:00:00", "2026-11-21 12:00:00"},
		{"step", "*/15 * * * *", "2026-11-21 10:46:00", "2026-11-21 11:00:00"},
		{"step with a start", "0 0/10 * * *", "2026-11-21 10:00:00", "2026-11-21 20:00:00"},
		{"step of days", "0 0 */10 * *", "2026-11-21 10:00:00", "2026-12-01 00:00:00"},
		{"list", "0 6,18 * * *", "2026-11-21 10:00:00", "2026-11-21 18:00:00"},
		{"range", "0 8-10 * * *", "2026-11-21 11:00:00", "2026-11-22 08:00:00"},
		{"range over midnight", "0 22-2 * * *", "2026-11-21 23:30:00", "2026-11-22 00:00:00"},
		{"Sunday is 7", "0 0 * * 7", "2026-11-21 10:00:00", "2026-11-22 00:00:00"},
		{"names", "0 0 * dec mon", "2026-11-21 10:00:00", "2026-12-07 00:00:00"},
		{"either day is enough", "0 0 1 * mon", "2026-11-21 10:00:00", "2026-11-23 00:00:00"},
		{"leap day over 2100", "0 0 29 2 *", "2096-03-01 00:00:00", "2104-02-29 00:00:00"},
		{"blanks", "  0   5 *	* * ", "2026-11-21 10:00:00", "2026-11-22 05:00:00"},
		{"1970", "0 5 * * *", "1970-01-01 00:00:00", "1970-01-01 05:00:00"},
		{"year 9999", "0 5 * * *", "9999-12-31 06:00:00", "10000-01-01 05:00:00"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := schedule.Parse(tt.cron)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Next(date(tt.after)).Format("2006-01-02 15:04:05"); got != tt.next {
				t.Errorf("Next(%s) = %s, want %s", tt.after, got, tt.next)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ name, cron, want string }{
		{"empty", "", "is empty"},
		{"blank", "  ", "is empty"},
		{"has 6 fields", "0 0 5 * * *", "has 6 fields"},
		{"four fields", "0 5 * *", "has 4 fields"},
		{"a bare zone, which panics in a widespread library", "TZ=0", "UTC"},
		{"zone", "TZ=Europe/Berlin 0 5 * * *", "UTC"},
		{"cron zone", "CRON_TZ=UTC 0 5 * * *", "UTC"},
		{"descriptor", "@daily", "not a name"},
		{"every", "@every 1h", "not a name"},
		{"31 February", "0 0 31 2 *", "never occurs"},
		{"31 April", "0 0 31 4,6 *", "never occurs"},
		{"minute", "60 * * * *", "60"},
		{"negative", "-1 * * * *", "cron expression"},
		{"step of nothing", "*/0 * * * *", "step"},
		{"word", "often * * * *", "often"},
		{"hash", "H * * * *", "cron expression"},
		{"last day", "0 0 L * *", "cron expression"},
		{"long", strings.Repeat("1,", 200) + "1 * * * *", "bytes"},
		{"huge number", "99999999999999999999 * * * *", "cron expression"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := schedule.Parse(tt.cron)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Parse(%q) = %v, want an error with %q", tt.cron, err, tt.want)
			}
		})
	}
}

func TestContinuous(t *testing.T) {
	for cron, want := range map[string]bool{
		"* * * * *": true, " *  * * * * ": true, "*/1 * * * *": true, "0-59 0-23 1-31 1-12 0-6": true,
		"*/2 * * * *": false, "* 1-23 * * *": false, "* * 1-30 * *": false, "* * * 1-11 *": false, "* * * * 1-6": false,
	} {
		s, err := schedule.Parse(cron)
		if err != nil {
			t.Fatal(err)
		}
		if s.Continuous() != want {
			t.Errorf("Continuous(%q) = %v", cron, !want)
		}
	}
	var zero schedule.Schedule
	if !zero.Continuous() || zero.String() != schedule.Everything || zero.Next(date("2026-01-01 00:00:00")) != date("2026-01-01 00:01:00") {
		t.Error("the zero Schedule is not the continuous one")
	}
}

// fieldOf generates one field of a cron expression.
func fieldOf(low, high int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		number := rapid.IntRange(low, high)
		switch rapid.IntRange(0, 4).Draw(t, "form") {
		case 0:
			return strconv.Itoa(number.Draw(t, "n"))
		case 1:
			return "*/" + strconv.Itoa(rapid.IntRange(1, (high-low)/2+1).Draw(t, "step"))
		case 2:
			a := number.Draw(t, "a")
			return strconv.Itoa(a) + "-" + strconv.Itoa(rapid.IntRange(a, high).Draw(t, "b"))
		case 3:
			return strconv.Itoa(number.Draw(t, "a")) + "," + strconv.Itoa(number.Draw(t, "b"))
		}
		return "*"
	})
}

func anySchedule(t *rapid.T) schedule.Schedule {
	for {
		text := strings.Join([]string{
			fieldOf(0, 59).Draw(t, "minute"), fieldOf(0, 23).Draw(t, "hour"), fieldOf(1, 31).Draw(t, "day"),
			fieldOf(1, 12).Draw(t, "month"), fieldOf(0, 6).Draw(t, "weekday"),
		}, " ")
		s, err := schedule.Parse(text)
		if err == nil {
			return s
		}
		if !strings.Contains(err.Error(), "never occurs") {
			t.Fatalf("Parse(%q): %v", text, err)
		}
	}
}

// instant is any time from the epoch, where a device without a clock boots, to far ahead.
func instant(t *rapid.T, name string) time.Time {
	return time.Unix(rapid.Int64Range(0, 5_000_000_000).Draw(t, name), rapid.Int64Range(0, 999_999_999).Draw(t, name+"-ns")).UTC()
}

func TestNextAndLatestAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, now := anySchedule(t), instant(t, "now")
		next, latest := s.Next(now), s.Latest(now)
		if !next.After(now) || next != next.Truncate(time.Minute) || next.Location() != time.UTC {
			t.Fatalf("%s: Next(%s) = %s", s, now, next)
		}
		if latest.IsZero() || latest.After(now) {
			t.Fatalf("%s: Latest(%s) = %s", s, now, latest)
		}
		if s.Next(latest) != next || s.Next(latest.Add(-1)) != latest || s.Latest(next) != next || s.Latest(next.Add(-1)) != latest {
			t.Fatalf("%s at %s: latest %s and next %s are not neighbours", s, now, latest, next)
		}
	})
}

func TestScheduleTextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, now := anySchedule(t), instant(t, "now")
		again, err := schedule.Parse(s.String())
		if err != nil || again.Next(now) != s.Next(now) {
			t.Fatalf("Parse(%q) = %v, %v", s, again, err)
		}
	})
}

func TestParseNeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[0-9*/,\-LWH#?@=TZ ]{0,30}`)).Draw(t, "text")
		if s, err := schedule.Parse(text); err == nil && s.Next(date("2026-11-21 00:00:00")).IsZero() {
			t.Fatalf("Parse(%q) gives a schedule that never occurs", text)
		}
	})
}
