package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
)

func listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List this connected registry and the tree below it",
		Long: "List this connected registry and the tree below it, parents before children: what each layer told the one above it.\n" +
			"One that its parent has not heard of for three minutes is Offline, and so is all below it.",
		Args: cobra.NoArgs,
	}
	dataDir, output := dataDirFlag(cmd), outputFlag(cmd)
	parent := cmd.Flags().StringP("parent", "p", "", "only the tree below this one")
	noChildren := cmd.Flags().Bool("no-children", false, "only those directly below")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var r registry.LayerReport
		if err := module.Control(cmd.Context(), *dataDir, "POST", "/methods/list", nil, &r); err != nil {
			return err
		}
		nodes, err := below(r.Registries, *parent, *noChildren)
		if err != nil {
			return err
		}
		return printTree(cmd.OutOrStdout(), nodes, *output)
	}
	return cmd
}

// below selects the tree below a parent; without one, the whole tree. direct leaves out what is deeper.
func below(all []registry.TreeNode, parent string, direct bool) ([]registry.TreeNode, error) {
	top := parent
	if parent == "" && len(all) > 0 {
		top = all[0].Name
	}
	if !slices.ContainsFunc(all, func(n registry.TreeNode) bool { return hierarchy.SameName(n.Name, top) }) {
		return nil, fmt.Errorf("the connected registry %q could not be found below this one", top)
	}
	in := map[string]bool{strings.ToLower(top): true}
	var nodes []registry.TreeNode
	for i, n := range all {
		self := i == 0 && parent == ""
		if !self && !in[strings.ToLower(n.Parent)] {
			continue
		}
		if !direct {
			in[strings.ToLower(n.Name)] = true
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show one connected registry of the tree, this one by default",
		Args:  cobra.NoArgs,
	}
	dataDir, output := dataDirFlag(cmd), outputFlag(cmd)
	name := cmd.Flags().StringP("name", "n", "", "name of the connected registry")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var r registry.LayerReport
		if err := module.Control(cmd.Context(), *dataDir, "POST", "/methods/list", nil, &r); err != nil {
			return err
		}
		i := slices.IndexFunc(r.Registries, func(n registry.TreeNode) bool { return *name == "" || hierarchy.SameName(n.Name, *name) })
		if i < 0 {
			return fmt.Errorf("the connected registry %q could not be found below this one", *name)
		}
		n := r.Registries[i]
		if *output == "json" {
			return printJSON(cmd.OutOrStdout(), n)
		}
		if err := printTree(cmd.OutOrStdout(), []registry.TreeNode{n}, *output); err != nil {
			return err
		}
		for _, d := range n.StatusDetails {
			fmt.Fprintf(cmd.OutOrStdout(), "\n! %s %s since %s: %s\n", d.Type, d.Code, instant(d.Timestamp), d.Description)
		}
		return nil
	}
	return cmd
}

func listTokensCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list-client-tokens",
		Short: "List the client tokens that work here, and where they come from; with --name those handed down to a registry below",
		Args:  cobra.NoArgs,
	}
	dataDir, output := dataDirFlag(cmd), outputFlag(cmd)
	name := cmd.Flags().StringP("name", "n", "", "name of a connected registry below; empty is this one")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var list []module.TokenState
		for after, more := "", true; more; {
			var page module.TokenPage
			ask := map[string]any{"name": *name, "after": after, "limit": registry.MaxPage}
			if err := module.Control(cmd.Context(), *dataDir, "POST", "/methods/listClientTokens", ask, &page); err != nil {
				return plain(err)
			}
			list = append(list, page.ClientTokens...)
			after, more = page.After, page.After != ""
		}
		return printList(cmd.OutOrStdout(), *output, list, "NAME\tSTATUS\tSOURCE\tSCOPE MAP\tPASSWORDS", func(t module.TokenState) []string {
			var passwords []string
			for _, p := range t.Passwords {
				switch {
				case p.Expired:
					p.Name += " (ended " + instant(p.Expiry) + ")"
				case !p.Expiry.IsZero():
					p.Name += " (until " + instant(p.Expiry) + ")"
				}
				passwords = append(passwords, p.Name)
			}
			return []string{t.Name, t.Status, t.Source, orDash(t.ScopeMap), orDash(strings.Join(passwords, ", "))}
		})
	}
	return cmd
}

// printTree writes the columns of `az acr connected-registry show`, and the version.
func printTree(w io.Writer, nodes []registry.TreeNode, output string) error {
	return printList(w, output, nodes, "NAME\tMODE\tCONNECTION STATE\tPARENT\tLOGIN SERVER\tLAST SYNC (UTC)\tSYNC SCHEDULE\tSYNC WINDOW\tVERSION", func(n registry.TreeNode) []string {
		return []string{
			orDash(n.Name), orDash(string(n.Mode)), orDash(string(n.ConnectionState)), orDash(n.Parent), orDash(n.LoginServer.Host),
			instant(n.LastSyncTime), orDash(n.Schedule), orDash(n.SyncWindow), orDash(n.Version),
		}
	})
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
