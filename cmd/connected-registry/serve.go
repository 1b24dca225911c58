package main

import (
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/sirupsen/logrus"
	logrusslog "github.com/sirupsen/logrus/hooks/slog"
	"github.com/spf13/cobra"

	"github.com/connected-registry/connected-registry/internal/module"
)

func serveCommand() *cobra.Command {
	o := module.Options{Version: version, Built: buildTime()}
	var logFormat string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the registry",
		Long: "Run the registry. The configuration document (the desired properties of the module twin, as JSON) comes from --config and is\n" +
			"watched; the parent's credential from ACR_REGISTRY_CONNECTION_STRING or the file in ACR_REGISTRY_CONNECTION_STRING_FILE.\n" +
			"Without a token in clientTokens nobody may pull, unless a flag here says otherwise.",
		Args: cobra.NoArgs,
	}
	dataDir := dataDirFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&o.ConfigFile, "config", "", "configuration document, watched for changes")
	f.StringVar(&o.TokensFile, "tokens", "", "file with more scopeMaps and clientTokens, watched for changes (ACR_REGISTRY_TOKENS_FILE)")
	f.StringVar(&o.Listen, "listen", ":8080", "address of the registry")
	f.StringVar(&o.ListenTLS, "listen-tls", "", "address of the registry with TLS; the certificate is tls.crt and tls.key in ACR_REGISTRY_CERTIFICATE_VOLUME,\nor made and renewed by IoT Edge; empty for none")
	f.StringVar(&o.Management, "management", "127.0.0.1:8081", "address of /healthz, /readyz and /status; empty for none")
	f.StringVar(&o.Name, "name", "", "name of this connected registry, where no connection string gives it")
	f.BoolVar(&o.AnonymousPull, "insecure-anonymous-pull", false, "let clients without a token pull")
	f.BoolVar(&o.AllowInsecureParent, "allow-insecure-parent", false, "let the configuration name a parent with protocol http")
	f.BoolVar(&o.BearerChallenge, "bearer-challenge", false, "challenge clients with Bearer in place of Basic; not through several API proxies")
	f.StringVar(&o.ParentCA, "parent-ca", "", "PEM file of roots for the parent's certificate, beside the system's; read at each connection")
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		noCore()
		o.Lookup = takeSecrets()
		o.DataDir = *dataDir
		log := newLogger(logFormat)
		o.Logger = slog.New(logrusslog.NewHandler(log, nil))
		o.SetLevel = func(level string) { log.SetLevel(logLevels[level]) }
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(gcPercent)
		}
		if processors := runtime.GOMAXPROCS(0); os.Getenv("GOMAXPROCS") == "" {
			o.Busy = func(busy bool) {
				if busy {
					runtime.GOMAXPROCS(processors + inDisk)
				} else {
					runtime.GOMAXPROCS(processors)
				}
			}
		}
		// What the start needed and nobody needs again (patterns, flags, recovery) is below what the collector starts at, so
		// that a registry at rest would keep it.
		o.Rest = debug.FreeOSMemory
		o.Roots = sync.OnceFunc(publicRoots)
		return module.Run(cmd.Context(), o)
	}
	return cmd
}

// gcPercent lets the heap grow to 8 MiB before it is collected. A registry has 2 MiB that live, so that at Go's 100 small
// requests are followed by a collection each 2 MiB: a tenth of what they cost.
const gcPercent = 200

// inDisk is how many more goroutines may run than there are processors while content comes from the parent. The runtime
// counts who waits for the disk as running for up to 10 ms, and on two processors two transfers that sync leave nobody to
// look at what clients ask. At other times more than there are processors cost each request something.
const inDisk = 4

// logLevels maps ACR's names. None is Panic: nothing is logged at that level.
var logLevels = map[string]logrus.Level{
	"Debug": logrus.DebugLevel, "Information": logrus.InfoLevel, "Warning": logrus.WarnLevel,
	"Error": logrus.ErrorLevel, "None": logrus.PanicLevel,
}

// newLogger logs to standard output, where container engines look.
func newLogger(format string) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(os.Stdout)
	if format == "json" {
		log.SetFormatter(&logrus.JSONFormatter{})
	} else {
		log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, DisableColors: true})
	}
	return log
}
