package auth

import (
	"net/http"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// hostPattern is a host with a port that may stand in a challenge.
var hostPattern = registry.Pattern(`^[A-Za-z0-9._-]{1,253}(?::[0-9]{1,5})?$|^\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?$`)

// Challenge adds to an answer 401 the Basic challenge.
func (a *Authenticator) Challenge(h http.Header) {
	h.Set("Www-Authenticate", `Basic realm="`+Realm+`"`)
}

// ChallengeFor adds to an answer 401 what a client needs to know to come back with the right to do the action on the
// repository. It is Basic, unless the option says Bearer; and Bearer for ACR's API, whose clients know nothing else, and
// for who sent a Bearer token, and so has found the token endpoint already.
func (a *Authenticator) ChallengeFor(h http.Header, r *http.Request, repo string, action registry.Action) {
	_, sent := cutScheme(r.Header.Get("Authorization"), "Bearer")
	scheme, host := origin(r)
	if host == "" || !a.bearerChallenge && !sent && !strings.HasPrefix(r.URL.Path, "/acr/") {
		a.Challenge(h)
		return
	}
	value := `Bearer realm="` + scheme + "://" + host + PathToken + `",service="` + host + `"`
	if scope := scopeFor(repo, action); scope != "" {
		if from := r.URL.Query().Get("from"); action == registry.ContentWrite && registry.ValidateRepository(from) == nil {
			scope += " " + scopeFor(from, registry.ContentRead) // a blob is mounted from there
		}
		value += `,scope="` + scope + `"`
	}
	if sent {
		value += `,error="invalid_token"`
	}
	h.Set("Www-Authenticate", value)
}

// origin is the address by which the client came, as the proxy in front tells it; host is empty when it is unusable.
func origin(r *http.Request) (scheme, host string) {
	scheme, host = "http", r.Host
	if r.TLS != nil {
		scheme = "https"
	}
	if forwarded := first(r.Header.Get("X-Forwarded-Proto")); forwarded == "http" || forwarded == "https" {
		scheme = forwarded
	}
	if forwarded := first(r.Header.Get("X-Forwarded-Host")); hostPattern().MatchString(forwarded) {
		host = forwarded
	}
	if !hostPattern().MatchString(host) {
		return scheme, ""
	}
	return scheme, host
}

// first returns the first element of a list, which is what the client said to the outermost proxy.
func first(list string) string {
	s, _, _ := strings.Cut(list, ",")
	return strings.TrimSpace(s)
}
