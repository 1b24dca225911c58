package layer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// Main builds the product into a directory of its own, which it takes away again, and runs the tests of a package:
// func TestMain(m *testing.M) { os.Exit(layer.Main(m.Run, &binary)) }. binary is set to the path.
func Main(run func() int, binary *string) int {
	dir, err := os.MkdirTemp("", "connected-registry-test-")
	if err == nil {
		defer os.RemoveAll(dir)
		*binary = filepath.Join(dir, "connected-registry")
		err = Build(context.Background(), *binary)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755) // tests run it as other users too
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return run()
}

// ScopeMap allows the actions on the repositories that the pattern names.
func ScopeMap(pattern string, actions ...registry.Action) string {
	var lines []string
	for _, a := range actions {
		lines = append(lines, registry.ResourceRepositories+"/"+pattern+"/"+string(a))
	}
	return strings.Join(lines, " ")
}

// Reads and Everything are what a token may do with the repositories that the pattern names; Child is what the token of
// the registry below may, with the gateway actions of its name.
func Reads(pattern string) string {
	return ScopeMap(pattern, registry.ActionsOf(registry.ReadOnly)...)
}

// Everything is documented with Reads.
func Everything(pattern string) string {
	return ScopeMap(pattern, registry.ActionsOf(registry.ReadWrite)...)
}

// Child is documented with Reads.
func Child(name string) string {
	return Reads("*") + gateway(name)
}

// gateway are the lines on the gateway of one registry, with a space before each.
func gateway(name string) string {
	return fmt.Sprintf(" gateway/%[1]s/config/read gateway/%[1]s/config/write gateway/%[1]s/message/read gateway/%[1]s/message/write", name)
}

// User and Password are the token that pushes to the registries of tests, and that those below them sync with: nobody
// pushes without one.
const (
	User     = "floor"
	Password = "opensesame"
)

// Admit puts the token of User into a configuration document.
func Admit(doc map[string]any) {
	var lines []string
	for _, name := range []string{"layer2", "layer3", "layer4", "other", "below"} { // whatever is below, in some test
		lines = append(lines, gateway(name))
	}
	doc["scopeMaps"] = map[string]string{"floor": Everything("*") + strings.Join(lines, "")}
	doc["clientTokens"] = map[string]any{User: Token("floor", Password)}
}

// Below is the connection string of a registry that signs in as User, over http.
func Below(name, endpoint string) string {
	return fmt.Sprintf("ConnectedRegistryName=%s;SyncTokenName=%s;SyncTokenPassword=%s;ParentGatewayEndpoint=%s;ParentEndpointProtocol=http",
		name, User, Password, endpoint)
}

// Token is an entry of clientTokens.
func Token(scopeMap, password string) map[string]string {
	sum := sha256.Sum256([]byte(password))
	return map[string]string{"scopeMap": scopeMap, "password1": "sha256:" + hex.EncodeToString(sum[:])}
}

// ConnectionString is the environment variable that makes a registry the child of the endpoint.
func ConnectionString(name, password, endpoint, protocol string) string {
	return fmt.Sprintf("ACR_REGISTRY_CONNECTION_STRING=ConnectedRegistryName=%s;SyncTokenName=%[1]s;SyncTokenPassword=%s;"+
		"ParentGatewayEndpoint=%s;ParentEndpointProtocol=%s", name, password, endpoint, protocol)
}

// ListenTLS makes the layer serve TLS too, on a free port of the host, with a chain and a key in PEM. release gives the
// port back when the layer is closed.
func (o *Options) ListenTLS(host string, chain, key []byte) (addr string, release func(), err error) {
	addr, release, err = linkproxy.ReservePort()
	if err != nil {
		return "", nil, err
	}
	if _, port, err := net.SplitHostPort(addr); err == nil {
		addr = net.JoinHostPort(host, port)
	}
	volume := filepath.Join(o.Dir, "tls")
	if err := os.MkdirAll(volume, 0o700); err != nil {
		return "", nil, err
	}
	for file, content := range map[string][]byte{"tls.crt": chain, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(volume, file), content, 0o600); err != nil {
			return "", nil, err
		}
	}
	o.Args = append(o.Args, "--listen-tls", addr)
	o.Env = append(o.Env, "ACR_REGISTRY_CERTIFICATE_VOLUME="+volume)
	return addr, release, nil
}

// Configured waits until the data volume is open and the configuration from the file is in force, at most a minute.
func (l *Layer) Configured(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return l.Until(ctx, "it has taken its configuration", func(ctx context.Context) (bool, error) {
		st, err := l.Status(ctx)
		if err != nil {
			return false, nil // not yet
		}
		if len(st.Configuration.Errors) > 0 {
			return false, fmt.Errorf("%s: %v", l.Name, st.Configuration.Errors)
		}
		return st.Storage.State == "ok" && st.Configuration.Source == "file", nil
	})
}
