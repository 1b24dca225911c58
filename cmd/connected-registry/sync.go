package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// drawEvery is how often progress is drawn on a terminal.
	drawEvery = 500 * time.Millisecond
	// maxBars bounds the transfers that are drawn.
	maxBars  = 10
	barWidth = 30
)

func syncCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "sync", Aliases: []string{"resync"},
		Short: "Run a sync iteration now and wait for its end",
		Long: "Run a sync iteration now and wait for its end; on a terminal with the transfers under way.\n" +
			"With --dry-run nothing is fetched but lists and manifests: it says what would come, and how long the link would take.",
		Args: cobra.NoArgs,
	}
	dataDir, output := dataDirFlag(cmd), outputFlag(cmd)
	dryRun := cmd.Flags().Bool("dry-run", false, "say what would be fetched, in bytes, and how long the link would take")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *dryRun {
			var p registry.SyncPreview
			if err := module.Control(cmd.Context(), *dataDir, "POST", "/methods/sync", map[string]bool{"dryRun": true}, &p); err != nil {
				return err
			}
			return printPreview(cmd.OutOrStdout(), p, *output)
		}
		stop := func() {}
		if isTerminal(os.Stderr) && *output == "table" {
			stop = drawProgress(cmd.Context(), os.Stderr, *dataDir)
		}
		var s registry.Status
		err := module.Control(cmd.Context(), *dataDir, "POST", "/methods/sync", nil, &s)
		stop()
		if err != nil {
			return err
		}
		return printStatus(cmd.OutOrStdout(), s, *output)
	}
	return cmd
}

// isTerminal reports whether somebody may be looking at f.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// printPreview writes what an iteration would do, for a person or for a program.
func printPreview(w io.Writer, p registry.SyncPreview, output string) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(p)
	}
	if output != "table" {
		return fmt.Errorf("--output %s: want table or json", output)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(p.Images)+len(p.Removed) > 0 {
		fmt.Fprintf(t, "REPOSITORY\tTAG\tTO FETCH\n")
	}
	for _, i := range p.Images {
		need := size(i.Bytes)
		if i.Error != "" {
			need = i.Error
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", i.Repository, strings.Join(i.Tags, " "), need)
	}
	for _, r := range p.Removed {
		fmt.Fprintf(t, "%s\t%s\tremoved\n", r.Repository, strings.Join(r.Tags, " "))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if p.NotListed != "" {
		fmt.Fprintf(w, "! a part of the parent cannot be listed: %s\n", p.NotListed)
	}
	fmt.Fprintf(w, "%s to fetch for %d images; %s\n", size(p.Bytes), len(p.Images), linkTime(p))
	for _, b := range p.Budgets {
		if b.Left < p.Bytes {
			fmt.Fprintf(w, "! the budget of the %s has %s left until %s\n", b.Period, size(b.Left), instant(b.Until))
		}
	}
	return nil
}

// linkTime is how long the link would take, and how that is known.
func linkTime(p registry.SyncPreview) string {
	switch p.SpeedSource {
	case registry.SpeedMeasured:
		return fmt.Sprintf("about %s at %s/s, measured when bytes moved last", seconds(p.Seconds), size(p.BytesPerSecond))
	case registry.SpeedConfigured:
		return fmt.Sprintf("about %s at %s/s, the configured limit", seconds(p.Seconds), size(p.BytesPerSecond))
	}
	return "how long that takes is not known: no limit is configured and nothing was transferred yet"
}

func seconds(n int64) string { return (time.Duration(n) * time.Second).String() }

// drawProgress draws the transfers under way until the function that it returns is called.
func drawProgress(ctx context.Context, w io.Writer, dataDir string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		lines := 0
		tick := time.NewTicker(drawEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				fmt.Fprint(w, erase(lines))
				return
			case <-tick.C:
			}
			var s registry.Status
			if module.Control(ctx, dataDir, "GET", "/status", nil, &s) != nil {
				continue
			}
			list := progress(s)
			fmt.Fprint(w, erase(lines)+strings.Join(list, "\n")+"\n")
			lines = len(list)
		}
	})
	return func() { cancel(); done.Wait() }
}

// erase goes back over so many lines of a terminal and clears them.
func erase(lines int) string {
	if lines == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\r\x1b[J", lines)
}

// progress is one line for each transfer, and one for all.
func progress(s registry.Status) []string {
	var list []string
	for _, t := range s.Transfers[:min(len(s.Transfers), maxBars)] {
		waiting := ""
		if t.Waiting {
			waiting = ", waiting for the link"
		}
		list = append(list, fmt.Sprintf("%s %.19s %s %s of %s%s", bar(t.Received, t.Size), t.Digest, t.Repository, size(t.Received), size(t.Size), waiting))
	}
	if more := len(s.Transfers) - maxBars; more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return append(list, outlook(s))
}

// bar draws how much of a whole is done.
func bar(part, whole int64) string {
	done := 0
	if whole > 0 {
		done = int(float64(barWidth) * float64(min(max(part, 0), whole)) / float64(whole))
	}
	return "[" + strings.Repeat("#", done) + strings.Repeat(".", barWidth-done) + "]"
}

// outlook is what is still to come and when it will be here.
func outlook(s registry.Status) string {
	text := size(s.Sync.BytesBehind) + " to come"
	switch {
	case !s.Sync.EstimatedEndTime.IsZero():
		return fmt.Sprintf("%s at %s/s, done at about %s", text, size(s.Sync.BytesPerSecond), instant(s.Sync.EstimatedEndTime))
	case len(s.Transfers) > 0 && s.Sync.BytesBehind > 0 && s.Sync.BytesPerSecond > 0:
		return text + ", waiting for the link"
	}
	return text
}
