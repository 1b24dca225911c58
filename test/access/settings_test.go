package access

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// made is what `connected-registry settings create` prints.
type made struct {
	Settings map[string]string
	Patches  []struct {
		Registry string         `json:"connectedRegistry"`
		Desired  map[string]any `json:"desired"`
		Commands []string       `json:"commands"`
	} `json:"twinPatches"`
}

// merge puts a patch into a document, as the twin's service does.
func merge(doc, patch map[string]any) {
	for k, v := range patch {
		inner, isObject := v.(map[string]any)
		have, has := doc[k].(map[string]any)
		switch {
		case v == nil:
			delete(doc, k)
		case isObject && has:
			merge(have, inner)
		case isObject:
			doc[k] = maps.Clone(inner)
		default:
			doc[k] = v
		}
	}
}

// TestSettingsSayWhatIsMissing: who forgets half of a command, or asks for nothing, is told so.
func TestSettingsSayWhatIsMissing(t *testing.T) {
	tree := filepath.Join(t.TempDir(), "tree.json")
	for _, tt := range []struct {
		args string
		ok   bool
		says string
	}{
		{"settings create --name line5 --mode ReadWrite --repository acme/app --gateway-endpoint contoso.azurecr.io", true, "ParentGatewayEndpoint=contoso.azurecr.io"},
		{"settings create --name line5 --repository acme/app --gateway-endpoint contoso.azurecr.io", false, "exists already"},
		{"settings update --name line5", false, "at least one of the flags"},
		{"settings get --name line5", true, "SYNC_TOKEN_USER"},
		{"settings get --name line6", false, "could not be found"},
		{"permissions update --name line5", false, "at least one of the flags"},
		{"permissions update --name line5 --remove acme/none", true, "does not sync acme/none"},
		{"permissions update --name line5 --add acme/app -o json", true, `"twinPatches": []`},
		{"list --data-dir " + filepath.Dir(tree) + "/none", false, "no registry is running on the data volume"},
	} {
		args := strings.Fields(tt.args)
		if args[0] != "list" {
			args = append(args, "--hierarchy", tree)
		}
		out, err := exec.CommandContext(t.Context(), built(t), args...).CombinedOutput()
		if (err == nil) != tt.ok || !strings.Contains(string(out), tt.says) {
			t.Errorf("%s: %v\n%s", tt.args, err, out)
		}
	}
}

// TestSettingsMakeAWorkingChild: the connection string and the patches that the commands print are all that a child and
// those above it need.
func TestSettingsMakeAWorkingChild(t *testing.T) {
	dir := t.TempDir()
	program := built(t)
	docs := map[string]map[string]any{"line5": document(registry.ReadWrite), "line4": {"schemaVersion": "1.0"}}
	run := func(args ...string) (out made) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, append(args, "--hierarchy", filepath.Join(dir, "tree.json"), "-o", "json")...)
		body, err := cmd.Output()
		must(t, err)
		must(t, json.Unmarshal(body, &out))
		for _, p := range out.Patches {
			if doc := docs[p.Registry]; doc != nil {
				merge(doc, p.Desired)
			}
		}
		return out
	}
	run("settings", "create", "--name", "line5", "--mode", "ReadWrite", "--repository", "acme/app", "--gateway-endpoint", "contoso.eastus.data.azurecr.io")
	delete(docs["line5"], "parent") // the cloud is no part of this test
	delete(docs["line5"], "repositories")
	upper := start(t, docs["line5"], func(o *module.Options) { o.Name = "line5" })
	upper.ready()
	upper.ask(request{method: "PUT", path: "/v2/acme/app/manifests/v1", user: "all", password: "pw-all", body: empty, contentType: indexType})

	out := run("settings", "create", "--name", "line4", "--parent", "line5", "--repository", "acme/app", "--client-tokens", "all",
		"--gateway-endpoint", upper.addr, "--parent-protocol", "http", "--generate-password", "1")
	upper.configure(docs["line5"])
	connection := out.Settings["ACR_REGISTRY_CONNECTION_STRING"]
	lower := start(t, docs["line4"], func(o *module.Options) {
		o.AllowInsecureParent = false // http stands in the connection string, which is on the machine
		o.Lookup = func(name string) (string, bool) {
			if name != "ACR_REGISTRY_CONNECTION_STRING" {
				return "", false
			}
			return connection, true
		}
	})
	lower.until("it pulls what its parent has, for a client token from above", func() bool {
		return lower.ask(request{method: "GET", path: "/v2/acme/app/manifests/v1", user: "all", password: "pw-all"}).status == http.StatusOK
	})
	lower.until("it is active and nothing is wrong", func() bool {
		var status registry.Status
		must(t, module.Control(t.Context(), filepath.Join(lower.dir, "data"), "GET", "/status", nil, &status))
		return status.Name == "line4" && status.Activation.Status == registry.Active && len(status.StatusDetails) == 0
	})
	// The password is rotated without a gap.
	user, first := out.Settings["SYNC_TOKEN_USER"], out.Settings["SYNC_TOKEN_PASSWORD"]
	out = run("settings", "get", "--name", "line4", "--generate-password", "2")
	second := out.Settings["SYNC_TOKEN_PASSWORD"]
	if at := "ParentGatewayEndpoint=" + upper.addr + ";ParentEndpointProtocol=http"; !strings.HasSuffix(out.Settings["ACR_REGISTRY_CONNECTION_STRING"], at) {
		t.Errorf("connection string %s", out.Settings["ACR_REGISTRY_CONNECTION_STRING"])
	}
	upper.configure(docs["line5"])
	upper.until("the second password works", func() bool {
		return upper.ask(request{method: "GET", path: "/v2/", user: user, password: second}).status == http.StatusOK
	})
	if a := upper.ask(request{method: "GET", path: "/v2/", user: user, password: first}); a.status != http.StatusOK {
		t.Errorf("the first password beside the second: %d", a.status)
	}
	// What is longer than a string of a twin is in force as well; and a client token more works at the child.
	args := []string{"permissions", "update", "--name", "line4", "--add"}
	for i := range 99 {
		args = append(args, fmt.Sprintf("acme/of-a-name-that-is-not-short/part%02d", i))
	}
	run(args...)
	run("settings", "update", "--name", "line4", "--add-client-tokens", "only-content-read", "--log-level", "Debug")
	upper.configure(docs["line5"])
	lower.configure(docs["line4"])
	lower.until("the right to the last of many repositories and another client token are there", func() bool {
		a := upper.ask(request{method: "GET", path: "/v2/acme/of-a-name-that-is-not-short/part98/tags/list", user: user, password: second})
		b := lower.ask(request{method: "GET", path: "/v2/", user: "only-content-read", password: "pw-only-content-read"})
		return a.status == http.StatusNotFound && b.status == http.StatusOK
	})
	for _, s := range []*site{upper, lower} {
		var status registry.Status
		must(t, module.Control(t.Context(), s.data, "GET", "/status", nil, &status))
		if len(status.Configuration.Errors) > 0 {
			t.Errorf("the patches make a document with errors: %v", status.Configuration.Errors)
		}
	}
	for _, tt := range []struct{ site, name, want string }{
		{lower.dir, "", `all +enabled +parent +all +password1`},
		{upper.dir, "LINE4", `only-content-read +enabled +parent +`},
		{upper.dir, "", `line4 +enabled +document +line4 +password1, password2`},
	} {
		out, err := exec.CommandContext(t.Context(), program, "list-client-tokens", "--data-dir", filepath.Join(tt.site, "data"), "--name", tt.name).CombinedOutput()
		if !regexp.MustCompile(tt.want).Match(out) || err != nil || strings.Contains(string(out), "sha256") {
			t.Errorf("list-client-tokens --name %q: %v, want %s in\n%s", tt.name, err, tt.want, out)
		}
	}
	// Nothing of a password is in the tree's file.
	run("permissions", "update", "--name", "line4", "--remove", "acme/app")
	if strings.Contains(fmt.Sprint(docs["line4"]["repositories"]), "acme/app") || !strings.Contains(fmt.Sprint(docs["line5"]["scopeMaps"].(map[string]any)["line4"]), "gateway/line4/") {
		t.Errorf("after the removal: %v", docs)
	}
}
