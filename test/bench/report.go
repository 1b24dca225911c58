//go:build linux

package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
)

// report is all that a run found.
type report struct {
	Header   header    `json:"header"`
	Sections []section `json:"sections"`
	Error    string    `json:"error,omitempty"` // why the run ended early; what came before it is whole
}

// section is one table.
type section struct {
	Name    string   `json:"name"`
	Title   string   `json:"title"`
	Notes   []string `json:"notes,omitempty"`
	Columns []string `json:"columns"` // subjects, ours first
	Rows    []*row   `json:"rows"`

	mu     *sync.Mutex // of the rows: the link's are filled from several goroutines
	before processorTime
}

// row is one figure of each subject.
type row struct {
	Name   string           `json:"name"`
	Unit   string           `json:"unit"`
	Values map[string]*cell `json:"values"`
	Ratios map[string]ratio `json:"ratios,omitempty"` // ours to theirs
	Bars   []*bar           `json:"bars,omitempty"`

	mu *sync.Mutex
}

// cell is what one subject did.
type cell struct {
	Samples []float64 `json:"samples,omitempty"` // one a round
	Median  float64   `json:"median"`
	Text    string    `json:"text,omitempty"` // in place of the number
}

// ratio is ours divided by theirs in the same round.
type ratio struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// bar is a figure to reach.
type bar struct {
	Of      string  `json:"of,omitempty"`      // whose figure; empty is ours
	Against string  `json:"against,omitempty"` // ratio to this subject; empty is the figure itself
	Op      string  `json:"op"`                // "<=" or ">="
	Limit   float64 `json:"limit"`
	Value   float64 `json:"value"`
	Known   bool    `json:"known"` // there is a figure
	Met     bool    `json:"met"`
	Floor   float64 `json:"floor,omitempty"` // what the floor has: no registry in Go on this machine is expected to pass it
}

func atMost(limit float64) *bar  { return &bar{Op: "<=", Limit: limit} }
func atLeast(limit float64) *bar { return &bar{Op: ">=", Limit: limit} }

// to makes it a bar for a ratio.
func (b *bar) to(peer string) *bar { b.Against = peer; return b }

// table starts a section.
func (b *bench) table(name, title string, columns ...string) *section {
	b.out.Sections = append(b.out.Sections, section{Name: name, Title: title, Columns: columns, mu: &sync.Mutex{}, before: spentTime()})
	return &b.out.Sections[len(b.out.Sections)-1]
}

func (s *section) note(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}

// row returns the row of that name, which is made when it is asked for first.
func (s *section) row(name, unit string, bars ...*bar) *row {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.Rows {
		if r.Name == name && r.Unit == unit {
			return r
		}
	}
	r := &row{Name: name, Unit: unit, Values: map[string]*cell{}, mu: s.mu}
	for _, x := range bars { // each row judges its own
		own := *x
		r.Bars = append(r.Bars, &own)
	}
	s.Rows = append(s.Rows, r)
	return r
}

// add takes the sample of a round.
func (r *row) add(subject string, v float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.Values[subject]
	if c == nil {
		c = &cell{}
		r.Values[subject] = c
	}
	c.Samples = append(c.Samples, v)
}

// set takes a figure that has words.
func (r *row) set(subject string, v float64, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Values[subject] = &cell{Samples: []float64{v}, Text: fmt.Sprintf(format, args...)}
}

// finish computes medians, ratios and bars of all rows.
func (s *section) finish() {
	if stolen, ok := spentTime().stolenSince(s.before); ok {
		s.note("the host took %.1f %% of the processors' time meanwhile, the load average was %s at the end", 100*stolen, load())
	}
	for _, r := range s.Rows {
		r.Ratios = map[string]ratio{}
		for _, c := range r.Values {
			c.Median = median(c.Samples)
		}
		ours := r.Values["ours"]
		for name, c := range r.Values {
			if name == "ours" || ours == nil {
				continue
			}
			if q := quotients(ours.Samples, c.Samples); len(q) > 0 {
				r.Ratios[name] = ratio{median(q), slices.Min(q), slices.Max(q)}
			}
		}
		for _, b := range r.Bars {
			b.judge(r)
		}
	}
}

// quotients divides round by round; what has no measure is left out.
func quotients(ours, theirs []float64) []float64 {
	var q []float64
	for i := range min(len(ours), len(theirs)) {
		if theirs[i] > 0 {
			q = append(q, ours[i]/theirs[i])
		}
	}
	return q
}

func (b *bar) judge(r *row) {
	of := b.Of
	if of == "" {
		of = "ours"
	}
	b.floor(r)
	if b.Against != "" {
		q, ok := r.Ratios[b.Against]
		b.Value, b.Known = q.Median, ok
	} else if c := r.Values[of]; c != nil {
		b.Value, b.Known = c.Median, true
	}
	b.Met = b.Known && (b.Op == "<=" && b.Value <= b.Limit || b.Op == ">=" && b.Value >= b.Limit)
}

// floor finds out what the floor has where the bar is one for us; of two floors the one that does what we do.
func (b *bar) floor(r *row) {
	c := r.Values["floorfs"]
	if c == nil {
		c = r.Values["floor"]
	}
	if c == nil || b.Of != "" || b.Against == "floor" || b.Against == "floorfs" {
		return
	}
	b.Floor = c.Median
	if b.Against != "" {
		b.Floor = 0
		if peer := r.Values[b.Against]; peer != nil {
			b.Floor = median(quotients(c.Samples, peer.Samples))
		}
	}
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// number has three digits that count.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a == 0:
		return "0"
	case a >= 10000:
		return fmt.Sprintf("%.1fk", v/1000)
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func (c *cell) String() string {
	switch {
	case c == nil:
		return "-"
	case c.Text != "":
		return c.Text
	}
	return number(c.Median)
}

func (b *bar) String() string {
	text := fmt.Sprintf("%s %.4g", b.Op, b.Limit)
	if b.Against != "" {
		text += "x " + b.Against
	}
	verdict := "NOT MET"
	switch {
	case !b.Known:
		verdict = "not measured"
	case b.Met:
		verdict = "met"
	}
	return text + ": " + verdict
}

// print writes the table for a person.
func (s section) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n", strings.ToUpper(s.Title))
	for _, n := range s.Notes {
		fmt.Fprintf(w, "  %s\n", n)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\t\t%s", strings.Join(s.Columns, "\t"))
	var compared []string
	for _, c := range s.Columns[1:] {
		if slices.ContainsFunc(s.Rows, func(r *row) bool { _, ok := r.Ratios[c]; return ok && r.Values[c].Text == "" }) {
			compared = append(compared, c)
			fmt.Fprintf(t, "\tours/%s", c)
		}
	}
	fmt.Fprint(t, "\tbar\n")
	for _, r := range s.Rows {
		fmt.Fprintf(t, "%s\t%s", r.Name, r.Unit)
		for _, c := range s.Columns {
			fmt.Fprintf(t, "\t%s", r.Values[c])
		}
		for _, c := range compared {
			q, ok := r.Ratios[c]
			if !ok {
				fmt.Fprint(t, "\t-")
				continue
			}
			fmt.Fprintf(t, "\t%s (%s-%s)", number(q.Median), number(q.Low), number(q.High))
		}
		var bars []string
		for _, b := range r.Bars {
			bars = append(bars, b.String())
		}
		fmt.Fprintf(t, "\t%s\n", strings.Join(bars, ", "))
	}
	_ = t.Flush() // standard output is gone
}

// summary names the bars that are not met.
func (r *report) summary(w io.Writer) {
	met, all := 0, 0
	var not []string
	for _, s := range r.Sections {
		for _, x := range s.Rows {
			for _, b := range x.Bars {
				if !b.Known {
					continue
				}
				all++
				if b.Met {
					met++
					continue
				}
				text := fmt.Sprintf("%s: %s, %s: %s; it is %s", s.Name, x.Name, x.Unit, b, number(b.Value))
				if b.Floor > 0 {
					text += ", and the floor's " + number(b.Floor)
				}
				not = append(not, text)
			}
		}
	}
	fmt.Fprintf(w, "\n%d of %d bars met, in %.0f s; load average %s before, %s after\n", met, all, r.Header.Seconds, r.Header.LoadBefore, r.Header.LoadAfter)
	if r.Header.Hurried {
		fmt.Fprintln(w, "  the machine was busy: rounds were left out")
	}
	for _, n := range not {
		fmt.Fprintf(w, "  %s\n", n)
	}
}
