package auth

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxForm bounds the body of a request for a token, in bytes.
const maxForm = 64 << 10

// Paths of the token endpoints: that of ACR's connected registry, and those of ACR, which Azure's tools use.
const (
	PathToken    = "/acr/oauth2/token"
	pathToken    = "/oauth2/token"
	pathExchange = "/oauth2/exchange"
)

// IsTokenPath reports whether the path is one that TokenHandler answers.
func IsTokenPath(path string) bool {
	return path == PathToken || path == pathToken || path == pathExchange
}

// tokenAnswer is what a client gets. The Docker engine reads token, others access_token, for the same thing.
type tokenAnswer struct {
	AccessToken  string    `json:"access_token,omitempty"`
	Token        string    `json:"token,omitempty"`
	RefreshToken string    `json:"refresh_token,omitempty"`
	ExpiresIn    int       `json:"expires_in,omitempty"` // seconds
	IssuedAt     time.Time `json:"issued_at,omitzero"`
}

// badRequest is an answer 400.
func badRequest(format string, args ...any) *registry.Error {
	e := registry.ErrUnsupported.WithMessage(format, args...)
	e.Status = http.StatusBadRequest
	return e
}

// TokenHandler answers the token endpoints: GET with Basic credentials, and POST with a grant of type password or
// refresh_token (Docker registry token specification; ACR, "Authentication"). Who has no credentials gets a token only
// where a local option admits anonymous requests. /oauth2/exchange takes a refresh token of this registry where ACR takes
// one of Microsoft Entra: this registry knows no users of Entra.
func (a *Authenticator) TokenHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Docker-Distribution-Api-Version", "registry/2.0")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		answer, err := a.serveToken(w, r)
		if err != nil {
			e := registry.AsError(err)
			if e.HTTPStatus() == http.StatusUnauthorized {
				a.Challenge(h) // Basic: this is where Bearer tokens come from
			}
			e.WriteHTTP(w)
			return
		}
		body, err := json.Marshal(answer)
		if err != nil {
			registry.ErrInternal.Wrap(err).WriteHTTP(w)
			return
		}
		h.Set("Content-Type", "application/json; charset=utf-8")
		h.Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body) // the client may be gone
	})
}

func (a *Authenticator) serveToken(w http.ResponseWriter, r *http.Request) (tokenAnswer, error) {
	exchange := r.URL.Path == pathExchange
	switch {
	case r.Method == http.MethodGet && !exchange:
		return a.getToken(r)
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", map[bool]string{true: "POST", false: "GET, POST"}[exchange])
		return tokenAnswer{}, registry.ErrUnsupported
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return tokenAnswer{}, badRequest("the body is no form of at most %d bytes", maxForm)
	}
	if exchange {
		return a.exchange(r)
	}
	return a.postToken(r)
}

// getToken answers the call of Docker and of ACR's connected registry.
func (a *Authenticator) getToken(r *http.Request) (tokenAnswer, error) {
	i, err := a.Authenticate(r)
	if err != nil {
		return tokenAnswer{}, err
	}
	if i.bearer {
		return tokenAnswer{}, registry.ErrUnauthorized.WithMessage("an access token is no credential for another one")
	}
	q := r.URL.Query()
	return a.answer(r, i, q["scope"], q.Get("offline_token") == "true")
}

// postToken answers the grants of OAuth 2. A grant of type password without a user is anonymous, as in ACR.
func (a *Authenticator) postToken(r *http.Request) (tokenAnswer, error) {
	form := r.PostForm
	offline := form.Get("access_type") == "offline"
	switch grant := form.Get("grant_type"); grant {
	case "password":
		if form.Get("username") == "" && form.Get("password") == "" {
			if !a.admits {
				return tokenAnswer{}, registry.ErrUnauthorized
			}
			return a.answer(r, a.anonymous, form["scope"], false)
		}
		i, err := a.login(r, strings.ToLower(form.Get("username")), form.Get("password"))
		if err != nil {
			return tokenAnswer{}, err
		}
		return a.answer(r, i, form["scope"], offline)
	case useRefresh:
		i, err := a.verify(r, form.Get("refresh_token"), useRefresh)
		if err != nil {
			return tokenAnswer{}, err
		}
		return a.answer(r, i, form["scope"], offline)
	default:
		return tokenAnswer{}, badRequest("grant_type %.40q: want password or refresh_token", grant)
	}
}

// exchange answers with a refresh token for one that is still good.
func (a *Authenticator) exchange(r *http.Request) (tokenAnswer, error) {
	var text string
	switch grant := r.PostForm.Get("grant_type"); grant {
	case useAccess, "access_token_refresh_token":
		text = r.PostForm.Get("access_token")
	case useRefresh:
		text = r.PostForm.Get("refresh_token")
	default:
		return tokenAnswer{}, badRequest("grant_type %.40q: want access_token or refresh_token", grant)
	}
	i, err := a.verify(r, text, useRefresh)
	if err != nil {
		return tokenAnswer{}, errExchange
	}
	refresh, _, err := a.issue(r.Context(), i, useRefresh, nil)
	return tokenAnswer{RefreshToken: refresh}, err
}

// errExchange says what this registry takes in place of a token of Entra.
var errExchange = registry.ErrUnauthorized.WithMessage("the token is none of this registry's: " +
	"get a refresh token with the name and password of a client token, GET " + PathToken + "?offline_token=true")

// answer issues an access token for as much of the scopes as the scope map permits.
func (a *Authenticator) answer(r *http.Request, i Identity, scopes []string, offline bool) (tokenAnswer, error) {
	asked, err := parseScopes(scopes)
	if err != nil {
		return tokenAnswer{}, err
	}
	token, life, err := a.issue(r.Context(), i, useAccess, i.intersect(asked))
	if err != nil {
		return tokenAnswer{}, err
	}
	out := tokenAnswer{AccessToken: token, Token: token, ExpiresIn: int(life.Seconds()), IssuedAt: a.clock.Now().UTC().Truncate(time.Second)}
	if offline && !i.Anonymous() {
		out.RefreshToken, _, err = a.issue(r.Context(), i, useRefresh, nil)
	}
	return out, err
}
