package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
)

func readinessCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "readiness [IMAGE...]",
		Short: "Say whether a deployment is complete here, what is missing, and whether it fits",
		Long: "Say of each image, or of each module of an IoT Edge deployment manifest, whether it can be pulled here with the parent away,\n" +
			"how many bytes are missing, and whether they fit on the data volume. Exits with 1 unless all is complete.",
	}
	dataDir, output := dataDirFlag(cmd), outputFlag(cmd)
	manifest := cmd.Flags().String("manifest", "", "deployment manifest")
	cmd.RunE = func(cmd *cobra.Command, images []string) error {
		in := map[string]any{"images": images}
		if *manifest != "" {
			raw, err := os.ReadFile(*manifest)
			if err != nil {
				return err
			}
			if !json.Valid(raw) {
				return fmt.Errorf("%s is not JSON", *manifest)
			}
			in["manifest"] = json.RawMessage(raw)
		}
		var r registry.Readiness
		if err := module.Control(cmd.Context(), *dataDir, "POST", "/methods/getReadiness", in, &r); err != nil {
			return err
		}
		if *output == "json" {
			e := json.NewEncoder(cmd.OutOrStdout())
			e.SetIndent("", "  ")
			if err := e.Encode(r); err != nil {
				return err
			}
		} else {
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "IMAGE\tSTATE\tMISSING\tREASON")
			for _, i := range r.Images {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", i.Image, i.State, size(i.MissingBytes), i.Reason)
			}
			fmt.Fprintf(t, "all\t%s\t%s\t%s free on the data volume\n", map[bool]string{true: "Ready", false: "Not ready"}[r.Ready], size(r.MissingBytes), size(r.FreeBytes))
			if err := t.Flush(); err != nil {
				return err
			}
		}
		if !r.Ready {
			return errors.New("not every image is complete here")
		}
		return nil
	}
	return cmd
}

func gcCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Collect garbage now: content that nothing refers to any more",
		Args:  cobra.NoArgs,
	}
	dataDir := dataDirFlag(cmd)
	dryRun := cmd.Flags().Bool("dry-run", false, "only say what would be freed")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var r module.GCResult
		if err := module.Control(cmd.Context(), *dataDir, "POST", "/methods/gc", map[string]bool{"dryRun": *dryRun}, &r); err != nil {
			return err
		}
		verb := "freed"
		if *dryRun {
			verb = "would free"
		}
		var what []string
		for _, c := range []struct {
			n    int
			noun string
		}{{r.Blobs, "blob"}, {r.Manifests, "manifest"}, {r.Partials, "unfinished transfer"}, {r.Uploads, "unfinished upload"}, {r.Files, "stray file"}} {
			if c.n == 1 {
				what = append(what, "1 "+c.noun)
			} else {
				what = append(what, fmt.Sprintf("%d %ss", c.n, c.noun))
			}
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s: %s\n", verb, size(r.Bytes), strings.Join(what, ", "))
		return nil
	}
	return cmd
}

// deactivateCommand stops using the parent, or frees the name of a registry below.
func deactivateCommand() *cobra.Command {
	cmd := activationCommand("deactivate", "Stop using the parent, or free the name of a registry below for another instance")
	cmd.Long = "Stop using the parent, so that another instance can take this one's place; what is here is served on. With --name it is the\n" +
		"connected registry of that name below this one: the instance that is active stops using this one, and a device that was\n" +
		"installed anew takes its place by itself."
	name := cmd.Flags().StringP("name", "n", "", "name of a connected registry below; empty is this one")
	dataDir, output := cmd.Flags().Lookup("data-dir"), cmd.Flags().Lookup("output")
	yesFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var s registry.Status
		if err := module.Control(cmd.Context(), dataDir.Value.String(), "POST", "/methods/deactivate", map[string]string{"name": *name}, &s); err != nil {
			return plain(err)
		}
		if *name != "" {
			fmt.Fprintf(cmd.OutOrStdout(), "%s is deactivated: the next instance that signs in with its sync token takes its place\n", *name)
			return nil
		}
		return printStatus(cmd.OutOrStdout(), s, output.Value.String())
	}
	return cmd
}

// activationCommand is deactivate, or activate, which undoes it.
func activationCommand(name, short string) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs}
	dataDir, output := dataDirFlag(cmd), outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var s registry.Status
		if err := module.Control(cmd.Context(), *dataDir, "POST", "/methods/"+name, nil, &s); err != nil {
			return err
		}
		return printStatus(cmd.OutOrStdout(), s, *output)
	}
	return cmd
}
