package transport

import (
	"encoding/json"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// leases is into how many parts a budget is divided: one is made durable at a time, before it is used.
const leases = 64

// period is one kind of budget.
type period struct {
	name  string
	field string
	begin func(time.Time) time.Time // of the period that a time is in
	next  func(time.Time) time.Time // of the one after it
	limit func(registry.BudgetConfig) int
}

var periods = [...]period{
	{
		"hour", "transfer.budget.hourMiB", func(t time.Time) time.Time { return t.Truncate(time.Hour) },
		func(t time.Time) time.Time { return t.Truncate(time.Hour).Add(time.Hour) },
		func(c registry.BudgetConfig) int { return c.HourMiB },
	},
	{
		"day", "transfer.budget.dayMiB", func(t time.Time) time.Time { return day(t, t.Day()) },
		func(t time.Time) time.Time { return day(t, t.Day()+1) },
		func(c registry.BudgetConfig) int { return c.DayMiB },
	},
	{
		"month", "transfer.budget.monthMiB", func(t time.Time) time.Time { return day(t, 1) },
		func(t time.Time) time.Time { return time.Date(t.Year(), t.Month()+1, 1, 0, 0, 0, 0, time.UTC) },
		func(c registry.BudgetConfig) int { return c.MonthMiB },
	},
}

func day(t time.Time, n int) time.Time {
	return time.Date(t.Year(), t.Month(), n, 0, 0, 0, 0, time.UTC)
}

// meter counts the bytes of one period.
type meter struct {
	Begin time.Time `json:"begin"`
	Used  int64     `json:"used"`
}

// budget counts what is on the wire against the limits of an hour, a day and a month. What is durable is never less than
// what was used.
type budget struct {
	o LinkOptions

	mu     sync.Mutex
	limits [len(periods)]int64 // bytes; 0 is none
	meters [len(periods)]meter
	leased int64 // bytes that may still be used before more has to be made durable
	saving bool
}

func newBudget(o LinkOptions) *budget {
	b := &budget{o: o}
	kept := map[string]meter{}
	if len(o.Kept) > 0 && json.Unmarshal(o.Kept, &kept) == nil {
		for i, p := range periods {
			b.meters[i] = kept[p.name]
			b.meters[i].Used = max(b.meters[i].Used, 0)
		}
	}
	return b
}

func (b *budget) configure(c registry.BudgetConfig) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, p := range periods {
		b.limits[i] = int64(p.limit(c)) << 20
	}
	b.leased = 0 // a new lease, of the new size
}

func (b *budget) limited() bool { return b.limits != [len(periods)]int64{} }

// turn begins the periods that now is in. A clock that was set back keeps what was used; one that was far ahead does not
// keep its period for long. The caller holds mu.
func (b *budget) turn(now time.Time) {
	now = now.UTC()
	for i, p := range periods {
		begin, m := p.begin(now), &b.meters[i]
		switch {
		case begin.After(m.Begin):
			*m = meter{Begin: begin}
		case begin.Before(m.Begin):
			m.Begin = begin
		}
	}
}

// count adds n bytes. Once a lease is used up it makes the next one durable.
func (b *budget) count(n int64, now time.Time) {
	b.mu.Lock()
	if !b.limited() {
		b.mu.Unlock()
		return
	}
	b.turn(now)
	for i := range b.meters {
		b.meters[i].Used += n
	}
	b.leased -= n
	if b.leased >= 0 || b.saving {
		b.mu.Unlock()
		return
	}
	b.saving = true
	lease := b.lease()
	body := b.marshal(lease)
	b.leased = lease
	b.mu.Unlock()
	b.save(body)
	b.mu.Lock()
	b.saving = false
	b.mu.Unlock()
}

// lease is how many bytes are made durable ahead. The caller holds mu.
func (b *budget) lease() int64 {
	lease := int64(0)
	for _, limit := range b.limits {
		if part := limit / leases; part > 0 && (lease == 0 || part < lease) {
			lease = part
		}
	}
	return lease
}

// marshal is what to keep, with so many bytes more than were used. The caller holds mu.
func (b *budget) marshal(ahead int64) []byte {
	kept := map[string]meter{}
	for i, p := range periods {
		m := b.meters[i]
		m.Used += ahead
		kept[p.name] = m
	}
	body, _ := json.Marshal(kept) // strings, times and numbers
	return body
}

func (b *budget) save(body []byte) {
	if b.o.Keep == nil {
		return
	}
	if err := b.o.Keep(body); err != nil {
		b.o.Logger.Warn("the use of the byte budget cannot be kept: after a restart it counts from what was kept last", "error", err)
	}
}

// flush makes exactly what was used durable.
func (b *budget) flush(now time.Time) {
	b.mu.Lock()
	if !b.limited() {
		b.mu.Unlock()
		return
	}
	b.turn(now)
	body := b.marshal(0)
	b.leased = 0
	b.mu.Unlock()
	b.save(body)
}

func (b *budget) status(now time.Time) []registry.BudgetStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.limited() {
		return nil
	}
	b.turn(now)
	var list []registry.BudgetStatus
	for i, p := range periods {
		if limit := b.limits[i]; limit > 0 {
			used := b.meters[i].Used
			list = append(list, registry.BudgetStatus{Period: p.name, Limit: limit, Used: used, Left: max(limit-used, 0), Until: p.next(now.UTC())})
		}
	}
	return list
}

// spent returns the error of the budget that is used up for the longest time, nil for none.
func (b *budget) spent(now time.Time) error {
	list := b.status(now)
	for i := len(list) - 1; i >= 0; i-- {
		s := list[i]
		if s.Left > 0 {
			continue
		}
		field := ""
		for _, p := range periods {
			if p.name == s.Period {
				field = p.field
			}
		}
		return registry.ErrUnavailable.WithMessage("the byte budget of this %s, %d MiB (%s), is used up until %s UTC", s.Period, s.Limit>>20, field, s.Until.Format("2006-01-02 15:04")).
			WithRetryAfter(min(max(s.Until.Sub(now), time.Second), MaxRetryAfter)).Wrap(registry.ErrBudget)
	}
	return nil
}
