// Package acr serves ACR's own data plane below /acr/v1/, which the az command line and Microsoft's SDKs use beside the
// OCI API: lists with times and order, what is known of each repository, tag and manifest, untagging, deleting a whole
// repository, and the attributes that lock an image (ACR REST API, version 2021-07-01).
//
// It is built like package distribution: a request is parsed once (parse.go), found in a table with the permission that
// it needs (route.go), done by a handler (read.go, change.go), and errors are written in one place.
package acr

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Path is the root of the API.
const Path = "/acr/v1/"

// Content is what clients may see and change: the registry with all its policies.
type Content interface {
	Repositories(ctx context.Context, after string, limit int) ([]string, error)
	DeleteTag(ctx context.Context, repo, tag string) error
}

// Store is what is known here. The store of package store is one.
type Store interface {
	// RepositoryInfo describes a repository. Errors: NAME_UNKNOWN.
	RepositoryInfo(ctx context.Context, repo string) (registry.RepositoryInfo, error)
	// TagInfos describes the tags in lexical order, from the entry after "after" on; limit 0 takes all. Errors: NAME_UNKNOWN.
	TagInfos(ctx context.Context, repo, after string, limit int) ([]registry.TagInfo, error)
	// ManifestInfos describes the manifests in order of digest. Errors: NAME_UNKNOWN.
	ManifestInfos(ctx context.Context, repo string, after registry.Digest, limit int) ([]registry.ManifestInfo, error)
	// TagInfo describes one tag. Errors: NAME_UNKNOWN, MANIFEST_UNKNOWN.
	TagInfo(ctx context.Context, repo, tag string) (registry.TagInfo, error)
	// ManifestInfo describes one manifest. Errors: NAME_UNKNOWN, MANIFEST_UNKNOWN.
	ManifestInfo(ctx context.Context, repo string, d registry.Digest) (registry.ManifestInfo, error)
	// SetAttributes changes those of a tag, a manifest, or, with a zero ref, the repository.
	// Errors: NAME_UNKNOWN, MANIFEST_UNKNOWN.
	SetAttributes(ctx context.Context, repo string, ref registry.Reference, c registry.AttributeChange) error
	// DeleteRepository removes a repository with all that is in it. Errors: NAME_UNKNOWN, REGISTRY_DISALLOWED_OPERATION.
	DeleteRepository(ctx context.Context, repo string) (manifests []registry.Digest, tags []string, err error)
	// OpenContent reads a config, to find out for which platform an image is. Errors: BLOB_UNKNOWN.
	OpenContent(ctx context.Context, d registry.Digest) (registry.BlobReader, error)
}

// Access says who a request is from and what that one may do.
type Access interface {
	// Enter authenticates a request and returns its context with what Check needs. Errors: UNAUTHORIZED,
	// UNAVAILABLE.
	Enter(r *http.Request) (context.Context, error)
	// Check returns nil when whom ctx acts for may do the action on the repository. Errors: UNAUTHORIZED, DENIED.
	Check(ctx context.Context, repo string, action registry.Action) error
	// ChallengeFor adds to an answer 401 what a client needs to know to come back with that right.
	ChallengeFor(h http.Header, r *http.Request, repo string, action registry.Action)
}

// Options of a server.
type Options struct {
	Mode   func() registry.Mode // nil is ReadOnly: attributes and repositories are not changed
	Logger *slog.Logger         // nil discards
	Audit  registry.Auditor     // of locks and of repositories that are deleted; nil keeps nothing
	// Unlocked is called when something may be written to or deleted again: synchronisation passed over it until now.
	Unlocked func()
}

type server struct {
	content Content
	store   Store
	access  Access
	mode    func() registry.Mode
	logger  *slog.Logger
	audit   registry.Auditor
	unlock  func()

	platforms platforms
}

// New returns the handler of everything below Path. It is mounted without a mux that cleans paths or redirects.
func New(content Content, store Store, access Access, o Options) http.Handler {
	s := &server{content: content, store: store, access: access, mode: o.Mode, logger: o.Logger, audit: o.Audit, unlock: o.Unlocked}
	if s.mode == nil {
		s.mode = func() registry.Mode { return registry.ReadOnly }
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if s.unlock == nil {
		s.unlock = func() {}
	}
	if s.audit == nil {
		s.audit = registry.NoAudit{}
	}
	return s
}

// ServeHTTP answers one request.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("X-Content-Type-Options", "nosniff")
	answer, err := s.serve(w, r)
	if err != nil {
		e := registry.AsError(err)
		if e.HTTPStatus() != http.StatusUnauthorized {
			h.Del("Www-Authenticate")
		}
		if e.HTTPStatus() >= http.StatusInternalServerError && r.Context().Err() == nil {
			s.logger.Error("request failed", "method", r.Method, "path", r.URL.Path, "status", e.HTTPStatus(), "error", err)
		}
		e.WriteHTTP(w)
		return
	}
	body, err := json.Marshal(answer.body)
	if err != nil {
		registry.ErrInternal.Wrap(err).WriteHTTP(w)
		return
	}
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(answer.status)
	_, _ = w.Write(body) // the client may be gone
}

// answer is what a handler found.
type answer struct {
	status int
	body   any
}

func ok(body any) (answer, error) { return answer{http.StatusOK, body}, nil }

func (s *server) serve(w http.ResponseWriter, r *http.Request) (answer, error) {
	req, err := parse(r.URL.Path, r.URL.RawQuery)
	if err != nil {
		return answer{}, err
	}
	rt, allowed := find(req.kind, r.Method)
	if rt == nil {
		w.Header().Set("Allow", allowed)
		return answer{}, registry.ErrUnsupported
	}
	ctx, err := s.access.Enter(r)
	if err == nil {
		err = s.access.Check(ctx, req.repo, rt.action)
	}
	if err != nil {
		s.access.ChallengeFor(w.Header(), r, req.repo, rt.action) // taken away unless the answer is 401
		return answer{}, err
	}
	if rt.changes && s.mode() != registry.ReadWrite {
		return answer{}, registry.ErrDenied
	}
	req.registry = r.Host
	return rt.handle(s, w, r.WithContext(ctx), req)
}
