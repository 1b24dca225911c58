package azure

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// eavesdropper is a registry that a twin may name, and what it was told.
type eavesdropper struct {
	*httptest.Server
	mu    sync.Mutex
	asked int
	heard []string // credentials
}

func newEavesdropper(t *testing.T) *eavesdropper {
	e := &eavesdropper{}
	e.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		e.mu.Lock()
		defer e.mu.Unlock()
		e.asked++
		if a := r.Header.Get("Authorization"); a != "" {
			e.heard = append(e.heard, a)
		}
		if len(body) > 0 {
			e.heard = append(e.heard, string(body))
		}
		w.Header().Add("Www-Authenticate", `Basic realm="x"`)
		w.Header().Add("Www-Authenticate", fmt.Sprintf(`Bearer realm="https://%s/oauth2/token",service="%s"`, r.Host, r.Host))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(e.Close)
	return e
}

// TestModule runs the whole registry below the stand-in: it signs in with what the environment says, brings the images,
// and sends nothing secret to another parent that its configuration names later.
func TestModule(t *testing.T) {
	image := registrytest.NewImage(1, 50_000, 10)
	for name, tt := range map[string]struct {
		connection func(endpoint string) string
		env        map[string]string
		code       string // of the status detail when the configuration names another parent
		asks       bool   // the other parent is asked, without a credential
	}{
		"managed identity": {
			connection: func(endpoint string) string {
				return "ConnectedRegistryName=linea;ManagedIdentityClientId=" + client + ";ParentGatewayEndpoint=" + endpoint
			},
			code: "ParentConfiguration",
		},
		"client secret": {
			connection: func(string) string { return "" },
			env: map[string]string{
				"ACR_PARENT_AUTH": "ClientSecret", "AZURE_TENANT_ID": tenant, "AZURE_CLIENT_ID": client, "AZURE_CLIENT_SECRET": secret,
			},
			code: "ParentConfiguration",
		},
		"sync token": {
			connection: func(endpoint string) string {
				return "ConnectedRegistryName=linea;SyncTokenName=" + tokenName + ";SyncTokenPassword=" + tokenPassword + ";ParentGatewayEndpoint=" + endpoint
			},
			code: "CredentialForAnotherParent", asks: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCloud(t, time.Now)
			c.redirect.Store(false) // its data endpoint has a private address
			c.push("acme/app", "v1", image)
			other := newEavesdropper(t)
			env := map[string]string{
				"ACR_REGISTRY_CONNECTION_STRING": tt.connection(c.service), "ACR_PARENT_GATEWAY_ENDPOINT": c.service, "AZURE_AUTHORITY_HOST": c.entra.URL,
				"IDENTITY_ENDPOINT": c.entra.local.URL + "/msi/token", "IDENTITY_HEADER": "local",
			}
			for k, v := range tt.env {
				env[k] = v
			}
			for _, k := range []string{"IDENTITY_ENDPOINT", "IDENTITY_HEADER"} {
				t.Setenv(k, env[k]) // azidentity reads them itself
			}
			r := c.run(t, env)
			r.until("the image is here", func(string) bool { return r.has("acme/app", "v1") })
			r.configure(other.Listener.Addr().String())
			r.until(tt.code, func(status string) bool {
				other.mu.Lock()
				defer other.mu.Unlock()
				return strings.Contains(status, tt.code) && (other.asked > 0 || !tt.asks)
			})
			if !r.has("acme/app", "v1") {
				t.Error("what is here is not served any more")
			}
			other.mu.Lock()
			defer other.mu.Unlock()
			if len(other.heard) > 0 {
				t.Errorf("the other parent was sent %q", other.heard)
			}
			if status := r.status(); strings.Contains(status, secret) || strings.Contains(status, tokenPassword) {
				t.Errorf("a secret is in the status: %s", status)
			}
		})
	}
}

// running is a registry in this process.
type running struct {
	t          *testing.T
	file       string
	service    string
	management string
}

func (c *cloud) run(t *testing.T, env map[string]string) *running {
	t.Helper()
	dir := t.TempDir()
	r := &running{t: t, file: filepath.Join(dir, "registry.json")}
	ca := filepath.Join(dir, "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.login.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r.configure(c.service)
	ctx, cancel := context.WithCancel(t.Context())
	done, ready := make(chan error, 1), make(chan string, 1)
	management := make(chan string, 1)
	o := module.Options{
		DataDir: filepath.Join(dir, "data"), ConfigFile: r.file, Listen: "127.0.0.1:0", Management: "127.0.0.1:0", Name: "linea", AnonymousPull: true,
		ParentCA: ca, Lookup: func(name string) (string, bool) { s, ok := env[name]; return s, ok }, Ready: func(addr string) { ready <- addr },
		ListenNet: func(ctx context.Context, network, addr string) (net.Listener, error) {
			l, err := new(net.ListenConfig).Listen(ctx, network, addr)
			if err == nil {
				select {
				case management <- l.Addr().String(): // the last one stays
				default:
					<-management
					management <- l.Addr().String()
				}
			}
			return l, err
		},
	}
	go func() { done <- module.Run(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case r.service = <-ready:
	case err := <-done:
		t.Fatalf("the registry ended: %v", err)
	}
	r.management = <-management
	return r
}

func (r *running) configure(endpoint string) {
	r.t.Helper()
	body, err := json.Marshal(map[string]any{
		"schemaVersion": "1.0", "repositories": map[string]string{"app": "acme/app"},
		"parent": map[string]any{"gatewayEndpoint": endpoint, "protocol": "https", "syncProperties": map[string]string{"schedule": "* * * * *"}},
	})
	if err == nil {
		err = os.WriteFile(r.file+".new", body, 0o600)
	}
	if err == nil {
		err = os.Rename(r.file+".new", r.file)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *running) get(url string) (int, string) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func (r *running) has(repo, tag string) bool {
	code, _ := r.get("http://" + r.service + "/v2/" + repo + "/manifests/" + tag)
	return code == http.StatusOK
}

func (r *running) status() string {
	_, body := r.get("http://" + r.management + "/status")
	return body
}

func (r *running) until(what string, ok func(status string) bool) {
	r.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok(r.status()) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within 30 s; status %s", what, r.status())
		}
		time.Sleep(50 * time.Millisecond)
	}
}
