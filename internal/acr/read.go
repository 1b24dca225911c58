package acr

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

func (s *server) listRepositories(w http.ResponseWriter, r *http.Request, req request) (answer, error) {
	limit := min(req.n+1, registry.MaxPage)
	names, err := s.content.Repositories(r.Context(), req.last, limit)
	if err != nil {
		return answer{}, err
	}
	if more := len(names) == limit; more {
		names = names[:min(len(names), req.n)]
		req.link(w.Header(), Path+"_catalog", names[len(names)-1], time.Time{})
	}
	return ok(catalogJSON{Repositories: append([]string{}, names...)})
}

func (s *server) getRepository(_ http.ResponseWriter, r *http.Request, req request) (answer, error) {
	info, err := s.store.RepositoryInfo(r.Context(), req.repo)
	if err != nil {
		return answer{}, err
	}
	return ok(repositoryJSON{
		Registry: req.registry, ImageName: info.Name, CreatedTime: info.Created, LastUpdateTime: info.Updated,
		ManifestCount: info.Manifests, TagCount: info.Tags, ChangeableAttributes: attributesOf(info.Attributes),
	})
}

func (s *server) listTags(w http.ResponseWriter, r *http.Request, req request) (answer, error) {
	list, more, err := page(req, func(after string, limit int) ([]registry.TagInfo, error) {
		return s.store.TagInfos(r.Context(), req.repo, after, limit)
	}, func(t registry.TagInfo) key {
		return key{t.Name, t.Updated, !t.Attributes.NoList && (req.digest == "" || t.Digest == req.digest)}
	})
	if err != nil {
		return answer{}, err
	}
	out := imageJSON{Registry: req.registry, ImageName: req.repo, Tags: []tagJSON{}}
	for _, t := range list {
		out.Tags = append(out.Tags, tagOf(t))
	}
	if more {
		last := list[len(list)-1]
		req.link(w.Header(), r.URL.Path, last.Name, last.Updated)
	}
	return ok(out)
}

func (s *server) getTag(_ http.ResponseWriter, r *http.Request, req request) (answer, error) {
	info, err := s.store.TagInfo(r.Context(), req.repo, req.tag)
	if err != nil {
		return answer{}, tagError(err, req)
	}
	tag := tagOf(info)
	return ok(imageJSON{Registry: req.registry, ImageName: req.repo, Tag: &tag})
}

func (s *server) listManifests(w http.ResponseWriter, r *http.Request, req request) (answer, error) {
	list, more, err := page(req, func(after string, limit int) ([]registry.ManifestInfo, error) {
		return s.store.ManifestInfos(r.Context(), req.repo, registry.Digest(after), limit)
	}, func(m registry.ManifestInfo) key { return key{string(m.Digest), m.Updated, !m.Attributes.NoList} })
	if err != nil {
		return answer{}, err
	}
	out := imageJSON{Registry: req.registry, ImageName: req.repo, Manifests: []manifestJSON{}}
	for _, m := range list {
		out.Manifests = append(out.Manifests, s.describe(r.Context(), m))
	}
	if more {
		last := list[len(list)-1]
		req.link(w.Header(), r.URL.Path, string(last.Digest), last.Updated)
	}
	return ok(out)
}

func (s *server) getManifest(_ http.ResponseWriter, r *http.Request, req request) (answer, error) {
	info, err := s.store.ManifestInfo(r.Context(), req.repo, req.digest)
	if err != nil {
		return answer{}, err
	}
	m := s.describe(r.Context(), info)
	return ok(imageJSON{Registry: req.registry, ImageName: req.repo, Manifest: &m})
}

// tagError says TAG_UNKNOWN for a tag that is not there, as ACR does in its own API.
func tagError(err error, req request) error {
	if registry.AsError(err).Code == registry.CodeManifestUnknown {
		return registry.ErrTagUnknown.WithDetail(map[string]string{"name": req.repo, "tag": req.tag})
	}
	return err
}

// key is what an entry of a list is ordered and chosen by.
type key struct {
	name    string
	updated time.Time
	wanted  bool
}

// page returns the entries of a page, and whether there are more. In lexical order it reads no further than it has to;
// by time it reads the whole list. list gives entries in lexical order after one of them; limit 0 is all.
func page[T any](req request, list func(after string, limit int) ([]T, error), keyOf func(T) key) (got []T, more bool, err error) {
	if req.order != byName {
		return timePage(req, list, keyOf)
	}
	for after := req.last; ; {
		limit := min(req.n+1-len(got), registry.MaxPage)
		part, err := list(after, limit)
		if err != nil {
			return nil, false, err
		}
		for _, e := range part {
			if keyOf(e).wanted {
				got = append(got, e)
			}
		}
		if len(got) > req.n {
			return got[:req.n], true, nil
		}
		if len(part) < limit {
			return got, false, nil
		}
		after = keyOf(part[len(part)-1]).name
	}
}

// timePage orders by time and then name. The Link says when the last entry of a page was updated, so that the next page
// begins in the right place when that one moved or went meanwhile.
func timePage[T any](req request, list func(after string, limit int) ([]T, error), keyOf func(T) key) (got []T, more bool, err error) {
	all, err := list("", 0)
	if err != nil {
		return nil, false, err
	}
	compare := func(a, b key) int {
		c := cmp.Or(a.updated.Compare(b.updated), cmp.Compare(a.name, b.name))
		if req.order == timeDesc {
			return -c
		}
		return c
	}
	at := time.Unix(0, req.at)
	if req.last != "" && req.at == 0 { // a client that made its own query
		if i := slices.IndexFunc(all, func(e T) bool { return keyOf(e).name == req.last }); i >= 0 {
			at = keyOf(all[i]).updated
		}
	}
	all = slices.DeleteFunc(all, func(e T) bool {
		k := keyOf(e)
		return !k.wanted || req.last != "" && compare(k, key{name: req.last, updated: at}) <= 0
	})
	slices.SortFunc(all, func(a, b T) int { return compare(keyOf(a), keyOf(b)) })
	if len(all) > req.n {
		return all[:req.n], true, nil
	}
	return all, false, nil
}

// link adds the Link to the next page; what the client asked for stays.
func (req request) link(h http.Header, path, last string, updated time.Time) {
	q := url.Values{"last": {last}, "n": {strconv.Itoa(req.n)}}
	if req.order != byName {
		q.Set("orderby", string(req.order))
		q.Set("lastTime", strconv.FormatInt(updated.UnixNano(), 10))
	}
	if req.kind == kindTags && req.digest != "" {
		q.Set("digest", string(req.digest))
	}
	h.Set("Link", "<"+path+"?"+q.Encode()+`>; rel="next"`)
}
