package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

// screen writes the story: numbered steps, sentences, tables. On a terminal the sync has bars, elsewhere lines.
type screen struct {
	w     io.Writer
	tty   bool
	bold  bool
	steps int
}

func newScreen(f *os.File) *screen {
	window, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	tty := err == nil && window.Col >= narrow && os.Getenv("TERM") != "dumb"
	return &screen{w: f, tty: tty, bold: tty && os.Getenv("NO_COLOR") == ""}
}

// step begins the next one.
func (s *screen) step(title string) {
	s.steps++
	format := "\n%d  %s\n"
	if s.bold {
		format = "\n\x1b[1m%d  %s\x1b[0m\n"
	}
	fmt.Fprintf(s.w, format, s.steps, title)
}

// say writes a sentence below the step.
func (s *screen) say(format string, args ...any) {
	for line := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
		fmt.Fprintln(s.w, strings.TrimRight("   "+line, " "))
	}
}

// table writes rows with aligned columns; the first row is the head.
func (s *screen) table(rows ...[]string) {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	_ = t.Flush() // a strings.Builder takes everything
	s.say("%s", strings.TrimRight(b.String(), "\n"))
}

// bar is one row of a progress display.
type bar struct {
	name  string
	total int64 // bytes
	// look returns the bytes so far, a word for the state, and whether this row is done.
	look func(context.Context) (done int64, state string, finished bool, err error)
}

const (
	frame     = 100 * time.Millisecond
	lineEvery = time.Second // without a terminal
	narrow    = 80          // columns below which bars would break
)

// progress shows the bars until each is done.
func (s *screen) progress(ctx context.Context, bars []bar) error {
	show, end := s.lines(bars)
	if s.tty {
		show, end = s.bars(ctx, bars)
	}
	defer end()
	tick := time.NewTicker(frame)
	defer tick.Stop()
	for {
		left := 0
		for i, b := range bars {
			n, state, finished, err := b.look(ctx)
			if err != nil {
				return err
			}
			if !finished {
				left++
			}
			show(i, n, state, finished)
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

type showFunc func(i int, n int64, state string, finished bool)

func (s *screen) bars(ctx context.Context, bars []bar) (showFunc, func()) {
	p := mpb.NewWithContext(ctx, mpb.WithOutput(s.w), mpb.WithWidth(40), mpb.WithRefreshRate(frame))
	states := make([]string, len(bars))
	shown := make([]*mpb.Bar, len(bars))
	words := make(chan struct{}, 1) // guards states: the bars are drawn by another goroutine
	words <- struct{}{}
	for i, b := range bars {
		shown[i] = p.New(b.total, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
			mpb.PrependDecorators(decor.Name("   "+b.name, decor.WC{W: 8, C: decor.DindentRight})),
			mpb.AppendDecorators(
				decor.CountersKibiByte("% 7.1f of % .1f", decor.WC{W: 24}),
				decor.Any(func(decor.Statistics) string {
					<-words
					defer func() { words <- struct{}{} }()
					return "  " + states[i]
				}),
			))
	}
	show := func(i int, n int64, state string, finished bool) {
		<-words
		states[i] = state
		words <- struct{}{}
		if !finished {
			shown[i].SetCurrent(min(n, bars[i].total-1)) // a full bar would end before the layer says so
			return
		}
		shown[i].SetCurrent(bars[i].total)
	}
	return show, func() {
		for _, b := range shown {
			if !b.Completed() {
				b.Abort(false)
			}
		}
		p.Wait()
	}
}

func (s *screen) lines(bars []bar) (showFunc, func()) {
	var last time.Time
	row := make([]string, len(bars))
	show := func(i int, n int64, state string, _ bool) {
		row[i] = fmt.Sprintf("%s %s of %s %s", bars[i].name, size(min(n, bars[i].total)), size(bars[i].total), state)
		if i == len(bars)-1 && time.Since(last) >= lineEvery {
			last = time.Now()
			s.say("%s", strings.Join(row, "   "))
		}
	}
	return show, func() { s.say("%s", strings.Join(row, "   ")) }
}

// size is a number of bytes for a person.
func size(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// took is a time for a person.
func took(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
