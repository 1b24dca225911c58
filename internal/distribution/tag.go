package distribution

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// listTags answers end-8.
func (s *server) listTags(w http.ResponseWriter, r *http.Request, req Request) error {
	tags, more, err := page(req.Page, func(limit int) ([]string, error) {
		return s.tagsAfter(r.Context(), req.Repo, req.Page.Last, limit)
	})
	if err != nil {
		return err
	}
	if more {
		linkNext(w.Header(), r.URL.Path, req.Page.N, tags[len(tags)-1])
	}
	return writeJSON(w, http.StatusOK, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{req.Repo, tags})
}

// tagsAfter returns the first tags after one of them, in the order of the specification, which is that of letters
// without case. The registry below has them in that of bytes, so all of them are looked at, a part at a time.
func (s *server) tagsAfter(ctx context.Context, repo, last string, limit int) ([]string, error) {
	var kept []string
	for after := ""; ; {
		part, err := s.reg.Tags(ctx, repo, after, registry.MaxPage)
		if err != nil {
			return nil, err
		}
		for _, tag := range part {
			if last == "" || compareTags(tag, last) > 0 {
				kept = append(kept, tag)
			}
		}
		slices.SortFunc(kept, compareTags)
		kept = kept[:min(len(kept), limit)]
		if len(part) < registry.MaxPage {
			return kept, nil
		}
		after = part[len(part)-1]
	}
}

// compareTags is "case-insensitive alphanumeric order" (OCI distribution spec, "Listing Tags"); tags that differ in case
// only are in that of bytes.
func compareTags(a, b string) int {
	return cmp.Or(strings.Compare(strings.ToLower(a), strings.ToLower(b)), strings.Compare(a, b))
}

// deleteTag answers end-9 for a tag; the manifest stays.
func (s *server) deleteTag(w http.ResponseWriter, r *http.Request, req Request) error {
	return accepted(w, s.reg.DeleteTag(conditional(r), req.Repo, req.Reference.Tag))
}

// page asks for one entry more than is wanted, where the limit allows it, to see whether there are more.
func page(p Page, list func(limit int) ([]string, error)) (entries []string, more bool, err error) {
	limit := min(p.N+1, registry.MaxPage)
	entries, err = list(limit)
	if err != nil {
		return nil, false, err
	}
	if p.N == 0 {
		return []string{}, false, nil // end-8: an empty list without a Link
	}
	more = len(entries) == limit
	if len(entries) > p.N {
		entries = entries[:p.N]
	}
	if entries == nil {
		entries = []string{}
	}
	return entries, more, nil
}

// linkNext adds the Link to the next page (RFC 8288); n 0 leaves it out.
func linkNext(h http.Header, path string, n int, last string, more ...string) {
	q := url.Values{"last": {last}}
	if n > 0 {
		q.Set("n", strconv.Itoa(n))
	}
	for i := 0; i+1 < len(more); i += 2 {
		if more[i+1] != "" {
			q.Set(more[i], more[i+1])
		}
	}
	h.Set("Link", "<"+path+"?"+q.Encode()+`>; rel="next"`)
}
