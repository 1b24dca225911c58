package twin_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

const goodConnection = "ConnectedRegistryName=Line4;SyncTokenName=line4-sync-token;SyncTokenPassword==a=b+c/d==;ParentGatewayEndpoint=$IOTEDGE_PARENTHOSTNAME:8000;ParentEndpointProtocol=https"

func TestParseConnectionString(t *testing.T) {
	line4 := twin.Connection{ConnectedRegistryName: "line4", SyncTokenName: "line4-sync-token", SyncTokenPassword: "=a=b+c/d==", ParentGatewayEndpoint: "edge-l4:8000", ParentEndpointProtocol: "https"}
	cloud := line4
	cloud.ParentGatewayEndpoint = "acme.westeurope.data.azurecr.io"
	plain := line4
	plain.ParentEndpointProtocol = "http"
	for text, want := range map[string]twin.Connection{
		goodConnection: line4,
		" " + strings.ReplaceAll(goodConnection, ";", " ; ") + ";\n":                                          line4,
		strings.Replace(goodConnection, ";ParentEndpointProtocol=https", "", 1):                               line4,
		strings.Replace(goodConnection, "$IOTEDGE_PARENTHOSTNAME:8000", "acme.westeurope.data.azurecr.io", 1): cloud,
		strings.Replace(goodConnection, "Protocol=https", "Protocol=HTTP", 1):                                 plain,
		strings.Replace(goodConnection, "$IOTEDGE_PARENTHOSTNAME:8000", "${IOTEDGE_PARENTHOSTNAME}:8000", 1):  line4,
	} {
		if got, err := twin.ParseConnectionString(text, nested); err != nil || got != want {
			t.Errorf("ParseConnectionString(%q) = %+v, %v", text, got, err)
		}
	}
}

func TestParseConnectionStringRefuses(t *testing.T) {
	with := func(old, changed string) string { return strings.Replace(goodConnection, old, changed, 1) }
	tests := []struct{ name, text, want string }{
		{"empty", " ", "is empty"},
		{"placeholder", "<connection string>", "placeholder"},
		{"long", strings.Repeat("x", 5000), "at most 4096"},
		{"no =", "ConnectedRegistryName", "part 1 has no ="},
		{"unknown key", with("SyncTokenPassword", "SyncTokenPasword"), "did you mean SyncTokenPassword?"},
		{"a semicolon in the password", with("==a=b", "=hunter2;hunter2=b"), "part 4: unknown key"},
		{"key in another case", with("SyncTokenName", "synctokenname"), "did you mean SyncTokenName?"},
		{"twice", goodConnection + ";SyncTokenName=x", "SyncTokenName stands twice"},
		{"twice, the first empty", "SyncTokenName=;" + goodConnection, "SyncTokenName stands twice"},
		{"missing", with("SyncTokenName=line4-sync-token;", ""), "SyncTokenName is missing"},
		{"no password", with("==a=b+c/d==", "="), "SyncTokenPassword is missing"},
		{"the CLI's placeholder", with("=a=b+c/d==", "<use --generate-password to generate a new password>"), "--generate-password 1"},
		{"variable not replaced", with("=a=b+c/d==", "${SYNC_TOKEN_PASSWORD}"), "did not replace"},
		{"endpoint's placeholder", with("$IOTEDGE_PARENTHOSTNAME:8000", "<REG>.azurecr.io"), "ParentGatewayEndpoint has a placeholder"},
		{"name's placeholder", with("Line4", "<name>"), "ConnectedRegistryName has a placeholder"},
		{"name", with("Line4", "L4"), "ConnectedRegistryName: connected registry name must be at least 5"},
		{"$upstream", with("$IOTEDGE_PARENTHOSTNAME", "$upstream"), "ParentGatewayEndpoint: $upstream"},
		{"protocol", with("Protocol=https", "Protocol=ftp"), "want https or http"},
		{"cloud over http", strings.Replace(with("Protocol=https", "Protocol=http"), "$IOTEDGE_PARENTHOSTNAME:8000", "acme.azurecr.io", 1), "must be 'https'"},
		{"managed identity beside a sync token", "ManagedIdentityClientId=1;" + goodConnection, "exclude each other"},
		{"managed identity without a client ID", "ConnectedRegistryName=linea;ManagedIdentityClientId=mine;ParentGatewayEndpoint=contoso.azurecr.io", "8-4-4-4-12"},
		{"managed identity over http", "ConnectedRegistryName=linea;ManagedIdentityClientId=1f0c2a50-0000-4000-8000-0123456789ab;ParentGatewayEndpoint=parent:8000;ParentEndpointProtocol=http", "want https"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := twin.ParseConnectionString(tt.text, nested)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("ParseConnectionString(%q) = %+v, %v, want %q", tt.text, c, err, tt.want)
			}
			if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "b+c") {
				t.Errorf("the error holds the password: %v", err)
			}
		})
	}
}

func TestPasswordIsInNoErrorAndNoPrint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		password := "Zq" + rapid.StringMatching(`[A-Za-z0-9+/=;<>$ ]{6,40}`).Draw(t, "password") + "qZ"
		text := strings.Replace(goodConnection, "=a=b+c/d==", password, 1)
		if rapid.Bool().Draw(t, "break") {
			text = strings.Replace(text, "ParentGatewayEndpoint", "Parent", 1)
		}
		c, err := twin.ParseConnectionString(text, nested)
		for _, piece := range strings.FieldsFunc(password, func(r rune) bool { return strings.ContainsRune("=;<>$ ", r) }) {
			if len(piece) > 3 && strings.Contains(fmt.Sprint(err)+fmt.Sprintf("%+v %#v", c, c), piece) {
				t.Fatalf("%q is in %v or %+v", piece, err, c)
			}
		}
		if err == nil && c.SyncTokenPassword.Reveal() != password {
			t.Fatalf("password %q became %q", password, c.SyncTokenPassword.Reveal())
		}
	})
}

func TestParseEndpoint(t *testing.T) {
	env := environment("HOST", "Edge.Example", "PORT_TOO", "edge:1234", "LOOP", "$HOST", "V6", "[fe80::1]", "EMPTY", "")
	good := map[string]string{
		"edge": "edge", "Edge.Example:8000": "edge.example:8000", "10.0.0.4": "10.0.0.4", "10.0.0.4:443": "10.0.0.4:443", "[::1]": "[::1]", "[::1]:5000": "[::1]:5000",
		"$HOST": "edge.example", "${HOST}:8000": "edge.example:8000", "$PORT_TOO": "edge:1234", "$V6:8000": "[fe80::1]:8000", "my_module:8080": "my_module:8080",
	}
	for text, want := range good {
		if got, err := twin.ParseEndpoint(text, env); err != nil || got != want {
			t.Errorf("ParseEndpoint(%q) = %q, %v, want %q", text, got, err, want)
		}
	}
	bad := map[string]string{
		"": "host name", "http://edge": "without http://", "edge/path": "without path", "user@edge": "without path", "edge:": "port", "edge:0": "port", "edge:65536": "port", "edge:http": "port", "edge:+80": "port",
		"::1": "brackets", "[::1": "", "[edge]:80": "brackets", "[10.0.0.1]:80": "brackets", "[::1]x:80": "port", "edge cut": "host name", "-edge": "host name", "a..b": "host name", "édge": "host name", strings.Repeat("a", 64): "host name", strings.Repeat("a.", 150): "host name",
		"$": "$NAME", "$HOST/x": "$NAME", "$HOST$PORT_TOO": "$NAME", "$1": "$NAME", "$LOOP": "another variable", "$EMPTY": "not set", "$GONE:80": "GONE is not set", "$PORT_TOO:80": "port",
		"$IOTEDGE_PARENTHOSTNAME": "never on the top layer", "$upstream": "want $IOTEDGE_PARENTHOSTNAME", "<host>": "placeholder", "edge,edge2": "host name", "$parent:8000": "parent is not set",
	}
	for text, want := range bad {
		if got, err := twin.ParseEndpoint(text, env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseEndpoint(%q) = %q, %v, want an error with %q", text, got, err, want)
		}
	}
	if _, err := twin.ParseEndpoint("$HOST", nil); err == nil {
		t.Error("a variable without an environment")
	}
}

func TestLoginServer(t *testing.T) {
	for endpoint, want := range map[string]string{
		"acme.westeurope.data.azurecr.io": "acme.azurecr.io", "Acme.eastus.data.azurecr.io:443": "acme.azurecr.io:443", "acme.chinanorth.data.azurecr.cn": "acme.azurecr.cn",
		"acme.azurecr.io": "acme.azurecr.io", "edge-l4:8000": "edge-l4:8000", "": "", "a.b.data.azurecr.io.example": "a.b.data.azurecr.io.example", "data.azurecr.io": "data.azurecr.io",
	} {
		if got := twin.LoginServer(endpoint); got != want {
			t.Errorf("LoginServer(%q) = %q, want %q", endpoint, got, want)
		}
	}
	if !twin.IsCloud("acme.azurecr.io:443") || !twin.IsCloud("acme.westeurope.data.azurecr.io") || twin.IsCloud("azurecr.io") || twin.IsCloud("acme.azurecr.io.example.org") {
		t.Error("IsCloud")
	}
}

func TestFromEnvironment(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "connection")
	if err := os.WriteFile(secret, []byte(strings.Replace(goodConnection, "Line4", "FromFile", 1)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	plain := twin.Environment{DataVolume: "/var/acr/data", CertificateVolume: "/var/acr/certs"}
	full := plain
	full.Connection = twin.Connection{ConnectedRegistryName: "line4", SyncTokenName: "line4-sync-token", SyncTokenPassword: "=a=b+c/d==", ParentGatewayEndpoint: "edge-l4:8000", ParentEndpointProtocol: "https"}
	change := func(e twin.Environment, f func(*twin.Environment)) twin.Environment { f(&e); return e }
	tests := []struct {
		name string
		env  []string
		want twin.Environment
		errs []string // path: text
	}{
		{"nothing", nil, plain, nil},
		{"empty values", []string{"ACR_REGISTRY_CONNECTION_STRING", "", "ACR_REGISTRY_LOGIN_SERVER", " ", "ACR_REGISTRY_DATA_VOLUME", ""}, plain, nil},
		{"connection string", []string{"ACR_REGISTRY_CONNECTION_STRING", goodConnection}, full, nil},
		{"a file wins", []string{"ACR_REGISTRY_CONNECTION_STRING", goodConnection, "ACR_REGISTRY_CONNECTION_STRING_FILE", secret}, change(full, func(e *twin.Environment) {
			e.ConnectionStringFile, e.Connection.ConnectedRegistryName = secret, "fromfile"
		}), nil},
		{"a file that is gone", []string{"ACR_REGISTRY_CONNECTION_STRING", goodConnection, "ACR_REGISTRY_CONNECTION_STRING_FILE", dir + "/gone"}, change(plain, func(e *twin.Environment) {
			e.ConnectionStringFile = dir + "/gone"
		}), []string{"ACR_REGISTRY_CONNECTION_STRING_FILE: stat"}},
		{"a directory for a file", []string{"ACR_REGISTRY_CONNECTION_STRING_FILE", dir}, change(plain, func(e *twin.Environment) {
			e.ConnectionStringFile = dir
		}), []string{"ACR_REGISTRY_CONNECTION_STRING_FILE: " + dir + " is not a regular file"}},
		{"bad connection string", []string{"ACR_REGISTRY_CONNECTION_STRING", "x"}, plain, []string{"ACR_REGISTRY_CONNECTION_STRING: part 1"}},
		{"the parent's own variable is stronger", []string{"ACR_REGISTRY_CONNECTION_STRING", goodConnection, "ACR_PARENT_GATEWAY_ENDPOINT", "other:9000"}, change(full, func(e *twin.Environment) {
			e.Connection.ParentGatewayEndpoint = "other:9000"
		}), nil},
		{"bad parent", []string{"ACR_REGISTRY_CONNECTION_STRING", goodConnection, "ACR_PARENT_GATEWAY_ENDPOINT", "$upstream:8000"}, full, []string{"ACR_PARENT_GATEWAY_ENDPOINT: $upstream"}},
		{"sync token", []string{"SYNC_TOKEN_USER", "tok", "SYNC_TOKEN_PASSWORD", "pw", "ACR_PARENT_GATEWAY_ENDPOINT", "$IOTEDGE_PARENTHOSTNAME:8000"}, change(plain, func(e *twin.Environment) {
			e.Connection = twin.Connection{SyncTokenName: "tok", SyncTokenPassword: "pw", ParentGatewayEndpoint: "edge-l4:8000", ParentEndpointProtocol: "https"}
		}), nil},
		{"sync token without a password", []string{"SYNC_TOKEN_USER", "tok", "SYNC_TOKEN_PASSWORD", "<use --generate-password to generate a new password>"}, plain, []string{"SYNC_TOKEN_PASSWORD: is a placeholder"}},
		{"connection string beside a sync token", []string{"SYNC_TOKEN_USER", "tok", "SYNC_TOKEN_PASSWORD", "pw", "ACR_REGISTRY_CONNECTION_STRING", goodConnection}, full, nil},
		{
			"volumes",
			[]string{"ACR_REGISTRY_DATA_VOLUME", "/data/", "ACR_REGISTRY_CERTIFICATE_VOLUME", "certs"},
			change(plain, func(e *twin.Environment) { e.DataVolume = "/data" }),
			[]string{`ACR_REGISTRY_CERTIFICATE_VOLUME: "certs": want an absolute path`},
		},
		{"login server", []string{"ACR_REGISTRY_LOGIN_SERVER", "192.168.0.100:8080"}, change(plain, func(e *twin.Environment) { e.LoginServer = "192.168.0.100:8080" }), nil},
		{"login server as it is printed", []string{"ACR_REGISTRY_LOGIN_SERVER", "<Optional: connected registry login server. More info at https://aka.ms/acr/connected-registry>"}, plain, []string{"ACR_REGISTRY_LOGIN_SERVER: "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, errs := twin.FromEnvironment(environment(append(tt.env, "IOTEDGE_PARENTHOSTNAME", "edge-l4")...))
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("FromEnvironment = %+v\nwant %+v", got, tt.want)
			}
			var texts []string
			for i, e := range errs {
				if i < len(tt.errs) && strings.HasPrefix(e.Error(), tt.errs[i]) {
					texts = append(texts, tt.errs[i])
				} else {
					texts = append(texts, e.Error())
				}
			}
			if !reflect.DeepEqual(texts, tt.errs) {
				t.Errorf("errors %q, want %q", texts, tt.errs)
			}
		})
	}
}

func TestEnvironmentCompletesTheParent(t *testing.T) {
	e := twin.Environment{Connection: twin.Connection{ParentGatewayEndpoint: "edge:8000", ParentEndpointProtocol: "http"}}
	sync := registry.SyncProperties{Schedule: "* * * * *"}
	if got, want := e.Parent(registry.ParentConfig{Protocol: "https", SyncProperties: sync}), (registry.ParentConfig{GatewayEndpoint: "edge:8000", Protocol: "http", SyncProperties: sync}); got != want {
		t.Errorf("Parent = %+v, want %+v", got, want)
	}
	document := registry.ParentConfig{GatewayEndpoint: "other:443", Protocol: "https", SyncProperties: sync}
	if got := e.Parent(document); got != document {
		t.Errorf("the document's parent became %+v", got)
	}
	if got := (twin.Environment{}).Parent(registry.ParentConfig{Protocol: "https"}); got.GatewayEndpoint != "" || got.Protocol != "https" {
		t.Errorf("without a connection the parent became %+v", got)
	}
}
