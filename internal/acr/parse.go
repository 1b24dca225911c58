package acr

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	maxPath     = 1024 // bytes
	maxQuery    = 4096 // bytes
	defaultPage = 100  // entries, as in ACR
)

// kind is what a path names.
type kind int

const (
	kindCatalog kind = iota + 1
	kindRepository
	kindTags
	kindTag
	kindManifests
	kindManifest
)

// order of a list.
type order string

const (
	byName   order = "none"
	timeDesc order = "timedesc"
	timeAsc  order = "timeasc"
)

// request is what a client wants; its parts follow their grammars.
type request struct {
	kind   kind
	repo   string
	tag    string
	digest registry.Digest // kindManifest; of kindTags the filter

	n     int
	last  string // the entry before the page
	at    int64  // when that one was updated, in nanoseconds; 0: unknown
	order order

	registry string // the host by which the client came
}

// parse reads a decoded path and a raw query. Parts that begin with _ end the name of a repository, because no part of a
// name can.
func parse(path, query string) (request, error) {
	rest, ok := strings.CutPrefix(path, Path)
	if !ok || len(path) > maxPath || len(query) > maxQuery {
		return request{}, notFound()
	}
	req, err := parsePath(rest)
	if err != nil {
		return request{}, err
	}
	return req, req.parseQuery(query)
}

func notFound() error {
	e := registry.ErrNameInvalid.WithMessage("no such path: want %s_catalog, or %s<name> and _tags or _manifests", Path, Path)
	e.Status = http.StatusNotFound
	return e
}

func parsePath(rest string) (request, error) {
	if rest == "_catalog" {
		return request{kind: kindCatalog}, nil
	}
	req := request{kind: kindRepository, repo: rest}
	for noun, kinds := range map[string][2]kind{"/_tags": {kindTags, kindTag}, "/_manifests": {kindManifests, kindManifest}} {
		i := strings.Index(rest, noun)
		if i < 0 {
			continue
		}
		req.kind, req.repo = kinds[0], rest[:i]
		last, more := strings.CutPrefix(rest[i+len(noun):], "/")
		if !more && last != "" {
			return request{}, notFound()
		}
		if last != "" {
			req.kind = kinds[1]
			return req, req.parseLast(last)
		}
	}
	return req, registry.ValidateRepository(req.repo)
}

func (req *request) parseLast(last string) (err error) {
	if err := registry.ValidateRepository(req.repo); err != nil {
		return err
	}
	if req.kind == kindManifest {
		req.digest, err = registry.ParseDigest(last)
		return err
	}
	req.tag = last
	return registry.ValidateTag(last)
}

// parseQuery reads the parameters of lists; others, such as api-version, are ignored.
func (req *request) parseQuery(query string) error {
	req.n, req.order = defaultPage, byName
	values, err := url.ParseQuery(query)
	if err != nil {
		return badRequest("the query is malformed")
	}
	req.last = values.Get("last")
	if values.Has("n") {
		n, err := strconv.ParseUint(values.Get("n"), 10, 31)
		if err != nil || n == 0 {
			return registry.ErrPageInvalid.WithMessage("query parameter n: want a number from 1 to %d", registry.MaxPage)
		}
		req.n = int(min(n, registry.MaxPage))
	}
	if at, err := strconv.ParseInt(values.Get("lastTime"), 10, 64); err == nil {
		req.at = at
	}
	switch o := order(strings.ToLower(values.Get("orderby"))); o {
	case "", byName:
	case timeDesc, timeAsc:
		req.order = o
	default:
		return badRequest("query parameter orderby: want none, timedesc or timeasc")
	}
	if d := values.Get("digest"); d != "" && req.kind == kindTags {
		req.digest, err = registry.ParseDigest(d)
	}
	return err
}

func badRequest(format string, args ...any) *registry.Error {
	e := registry.ErrUnsupported.WithMessage(format, args...)
	e.Status = http.StatusBadRequest
	return e
}
