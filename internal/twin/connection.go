package twin

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// Connection is what a connection string holds: who this registry is and how it signs in to its parent, with a sync
// token or with a managed identity. The credential belongs to ParentGatewayEndpoint and must be sent to no other host.
type Connection struct {
	ConnectedRegistryName   string // lower case
	SyncTokenName           string
	SyncTokenPassword       registry.Secret
	ManagedIdentityClientID string // of a user-assigned identity; in place of the sync token
	ParentGatewayEndpoint   string // host[:port], environment variables expanded
	ParentEndpointProtocol  string // "https" or "http"
}

// connectionKeys are the keys of a connection string, as `az acr connected-registry get-settings` prints them.
var connectionKeys = []string{"ConnectedRegistryName", "SyncTokenName", "SyncTokenPassword", "ManagedIdentityClientId", "ParentGatewayEndpoint", "ParentEndpointProtocol"}

var clientID = registry.Pattern(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// ParseConnectionString reads Key=Value parts with semicolons between them. A value may hold = (passwords do), the
// endpoint may be an environment variable such as $IOTEDGE_PARENTHOSTNAME:8000, and the protocol is https unless it is
// given. Errors name the key; nothing of a value that may be the password is in them.
func ParseConnectionString(s string, env func(string) (string, bool)) (Connection, error) {
	parts, err := splitConnectionString(s)
	if err != nil {
		return Connection{}, err
	}
	c := Connection{SyncTokenName: parts["SyncTokenName"], ParentEndpointProtocol: "https"}
	if c.ConnectedRegistryName, err = hierarchy.ParseName(parts["ConnectedRegistryName"]); err != nil {
		return Connection{}, fmt.Errorf("ConnectedRegistryName: %w", err)
	}
	if c.ManagedIdentityClientID = parts["ManagedIdentityClientId"]; c.ManagedIdentityClientID == "" {
		if c.SyncTokenPassword, err = parsePassword(parts["SyncTokenPassword"]); err != nil {
			return Connection{}, fmt.Errorf("SyncTokenPassword: %w", err)
		}
	} else if !clientID().MatchString(c.ManagedIdentityClientID) {
		return Connection{}, errors.New("ManagedIdentityClientId: want the client ID of a user-assigned identity, 8-4-4-4-12 hexadecimal digits")
	}
	if c.ParentGatewayEndpoint, err = ParseEndpoint(parts["ParentGatewayEndpoint"], env); err != nil {
		return Connection{}, fmt.Errorf("ParentGatewayEndpoint: %w", err)
	}
	if p, ok := parts["ParentEndpointProtocol"]; ok {
		c.ParentEndpointProtocol = strings.ToLower(p)
	}
	switch {
	case c.ParentEndpointProtocol != "https" && c.ParentEndpointProtocol != "http":
		return Connection{}, errors.New("ParentEndpointProtocol: want https or http")
	case c.ParentEndpointProtocol == "http" && IsCloud(c.ParentGatewayEndpoint):
		return Connection{}, errors.New("ParentEndpointProtocol: " + errCloudProtocol)
	case c.ParentEndpointProtocol == "http" && c.ManagedIdentityClientID != "":
		return Connection{}, errors.New("ParentEndpointProtocol: want https with ManagedIdentityClientId")
	}
	return c, nil
}

// splitConnectionString returns the values by key: every key is known and stands once, and those that are required
// have a value.
func splitConnectionString(s string) (map[string]string, error) {
	s = strings.TrimSpace(s)
	switch {
	case s == "":
		return nil, errors.New("connection string is empty")
	case len(s) > MaxString:
		return nil, fmt.Errorf("connection string has %d bytes: want at most %d", len(s), MaxString)
	case strings.HasPrefix(s, "<"):
		return nil, errors.New("connection string is a placeholder: want what `az acr connected-registry get-settings` prints")
	}
	parts := map[string]string{}
	for i, part := range strings.Split(s, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		key, text, ok := strings.Cut(part, "=")
		key = strings.TrimSpace(key)
		switch {
		case !ok:
			return nil, fmt.Errorf("part %d has no =: want Key=Value", i+1)
		case !slices.Contains(connectionKeys, key):
			return nil, fmt.Errorf("part %d: %s", i+1, unknown("key", key, connectionKeys))
		}
		if _, ok := parts[key]; ok {
			return nil, fmt.Errorf("%s stands twice", key)
		}
		parts[key] = strings.TrimSpace(text)
	}
	required := []string{"ConnectedRegistryName", "SyncTokenName", "SyncTokenPassword", "ParentGatewayEndpoint"}
	if parts["ManagedIdentityClientId"] != "" {
		required = []string{"ConnectedRegistryName", "ManagedIdentityClientId", "ParentGatewayEndpoint"}
		if parts["SyncTokenName"]+parts["SyncTokenPassword"] != "" {
			return nil, errors.New("ManagedIdentityClientId and SyncTokenName exclude each other: want one way to sign in")
		}
	}
	for _, key := range required {
		if parts[key] == "" {
			return nil, fmt.Errorf("%s is missing", key)
		}
		if isPlaceholder(parts[key]) && key != "SyncTokenPassword" {
			return nil, fmt.Errorf("%s has a placeholder, <...>: put the value in its place", key)
		}
	}
	return parts, nil
}

// parsePassword refuses what tools print where they have no password.
func parsePassword(s string) (registry.Secret, error) {
	switch {
	case s == "":
		return "", errors.New("is empty")
	case strings.HasPrefix(s, "<") && strings.HasSuffix(s, ">"):
		return "", errors.New("is a placeholder: make a password with `az acr connected-registry get-settings --generate-password 1`")
	case strings.HasPrefix(s, "${") && strings.HasSuffix(s, "}"):
		return "", errors.New("is a variable that the deployment did not replace")
	}
	return registry.Secret(s), nil
}
