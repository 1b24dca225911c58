package twin_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

const (
	manifests = "../../deployment-manifests/"
	ourModule = "connected-registry"
)

// templateVariables are sample values of what the templates leave to the environment; README.md names them all.
var templateVariables = map[string]string{
	"CONTAINER_REGISTRY": "contoso.azurecr.io", "PARENT_ENDPOINT": "contoso.westeurope.data.azurecr.io",
	"SYNC_TOKEN_NAME": "layer-token", "SYNC_TOKEN_PASSWORD": "a+b/c=",
	"CHILD_SYNC_TOKEN_PASSWORD_SHA256": hexSum, "LINE_A_PASSWORD_SHA256": hexSum,
	"PLATFORM": "arm64v8", "MODULES.connected-registry": "contoso.azurecr.io/connected-registry:0.1.0-arm64v8",
}

var variable = regexp.MustCompile(`\$\{([^}]*)\}`)

// deployment is the shape of a template in the form 4.0.0 (SchemaStore, azure-iot-edge-deployment-template-4.0.json). It
// is decoded strictly: a property that is in no schema is an error.
type deployment struct {
	Template string `json:"$schema-template"`
	Content  struct {
		Agent struct {
			Desired agentDesired `json:"properties.desired"`
		} `json:"$edgeAgent"`
		Hub struct {
			Desired hubDesired `json:"properties.desired"`
		} `json:"$edgeHub"`
		Registry struct {
			Desired json.RawMessage `json:"properties.desired"`
		} `json:"connected-registry"`
	} `json:"modulesContent"`
}

type agentDesired struct {
	SchemaVersion string `json:"schemaVersion"`
	Runtime       struct {
		Type     string `json:"type"`
		Settings struct {
			MinDockerVersion string `json:"minDockerVersion"`
			Credentials      map[string]struct {
				Address  string `json:"address"`
				Username string `json:"username"`
				Password string `json:"password"`
			} `json:"registryCredentials"`
		} `json:"settings"`
	} `json:"runtime"`
	SystemModules map[string]edgeModule `json:"systemModules"`
	Modules       map[string]edgeModule `json:"modules"`
}

type hubDesired struct {
	SchemaVersion   string            `json:"schemaVersion"`
	Routes          map[string]string `json:"routes"`
	StoreAndForward struct {
		TimeToLiveSecs int `json:"timeToLiveSecs"`
	} `json:"storeAndForwardConfiguration"`
}

type edgeModule struct {
	Version       string `json:"version"`
	Type          string `json:"type"`
	Status        string `json:"status"`
	RestartPolicy string `json:"restartPolicy"`
	StartupOrder  uint32 `json:"startupOrder"`
	PullPolicy    string `json:"imagePullPolicy"`
	Env           map[string]struct {
		Value string `json:"value"`
	} `json:"env"`
	Settings struct {
		Image         string        `json:"image"`
		CreateOptions createOptions `json:"createOptions"`
	} `json:"settings"`
}

// createOptions are the properties of Docker's container create request that the templates use, so that one in the
// wrong place fails.
type createOptions struct {
	User         string              `json:"User"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts"`
	HostConfig   struct {
		Binds        []string `json:"Binds"`
		PortBindings map[string][]struct {
			HostIP   string `json:"HostIp"`
			HostPort string `json:"HostPort"`
		} `json:"PortBindings"`
		ReadonlyRootfs bool     `json:"ReadonlyRootfs"`
		CapDrop        []string `json:"CapDrop"`
		SecurityOpt    []string `json:"SecurityOpt"`
		LogConfig      struct {
			Type   string            `json:"Type"`
			Config map[string]string `json:"Config"`
		} `json:"LogConfig"`
	} `json:"HostConfig"`
}

func readManifest(t *testing.T, name string) deployment {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(manifests, name))
	do(t, err)
	text := variable.ReplaceAllStringFunc(string(raw), func(s string) string {
		v, ok := templateVariables[variable.FindStringSubmatch(s)[1]]
		if !ok {
			t.Errorf("%s: %s is not in the table of variables", name, s)
		}
		return v
	})
	var d deployment
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return d
}

func templates(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(manifests + "*.template.json")
	do(t, err)
	if len(paths) != 4 {
		t.Fatalf("templates: %q", paths)
	}
	for i, p := range paths {
		paths[i] = filepath.Base(p)
	}
	return paths
}

func TestManifestsFollowTheSchema(t *testing.T) {
	for _, name := range templates(t) {
		t.Run(name, func(t *testing.T) {
			d := readManifest(t, name)
			agent, hub := d.Content.Agent.Desired, d.Content.Hub.Desired
			for what, ok := range map[string]bool{
				"template version":     d.Template == "4.0.0",
				"edgeAgent version":    agent.SchemaVersion == "1.1",
				"edgeHub version":      hub.SchemaVersion == "1.2",
				"runtime":              agent.Runtime.Type == "docker" && strings.HasPrefix(agent.Runtime.Settings.MinDockerVersion, "v"),
				"system modules":       len(agent.SystemModules) == 2 && agent.SystemModules["edgeAgent"].Type != "" && agent.SystemModules["edgeHub"].Type != "",
				"edgeAgent's status":   agent.SystemModules["edgeAgent"].Status == "" && agent.SystemModules["edgeAgent"].RestartPolicy == "",
				"time to live":         hub.StoreAndForward.TimeToLiveSecs > 0,
				"a route":              len(hub.Routes) > 0,
				"our module":           agent.Modules[ourModule].Type == "docker",
				"runtime 1.6":          strings.HasSuffix(agent.SystemModules["edgeAgent"].Settings.Image, "/azureiotedge-agent:1.6") && strings.HasSuffix(agent.SystemModules["edgeHub"].Settings.Image, "/azureiotedge-hub:1.6"),
				"one set of passwords": len(agent.Runtime.Settings.Credentials) == 1,
			} {
				if !ok {
					t.Error(what)
				}
			}
			keys := regexp.MustCompile(`^[^.$# ]+$`)
			for key, route := range hub.Routes {
				if !keys.MatchString(key) || !strings.HasPrefix(route, "FROM ") || !strings.Contains(route, " INTO ") {
					t.Errorf("route %s: %s", key, route)
				}
			}
			for key, c := range agent.Runtime.Settings.Credentials {
				if !keys.MatchString(key) || c.Address == "" || strings.Contains(c.Address, " ") || c.Username == "" || c.Password == "" {
					t.Errorf("registryCredentials %s", key)
				}
				checkUpstream(t, c.Address)
			}
			for key, m := range agent.SystemModules {
				checkModule(t, key, m, key != "edgeAgent")
			}
			for key, m := range agent.Modules {
				checkModule(t, key, m, true)
			}
		})
	}
}

// checkModule holds a module against azure-iot-edgeagent-deployment-1.1.json.
func checkModule(t *testing.T, name string, m edgeModule, runs bool) {
	t.Helper()
	if !regexp.MustCompile(`^[a-zA-Z0-9_-]+$`).MatchString(name) || m.Type != "docker" || m.Settings.Image == "" {
		t.Errorf("module %s: name, type or image", name)
	}
	if runs && (m.Status != "running" || m.RestartPolicy != "always") {
		t.Errorf("module %s: status %q, restartPolicy %q", name, m.Status, m.RestartPolicy)
	}
	checkUpstream(t, m.Settings.Image)
	for key, env := range m.Env {
		if !regexp.MustCompile(`^[^+#$\s.]+$`).MatchString(key) || strings.Contains(env.Value, "$upstream") || len(env.Value) > twin.MaxString {
			t.Errorf("module %s: environment variable %s=%s", name, key, env.Value)
		}
	}
	host := m.Settings.CreateOptions.HostConfig
	for _, bind := range host.Binds {
		if from, to, ok := strings.Cut(bind, ":"); !ok || !strings.HasPrefix(from, "/") || !strings.HasPrefix(to, "/") {
			t.Errorf("module %s: bind %s", name, bind)
		}
	}
	for port := range host.PortBindings {
		if _, ok := m.Settings.CreateOptions.ExposedPorts[port]; !ok {
			t.Errorf("module %s: port %s is bound but not exposed", name, port)
		}
	}
	if raw, err := json.Marshal(m.Settings.CreateOptions); err != nil || len(raw) > 8*512 { // eight pieces of 512 characters
		t.Errorf("module %s: createOptions of %d bytes, %v", name, len(raw), err)
	}
}

// checkUpstream: edgeAgent knows $upstream only with a port behind it.
func checkUpstream(t *testing.T, s string) {
	t.Helper()
	if strings.Contains(s, "$upstream") && !strings.HasPrefix(s, "$upstream:8000") || strings.HasPrefix(s, "$") && !strings.HasPrefix(s, "$upstream") {
		t.Errorf("%s: want $upstream:8000", s)
	}
}

func TestManifestsRunOurModuleConfined(t *testing.T) {
	for _, name := range templates(t) {
		m := readManifest(t, name).Content.Agent.Desired.Modules[ourModule]
		o := m.Settings.CreateOptions
		h := o.HostConfig
		if o.User != "65532:65532" || !h.ReadonlyRootfs || !slices.Equal(h.CapDrop, []string{"ALL"}) || !slices.Equal(h.SecurityOpt, []string{"no-new-privileges:true"}) {
			t.Errorf("%s: %+v", name, o)
		}
		if !slices.Equal(h.Binds, []string{"/var/lib/connected-registry:" + twin.DefaultDataVolume}) {
			t.Errorf("%s: binds %q", name, h.Binds)
		}
		for port, bindings := range h.PortBindings {
			for _, b := range bindings {
				if b.HostIP != "127.0.0.1" {
					t.Errorf("%s: port %s is open to the network without TLS", name, port)
				}
			}
		}
	}
}

func TestManifestsHoldNoSecrets(t *testing.T) {
	secret := regexp.MustCompile(`(?i)("password"\s*:\s*"|password=|"password[12]"\s*:\s*"sha256:)([^";]*)`)
	for _, name := range templates(t) {
		raw, err := os.ReadFile(filepath.Join(manifests, name))
		do(t, err)
		found := secret.FindAllStringSubmatch(string(raw), -1)
		if len(found) < 3 {
			t.Errorf("%s: %d passwords", name, len(found))
		}
		for _, m := range found {
			if !variable.MatchString(m[2]) || variable.FindString(m[2]) != m[2] {
				t.Errorf("%s: %s stands in the template", name, m[0])
			}
		}
	}
}

// config parses the document of a template with the environment that its module will have.
func config(t *testing.T, name string) (registry.Config, twin.Environment) {
	t.Helper()
	d := readManifest(t, name)
	pairs := []string{"IOTEDGE_GATEWAYHOSTNAME", "this-device"}
	if strings.HasPrefix(name, "middle") || strings.HasPrefix(name, "bottom") {
		pairs = append(pairs, "IOTEDGE_PARENTHOSTNAME", "device-above")
	}
	for key, v := range d.Content.Agent.Desired.Modules[ourModule].Env {
		pairs = append(pairs, key, v.Value)
	}
	e, errs := twin.FromEnvironment(environment(pairs...))
	if len(errs) > 0 {
		t.Errorf("%s: environment: %q", name, errs)
	}
	c, errs := twin.Parse(d.Content.Registry.Desired, twin.ParseOptions{Env: environment(pairs...)})
	if len(errs) > 0 {
		t.Errorf("%s: document: %q", name, errs)
	}
	c.Parent = e.Parent(c.Parent)
	return c, e
}

func TestManifestsConfigureTheModule(t *testing.T) {
	for name, want := range map[string]string{
		"single-device.template.json": "contoso.westeurope.data.azurecr.io", "top-layer.template.json": "contoso.westeurope.data.azurecr.io",
		"middle-layer.template.json": "device-above:8000", "bottom-layer.template.json": "device-above:8000",
	} {
		c, e := config(t, name)
		if c.Parent.GatewayEndpoint != want || c.Parent.Protocol != "https" || e.Connection.SyncTokenPassword.Reveal() != "a+b/c=" || e.Connection.ConnectedRegistryName == "" {
			t.Errorf("%s: parent %+v, connection %+v", name, c.Parent, e.Connection)
		}
		if len(c.ClientTokens) == 0 || c.Mode != registry.ReadOnly || len(c.Scope()) < 2 {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// Every image of a lower layer comes from the registry above: it must be in that one's scope, and its token must be
// known there.
func TestManifestsChain(t *testing.T) {
	for child, parent := range map[string]string{"middle-layer.template.json": "top-layer.template.json", "bottom-layer.template.json": "middle-layer.template.json"} {
		above, _ := config(t, parent)
		_, e := config(t, child)
		agent := readManifest(t, child).Content.Agent.Desired
		for _, modules := range []map[string]edgeModule{agent.SystemModules, agent.Modules} {
			for name, m := range modules {
				image, ok := strings.CutPrefix(m.Settings.Image, "$upstream:8000/")
				repo, tag, _ := strings.Cut(image, ":")
				if !ok || !above.Scope().MatchTag(repo, tag) {
					t.Errorf("%s: image %s of %s is not in the scope of %s", child, m.Settings.Image, name, parent)
				}
			}
		}
		name := e.Connection.ConnectedRegistryName
		token, ok := above.ClientTokens[name]
		if !ok || !token.Enabled || len(token.Passwords) == 0 || !slices.Contains(above.ScopeMaps[token.ScopeMap], "gateway/"+name+"/message/read") {
			t.Errorf("%s does not know its child %s", parent, name)
		}
		belowScope, _ := config(t, child)
		for _, rule := range belowScope.Scope() {
			if !above.Scope().MatchRepository(rule.Repository) {
				t.Errorf("%s: %s is not in the scope of %s", child, rule, parent)
			}
		}
	}
}

func TestManifestsProxy(t *testing.T) {
	for _, name := range templates(t) {
		agent := readManifest(t, name).Content.Agent.Desired
		proxy, ok := agent.Modules["IoTEdgeAPIProxy"]
		if !ok {
			if name != "single-device.template.json" {
				t.Errorf("%s has no API proxy of the common name", name)
			}
			continue
		}
		module, port, _ := strings.Cut(proxy.Env["CONNECTED_ACR_ROUTE_ADDRESS"].Value, ":")
		if _, ok := agent.Modules[module]; !ok || port != "8080" {
			t.Errorf("%s: the proxy leads to %s:%s", name, module, port)
		}
		listen := proxy.Env["NGINX_DEFAULT_PORT"].Value + "/tcp"
		if b := proxy.Settings.CreateOptions.HostConfig.PortBindings[listen]; len(b) != 1 || b[0].HostPort != "8000" {
			t.Errorf("%s: the proxy's port %s is not reachable as 8000", name, listen)
		}
		if proxy.StartupOrder <= agent.Modules[module].StartupOrder || !strings.HasSuffix(proxy.Settings.Image, "/azureiotedge-api-proxy:1.1") {
			t.Errorf("%s: the proxy's order or image", name)
		}
	}
}

// The twin reference names each property that a document can have, and each variable of the templates.
func TestReadmeNamesEverything(t *testing.T) {
	raw, err := os.ReadFile(manifests + "README.md")
	do(t, err)
	readme := string(raw)
	var paths []string
	var walk func(path string, v any)
	walk = func(path string, v any) {
		m, ok := v.(map[string]any)
		if !ok {
			paths = append(paths, path)
			return
		}
		for key, inner := range m {
			switch path {
			case "repositories":
				key = "<group>"
			case "scopeMaps", "clientTokens", "connectedRegistries", "notifications":
				key = "<name>"
			}
			walk(strings.TrimPrefix(path+"."+key, "."), inner)
		}
	}
	var doc any
	do(t, json.Unmarshal([]byte(strings.Replace(example, `"expiry1"`, `"password2": "", "expiry2": "", "expiry1"`, 1)), &doc))
	walk("", doc)
	for name := range templateVariables {
		paths = append(paths, name)
	}
	paths = append(paths, twin.EnvConnectionString, twin.EnvConnectionStringFile, twin.EnvSyncTokenUser, twin.EnvSyncTokenPassword,
		twin.EnvParentEndpoint, twin.EnvDataVolume, twin.EnvCertificateVolume, twin.EnvLoginServer, twin.EnvTokensFile)
	if len(paths) < 30 {
		t.Fatalf("paths %q", paths)
	}
	for _, p := range paths {
		if !strings.Contains(readme, "`"+p+"`") {
			t.Errorf("README.md does not name %s", p)
		}
	}
}

func TestModuleDescription(t *testing.T) {
	dir := "../../modules/connected-registry/"
	raw, err := os.ReadFile(dir + "module.json")
	do(t, err)
	var m struct {
		Version     string `json:"$schema-version"`
		Description string `json:"description"`
		Image       struct {
			Repository string `json:"repository"`
			Tag        struct {
				Version   string            `json:"version"`
				Platforms map[string]string `json:"platforms"`
			} `json:"tag"`
			BuildOptions []string `json:"buildOptions"`
			ContextPath  string   `json:"contextPath"`
		} `json:"image"`
		Language string `json:"language"`
	}
	decoder := json.NewDecoder(strings.NewReader(string(raw)))
	decoder.DisallowUnknownFields()
	do(t, decoder.Decode(&m))
	if m.Version != "0.0.1" || !strings.HasSuffix(m.Image.Repository, "/connected-registry") || m.Image.Tag.Version == "" || len(m.Image.Tag.Platforms) != 3 {
		t.Errorf("module.json: %+v", m)
	}
	if _, err := os.Stat(filepath.Join(dir, m.Image.ContextPath, "go.mod")); err != nil {
		t.Errorf("contextPath: %v", err)
	}
	for platform, binary := range map[string]string{"amd64": "linux-amd64", "arm64v8": "linux-arm64", "arm32v7": "linux-arm-v7"} {
		raw, err := os.ReadFile(filepath.Join(dir, m.Image.Tag.Platforms[platform]))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, line := range []string{
			"FROM scratch", "USER 65532:65532", "EXPOSE 8080", "VOLUME " + twin.DefaultDataVolume, `ENTRYPOINT ["/connected-registry"]`, `CMD ["serve"]`,
			fmt.Sprintf("COPY dist/connected-registry-%s /connected-registry", binary),
		} {
			if !slices.Contains(strings.Split(string(raw), "\n"), line) {
				t.Errorf("Dockerfile of %s has no line %q", platform, line)
			}
		}
	}
}
