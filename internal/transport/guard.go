package transport

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxRedirects bounds the hops of one request.
const maxRedirects = 4

// hosts is who may be given what.
type hosts struct {
	origin  string          // "" when the client is for no particular registry
	trusted map[string]bool // origins that may be given the credential
	dial    map[string]bool // host:port that may have a private address
	parent  string          // host name of origin
}

func newHosts(origin string, realms, data []string) (hosts, error) {
	h := hosts{trusted: map[string]bool{}, dial: map[string]bool{}}
	add := func(s string, trusted bool) error {
		u, err := url.Parse(s)
		if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
			return fmt.Errorf("%q: want https://host[:port]", s)
		}
		h.dial[hostPort(u)] = true
		if trusted {
			h.trusted[originOf(u)] = true
		}
		return nil
	}
	if origin != "" {
		if err := add(origin, true); err != nil {
			return h, fmt.Errorf("origin %w", err)
		}
		u, _ := url.Parse(origin) // parsed above
		h.origin, h.parent = originOf(u), strings.ToLower(u.Hostname())
	}
	for _, r := range realms {
		if err := add(r, true); err != nil {
			return h, fmt.Errorf("realm %w", err)
		}
	}
	for _, d := range data {
		if err := add(d, false); err != nil {
			return h, fmt.Errorf("data host %w", err)
		}
	}
	return h, nil
}

// azureRegistry is the login server of an Azure Container Registry in any cloud.
var azureRegistry = registry.Pattern(`^([a-z0-9-]+)\.(azurecr\.[a-z]+)$`)

// reaches reports whether an address, host:port, may be private: a configured one, and a dedicated data endpoint of the
// Azure Container Registry that the client is for, <registry>.<region>.data.azurecr.io: over a private link it is.
func (h hosts) reaches(addr string) bool {
	addr = strings.ToLower(addr)
	if h.dial[addr] {
		return true
	}
	m := azureRegistry().FindStringSubmatch(h.parent)
	if m == nil {
		return false
	}
	host, ok := strings.CutSuffix(addr, ".data."+m[2]+":443")
	region, own := strings.CutPrefix(host, m[1]+".")
	return ok && own && region != "" && !strings.Contains(region, ".")
}

// originOf is scheme, host and port, with the scheme's own port filled in: the exact thing a credential belongs to.
func originOf(u *url.URL) string { return strings.ToLower(u.Scheme) + "://" + hostPort(u) }

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
		if strings.EqualFold(u.Scheme, "http") {
			port = "80"
		}
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// guard lets a request through to its own registry as it is, to another host only what follows a blob's redirect and
// without anything secret, and refuses the rest. It is below everything that could add a header or change a host.
type guard struct {
	c    *Client
	next http.RoundTripper
}

// secretHeaders never reach a foreign host. Referer would tell it the path, and a parent may put a token there.
var secretHeaders = []string{
	"Authorization", "Proxy-Authorization", "Cookie", "Referer",
	registry.HeaderChildName, registry.HeaderChildInstance, registry.HeaderChildMode, "X-Meta-Source-Client",
}

// RoundTrip implements http.RoundTripper.
func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	h, target := g.c.hosts, originOf(req.URL)
	if req.URL.User != nil {
		return nil, registry.ErrDenied.WithMessage("refused to ask %s: its address has a user name in it", target)
	}
	req = req.Clone(req.Context())
	req.Header.Del("X-Ms-Version") // the API proxy would take it for a request to blob storage
	req.Header.Set("User-Agent", g.c.o.UserAgent)
	if h.trusted[target] {
		return g.next.RoundTrip(req)
	}
	read := req.Method == http.MethodGet || req.Method == http.MethodHead
	follows := req.Response != nil && isBlob(req.Context())
	switch {
	case h.origin == "" && read && req.Header.Get("Authorization") == "":
	case h.origin == "":
		return nil, registry.ErrDenied.WithMessage("refused to send a credential or a body to %s", target)
	case !read || !follows:
		return nil, registry.ErrDenied.WithMessage("refused to ask %s on behalf of %s: the credential and the requests are for %s only (a token server of its own is configured as a realm host)",
			target, h.origin, h.origin)
	}
	for _, name := range secretHeaders {
		req.Header.Del(name)
	}
	return g.next.RoundTrip(req)
}

// CheckRedirect decides about a redirect before it is followed: GET and HEAD only, never from https to http, to
// another host only for blobs, at most four hops, no loop.
//
// Errors: DENIED, with both hosts in the message.
func (c *Client) CheckRedirect(req *http.Request, via []*http.Request) error {
	first, last := via[0], via[len(via)-1]
	from, to := originOf(last.URL), originOf(req.URL)
	deny := func(why string) error {
		return registry.ErrDenied.WithMessage("refused a redirect of %s from %s to %s: %s", first.Method, from, to, why)
	}
	if first.Method != http.MethodGet && first.Method != http.MethodHead {
		return deny("only GET and HEAD are redirected")
	}
	if last.URL.Scheme == "https" && req.URL.Scheme != "https" {
		return deny("it leaves https")
	}
	if from != to && !isBlob(req.Context()) {
		return deny("only blobs may come from another host")
	}
	if len(via) > maxRedirects {
		return deny(fmt.Sprintf("more than %d hops", maxRedirects))
	}
	for _, v := range via {
		if v.URL.String() == req.URL.String() {
			return deny("it is a loop")
		}
	}
	return nil
}
