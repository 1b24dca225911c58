package schedule

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	iso "github.com/sosodev/duration"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Day is 24 hours: there is no daylight saving time in UTC.
const Day = 24 * time.Hour

// durationPattern is ISO 8601's duration without its rarities. The library accepts "P", repeated units and any number
// of digits, and wraps around silently.
var durationPattern = registry.Pattern(`^P(?:[0-9]{1,9}W|(?:[0-9]{1,9}Y)?(?:[0-9]{1,9}M)?(?:[0-9]{1,9}D)?(?:T(?:[0-9]{1,9}H)?(?:[0-9]{1,9}M)?(?:[0-9]{1,9}(?:\.[0-9]{1,9})?S)?)?)$`)

// ParseDuration reads an ISO 8601 duration such as PT4H or P2D and checks that it lies between lowest and highest,
// both included. A month is a twelfth of a year and a year 365 days.
func ParseDuration(text string, lowest, highest time.Duration) (time.Duration, error) {
	if !durationPattern().MatchString(text) || strings.HasSuffix(text, "P") || strings.HasSuffix(text, "T") {
		return 0, fmt.Errorf("duration %q: want the form of ISO 8601, such as PT4H or P2D", clip(text))
	}
	d, err := iso.Parse(text)
	if err != nil {
		return 0, fmt.Errorf("duration %q: %w", clip(text), err)
	}
	hours := ((d.Years*365+d.Months*365/12+d.Weeks*7+d.Days)*24 + d.Hours) + d.Minutes/60 + d.Seconds/3600
	limit := fmt.Errorf("duration %q: want %s to %s", clip(text), FormatDuration(lowest), FormatDuration(highest))
	if hours > highest.Hours()+1 { // before the conversion, which wraps around
		return 0, limit
	}
	if v := d.ToTimeDuration(); v >= lowest && v <= highest {
		return v, nil
	}
	return 0, limit
}

// FormatDuration returns the ISO 8601 form in days, hours, minutes and seconds: P2D, PT4H, PT0S. Negative durations
// have none and come out as PT0S.
func FormatDuration(d time.Duration) string {
	if d <= 0 {
		return "PT0S"
	}
	var b strings.Builder
	b.WriteString("P")
	if days := d / Day; days > 0 {
		b.WriteString(strconv.FormatInt(int64(days), 10) + "D")
	}
	d %= Day
	if d == 0 {
		return b.String()
	}
	b.WriteString("T")
	if h := d / time.Hour; h > 0 {
		b.WriteString(strconv.FormatInt(int64(h), 10) + "H")
	}
	if m := d % time.Hour / time.Minute; m > 0 {
		b.WriteString(strconv.FormatInt(int64(m), 10) + "M")
	}
	if s := d % time.Minute; s > 0 {
		text := strconv.FormatFloat(s.Seconds(), 'f', 9, 64)
		b.WriteString(strings.TrimRight(strings.TrimRight(text, "0"), ".") + "S")
	}
	return b.String()
}
