package distribution

import "net/http"

// listRepositories answers /v2/_catalog (Docker registry API, "Catalog"). Which repositories are in it is decided by
// the registry below.
func (s *server) listRepositories(w http.ResponseWriter, r *http.Request, req Request) error {
	repositories, more, err := page(req.Page, func(limit int) ([]string, error) {
		return s.reg.Repositories(r.Context(), req.Page.Last, limit)
	})
	if err != nil {
		return err
	}
	if more {
		linkNext(w.Header(), r.URL.Path, req.Page.N, repositories[len(repositories)-1])
	}
	return writeJSON(w, http.StatusOK, "application/json", struct {
		Repositories []string `json:"repositories"`
	}{repositories})
}
