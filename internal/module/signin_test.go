package module

import (
	"errors"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/store"
	"github.com/connected-registry/connected-registry/internal/twin"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

const identityString = "ConnectedRegistryName=linea;ManagedIdentityClientId=1f0c2a50-0000-4000-8000-0123456789ab;ParentGatewayEndpoint=contoso.westeurope.data.azurecr.io"

// TestSignIn: a credential goes to the host that it is for, whatever a twin says later.
func TestSignIn(t *testing.T) {
	dir := t.TempDir()
	signIn := func(env map[string]string, endpoint string) (upstream.Options, *Module, error) {
		t.Helper()
		m := newModule(Options{Lookup: func(name string) (string, bool) { s, ok := env[name]; return s, ok }})
		var err error
		if m.store, err = store.Open(t.Context(), dir, store.Options{}); err != nil {
			t.Fatal(err)
		}
		defer m.store.Close()
		c := twin.Defaults()
		c.Parent.GatewayEndpoint, c.Parent.Protocol = endpoint, "https"
		conn := m.env.Connection
		o := upstream.Options{Endpoint: twin.LoginServer(endpoint), Protocol: "https"}
		err = m.signIn(&o, c, conn.ParentGatewayEndpoint == "" || conn.ParentGatewayEndpoint == endpoint)
		return o, m, err
	}
	token := func(password string) map[string]string {
		return map[string]string{twin.EnvSyncTokenUser: "linea", twin.EnvSyncTokenPassword: password, twin.EnvAlternateEndpoints: "replica:8000, other:8000"}
	}
	for _, step := range []struct {
		name, endpoint, password string
		sent                     bool
	}{
		{"the first host", "edge-l5:8000", "p1", true},
		{"a twin names another", "evil.example:8000", "p1", false},
		{"and the first again", "edge-l5:8000", "p1", true},
		{"a new credential may be for another", "edge-l6:8000", "p2", true},
		{"and stays there", "edge-l5:8000", "p2", false},
	} {
		o, m, err := signIn(token(step.password), step.endpoint)
		if err != nil {
			t.Fatal(err)
		}
		if got := o.Password.Reveal() != "" && o.Username != ""; got != step.sent || len(o.Alternates) == 2 != step.sent {
			t.Errorf("%s: credential sent %v, alternates %v", step.name, got, o.Alternates)
		}
		if _, told := m.details["credential"]; told == step.sent {
			t.Errorf("%s: told %v", step.name, told)
		}
	}

	managed := map[string]string{twin.EnvConnectionString: identityString}
	o, _, err := signIn(managed, "contoso.westeurope.data.azurecr.io")
	if err != nil || o.Identity.Kind != upstream.ManagedIdentity || o.Identity.ClientID != "1f0c2a50-0000-4000-8000-0123456789ab" || o.SourceClient != "on-prem/connected-registry/linea" {
		t.Errorf("managed identity: %+v, %v", o, err)
	}
	if o, _, err = signIn(managed, "evil.azurecr.io"); !errors.Is(err, registry.ErrDenied) || o.Identity.Kind != "" {
		t.Errorf("an identity for another registry: %v", err)
	}
	if _, _, err = signIn(map[string]string{twin.EnvParentAuth: "AzureCLI"}, "contoso.azurecr.io"); !errors.Is(err, registry.ErrDenied) || !strings.Contains(err.Error(), twin.EnvParentEndpoint) {
		t.Errorf("an identity without a host in the environment: %v", err)
	}
	cli := map[string]string{twin.EnvParentAuth: "AzureCLI", twin.EnvParentEndpoint: "contoso.azurecr.io"}
	if o, _, err = signIn(cli, "contoso.azurecr.io"); err != nil || o.Identity.Kind != upstream.AzureCLI {
		t.Errorf("Azure CLI: %+v, %v", o, err)
	}
	cli[twin.EnvParentAuth] = "Magic"
	if _, _, err = signIn(cli, "contoso.azurecr.io"); err == nil || !strings.Contains(err.Error(), "WorkloadIdentity") {
		t.Errorf("an unknown way to sign in: %v", err)
	}
}
