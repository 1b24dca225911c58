package registry

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// TransferConfig bounds what the link carries, in both directions together.
type TransferConfig struct {
	MaxKiBps int // KiB per second over all transfers; 0 is no limit
	Parallel int // transfers at once
	ChunkKiB int // KiB after which a transfer gives way to one that is more urgent, and the size of an upload's chunk
	Rates    map[string]RateWindow
	Budget   BudgetConfig
}

// RateWindow is a rate for a time of the day, in UTC.
type RateWindow struct {
	From, To int   // minutes of the day; From after To reaches over midnight, From equal to To is the whole day
	Days     uint8 // bit n for time.Weekday n, of the day on which the window begins
	KiBps    int
}

// BudgetConfig bounds the bytes over the link in a calendar hour, day and month (UTC), in MiB; 0 is no bound.
type BudgetConfig struct {
	HourMiB  int
	DayMiB   int
	MonthMiB int
}

// BudgetStatus is what is left of one budget.
type BudgetStatus struct {
	Period string    `json:"period"` // hour, day, month
	Limit  int64     `json:"limit"`  // bytes
	Used   int64     `json:"used"`
	Left   int64     `json:"left"`
	Until  time.Time `json:"until"` // when the next period begins
}

// ErrBudget is the cause of an UNAVAILABLE that a byte budget is used up: the parent is not away, it is not asked.
var ErrBudget = errors.New("the byte budget is used up")

// Longest spelled rate window and highest rate, in KiB per second: 100 GiB per second.
const (
	maxRateText = 64
	// MaxKiBps is the highest rate that can be set.
	MaxKiBps = 100 << 20
)

var (
	rateWindowPattern = Pattern(`^([0-2][0-9]):([0-5][0-9])-([0-2][0-9]):([0-5][0-9])(?: ([a-z,-]+))? ([0-9]{1,9})$`)
	weekdays          = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}
)

// allDays has a bit for each weekday.
const allDays = 1<<7 - 1

// ParseRateWindow reads "HH:MM-HH:MM [days] KiBps", for example "06:00-22:00 mon-fri 256": times in UTC, 24:00 for the
// end of the day; days as a list or ranges of sun to sat, all when left out; a rate from 1 to MaxKiBps.
func ParseRateWindow(s string) (RateWindow, error) {
	want := errors.New(`want "HH:MM-HH:MM [days] KiBps" in UTC, such as "06:00-22:00 mon-fri 256"`)
	if len(s) > maxRateText {
		return RateWindow{}, want
	}
	m := rateWindowPattern().FindStringSubmatch(strings.Join(strings.Fields(s), " "))
	if m == nil {
		return RateWindow{}, want
	}
	number := func(text string) int { n, _ := strconv.Atoi(text); return n } // the pattern has only digits
	w := RateWindow{From: 60*number(m[1]) + number(m[2]), To: 60*number(m[3]) + number(m[4]), Days: allDays, KiBps: number(m[6])}
	if w.From > 23*60+59 || w.To > 24*60 {
		return RateWindow{}, fmt.Errorf("times are from 00:00 to 24:00: %w", want)
	}
	if w.KiBps < 1 || w.KiBps > MaxKiBps {
		return RateWindow{}, fmt.Errorf("%s KiB per second: want 1 to %d", m[6], MaxKiBps)
	}
	w.To %= 24 * 60
	if m[5] == "" {
		return w, nil
	}
	w.Days = 0
	for _, part := range strings.Split(m[5], ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, b := weekday(first), weekday(last)
		if a < 0 || b < 0 {
			return RateWindow{}, fmt.Errorf("days are %s: %w", strings.Join(weekdays, ", "), want)
		}
		for d := a; ; d = (d + 1) % 7 {
			if w.Days |= 1 << d; d == b {
				break
			}
		}
	}
	return w, nil
}

func weekday(s string) int {
	for i, name := range weekdays {
		if name == s {
			return i
		}
	}
	return -1
}

// String returns the window as ParseRateWindow reads it.
func (w RateWindow) String() string {
	clock := func(m int) string { return fmt.Sprintf("%02d:%02d", m/60, m%60) }
	days := ""
	if w.Days != allDays {
		var list []string
		for i, name := range weekdays {
			if w.Days&(1<<i) != 0 {
				list = append(list, name)
			}
		}
		days = strings.Join(list, ",") + " "
	}
	return fmt.Sprintf("%s-%s %s%d", clock(w.From), clock(w.To), days, w.KiBps)
}

// Contains reports whether a time is in the window.
func (w RateWindow) Contains(t time.Time) bool {
	t = t.UTC()
	minute, day := 60*t.Hour()+t.Minute(), uint(t.Weekday())
	today, yesterday := w.Days&(1<<day) != 0, w.Days&(1<<((day+6)%7)) != 0
	if w.From < w.To {
		return today && minute >= w.From && minute < w.To
	}
	return today && minute >= w.From || yesterday && minute < w.To
}

// KiBpsAt is the rate at a time: that of the windows that contain it, the lowest of several, and MaxKiBps outside them.
func (c TransferConfig) KiBpsAt(t time.Time) int {
	rate, inside := 0, false
	for _, w := range c.Rates {
		if w.Contains(t) && (!inside || w.KiBps < rate) {
			rate, inside = w.KiBps, true
		}
	}
	if inside {
		return rate
	}
	return c.MaxKiBps
}
