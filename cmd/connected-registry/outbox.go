package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
)

func outboxCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "outbox",
		Short: "What was pushed here and is not at the parent yet",
		Long: "What was pushed, tagged, untagged or deleted here and is not at the parent yet. It climbs by itself when the parent can be reached;\n" +
			"an entry that is expired (older than messageTtl) or refused (by the parent, for good) is kept until it is sent again or given up.",
	}
	cmd.AddCommand(outboxListCommand(), outboxRetryCommand(), outboxDropCommand())
	return cmd
}

func outboxListCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the entries, oldest first", Args: cobra.NoArgs}
	dataDir, output := dataDirFlag(cmd), outputFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "the same as --output json")
	after := cmd.Flags().Uint64("after", 0, "begin after the entry of this number")
	limit := cmd.Flags().Int("limit", registry.MaxPage, "at most so many entries, 1 to 1000")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var page module.OutboxPage
		in := map[string]any{"after": *after, "limit": *limit}
		if err := module.Control(cmd.Context(), *dataDir, "POST", "/methods/outboxList", in, &page); err != nil {
			return err
		}
		if *asJSON {
			*output = "json"
		}
		if len(page.Entries) == 0 && *after > 0 && *output == "table" {
			fmt.Fprintf(cmd.OutOrStdout(), "There is no entry after %d.\n", *after)
			return nil
		}
		return printOutbox(cmd.OutOrStdout(), page, *output)
	}
	return cmd
}

// printOutbox writes a page of the outbox for a person or for a program.
func printOutbox(w io.Writer, page module.OutboxPage, output string) error {
	switch output {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(page)
	case "table":
	default:
		return fmt.Errorf("--output %s: want table or json", output)
	}
	if len(page.Entries) == 0 {
		fmt.Fprintln(w, "Nothing waits here: the parent has all of it.")
		return nil
	}
	if page.Held != "" {
		fmt.Fprintf(w, "All that waits does so because of: %s\nIt is kept and goes on by itself; next try %s (UTC).\n\n", page.Held, instant(page.NextTry))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ENTRY\tWHEN (UTC)\tWHAT\tBY\tSTATE\tTRIED\tNEXT (UTC)\tREASON")
	for _, e := range page.Entries {
		next := "-"
		if !e.NextAttempt.IsZero() {
			next = instant(e.NextAttempt)
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", e.Seq, instant(e.Time), what(e), orDash(e.Principal), e.State, e.Attempts, next, reason(e))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if page.After != 0 {
		fmt.Fprintf(w, "There are more: --after %d\n", page.After)
	}
	return nil
}

// reason says why an entry is still here.
func reason(e registry.OutboxEntry) string {
	if e.State == registry.OutboxDelivered {
		return "the parent has it, and is asked once more"
	}
	return orDash(e.Error)
}

// what says what an entry does at the parent.
func what(e registry.OutboxEntry) string {
	name := e.Repository
	if e.Tag != "" {
		name += ":" + e.Tag
	}
	if e.Digest != "" {
		name += fmt.Sprintf("@%.19s", e.Digest)
	}
	return string(e.Action) + " " + name
}

func outboxRetryCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "retry [ENTRY]",
		Short: "Send entries again, now",
		Long:  "Send one entry again, or all of a kind. Their messageTtl begins anew.",
		Args:  cobra.MaximumNArgs(1),
	}
	dataDir := dataDirFlag(cmd)
	var in module.OutboxRetry
	cmd.Flags().BoolVar(&in.All, "all", false, "all entries")
	cmd.Flags().BoolVar(&in.Expired, "expired", false, "the expired ones")
	cmd.Flags().BoolVar(&in.Refused, "refused", false, "the refused ones")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if len(args) == 1 {
			if in.Entry, err = entryNumber(args[0]); err != nil {
				return err
			}
		}
		if in == (module.OutboxRetry{}) {
			return errors.New("name an entry, or give --all, --expired or --refused")
		}
		var out module.OutboxRetried
		if err := module.Control(cmd.Context(), *dataDir, "POST", "/methods/outboxRetry", in, &out); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%d entries are sent again\n", out.Entries)
		return nil
	}
	return cmd
}

func outboxDropCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drop ENTRY",
		Short: "Give an entry up: the parent will not have it",
		Args:  cobra.ExactArgs(1),
	}
	dataDir := dataDirFlag(cmd)
	yes := cmd.Flags().BoolP("yes", "y", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		seq, err := entryNumber(args[0])
		if err != nil {
			return err
		}
		var page module.OutboxPage
		if err := module.Control(cmd.Context(), *dataDir, "POST", "/methods/outboxList", map[string]any{"after": seq - 1, "limit": 1}, &page); err != nil {
			return err
		}
		if len(page.Entries) == 0 || page.Entries[0].Seq != seq {
			return fmt.Errorf("the outbox has no entry %d", seq)
		}
		fmt.Fprint(cmd.OutOrStdout(), loss(page.Entries[0]))
		if !*yes {
			fmt.Fprint(cmd.OutOrStdout(), "Give it up? [y/N] ")
			answer, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n') // nothing to read is no
			if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
				return errors.New("nothing was given up")
			}
		}
		var dropped registry.OutboxEntry
		if err := module.Control(cmd.Context(), *dataDir, "POST", "/methods/outboxDrop", map[string]uint64{"entry": seq}, &dropped); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "entry %d is given up\n", dropped.Seq)
		return nil
	}
	return cmd
}

// loss says what is lost with an entry.
func loss(e registry.OutboxEntry) string {
	by := ""
	if e.Principal != "" {
		by = " by " + e.Principal
	}
	s := fmt.Sprintf("Entry %d: %s\nof %s UTC%s has not reached the parent.\n", e.Seq, what(e), e.Time.UTC().Format(time.DateTime), by)
	switch {
	case e.Action == registry.OutboxPush && e.Tag != "":
		s += fmt.Sprintf("Given up, the tag %s follows the parent again, and %s\nstays here under its digest alone until garbage collection takes it.\n", e.Tag, e.Digest)
	case e.Action == registry.OutboxPush:
		s += fmt.Sprintf("Given up, %s stays here until garbage collection takes it.\n", e.Digest)
	case e.Action == registry.OutboxUntag:
		s += fmt.Sprintf("Given up, the tag %s stays at the parent, and comes back here with the next sync.\n", e.Tag)
	default:
		s += fmt.Sprintf("Given up, %s stays at the parent, and its tags come back here with the next sync.\n", e.Digest)
	}
	return s
}

func entryNumber(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q: want the number of an entry, as outbox list shows it", text)
	}
	return n, nil
}
