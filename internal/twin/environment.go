package twin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Names of the environment variables, those of Azure's connected registry. The one that ends in _FILE is ours.
const (
	EnvConnectionString     = "ACR_REGISTRY_CONNECTION_STRING"
	EnvConnectionStringFile = "ACR_REGISTRY_CONNECTION_STRING_FILE" // a file or a mounted secret; wins
	EnvSyncTokenUser        = "SYNC_TOKEN_USER"
	EnvSyncTokenPassword    = "SYNC_TOKEN_PASSWORD"
	EnvParentEndpoint       = "ACR_PARENT_GATEWAY_ENDPOINT"
	EnvDataVolume           = "ACR_REGISTRY_DATA_VOLUME"
	EnvCertificateVolume    = "ACR_REGISTRY_CERTIFICATE_VOLUME"
	EnvLoginServer          = "ACR_REGISTRY_LOGIN_SERVER"
	EnvTokensFile           = "ACR_REGISTRY_TOKENS_FILE"       // ours: client tokens and scope maps, a file or a mounted secret
	EnvAlternateEndpoints   = "ACR_PARENT_ALTERNATE_ENDPOINTS" // ours: the parent's replicas, with spaces or commas between
	EnvParentAuth           = "ACR_PARENT_AUTH"                // ours: SyncToken, or one of the identities of Microsoft Entra ID
)

// maxAlternates bounds the further endpoints of one parent.
const maxAlternates = 16

// Where the volumes are unless the environment says otherwise.
const (
	DefaultDataVolume        = "/var/acr/data"
	DefaultCertificateVolume = "/var/acr/certs"
)

// Environment is the part of the configuration that comes with the process: its volumes, its name and its credential.
type Environment struct {
	// Connection is who this registry is to its parent; zero without a connection string or sync token.
	Connection Connection
	// Alternates are further endpoints of the parent, host[:port], which may be given the credential.
	Alternates []string
	// ParentAuth names the identity of Microsoft Entra ID that the registry signs in with; empty is the sync token.
	ParentAuth string
	// ConnectionStringFile is where the connection string was read from, so that it can be read again after a rotation.
	ConnectionStringFile string
	// LoginServer is the host[:port] by which clients know this registry; empty is any.
	LoginServer       string
	DataVolume        string // absolute path
	CertificateVolume string // absolute path
}

// FromEnvironment reads the variables; lookup is os.LookupEnv. The result can always be used: a variable with an error
// counts as not set, and the error's path is its name. An empty variable is not set either.
func FromEnvironment(lookup func(string) (string, bool)) (Environment, []registry.FieldError) {
	p := &problems{}
	get := func(name string) string {
		s, _ := lookup(name)
		return strings.TrimSpace(s)
	}
	volume := func(name, missing string) string {
		s := get(name)
		switch {
		case s == "":
			return missing
		case !filepath.IsAbs(s):
			p.add(name, "%q: want an absolute path", clip(s))
			return missing
		}
		return filepath.Clean(s)
	}
	e := Environment{
		ConnectionStringFile: get(EnvConnectionStringFile),
		DataVolume:           volume(EnvDataVolume, DefaultDataVolume),
		CertificateVolume:    volume(EnvCertificateVolume, DefaultCertificateVolume),
	}
	if s := get(EnvLoginServer); s != "" {
		host, err := ParseEndpoint(s, lookup)
		if err != nil {
			p.add(EnvLoginServer, "%s", err)
		}
		e.LoginServer = host
	}
	e.Connection = readConnection(p, get, lookup)
	e.Alternates = readAlternates(p, get(EnvAlternateEndpoints), lookup)
	switch e.ParentAuth = get(EnvParentAuth); {
	case e.ParentAuth == "" && e.Connection.ManagedIdentityClientID != "":
		e.ParentAuth = "ManagedIdentity"
	case strings.EqualFold(e.ParentAuth, AuthSyncToken):
		e.ParentAuth = ""
	}
	return e, p.errors()
}

// AuthSyncToken is EnvParentAuth's default: the sync token, or nothing where there is none.
const AuthSyncToken = "SyncToken"

func readAlternates(p *problems, text string, lookup func(string) (string, bool)) []string {
	var out []string
	for _, s := range strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' || r == '\n' }) {
		endpoint, err := ParseEndpoint(s, lookup)
		switch {
		case err != nil:
			p.add(EnvAlternateEndpoints, "%s", err)
		case len(out) == maxAlternates:
			p.add(EnvAlternateEndpoints, "want at most %d endpoints", maxAlternates)
			return out
		default:
			out = append(out, endpoint)
		}
	}
	return out
}

// readConnection takes the connection string if there is one, else the sync token's two variables of older versions;
// the parent's endpoint in a variable of its own is stronger than the connection string's.
func readConnection(p *problems, get func(string) string, lookup func(string) (string, bool)) Connection {
	var c Connection
	name, text := EnvConnectionString, get(EnvConnectionString)
	if file := get(EnvConnectionStringFile); file != "" {
		var err error
		name = EnvConnectionStringFile
		if text, err = readSecretFile(file); err != nil {
			p.add(name, "%s", err)
		}
	}
	if text != "" {
		var err error
		if c, err = ParseConnectionString(text, lookup); err != nil {
			p.add(name, "%s", err)
		}
	}
	if user := get(EnvSyncTokenUser); c.SyncTokenName == "" && user != "" {
		password, err := parsePassword(get(EnvSyncTokenPassword))
		if err != nil {
			p.add(EnvSyncTokenPassword, "%s", err)
		} else {
			c.SyncTokenName, c.SyncTokenPassword = user, password
		}
	}
	if s := get(EnvParentEndpoint); s != "" {
		endpoint, err := ParseEndpoint(s, lookup)
		switch {
		case err != nil:
			p.add(EnvParentEndpoint, "%s", err)
		case c.ParentEndpointProtocol == "http" && IsCloud(endpoint):
			p.add(EnvParentEndpoint, errCloudProtocol)
		default:
			c.ParentGatewayEndpoint = endpoint
		}
	}
	if c.ParentGatewayEndpoint != "" && c.ParentEndpointProtocol == "" {
		c.ParentEndpointProtocol = "https"
	}
	return c
}

// readSecretFile reads a small regular file, such as a mounted secret.
func readSecretFile(path string) (string, error) {
	raw, err := readRegular(path, MaxString)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(raw))
	if text == "" {
		return "", errors.New(path + " is empty")
	}
	return text, nil
}

// readRegular reads a file of at most limit bytes. What is no regular file is refused before it is opened: a pipe
// would block.
func readRegular(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened for reading
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return raw, nil
}

// Parent completes the document's parent: a document without a gatewayEndpoint takes endpoint and protocol of the
// environment. The credential stays the environment's, and with it the host that it may be sent to.
func (e Environment) Parent(document registry.ParentConfig) registry.ParentConfig {
	if document.GatewayEndpoint == "" && e.Connection.ParentGatewayEndpoint != "" {
		document.GatewayEndpoint = e.Connection.ParentGatewayEndpoint
		document.Protocol = e.Connection.ParentEndpointProtocol
	}
	return document
}
