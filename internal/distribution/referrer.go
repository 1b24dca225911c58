package distribution

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// listReferrers answers end-12. The list is in order of digest, so a page starts after the digest that ended the last.
func (s *server) listReferrers(w http.ResponseWriter, r *http.Request, req Request) error {
	ctx := registry.WithWarnings(r.Context(), func(text string) { warn(w.Header(), text) })
	all, err := s.reg.Referrers(ctx, req.Repo, req.Digest, req.ArtifactType)
	if err != nil {
		w.Header().Del("Warning")
		return err
	}
	from := 0
	if req.Page.Last != "" {
		if from = slices.IndexFunc(all, func(d registry.Descriptor) bool { return string(d.Digest) > req.Page.Last }); from < 0 {
			from = len(all)
		}
	}
	list, err := bounded(all[from:])
	if err != nil {
		return err
	}
	h := w.Header()
	if req.ArtifactType != "" {
		h.Set("Oci-Filters-Applied", "artifactType")
	}
	if from+len(list) < len(all) {
		linkNext(h, r.URL.Path, 0, string(all[from+len(list)-1].Digest), "artifactType", req.ArtifactType)
	}
	return writeJSON(w, http.StatusOK, registry.MediaTypeImageIndex, struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
	}{2, registry.MediaTypeImageIndex, list})
}

// maxWarning bounds a warning, in bytes.
const maxWarning = 500

// warn adds a warning to an answer (OCI distribution spec, "Warnings").
func warn(h http.Header, text string) {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '\''
		}
		return r
	}, text)
	h.Set("Warning", `299 - "`+text[:min(len(text), maxWarning)]+`"`)
}

// bounded encodes as many descriptors as one page may have: clients read no longer index than a manifest may be, and
// annotations can be long. There is always one, so that the pages end.
func bounded(all []registry.Descriptor) ([]json.RawMessage, error) {
	list, size := []json.RawMessage{}, 0
	for _, d := range all[:min(len(all), registry.MaxPage)] {
		entry, err := json.Marshal(d)
		if err != nil {
			return nil, registry.ErrInternal.Wrap(err)
		}
		if size += len(entry) + 1; size > registry.MaxManifestSize-1024 && len(list) > 0 {
			break
		}
		list = append(list, entry)
	}
	return list, nil
}
