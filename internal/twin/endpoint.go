package twin

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const errCloudProtocol = "parent endpoint protocol must be 'https' when parent is a cloud registry"

var (
	variablePattern = registry.Pattern(`^\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})(:.*)?$`)
	secretPattern   = registry.Pattern(`(?i)secret|password|passwd|token|credential|connection_?string|_key$|^key$`)
	hostPattern     = registry.Pattern(`^[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*\.?$`)
	dataEndpoint    = registry.Pattern(`^([a-z0-9-]+)\.[a-z0-9-]+\.data\.(azurecr\.[a-z]+)(:[0-9]+)?$`)
	cloudRegistry   = registry.Pattern(`^[a-z0-9.-]+\.azurecr\.[a-z]+(:[0-9]+)?$`)
)

// ParseEndpoint reads the address of a registry, host[:port], and returns it in lower case. It may be an environment
// variable with or without a port, $IOTEDGE_PARENTHOSTNAME:8000, which env looks up. IPv6 addresses stand in brackets.
func ParseEndpoint(s string, env func(string) (string, bool)) (string, error) {
	if isPlaceholder(s) {
		return "", fmt.Errorf("%q has a placeholder: want host[:port]", clip(s))
	}
	if !strings.HasPrefix(s, "$") {
		return parseAddress(s)
	}
	m := variablePattern().FindStringSubmatch(s)
	if m == nil {
		return "", fmt.Errorf("%q: want an environment variable as $NAME or $NAME:port", clip(s))
	}
	name := m[1] + m[2]
	if strings.EqualFold(name, "upstream") {
		return "", errors.New("$upstream stands only in the names of images: want $IOTEDGE_PARENTHOSTNAME:8000 here")
	}
	if secretPattern().MatchString(name) { // a document must not read it out
		return "", fmt.Errorf("environment variable %s may hold a secret: want one that holds a host", clip(name))
	}
	var host string
	if env != nil {
		host, _ = env(name)
	}
	switch {
	case host == "" && name == "IOTEDGE_PARENTHOSTNAME":
		return "", errors.New("environment variable IOTEDGE_PARENTHOSTNAME is not set: IoT Edge sets it on a device whose config.toml has parent_hostname, never on the top layer")
	case host == "":
		return "", fmt.Errorf("environment variable %s is not set", clip(name))
	case strings.HasPrefix(host, "$"):
		return "", fmt.Errorf("environment variable %s holds another variable: want a host", clip(name))
	}
	address, err := parseAddress(host + m[3])
	if err != nil { // whose text may hold the value, and that is not the document's
		return "", fmt.Errorf("%s: environment variable %s does not hold a host that can be asked: want host, or host[:port] where the document gives no port", clip(s), clip(name))
	}
	return address, nil
}

// parseAddress checks host[:port].
func parseAddress(s string) (string, error) {
	s = strings.ToLower(s)
	switch {
	case strings.Contains(s, "://"):
		return "", fmt.Errorf("%q: want host[:port] without http:// or https://, which is the protocol's property", clip(s))
	case strings.ContainsAny(s, "/?#@"):
		return "", fmt.Errorf("%q: want host[:port] without path or user", clip(s))
	}
	host := s
	if a, err := netip.ParseAddr(s); err == nil && a.Is6() {
		return "", fmt.Errorf("%q: want an IPv6 address in brackets", clip(s))
	}
	bare := strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") // an IPv6 address without a port
	if strings.Contains(s, ":") && !bare {
		h, port, err := net.SplitHostPort(s)
		n, convErr := strconv.ParseUint(port, 10, 16)
		if err != nil || convErr != nil || n == 0 {
			return "", fmt.Errorf("%q: want host[:port] with a port from 1 to 65535", clip(s))
		}
		if host = h; strings.HasPrefix(s, "[") {
			host = "[" + h + "]"
		}
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !a.Is6() {
			return "", fmt.Errorf("%q: want an IPv6 address in the brackets", clip(s))
		}
		return s, nil
	}
	if len(host) > 253 || !hostPattern().MatchString(host) {
		return "", fmt.Errorf("%q: want a host name or an IP address, with a port if it needs one", clip(s))
	}
	return s, nil
}

// LoginServer returns where a registry is asked for content and tokens. For the data endpoint of a cloud registry,
// <registry>.<region>.data.azurecr.io, that is its login server <registry>.azurecr.io; every other endpoint is its own.
func LoginServer(endpoint string) string {
	m := dataEndpoint().FindStringSubmatch(strings.ToLower(endpoint))
	if m == nil {
		return endpoint
	}
	return m[1] + "." + m[2] + m[3]
}

// IsCloud reports whether an endpoint is an Azure Container Registry by its name, in any of the clouds.
func IsCloud(endpoint string) bool { return cloudRegistry().MatchString(strings.ToLower(endpoint)) }

// isPlaceholder recognises what documentation and tools leave for people to fill in: <...>.
func isPlaceholder(s string) bool { return strings.ContainsAny(s, "<>") }
