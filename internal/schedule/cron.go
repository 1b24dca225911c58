package schedule

import (
	"errors"
	"fmt"
	"strings"
	"time"

	cron "github.com/netresearch/go-cron"
)

// Everything is the continuous schedule: an occurrence in every minute.
const Everything = "* * * * *"

// MaxLength is the longest cron expression that Parse reads, in bytes.
const MaxLength = 256

// searchYears is how far an occurrence may lie ahead. 29 February is the rarest day there is, and it is eight years
// away in 2096, because 2100 has none.
const searchYears = 9

// fields are the five that crontab(5) has. Descriptors (@daily) and hashes are left out on purpose: ACR has neither.
const fields = cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.DowOrDom

// Schedule is a parsed cron expression. The zero value is the continuous schedule.
type Schedule struct {
	text string
	spec *cron.SpecSchedule
}

// Parse reads five blank-separated cron fields: minute, hour, day, month and weekday (0 and 7 are Sunday).
// A field is *, a number, a range a-b, a list with commas, or any of them with a step: */n, a/n, a-b/n. Months and
// weekdays may be named by three letters. When both days are restricted, either is enough, as in crontab(5).
// All times are UTC; a time zone in front of the fields is refused, and so is an expression that never occurs
// ("0 0 31 2 *"), because a device that waits for it would never synchronise and never say why.
func Parse(expression string) (Schedule, error) {
	if len(expression) > MaxLength {
		return Schedule{}, fmt.Errorf("cron expression has %d bytes: want at most %d", len(expression), MaxLength)
	}
	words := strings.Fields(expression)
	text := strings.Join(words, " ")
	switch {
	case len(words) == 0:
		return Schedule{}, errors.New(`cron expression is empty: want five fields, such as "0 5 * * *"`)
	case strings.HasPrefix(text, "@"):
		return Schedule{}, fmt.Errorf("cron expression %q: want five fields, not a name", clip(text))
	case strings.Contains(text, "="): // TZ=, CRON_TZ=: libraries read it, some of them panic on it
		return Schedule{}, fmt.Errorf("cron expression %q: schedules are in UTC, a time zone cannot be set", clip(text))
	case len(words) != 5:
		return Schedule{}, fmt.Errorf("cron expression %q has %d fields: want five, minute hour day month weekday", clip(text), len(words))
	}
	parser, err := cron.TryNewParser(fields)
	if err != nil {
		return Schedule{}, fmt.Errorf("cron parser: %w", err)
	}
	parsed, err := parser.WithMaxSearchYears(searchYears).Parse(text)
	if err != nil {
		return Schedule{}, fmt.Errorf("cron expression %q: %w", clip(text), err)
	}
	spec, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return Schedule{}, fmt.Errorf("cron expression %q: want five fields", clip(text))
	}
	spec.Location = time.UTC
	if spec.Next(time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return Schedule{}, fmt.Errorf("cron expression %q never occurs: no month that it names has such a day", clip(text))
	}
	return Schedule{text: text, spec: spec}, nil
}

// Continuous reports whether every minute is an occurrence, as with "* * * * *".
func (s Schedule) Continuous() bool {
	if s.spec == nil || s.text == Everything {
		return true
	}
	const minutes, hours, days, months, weekdays = 1<<60 - 1, 1<<24 - 1, 1<<32 - 2, 1<<13 - 2, 1<<7 - 1
	covers := func(bits, all uint64) bool { return bits&all == all }
	return covers(s.spec.Minute, minutes) && covers(s.spec.Hour, hours) && covers(s.spec.Month, months) &&
		covers(s.spec.Dom, days) && covers(s.spec.Dow, weekdays)
}

// Next returns the first occurrence after a time, in UTC. An occurrence is a whole minute.
func (s Schedule) Next(after time.Time) time.Time {
	after = after.UTC()
	if s.spec == nil {
		return after.Truncate(time.Minute).Add(time.Minute)
	}
	return s.spec.Next(after)
}

// Latest returns the last occurrence that is not after a time, in UTC.
func (s Schedule) Latest(at time.Time) time.Time {
	minute := at.UTC().Truncate(time.Minute)
	if s.spec == nil {
		return minute
	}
	return s.spec.Prev(minute.Add(time.Second))
}

// String returns the expression with single blanks.
func (s Schedule) String() string {
	if s.text == "" {
		return Everything
	}
	return s.text
}

// clip shortens what a user wrote to what fits into an error.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
