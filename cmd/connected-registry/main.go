// Command connected-registry is an on-premises OCI registry that is a replica of a cloud registry or of the connected
// registry of the layer above. "serve" is the module; the other commands are the operator's and talk to a running
// module through its data volume.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/connected-registry/connected-registry/internal/twin"
)

// Set by the linker: -X main.version=... -X main.built=<RFC 3339>.
var (
	version = "dev"
	built   = ""
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := root()
	cmd.SetArgs(gather(os.Args[1:]))
	if err := cmd.ExecuteContext(ctx); err != nil {
		if !errors.Is(err, context.Canceled) {
			fmt.Fprintln(os.Stderr, "connected-registry:", err)
		}
		stop()
		os.Exit(1)
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "connected-registry",
		Short: "An OCI registry on premises, replica of the one above",
		Long: "An OCI registry on premises: a replica of a cloud registry, or of the connected registry of the layer above.\n" +
			"It serves what it has in any state of its parent.",
		SilenceUsage: true, SilenceErrors: true,
		Version: version,
	}
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cmd.AddCommand(serveCommand(), statusCommand(), syncCommand(), readinessCommand(), gcCommand(), outboxCommand(),
		deactivateCommand(), activationCommand("activate", "Use the parent again"), listCommand(), showCommand(), listTokensCommand(), settingsCommand(), permissionsCommand(), configCommand())
	return cmd
}

// buildTime is the floor of the clock: a device whose clock says 1970 is at least as late as its software.
func buildTime() time.Time {
	t, _ := time.Parse(time.RFC3339, built)
	return t
}

// dataDirFlag adds --data-dir, whose default is the data volume of the environment.
func dataDirFlag(cmd *cobra.Command) *string {
	env, _ := twin.FromEnvironment(os.LookupEnv)
	return cmd.Flags().String("data-dir", env.DataVolume, "data volume (ACR_REGISTRY_DATA_VOLUME)")
}
