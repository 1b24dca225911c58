//go:build interop

package edgesim_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/test/edgesim"
)

// interopLimit bounds one run of a foreign client.
const interopLimit = 4 * time.Minute

// onFixedPorts is a device on the ports that Microsoft's packages fix; needs the right to bind 443.
func onFixedPorts(t *testing.T, address string) *edgesim.Device {
	t.Helper()
	return device(t, func(o *edgesim.Options) {
		o.MQTTPort, o.HTTPSPort, o.Address = 0, 0, address
		o.Timing = edgesim.Scaled(10)
	})
}

// packages installs Microsoft's packages, unless they are there.
func packages(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("npm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "azure-iot-device-mqtt", "package.json")); err == nil {
		return dir
	}
	ctx, cancel := context.WithTimeout(t.Context(), interopLimit)
	defer cancel()
	npm := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	npm.Dir = dir
	if out, err := npm.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	return dir
}

func environ(env map[string]string) []string {
	var out []string
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	return out
}

// rootFile writes the device's root.
func rootFile(t *testing.T, d *edgesim.Device) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(path, d.TrustBundle(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMicrosoftPackages(t *testing.T) {
	dir := packages(t)
	for i, transport := range []string{"mqtt", "ws"} {
		t.Run(transport, func(t *testing.T) {
			d := onFixedPorts(t, fmt.Sprintf("127.0.0.%d", 77+i))
			other, err := json.Marshal(d.Env("other"))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), interopLimit)
			defer cancel()
			node := exec.CommandContext(ctx, "node", "interop.js", transport)
			node.Dir = dir
			node.Env = append(environ(d.Env("mod")), "PATH="+os.Getenv("PATH"), "NODE_EXTRA_CA_CERTS="+rootFile(t, d),
				"EDGESIM_SERVICE="+d.ServiceConnectionString(), "EDGESIM_OTHER="+string(other), "DEBUG="+os.Getenv("DEBUG"))
			var stderr bytes.Buffer
			node.Stderr = &stderr
			in, err := node.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := node.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := node.Start(); err != nil {
				t.Fatal(err)
			}
			passed := converse(t, d, transport, in, out)
			if err := node.Wait(); err != nil || !passed {
				t.Fatalf("node: %v\n%s", err, stderr.String())
			}
		})
	}
}

// converse does what the script asks of the emulator.
func converse(t *testing.T, d *edgesim.Device, transport string, in io.Writer, out io.Reader) (passed bool) {
	t.Helper()
	over := map[string]string{"mqtt": "tls", "ws": "wss"}[transport]
	acts := map[string]func(){
		"subscribed": func() { wait(t, d, "subscription to patches", subscribedTo(d, patchFilter)) },
		"methods":    func() { wait(t, d, "subscription to methods", subscribedTo(d, methodsFilter)) },
		"output": func() {
			wait(t, d, "output", func() bool { return len(d.Messages("mod")) == 1 })
			m := d.Messages("mod")[0]
			if m.Output != "registryEvents" || string(m.Payload) != `{"action":"ImagePushed"}` ||
				m.Properties["repository"] != "acme/vision & more" || m.Properties["$.ct"] != "application/json" {
				t.Errorf("output: %+v", m)
			}
		},
		"kick": func() {
			if s := d.Status("mod"); s.Over != over || !strings.HasPrefix(s.Product, "azure-iot-device") {
				t.Errorf("status %+v", s)
			}
			before := d.Status("mod").Connects
			d.Kick("mod")
			wait(t, d, "reconnect", func() bool { s := d.Status("mod"); return s.Connected && s.Connects > before })
		},
		"offline": func() { d.SetCloud(false) },
		"online":  func() { d.SetCloud(true) },
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		t.Log(lines.Text())
		if what, ok := strings.CutPrefix(lines.Text(), "ask "); ok {
			acts[what]()
			if _, err := fmt.Fprintln(in, "done "+what); err != nil {
				t.Error(err)
			}
		}
		passed = passed || lines.Text() == "passed"
	}
	return passed
}

func subscribedTo(d *edgesim.Device, filter string) func() bool {
	return func() bool {
		for _, f := range d.Status("mod").Subscriptions {
			if f == filter {
				return true
			}
		}
		return false
	}
}

const mosquittoSub = "mosquitto_sub" //nolint:misspell // the tool's name

// TestMosquitto has a client of another house subscribe, receive a patch, and be refused with a wrong password.
func TestMosquitto(t *testing.T) {
	if _, err := exec.LookPath(mosquittoSub); err != nil {
		t.Skip(mosquittoSub + " is not installed")
	}
	d := onFixedPorts(t, "127.0.0.79")
	env := d.Env("mod")
	run := func(password string) *exec.Cmd {
		return exec.CommandContext(t.Context(), mosquittoSub, "-V", "mqttv311", "-h", env["IOTEDGE_GATEWAYHOSTNAME"], "-p", "8883",
			"--cafile", rootFile(t, d), "-i", "edge/mod", "-u", env["IOTEDGE_IOTHUBHOSTNAME"]+"/edge/mod/?api-version=2021-04-12",
			"-P", password, "-q", "1", "-t", patchFilter, "-F", "%q %t %p", "-C", "1", "-W", "60")
	}
	if out, err := run("SharedAccessSignature sr=x&sig=eA%3D%3D&se=1").CombinedOutput(); err == nil || !strings.Contains(string(out), "not authorised") {
		t.Errorf("wrong password: %v %s", err, out)
	}
	cmd := run(token(t, d, "mod", time.Hour))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, d, "subscription", subscribedTo(d, patchFilter))
	if _, err := d.UpdateDesired("mod", map[string]any{"mode": "ReadWrite"}); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if want := "1 $iothub/twin/PATCH/properties/desired/?$version=2 {\"$version\":2,\"mode\":\"ReadWrite\"}\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
