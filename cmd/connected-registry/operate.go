package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

// outputFlag adds --output.
func outputFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("output", "o", "table", "table or json")
}

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether the registry is in sync, and if not, why",
		Args:  cobra.NoArgs,
	}
	dataDir, output := dataDirFlag(cmd), outputFlag(cmd)
	management := cmd.Flags().String("management", "127.0.0.1:8081", "address of a registry that cannot use its data volume, where it says why; as for serve")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var s registry.Status
		if err := module.Control(cmd.Context(), *dataDir, "GET", "/status", nil, &s); err != nil {
			var ok bool
			if s, ok = module.StatusWithoutVolume(cmd.Context(), *management); !ok {
				return err
			}
		}
		return printStatus(cmd.OutOrStdout(), s, *output)
	}
	return cmd
}

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Work on configuration documents"}
	check := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration document; every bad field is named by its path",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			doc := twin.NewFile(args[0], twin.FileOptions{}).Read() // as serve does: bounded, and never a pipe or a device
			if doc.Err != nil {
				return doc.Err
			}
			_, errs := twin.Parse(doc.Raw, twin.ParseOptions{Env: os.LookupEnv})
			for _, e := range errs {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", args[0], e.Error())
			}
			if len(errs) > 0 {
				return errors.New("the document has errors; each section with one would keep its old value")
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: good\n", args[0])
			return nil
		},
	}
	cmd.AddCommand(check)
	return cmd
}

// printStatus writes the status for a person or for a program.
func printStatus(w io.Writer, s registry.Status, output string) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	if output != "table" {
		return fmt.Errorf("--output %s: want table or json", output)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("NAME", "%s", orDash(s.Name))
	row("MODE", "%s", s.Mode)
	row("CONNECTION STATE", "%s, %s", s.ConnectionState, s.Activation.Status)
	row("PARENT", "%s %s %s", orDash(s.Parent.GatewayEndpoint), s.Parent.Kind, s.Parent.Mode)
	row("LAST SYNC (UTC)", "%s", strings.TrimSpace(fmt.Sprintf("%s %s %s", instant(s.Sync.LastSuccessfulSyncEndTime), s.Sync.SyncState, s.Sync.Error)))
	row("NEXT SYNC (UTC)", "%s", next(s))
	if s.Sync.BytesBehind > 0 {
		row("BEHIND", "%s", outlook(s))
	}
	row("LAST ITERATION", "%d tags moved, %d removed, %d requests, %s received", s.Sync.TagsMoved, s.Sync.TagsRemoved, s.Sync.Requests, size(s.Sync.BytesReceived))
	row("LINK SINCE START", "%d requests, %s received, %s sent", s.Traffic.Requests, size(s.Traffic.BytesReceived), size(s.Traffic.BytesSent))
	for _, b := range s.Budgets {
		row("BUDGET OF THE "+strings.ToUpper(b.Period), "%s of %s left until %s", size(b.Left), size(b.Limit), instant(b.Until))
	}
	row("STORAGE", "%s: %d repositories, %d tags, %d manifests, %d blobs, %s used, %s free", s.Storage.State, s.Storage.Repositories,
		s.Storage.Tags, s.Storage.Manifests, s.Storage.Blobs, size(s.Storage.UsedBytes), size(s.Storage.FreeBytes))
	if o := s.Outbox; o != nil && o.Pending+o.Expired+o.Refused > 0 {
		row("OUTBOX", "%d wait, %d expired, %d refused: %s, the oldest since %s", o.Pending, o.Expired, o.Refused, size(o.Bytes), instant(o.Oldest))
		if o.Delivered > 0 {
			row("", "%d of them are at the parent, which is asked once more", o.Delivered)
		}
		switch {
		case o.Held:
			row("", "all wait: %s; next try %s", strings.TrimSuffix(o.Error, "."), instant(o.NextTry))
		case o.Error != "":
			row("", "last failure: %s", o.Error)
		}
	}
	row("CONFIGURATION", "%s, applied %s", s.Configuration.Source, instant(s.Configuration.Applied))
	if err := t.Flush(); err != nil {
		return err
	}
	printLists(w, s)
	return nil
}

// printLists writes what is wrong, on its way, or behind; nothing of it when all is well.
func printLists(w io.Writer, s registry.Status) {
	for _, d := range s.StatusDetails {
		fmt.Fprintf(w, "\n! %s %s since %s: %s\n", d.Type, d.Code, instant(d.Timestamp), d.Description)
	}
	for _, tr := range s.Transfers {
		state := ""
		if tr.Waiting {
			state = ", waiting for the link"
		}
		direction := ">"
		if tr.Up {
			direction = "^"
		}
		fmt.Fprintf(w, "\n%s %s %.19s %s of %s%s\n", direction, tr.Repository, tr.Digest, size(tr.Received), size(tr.Size), state)
	}
	if s.Outbox != nil {
		printConflicts(w, s.Outbox.Conflicts)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(s.Repositories) > 0 {
		fmt.Fprintf(t, "\nREPOSITORY\tTAGS\tSTATE\n")
	}
	for _, r := range s.Repositories {
		state := "in sync"
		if len(r.Behind) > 0 {
			state = fmt.Sprintf("%d behind, %s", len(r.Behind), size(r.BytesBehind))
		}
		fmt.Fprintf(t, "%s\t%d\t%s\n", r.Repository, r.Tags, state)
		for _, b := range r.Behind {
			fmt.Fprintf(t, "  %s\t\t%s\n", orDash(b.Tag), tagState(b))
		}
	}
	if len(s.History) > 0 {
		fmt.Fprintf(t, "\nITERATION (UTC)\tTOOK\tSTATE\tTAGS\tRECEIVED\t\n")
	}
	for _, h := range s.History[:min(len(s.History), 10)] {
		fmt.Fprintf(t, "%s\t%s\t%s\t+%d -%d\t%s\t%s\n", instant(h.StartTime), h.EndTime.Sub(h.StartTime).Round(time.Second), h.State,
			h.TagsMoved, h.TagsRemoved, size(h.BytesReceived), h.Error)
	}
	_ = t.Flush() // standard output is gone
}

// tagState is what a tag that is not in sync waits for.
func tagState(b registry.TagState) string {
	if b.Error == "" {
		return size(b.Bytes) + " to come"
	}
	if b.NextAttempt.IsZero() {
		return b.Error
	}
	return fmt.Sprintf("%s; tried again at %s", b.Error, instant(b.NextAttempt))
}

// printConflicts writes how it was decided where a tag had moved at the parent as well.
func printConflicts(w io.Writer, list []registry.OutboxConflict) {
	for _, c := range list {
		ours, decided := orDash(string(c.Ours)), "ours was put over it"
		if c.ParentWins {
			decided = "it stays"
		}
		fmt.Fprintf(w, "\n~ %s %s:%s is %s here and was %s at the parent: %s\n", instant(c.Time), c.Repository, c.Tag, ours, c.Theirs, decided)
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// next is when the next iteration begins.
func next(s registry.Status) string {
	switch {
	case s.Parent.GatewayEndpoint == "":
		return "-"
	case s.Sync.NextSyncTime.IsZero():
		return "when the parent changes"
	}
	return instant(s.Sync.NextSyncTime)
}

func instant(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05")
}

// size is a number of bytes in binary units.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
