package main

import (
	"bufio"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// variables are what all templates need.
const variables = `CONTAINER_REGISTRY=contoso.azurecr.io
PARENT_ENDPOINT=contoso.azurecr.io
# a comment
SYNC_TOKEN_NAME=sync
SYNC_TOKEN_PASSWORD=it's secret
CHILD_SYNC_TOKEN_PASSWORD_SHA256=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
LINE_A_PASSWORD_SHA256=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
PLATFORM=amd64
`

// TestRepositoryManifests starts a device from each template of the repository.
func TestRepositoryManifests(t *testing.T) {
	templates, err := filepath.Glob("../../../../deployment-manifests/*.template.json")
	if err != nil || len(templates) == 0 {
		t.Fatalf("no templates: %v", err)
	}
	envFile := filepath.Join(t.TempDir(), ".env")
	if err := os.WriteFile(envFile, []byte(variables), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, template := range templates {
		t.Run(filepath.Base(template), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			in, commands := io.Pipe()
			out, lines := io.Pipe()
			var errs lockedBuilder
			done := make(chan error, 1)
			go func() {
				err := run(ctx, []string{
					"-manifest", template, "-env-file", envFile, "-module", "connected-registry",
					"-mqtt-port", "-1", "-https-port", "-1", "-parent", "edge-l4", "-device", "l3",
				}, in, lines, &errs)
				lines.CloseWithError(io.EOF)
				done <- err
			}()
			env := exports(t, out)
			for k, want := range map[string]string{
				"IOTEDGE_DEVICEID": "l3", "IOTEDGE_MODULEID": "connected-registry", "IOTEDGE_PARENTHOSTNAME": "edge-l4",
				"IOTEDGE_GATEWAYHOSTNAME": "127.0.0.1", "IOTEDGE_AUTHSCHEME": "sasToken",
			} {
				if env[k] != want {
					t.Errorf("%s is %q, want %q", k, env[k], want)
				}
			}
			if s := env["ACR_REGISTRY_CONNECTION_STRING"]; !strings.Contains(s, `SyncTokenPassword=it'\''s secret`) {
				t.Errorf("connection string %q", s)
			}
			for _, line := range []string{
				`desired connected-registry {"mode":"ReadWrite"}`, "cloud off", "cloud on", `faults {"Refuse":3}`,
			} {
				if _, err := io.WriteString(commands, line+"\n"); err != nil {
					t.Fatal(err)
				}
			}
			_ = commands.Close()
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if s := errs.String(); s != "" {
				t.Error(s)
			}
		})
	}
}

// lockedBuilder is what several goroutines may write to.
type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// exports reads the printed environment up to the line that says ready.
func exports(t *testing.T, out io.Reader) map[string]string {
	t.Helper()
	env := map[string]string{}
	for s := bufio.NewScanner(out); s.Scan(); {
		if s.Text() == "# ready" {
			return env
		}
		name, value, _ := strings.Cut(strings.TrimPrefix(s.Text(), "export "), "=")
		env[name] = strings.TrimSuffix(strings.TrimPrefix(value, "'"), "'")
	}
	t.Fatal("never ready")
	return nil
}

func TestBadArguments(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"-manifest", "nowhere.json"},
		{"-manifest", "main.go"},
		{"-no-such-flag"},
		{"-manifest", "../../../../deployment-manifests/single-device.template.json", "-env-file", "nowhere"},
	} {
		if err := run(t.Context(), args, strings.NewReader(""), io.Discard, io.Discard); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
