package access

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// TestCanarySecrets runs the real binary with passwords that are found wherever they are, does with it what makes a
// program talk, and looks at all that it said and wrote: none of them is in its log, its metrics, its status, what the
// twin is told, its errors, its audit log, its files, or its environment as the system shows it. There is no core file to
// look into: the process makes none.
func TestCanarySecrets(t *testing.T) {
	dir := t.TempDir()
	program := built(t)
	const sync, client, wrong = "CANARYsync7f3a9c==", "CANARYclient5d2b1e", "CANARYwrong8e4f6a"
	parentDoc := document(registry.ReadWrite)
	parentDoc["clientTokens"].(map[string]any)["lower"] = map[string]any{"scopeMap": "only-gateway", "password1": digest(sync)}
	parent := start(t, parentDoc, nil)

	addr, release, err := linkproxy.ReservePort()
	must(t, err)
	defer release()
	l, err := layer.New(layer.Options{
		Binary: program, Dir: dir, Name: "lower", Parent: parent.addr, Closed: true, Mode: registry.ReadWrite,
		Repositories: map[string]string{"all": "acme/app"},
		Document: map[string]any{
			"scopeMaps":    map[string]any{"all": "repositories/*/content/read repositories/*/content/write repositories/*/metadata/read"},
			"clientTokens": map[string]any{"dev": map[string]any{"scopeMap": "all", "password1": digest(client)}},
			"logging":      map[string]any{"logLevel": "Debug", "auditLogStatus": "Enabled"},
		},
		Args: []string{"--management", addr},
		Env: []string{fmt.Sprintf("ACR_REGISTRY_CONNECTION_STRING=ConnectedRegistryName=lower;SyncTokenName=lower;SyncTokenPassword=%s;ParentGatewayEndpoint=%s;ParentEndpointProtocol=http",
			sync, parent.addr)},
	})
	must(t, err)
	must(t, l.Start(t.Context()))
	defer func() { must(t, l.Close()) }()

	s := &site{t: t, addr: l.Addr, http: http.DefaultClient}
	secrets := map[string]string{"the sync token's password": sync, "a client's password": client, "a wrong password": wrong}
	var said bytes.Buffer
	hear := func(a answer) answer {
		said.WriteString(a.body)
		for k, v := range a.header {
			fmt.Fprintln(&said, k, v)
		}
		return a
	}
	s.until("the document is in force", func() bool {
		return s.ask(request{method: "GET", path: "/v2/", user: "dev", password: client}).status == http.StatusOK
	})
	secrets["an access token"] = s.token("dev", client, "repository:acme/app:pull")
	for _, r := range []request{
		{method: "PUT", path: "/v2/acme/app/manifests/v1", user: "dev", password: client, body: empty, contentType: indexType},
		{method: "GET", path: "/v2/acme/app/manifests/none", user: "dev", password: client},
		{method: "DELETE", path: "/v2/acme/app/manifests/v1", user: "dev", password: client},
		{method: "GET", path: "/v2/", user: "dev", password: wrong},
		{method: "GET", path: "/v2/", user: "lower", password: sync},
		{method: "GET", path: "/v2/_catalog", bearer: secrets["an access token"]},
		{method: "GET", path: "/v2/_catalog", bearer: secrets["an access token"] + "x"},
		{method: "POST", path: "/acr/oauth2/token", body: "grant_type=password&username=dev&password=" + wrong, contentType: "application/x-www-form-urlencoded"},
		{method: "POST", path: "/oauth2/exchange", body: "grant_type=access_token&access_token=" + wrong, contentType: "application/x-www-form-urlencoded"},
		{method: "GET", path: "/v2/_connected/v1/", user: "dev", password: client},
	} {
		a := s.ask(r)
		if !strings.HasPrefix(r.path, "/acr/oauth2") || a.status != http.StatusOK {
			hear(a)
		}
	}
	s.until("it is active at its parent", func() bool {
		st, err := l.Status(t.Context())
		return err == nil && st.Activation.Status == registry.Active
	})
	// A document that would read the credential out, and a parent that refuses it.
	l.Document["parent"] = map[string]any{"gatewayEndpoint": "$ACR_REGISTRY_CONNECTION_STRING", "protocol": "http"}
	must(t, l.Configure())
	s.until("the document is refused", func() bool {
		st, err := l.Status(t.Context())
		return err == nil && len(st.Configuration.Errors) > 0
	})
	delete(l.Document, "parent")
	delete(parentDoc["clientTokens"].(map[string]any), "lower")
	parent.configure(parentDoc)
	must(t, l.Configure())
	_ = l.Sync(t.Context()) // refused
	s.until("the refusal is in the status", func() bool {
		st, err := l.Status(t.Context())
		return err == nil && len(st.StatusDetails) > 0
	})

	manage := &site{t: t, addr: addr, http: http.DefaultClient}
	for _, path := range []string{"/status", "/metrics", "/healthz", "/readyz"} {
		hear(manage.ask(request{method: "GET", path: path}))
	}
	status, err := l.Status(t.Context())
	must(t, err)
	reported, err := json.Marshal(twin.Reported(status, nil))
	must(t, err)
	said.Write(reported)
	for _, verb := range [][]string{{"status"}, {"list"}, {"show"}, {"sync"}, {"gc"}} {
		out, _ := exec.CommandContext(t.Context(), program, append(verb, "--data-dir", l.DataDir())...).CombinedOutput()
		said.Write(out)
	}
	look := func(where string, raw []byte) {
		for what, secret := range secrets {
			for _, form := range []string{secret, base64.StdEncoding.EncodeToString([]byte("lower:" + secret)), base64.StdEncoding.EncodeToString([]byte("dev:" + secret))} {
				if bytes.Contains(raw, []byte(form)) {
					t.Errorf("%s is in %s", what, where)
				}
			}
		}
	}
	look("what it said", said.Bytes())
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", l.Pid()))
	must(t, err)
	if !bytes.Contains(environ, []byte("ACR_REGISTRY_CONNECTION_STRING=*")) {
		t.Error("the environment does not hold the variable whose value is to be hidden")
	}
	look("its environment", environ)
	commandLine, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", l.Pid()))
	must(t, err)
	look("its command line", commandLine)
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", l.Pid()))
	must(t, err)
	if !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0") {
		t.Errorf("it may write a core file:\n%s", limits)
	}
	must(t, l.Stop())
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		raw, err := io.ReadAll(io.LimitReader(f, 256<<20))
		look(p, raw)
		return err
	}))
}
