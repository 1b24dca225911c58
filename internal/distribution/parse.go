package distribution

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Limits of what is looked at, in bytes. The longest path that means something is a repository name of 255 bytes with
// a sha512 digest.
const (
	maxPath  = 1024
	maxQuery = 4096
	maxParam = 1024
)

// Kind is what a path names. The numbers are those of the OCI distribution spec, "Endpoints".
type Kind int

// The kinds of path.
const (
	KindPing      Kind = iota + 1 // end-1: /v2/
	KindBlob                      // end-2, end-10: /v2/<name>/blobs/<digest>
	KindManifest                  // end-3, end-7, end-9: /v2/<name>/manifests/<digest>
	KindTag                       // end-3, end-7, end-9: /v2/<name>/manifests/<tag>
	KindUploads                   // end-4a, end-4b, end-11: /v2/<name>/blobs/uploads/
	KindUpload                    // end-5, end-6, end-13, end-14: /v2/<name>/blobs/uploads/<id>
	KindTags                      // end-8: /v2/<name>/tags/list
	KindReferrers                 // end-12: /v2/<name>/referrers/<digest>
	KindCatalog                   // /v2/_catalog, of the Docker registry API
)

// Request is what a client wants. What is in it follows the grammar of the specification; no other check is needed.
type Request struct {
	Kind      Kind
	Repo      string
	Reference registry.Reference // KindManifest, KindTag
	Digest    registry.Digest    // KindBlob, KindReferrers; of an upload the ?digest= that ends it
	UploadID  string             // KindUpload
	Mount     registry.Digest    // KindUploads
	From      string             // repository to mount from; empty: wherever it is
	Page      Page               // KindTags, KindCatalog, KindReferrers

	ArtifactType string // KindReferrers
}

// Page is which part of a list is wanted.
type Page struct {
	N    int    // entries, 0 to registry.MaxPage
	Last string // the entry before the page; empty for the first
}

// uploadPattern is what ids of upload sessions look like.
var uploadPattern = registry.Pattern(`^[A-Za-z0-9_=-]{1,128}$`)

// Parse reads a request from its method, its decoded path and its raw query. It looks at the method only where the
// specification wants another answer for the same path; whether a method is allowed is not decided here.
//
// Errors: NAME_INVALID (404 for a path that is none of the API's), DIGEST_INVALID, TAG_INVALID, MANIFEST_UNKNOWN,
// BLOB_UPLOAD_UNKNOWN, PAGINATION_NUMBER_INVALID, UNSUPPORTED for a malformed query.
func Parse(method, path, query string) (Request, error) {
	if len(path) > maxPath || len(query) > maxQuery {
		e := registry.ErrNameInvalid.WithMessage("path or query is longer than %d or %d bytes", maxPath, maxQuery)
		e.Status = http.StatusRequestURITooLong
		return Request{}, e
	}
	req, err := parsePath(method, path)
	if err != nil {
		return Request{}, err
	}
	return req, req.parseQuery(method, query)
}

// notFound is the answer for a path that is none of the API's.
func notFound() error {
	e := registry.ErrNameInvalid.WithMessage("no such path: want /v2/<name>/ and blobs, manifests, tags or referrers")
	e.Status = http.StatusNotFound
	return e
}

// parsePath reads from the right, because a repository may be called a/blobs/b.
func parsePath(method, path string) (Request, error) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	switch {
	case path == "/v2" || path == "/v2/":
		return Request{Kind: KindPing}, nil
	case !ok:
		return Request{}, notFound()
	case rest == "_catalog":
		return Request{Kind: KindCatalog}, nil
	}
	if name, ok := strings.CutSuffix(strings.TrimSuffix(rest, "/"), "/blobs/uploads"); ok {
		return Request{Kind: KindUploads, Repo: name}, registry.ValidateRepository(name)
	}
	head, last, ok := cutLast(rest)
	if !ok {
		return Request{}, notFound()
	}
	name, noun, ok := cutLast(head)
	if !ok {
		return Request{}, notFound()
	}
	req := Request{Repo: name}
	switch noun {
	case "blobs":
		req.Kind = KindBlob
	case "manifests":
		req.Kind = KindManifest
	case "referrers":
		req.Kind = KindReferrers
	case "tags":
		if last != "list" {
			return Request{}, notFound()
		}
		req.Kind = KindTags
	case "uploads":
		if req.Repo, ok = strings.CutSuffix(name, "/blobs"); !ok {
			return Request{}, notFound()
		}
		req.Kind = KindUpload
	default:
		return Request{}, notFound()
	}
	if err := registry.ValidateRepository(req.Repo); err != nil {
		return Request{}, err
	}
	return req, req.parseLast(method, last)
}

// cutLast splits at the last slash.
func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// parseLast reads the last element of the path.
func (req *Request) parseLast(method, last string) (err error) {
	switch req.Kind {
	case KindBlob, KindReferrers:
		req.Digest, err = registry.ParseDigest(last)
	case KindManifest:
		if req.Reference, err = registry.ParseReference(last); req.Reference.Tag != "" {
			req.Kind = KindTag
		}
		if err != nil && req.Kind == KindTag && method != http.MethodPut {
			err = registry.ErrManifestUnknown // no manifest can have such a tag (end-3: 404)
		}
	case KindUpload:
		if req.UploadID = last; !uploadPattern().MatchString(last) {
			err = registry.ErrBlobUploadUnknown
		}
	}
	return err
}

// parseQuery reads the parameters that the kind of path has; others are ignored.
func (req *Request) parseQuery(method, query string) error {
	req.Page.N = registry.MaxPage
	if query == "" {
		if req.Kind == KindUpload && method == http.MethodPut {
			return errNoDigest
		}
		return nil
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return badQuery("the query is malformed")
	}
	get := func(key string) string {
		v := values[key]
		if len(v) > 1 || len(v) == 1 && len(v[0]) > maxParam {
			err = badQuery("query parameter %s: given twice, or longer than %d bytes", key, maxParam)
		}
		return values.Get(key)
	}
	switch req.Kind {
	case KindTags, KindCatalog:
		req.Page.Last = get("last")
		if n := get("n"); err == nil && values.Has("n") {
			req.Page.N, err = parseN(n)
		}
	case KindReferrers:
		req.ArtifactType, req.Page.Last = get("artifactType"), get("last")
	case KindUploads:
		if d, mount := get("digest"), get("mount"); err == nil {
			err = req.parseUploads(d, mount, get("from"))
		}
	case KindUpload:
		if d := get("digest"); err == nil && method == http.MethodPut {
			req.Digest, err = registry.ParseDigest(d)
		}
	}
	return err
}

// errNoDigest is a PUT that does not say what it ends.
var errNoDigest = registry.ErrDigestInvalid.WithMessage("query parameter digest: missing")

func badQuery(format string, args ...any) *registry.Error {
	e := registry.ErrUnsupported.WithMessage(format, args...)
	e.Status = http.StatusBadRequest
	return e
}

// parseUploads reads the three ways to start an upload: in one request, by a mount, or as a session.
func (req *Request) parseUploads(digest, mount, from string) (err error) {
	if digest != "" {
		if req.Digest, err = registry.ParseDigest(digest); err != nil {
			return err
		}
	}
	// What cannot be mounted becomes a session (end-11), and nothing can be mounted under a name that nothing has.
	if m, err := registry.ParseDigest(mount); err == nil && (from == "" || registry.ValidateRepository(from) == nil) {
		req.Mount, req.From = m, from
	}
	return nil
}

// parseN reads the size of a page. What is too large is cut, what is no number or negative is refused.
func parseN(s string) (int, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, registry.ErrPageInvalid.WithMessage("query parameter n: want a number from 0 to %d", registry.MaxPage)
	}
	n, err := strconv.Atoi(s)
	if err != nil { // digits only, so it is out of range
		n = registry.MaxPage
	}
	return min(n, registry.MaxPage), nil
}
