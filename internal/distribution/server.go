// Package distribution serves a registry over /v2/: the OCI distribution specification 1.1 and Docker schema 2.
//
// A request is parsed once into a [Request] (parse.go), found in a table with the permission that it needs
// (route.go), done by the handler of its noun (blob.go, manifest.go, tag.go, catalog.go, referrer.go, upload.go), and
// any error is written in one place (error.go). Locations and Links are always relative: behind a chain of API
// proxies nobody knows the name by which the client came. Manifests are never converted: what was pushed is served.
package distribution

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// Access says who a request is from and what that one may do.
type Access interface {
	// Enter authenticates a request and returns its context with the registry.Principal, and with what Check needs.
	// Errors: UNAUTHORIZED, UNAVAILABLE.
	Enter(r *http.Request) (context.Context, error)
	// Check returns nil when whom ctx acts for may do the action on the repository. Errors: UNAUTHORIZED, DENIED.
	Check(ctx context.Context, repo string, action registry.Action) error
	// ChallengeFor adds to an answer 401 what a client needs to know to come back with the right to do the action on the
	// repository; both may be empty.
	ChallengeFor(h http.Header, r *http.Request, repo string, action registry.Action)
}

// Options of a server; the zero value works.
type Options struct {
	// Stall is how long a client may take for the next 64 KiB of a body that it sends or for the next 128 KiB of one
	// that it gets; 0 is a minute and two. There is no limit on the whole, because big layers on slow links take hours.
	Stall time.Duration
	// Holders names repositories here that a blob belongs to, at most limit, so that a blob can be mounted without saying
	// from where (OCI distribution spec, "Mounting a blob from another repository"). nil starts an upload instead.
	Holders func(ctx context.Context, d registry.Digest, limit int) ([]string, error)
	// Clock sets deadlines of connections, so it is the machine's own: not one with a floor. nil is clock.System.
	Clock  clock.Clock
	Logger *slog.Logger // nil discards
}

type server struct {
	reg    registry.Registry
	access Access
	stall  time.Duration
	from   func(ctx context.Context, d registry.Digest, limit int) ([]string, error)
	clock  clock.Clock
	logger *slog.Logger
}

// New returns the handler of /v2/. It is mounted without a mux that cleans paths or redirects.
func New(reg registry.Registry, access Access, o Options) http.Handler {
	s := &server{reg: reg, access: access, stall: o.Stall, from: o.Holders, clock: o.Clock, logger: o.Logger}
	if s.stall <= 0 {
		s.stall = time.Minute
	}
	if s.clock == nil {
		s.clock = clock.System()
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	return s
}

// ServeHTTP answers one request. It panics with http.ErrAbortHandler, which net/http expects, when content ends in the
// middle of a body: a client must not take a short body for a complete one.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h["Docker-Distribution-Api-Version"] = apiVersion
	h["X-Content-Type-Options"] = noSniff
	if err := s.serve(w, r); err != nil {
		s.writeError(w, r, err)
	}
	s.finish(w, r)
}

// Header values that are the same in every answer; they are never written to.
var (
	apiVersion = []string{"registry/2.0"}
	noSniff    = []string{"nosniff"}
)

// serve finds the route, asks for permission and runs the handler. An error means that nothing was written.
func (s *server) serve(w http.ResponseWriter, r *http.Request) error {
	req, err := Parse(r.Method, r.URL.Path, r.URL.RawQuery)
	if err != nil {
		return err
	}
	rt, err := find(req.Kind, r.Method)
	if err != nil {
		w.Header().Set("Allow", allowed(req.Kind, r.Method))
		return err
	}
	ctx, err := s.access.Enter(r)
	if err == nil && rt.action != "" {
		err = s.access.Check(ctx, req.Repo, rt.action)
	}
	if err != nil {
		s.access.ChallengeFor(w.Header(), r, req.Repo, rt.action) // writeError takes it away unless the answer is 401
		return err
	}
	if err = rt.handle(s, w, r.WithContext(ctx), req); err != nil && asError(err).HTTPStatus() == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", allowed(req.Kind, r.Method)) // switched off by the mode, or locked
	}
	return err
}

// ping answers end-1: this is a registry, and the credentials are right.
func (s *server) ping(w http.ResponseWriter, _ *http.Request, _ Request) error {
	return writeJSON(w, http.StatusOK, "application/json", struct{}{})
}

// writeJSON writes a small document with its length.
func writeJSON(w http.ResponseWriter, status int, contentType string, doc any) error {
	body, err := json.Marshal(doc)
	if err != nil {
		return registry.ErrInternal.Wrap(err)
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // an error is the client's, who is gone
	return nil
}

// setContent adds the headers of content that is named by its digest.
func setContent(h http.Header, d registry.Descriptor, contentType string) {
	digest := string(d.Digest)
	values := [...]string{contentType, digest, `"` + digest + `"`}
	h["Content-Type"] = values[0:1:1]
	h["Docker-Content-Digest"] = values[1:2:2]
	h["Etag"] = values[2:3:3]
}
