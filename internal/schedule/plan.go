package schedule

import "time"

// Plan is when iterations run: at the occurrences of a schedule, each for no longer than the window.
type Plan struct {
	Schedule Schedule
	Window   time.Duration // how long after its occurrence an iteration may run; 0 is without end
}

// State is what a Plan says about one moment.
type State struct {
	Open  bool      // an iteration is due: run one now
	Until time.Time // when that iteration must end; zero when it need not, or when not Open
	Next  time.Time // the next occurrence after now
}

// At says whether an iteration is due now. lastDone is when the last one ended: because it was complete, or because
// its Until was reached. It is zero when there was none.
//
// An iteration is due when an occurrence lies after lastDone and not after now. It ends when the window of that
// occurrence does. An occurrence whose window is over already was missed, because the device was off or its clock
// jumped: it is made up for at once, and once however many were missed, with a whole window from now on. Callers take
// Until from the answer that opened the iteration.
//
// A lastDone that lies in the future is from a clock that was wrong. It is taken as none, since one iteration too
// many costs a few requests and one too few costs the content.
func (p Plan) At(now, lastDone time.Time) State {
	now = now.UTC()
	s := State{Next: p.Schedule.Next(now)}
	occurrence := p.Schedule.Latest(now)
	known := !lastDone.IsZero() && !lastDone.After(now)
	if known && !occurrence.After(lastDone) {
		return s
	}
	s.Open = true
	if p.Window <= 0 || p.Schedule.Continuous() {
		return s
	}
	s.Until = occurrence.Add(p.Window)
	if !s.Until.After(now) {
		s.Until = now.Add(p.Window)
	}
	return s
}
