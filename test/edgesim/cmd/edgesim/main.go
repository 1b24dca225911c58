// Command edgesim runs one emulated IoT Edge device from a deployment manifest, so that a module can be started as on
// a device: it prints the module's environment as shell exports, ends that with the line "# ready", and runs until it
// is interrupted.
//
//	edgesim -manifest deployment-manifests/single-device.template.json -env-file .env -address 127.0.0.11 >module.env &
//	until grep -q '^# ready' module.env; do sleep 0.1; done; . ./module.env; connected-registry serve
//
// On stdin it takes commands, one on a line: "cloud on", "cloud off", "kick MODULE", "desired MODULE JSON",
// "faults JSON" (fields of edgesim.Faults, durations in nanoseconds).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/connected-registry/connected-registry/test/edgesim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "edgesim:", err)
		os.Exit(1)
	}
}

// run is main without the process.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) error {
	var o edgesim.Options
	flags := flag.NewFlagSet("edgesim", flag.ContinueOnError)
	flags.SetOutput(errs)
	manifest := flags.String("manifest", "", "deployment manifest or template `file`")
	module := flags.String("module", "", "module whose environment is printed; the first of the manifest")
	envFile := flags.String("env-file", "", "`file` with KEY=VALUE lines for the template's variables, before the environment's")
	scale := flags.Int("scale", 1, "divide edgeHub's periods by this")
	verbose := flags.Bool("v", false, "log on stderr")
	flags.StringVar(&o.DeviceID, "device", "edge", "device id")
	flags.StringVar(&o.Hub, "hub", "", "host name of the IoT Hub")
	flags.StringVar(&o.Address, "address", "127.0.0.1", "loopback address of this device")
	flags.StringVar(&o.Hostname, "hostname", "", "IOTEDGE_GATEWAYHOSTNAME; the address")
	flags.StringVar(&o.ParentHostname, "parent", "", "IOTEDGE_PARENTHOSTNAME; empty has no parent")
	flags.StringVar(&o.Dir, "dir", "", "`directory` of the workload API's sockets; a temporary one")
	flags.IntVar(&o.MQTTPort, "mqtt-port", 0, "8883; negative is a free one")
	flags.IntVar(&o.HTTPSPort, "https-port", 0, "443; negative is a free one")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *manifest == "" || *scale < 1 {
		return errors.New("-manifest is needed, and -scale is at least 1")
	}
	modules, err := read(*manifest, *envFile)
	if err != nil {
		return err
	}
	if *module == "" && len(modules) > 0 {
		*module = modules[0].ID
	}
	o.Modules, o.Timing = modules, edgesim.Scaled(*scale)
	if *verbose {
		o.Logger = slog.New(slog.NewTextHandler(errs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	d, err := edgesim.New(o)
	if err != nil {
		return err
	}
	if err := export(d, *module, out); err != nil {
		return errors.Join(err, d.Close())
	}
	go commands(d, in, errs)
	<-ctx.Done()
	return d.Close()
}

// read reads the manifest with its variables.
func read(manifest, envFile string) ([]edgesim.Module, error) {
	variables := map[string]string{}
	if envFile != "" {
		doc, err := os.ReadFile(envFile)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(doc)) {
			name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
			if ok && !strings.HasPrefix(name, "#") {
				variables[name] = value
			}
		}
	}
	doc, err := os.ReadFile(manifest)
	if err != nil {
		return nil, err
	}
	m, err := edgesim.ReadManifest(doc, func(name string) (string, bool) {
		if v, ok := variables[name]; ok {
			return v, true
		}
		return os.LookupEnv(name)
	})
	return m.Modules, err
}

// export prints a module's environment, and what the operator's side needs.
func export(d *edgesim.Device, module string, out io.Writer) error {
	env := d.Env(module)
	if env == nil {
		return fmt.Errorf("the manifest has no module %q", module)
	}
	root := filepath.Join(d.Dir(), "root.pem")
	if err := os.WriteFile(root, d.TrustBundle(), 0o644); err != nil {
		return err
	}
	env["EDGESIM_ROOT"] = root
	env["EDGESIM_SERVICE"] = d.ServiceConnectionString()
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(env)) {
		fmt.Fprintf(&b, "export %s='%s'\n", k, strings.ReplaceAll(env[k], "'", `'\''`))
	}
	b.WriteString("# ready\n")
	_, err := io.WriteString(out, b.String())
	return err
}

// commands carries out what comes in until the input ends.
func commands(d *edgesim.Device, in io.Reader, errs io.Writer) {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if err := command(d, lines.Text()); err != nil {
			fmt.Fprintln(errs, "edgesim:", err)
		}
	}
}

func command(d *edgesim.Device, line string) error {
	verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch verb {
	case "":
		return nil
	case "cloud":
		d.SetCloud(rest == "on")
		return nil
	case "kick":
		if !d.Kick(rest) {
			return fmt.Errorf("%s is not connected", rest)
		}
		return nil
	case "desired":
		module, patch, _ := strings.Cut(rest, " ")
		_, err := d.UpdateDesired(module, json.RawMessage(patch))
		return err
	case "faults":
		var err error
		d.SetFaults(func(f *edgesim.Faults) { err = json.Unmarshal([]byte(rest), f) })
		return err
	}
	return fmt.Errorf("unknown command %q", verb)
}
