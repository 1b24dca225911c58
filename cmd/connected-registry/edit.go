package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/schedule"
	"github.com/connected-registry/connected-registry/internal/twin"
)

// tokenName is what a token may be called in a document; * is all of them.
var tokenName = registry.Pattern(`^([A-Za-z0-9_-]{1,64}|\*)$`)

// listFlags take several words after them, as those of the Azure CLI do.
var listFlags = []string{
	"--repository", "--client-tokens", "--add-client-tokens", "--remove-client-tokens",
	"--notifications", "--add-notifications", "--remove-notifications", "--add", "--remove",
}

// gather makes one value of the words that follow a list flag: --repository a b c.
func gather(args []string) []string {
	if len(args) == 0 || args[0] != "settings" && args[0] != "permissions" {
		return args
	}
	var out []string
	list := false // the last of out is a list's value
	for i, arg := range args {
		switch {
		case strings.HasPrefix(arg, "-"):
			list = false
		case list:
			out[len(out)-1] += " " + arg
			continue
		default:
			list = i > 0 && slices.Contains(listFlags, args[i-1])
		}
		out = append(out, arg)
	}
	return out
}

// syncFlags are those that create and update have.
func syncFlags(cmd *cobra.Command, n *hierarchy.Node, gcEnabled *string) {
	f := cmd.Flags()
	f.StringVarP(&n.Schedule, "sync-schedule", "s", "* * * * *", "five cron fields in UTC; \"* * * * *\" is continuous")
	f.StringVarP(&n.Window, "sync-window", "w", "", "ISO 8601 duration, PT1H to P7D; with a schedule that is not continuous")
	f.StringVar(&n.MessageTTL, "sync-message-ttl", "P2D", "ISO 8601 duration, P1D to P90D")
	f.StringVar(&n.LogLevel, "log-level", "", "Debug, Information, Warning, Error or None; default Information")
	f.StringVar(gcEnabled, "gc-enabled", "", "true or false: collect garbage; default true")
	f.StringVar(&n.GCSchedule, "gc-schedule", "", "five cron fields in UTC; default \"0 5 * * *\"")
}

// endpointFlags are those of get-settings.
func endpointFlags(cmd *cobra.Command, n *hierarchy.Node, generate *int) {
	f := cmd.Flags()
	f.StringVar(&n.Endpoint, "gateway-endpoint", "", "host[:port] of the parent as this registry sees it; default $IOTEDGE_PARENTHOSTNAME:8000 below another one")
	f.StringVar(&n.Protocol, "parent-protocol", "https", "http or https; https below a cloud registry")
	f.IntVar(generate, "generate-password", 0, "make password 1 or 2 anew; the other one works on")
}

func createCommand(e *editor) *cobra.Command {
	var n hierarchy.Node
	var mode, authType, gcEnabled string
	var repositories, clientTokens, notifications []string
	var generate int
	cmd := &cobra.Command{Use: "create", Short: "Add a connected registry to the tree", Args: cobra.NoArgs}
	f := cmd.Flags()
	f.StringVarP(&n.Name, "name", "n", "", "name of the connected registry: 5 to 40 letters and digits, a letter first")
	f.StringVarP(&mode, "mode", "m", string(registry.ReadOnly), "ReadOnly or ReadWrite")
	f.StringVarP(&n.Parent, "parent", "p", "", "name of the connected registry above; empty is the cloud registry")
	f.StringArrayVar(&repositories, "repository", nil, "repositories to sync, between blanks or commas; may be repeated")
	f.StringVar(&n.SyncToken, "sync-token", "", "a token that is there already, in place of --repository: its scope map is its owner's, and nothing is made for it")
	f.StringArrayVar(&clientTokens, "client-tokens", nil, "client tokens of a registry above that work here too")
	f.StringArrayVar(&notifications, "notifications", nil, "patterns of what is told of, name[:tag][@digest]:action")
	f.StringVar(&authType, "auth-type", "SyncToken", "SyncToken, or ManagedIdentity below a cloud registry")
	f.StringVar(&n.Identity, "identity", "", "client ID of the managed identity")
	syncFlags(cmd, &n, &gcEnabled)
	endpointFlags(cmd, &n, &generate)
	output := outputFlag(cmd)
	yesFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return e.edit(cmd, *output, func(before hierarchy.Tree) (change, error) {
			var err error
			if n.Mode, err = registry.ParseMode(mode); err != nil {
				n.Mode = "" // which the tree refuses in the words of the Azure CLI
			}
			list := words(repositories)
			if (n.SyncToken == "") == (len(list) == 0) {
				return change{}, registry.ErrConflict.WithMessage("argument error: either --sync-token or --repository must be provided, but not both.")
			}
			n.ClientTokens, n.Notifications = union(nil, words(clientTokens)), union(nil, words(notifications))
			err = errors.Join(setGC(&n, gcEnabled), checkSync(&n), placeParent(&n, cmd.ErrOrStderr()), checkIdentity(&n, authType))
			if err != nil {
				return change{}, err
			}
			after, err := before.Add(n, list)
			return change{after, n.Name, generate}, err
		})
	}
	_ = cmd.MarkFlagRequired("name") // it is there
	return cmd
}

// yesFlag is accepted, as by the Azure CLI; nothing is asked here, and nothing sent.
func yesFlag(cmd *cobra.Command) {
	cmd.Flags().BoolP("yes", "y", false, "accepted as by the Azure CLI; nothing is asked")
}

func updateCommand(e *editor) *cobra.Command {
	var want hierarchy.Node
	var gcEnabled string
	var tokens, notifications [2][]string // to add, to remove
	cmd := &cobra.Command{Use: "update", Short: "Change how a connected registry syncs, and which client tokens work there", Args: cobra.NoArgs}
	name, output := nameFlag(cmd), outputFlag(cmd)
	f := cmd.Flags()
	f.StringArrayVar(&tokens[0], "add-client-tokens", nil, "client tokens of a registry above that work here too")
	f.StringArrayVar(&tokens[1], "remove-client-tokens", nil, "client tokens that no longer do")
	f.StringArrayVar(&notifications[0], "add-notifications", nil, "patterns of what is told of, name[:tag][@digest]:action")
	f.StringArrayVar(&notifications[1], "remove-notifications", nil, "patterns of what no longer is")
	syncFlags(cmd, &want, &gcEnabled)
	cmd.MarkFlagsOneRequired("add-client-tokens", "remove-client-tokens", "add-notifications", "remove-notifications",
		"sync-schedule", "sync-window", "sync-message-ttl", "log-level", "gc-enabled", "gc-schedule")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return e.edit(cmd, *output, func(before hierarchy.Tree) (change, error) {
			n, err := before.Get(*name)
			if err != nil {
				return change{}, err
			}
			for flag, field := range map[string][2]*string{
				"sync-schedule": {&n.Schedule, &want.Schedule}, "sync-window": {&n.Window, &want.Window}, "sync-message-ttl": {&n.MessageTTL, &want.MessageTTL},
				"log-level": {&n.LogLevel, &want.LogLevel}, "gc-schedule": {&n.GCSchedule, &want.GCSchedule},
			} {
				if f.Changed(flag) {
					*field[0] = *field[1]
				}
			}
			if n.ClientTokens, err = revise(n.ClientTokens, tokens, "client token ids", "client-tokens"); err != nil {
				return change{}, err
			}
			if n.Notifications, err = revise(n.Notifications, notifications, "notifications", "notifications"); err != nil {
				return change{}, err
			}
			if err := errors.Join(setGC(&n, gcEnabled), checkSync(&n)); err != nil {
				return change{}, err
			}
			after, err := before.Set(n.Name, func(x *hierarchy.Node) { *x = n })
			return change{tree: after}, err
		})
	}
	return cmd
}

// revise is the list with some added and others removed; in the words of the Azure CLI where that says two things.
func revise(list []string, change [2][]string, what, flag string) ([]string, error) {
	add, remove := words(change[0]), words(change[1])
	for _, word := range add {
		if slices.Contains(remove, word) {
			return nil, registry.ErrConflict.WithMessage("Update ambiguity. Duplicate %s were provided with --add-%s and --remove-%[2]s arguments.", what, flag)
		}
	}
	return slices.DeleteFunc(union(list, add), func(word string) bool { return slices.Contains(remove, word) }), nil
}

// union is both lists, without what is there twice.
func union(list, more []string) (all []string) {
	for _, word := range slices.Concat(list, more) {
		if !slices.Contains(all, word) {
			all = append(all, word)
		}
	}
	return all
}

// checkIdentity checks how the registry signs in.
func checkIdentity(n *hierarchy.Node, authType string) error {
	switch {
	case strings.EqualFold(authType, "SyncToken") && n.Identity == "":
		return nil
	case !strings.EqualFold(authType, "ManagedIdentity") || n.Identity == "":
		return errors.New("--auth-type: want SyncToken without --identity, or ManagedIdentity with the client ID of one")
	case n.Parent != "" || !twin.IsCloud(n.Endpoint) || n.SyncToken != "":
		return errors.New("--auth-type ManagedIdentity: only directly below a cloud registry, and in place of --sync-token")
	}
	_, err := twin.ParseConnectionString(settingsOf(*n, "").Connection, nil)
	return err
}

func setGC(n *hierarchy.Node, enabled string) error {
	if enabled == "" {
		return nil
	}
	on, err := strconv.ParseBool(enabled)
	if err != nil {
		return fmt.Errorf("--gc-enabled %s: want true or false", enabled)
	}
	n.GCEnabled = &on
	return nil
}

// checkSync refuses what the registry would. A window of a schedule that is continuous is dropped, as the registry does.
func checkSync(n *hierarchy.Node) error {
	s, err := schedule.Parse(n.Schedule)
	if err != nil {
		return fmt.Errorf("--sync-schedule: %w", err)
	}
	if s.Continuous() {
		n.Window = ""
	} else if _, err := schedule.ParseDuration(n.Window, twin.MinSyncWindow, twin.MaxSyncWindow); err != nil {
		return fmt.Errorf("--sync-window is required with a schedule that is not continuous: %w", err)
	}
	if _, err := schedule.ParseDuration(n.MessageTTL, twin.MinMessageTTL, twin.MaxMessageTTL); err != nil {
		return fmt.Errorf("--sync-message-ttl: %w", err)
	}
	levels := []string{"", "Debug", "Information", "Warning", "Error", "None"}
	i := slices.IndexFunc(levels, func(l string) bool { return strings.EqualFold(l, n.LogLevel) })
	if i < 0 {
		return fmt.Errorf("--log-level %s: want%s", n.LogLevel, strings.Join(levels, " "))
	}
	n.LogLevel = levels[i]
	if n.GCSchedule != "" {
		if _, err := schedule.Parse(n.GCSchedule); err != nil {
			return fmt.Errorf("--gc-schedule: %w", err)
		}
	}
	for _, pattern := range n.Notifications {
		if _, err := registry.ParseNotification(pattern); err != nil {
			return fmt.Errorf("notifications: %w", err)
		}
	}
	for _, token := range append(slices.Clone(n.ClientTokens), cmp.Or(n.SyncToken, "none")) {
		if !tokenName().MatchString(token) {
			return fmt.Errorf("token %q: want a name of 1 to 64 letters, digits, _ or -", token)
		}
	}
	return nil
}

// placeParent completes and checks the endpoint of the parent.
func placeParent(n *hierarchy.Node, warn io.Writer) error {
	if n.Endpoint == "" && n.Parent != "" {
		n.Endpoint = "$IOTEDGE_PARENTHOSTNAME:8000"
	}
	if n.Endpoint == "" {
		return errors.New("--gateway-endpoint is required below a cloud registry: <registry>.<region>.data.azurecr.io, or any registry's host[:port]")
	}
	n.Protocol = strings.ToLower(n.Protocol)
	if n.Protocol != "http" && n.Protocol != "https" {
		return fmt.Errorf("--parent-protocol %s: want http or https", n.Protocol)
	}
	if n.Protocol == "http" && twin.IsCloud(n.Endpoint) {
		fmt.Fprintln(warn, "Parent endpoint protocol must be 'https' when parent is a cloud registry.")
		n.Protocol = "https"
	}
	_, err := twin.ParseEndpoint(n.Endpoint, func(string) (string, bool) { return "host", true }) // a variable is the device's
	if err != nil {
		return fmt.Errorf("--gateway-endpoint: %w", err)
	}
	return nil
}

func getSettingsCommand(e *editor) *cobra.Command {
	var want hierarchy.Node
	var generate int
	cmd := &cobra.Command{
		Use: "get", Aliases: []string{"get-settings", "show"}, Short: "Print the settings of a connected registry, with a new password if one is asked for", Args: cobra.NoArgs,
	}
	name := nameFlag(cmd)
	endpointFlags(cmd, &want, &generate)
	output := outputFlag(cmd)
	yesFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return e.edit(cmd, *output, func(before hierarchy.Tree) (change, error) {
			n, err := before.Get(*name)
			if err != nil {
				return change{}, err
			}
			n.Endpoint = cmp.Or(want.Endpoint, n.Endpoint)
			if cmd.Flags().Changed("parent-protocol") {
				n.Protocol = want.Protocol
			}
			if err := placeParent(&n, cmd.ErrOrStderr()); err != nil {
				return change{}, err
			}
			after, err := before.Set(n.Name, func(x *hierarchy.Node) { *x = n })
			return change{after, n.Name, generate}, err
		})
	}
	return cmd
}

func listSettingsCommand(e *editor) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the connected registries of the tree as they are configured; `connected-registry list` shows what they tell", Args: cobra.NoArgs,
	}
	output := outputFlag(cmd)
	parent := cmd.Flags().StringP("parent", "p", "", "only the tree below this one")
	noChildren := cmd.Flags().Bool("no-children", false, "only those directly below")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		tree, err := readHierarchy(*e.file)
		if err != nil {
			return err
		}
		if _, err := tree.Get(*parent); *parent != "" && err != nil {
			return plain(err)
		}
		nodes := tree.Descendants(*parent)
		if *noChildren {
			nodes = slices.DeleteFunc(nodes, func(n hierarchy.Node) bool { return !hierarchy.SameName(n.Parent, *parent) })
		}
		return printList(cmd.OutOrStdout(), *output, nodes, "NAME\tMODE\tPARENT\tSYNC TOKEN\tSYNC SCHEDULE\tSYNC WINDOW\tCLIENT TOKENS", func(n hierarchy.Node) []string {
			return []string{n.Name, string(n.Mode), orDash(n.Parent), cmp.Or(n.SyncToken, n.Name), n.Schedule, orDash(n.Window), orDash(strings.Join(n.ClientTokens, " "))}
		})
	}
	return cmd
}

// printList writes one line for each, or JSON.
func printList[T any](w io.Writer, output string, list []T, heading string, row func(T) []string) error {
	switch output {
	case "json":
		if list == nil {
			list = []T{}
		}
		return printJSON(w, list)
	case "table":
	default:
		return fmt.Errorf("--output %s: want table or json", output)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, heading)
	for _, one := range list {
		fmt.Fprintln(t, strings.Join(row(one), "\t"))
	}
	return t.Flush()
}

// givenToken is a client token that the tree gives to a connected registry.
type givenToken struct {
	Name string   `json:"name"`
	From []string `json:"from"` // whose twins name it, the nearest first
}

func listSettingsTokensCommand(e *editor) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list-client-tokens", Short: "List the client tokens of above that work at a connected registry", Args: cobra.NoArgs,
		Long: "List the client tokens of the registries above that work at a connected registry, as the tree has them.\n" +
			"`connected-registry list-client-tokens` shows those that a running registry accepts.",
	}
	name, output := nameFlag(cmd), outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		tree, err := readHierarchy(*e.file)
		if err != nil {
			return err
		}
		n, err := tree.Get(*name)
		if err != nil {
			return plain(err)
		}
		var from []string
		for _, a := range tree.Ancestors(n.Name) {
			from = append(from, a.Name)
		}
		var list []givenToken
		for _, token := range n.ClientTokens {
			list = append(list, givenToken{token, from})
		}
		return printList(cmd.OutOrStdout(), *output, list, "NAME\tFROM", func(t givenToken) []string { return []string{t.Name, orDash(strings.Join(t.From, " "))} })
	}
	return cmd
}

func deleteCommand(e *editor) *cobra.Command {
	cmd := &cobra.Command{Use: "delete", Short: "Take a connected registry out of the tree, and its token away", Args: cobra.NoArgs}
	name, output := nameFlag(cmd), outputFlag(cmd)
	yesFlag(cmd)
	cmd.Flags().Bool("cleanup", true, "accepted as by the Azure CLI: token, scope map and rights above always go")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return e.edit(cmd, *output, func(before hierarchy.Tree) (change, error) {
			after, err := before.Delete(*name)
			return change{tree: after}, err
		})
	}
	return cmd
}

func permissionsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "permissions", Aliases: []string{"repo"}, Short: "Show or change which repositories a connected registry syncs"}
	e := newEditor(cmd)
	show := &cobra.Command{Use: "show", Short: "Show the scope map of the sync token", Args: cobra.NoArgs}
	showName, showOutput := nameFlag(show), outputFlag(show)
	show.RunE = func(cmd *cobra.Command, _ []string) error {
		tree, err := readHierarchy(*e.file)
		if err != nil {
			return err
		}
		n, err := tree.Get(*showName)
		if err != nil {
			return plain(err)
		}
		if *showOutput == "json" {
			return printJSON(cmd.OutOrStdout(), map[string]any{"name": n.Name, "actions": n.Scope})
		}
		return printList(cmd.OutOrStdout(), *showOutput, n.Scope, "ACTION", func(line string) []string { return []string{line} })
	}
	update := &cobra.Command{
		Use: "update", Short: "Add repositories here and at all above, remove them here and at all below", Args: cobra.NoArgs,
	}
	name, output := nameFlag(update), outputFlag(update)
	add := update.Flags().StringArray("add", nil, "repositories to add, between blanks or commas; may be repeated")
	remove := update.Flags().StringArray("remove", nil, "repositories to remove")
	update.MarkFlagsOneRequired("add", "remove")
	update.RunE = func(cmd *cobra.Command, _ []string) error {
		return e.edit(cmd, *output, func(before hierarchy.Tree) (change, error) {
			n, err := before.Get(*name)
			if err != nil {
				return change{}, err
			}
			after, err := before.Update(*name, words(*add), words(*remove))
			for _, repo := range words(*remove) {
				if err == nil && !slices.ContainsFunc(n.Scope, func(line string) bool {
					return strings.HasPrefix(line, "repositories/"+strings.ToLower(repo)+"/content/")
				}) {
					fmt.Fprintf(cmd.ErrOrStderr(), "'%s' does not sync %s; it is not removed.\n", n.Name, repo)
				}
			}
			return change{tree: after}, err
		})
	}
	cmd.AddCommand(show, update)
	return cmd
}
