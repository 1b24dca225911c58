package acr

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxPatch bounds the body of a change, in bytes.
const maxPatch = 16 << 10

// patch changes attributes and lets show answer with the state after it.
func (s *server) patch(w http.ResponseWriter, r *http.Request, req request, ref registry.Reference) error {
	var body patchJSON
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxPatch)).Decode(&body); err != nil {
		return badRequest("the body is no JSON object with deleteEnabled, writeEnabled, readEnabled or listEnabled as true or false")
	}
	err := s.store.SetAttributes(r.Context(), req.repo, ref, body.change())
	s.audit.Audit(r.Context(), registry.AuditRecord{
		Category: registry.AuditContent, Operation: "change", Repository: req.repo, Tag: ref.Tag, Digest: ref.Digest, Detail: body.text(),
	}.End(err))
	if on := func(b *bool) bool { return b != nil && *b }; err == nil && (on(body.WriteEnabled) || on(body.DeleteEnabled)) {
		s.unlock()
	}
	return err
}

func (s *server) patchRepository(w http.ResponseWriter, r *http.Request, req request) (answer, error) {
	if err := s.patch(w, r, req, registry.Reference{}); err != nil {
		return answer{}, err
	}
	return s.getRepository(w, r, req)
}

func (s *server) patchTag(w http.ResponseWriter, r *http.Request, req request) (answer, error) {
	if err := s.patch(w, r, req, registry.TagReference(req.tag)); err != nil {
		return answer{}, tagError(err, req)
	}
	return s.getTag(w, r, req)
}

func (s *server) patchManifest(w http.ResponseWriter, r *http.Request, req request) (answer, error) {
	if err := s.patch(w, r, req, registry.DigestReference(req.digest)); err != nil {
		return answer{}, err
	}
	return s.getManifest(w, r, req)
}

// deleteTag untags; the manifest stays.
func (s *server) deleteTag(_ http.ResponseWriter, r *http.Request, req request) (answer, error) {
	if err := s.content.DeleteTag(r.Context(), req.repo, req.tag); err != nil {
		return answer{}, tagError(err, req)
	}
	return answer{http.StatusAccepted, struct{}{}}, nil
}

func (s *server) deleteRepository(_ http.ResponseWriter, r *http.Request, req request) (answer, error) {
	manifests, tags, err := s.store.DeleteRepository(r.Context(), req.repo)
	s.audit.Audit(r.Context(), registry.AuditRecord{
		Category: registry.AuditContent, Operation: "deleteRepository", Repository: req.repo,
		Detail: fmt.Sprintf("%d manifests, %d tags", len(manifests), len(tags)),
	}.End(err))
	if err != nil {
		return answer{}, err
	}
	s.logger.Info("repository deleted", "repository", req.repo, "token", registry.PrincipalFrom(r.Context()).Name, "manifests", len(manifests), "tags", len(tags))
	return answer{http.StatusAccepted, deletedJSON{append([]registry.Digest{}, manifests...), append([]string{}, tags...)}}, nil
}
