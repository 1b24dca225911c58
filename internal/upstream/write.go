package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/regclient/regclient/scheme/reg"
	"github.com/regclient/regclient/types/descriptor"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// slowest is the rate in bytes a second that a body is given time for: what the kernel has taken of it is not yet over
// the link, so that silence says nothing for as long as that takes.
const slowest = 2 << 10

// write is a request that changes something at the parent.
type write struct {
	method string
	target string // path and query
	header http.Header
	length int64
	body   func() (io.ReadCloser, error) // nil for none; called again when the parent asks for a credential first
	failed error                         // of the connection; it is not for regclient to try again
}

// dress makes our request of the one that regclient made to authorise it.
func (w *write) dress(req *http.Request, origin string) (*http.Request, error) {
	target, err := url.Parse(origin + w.target)
	if err != nil {
		return nil, err
	}
	out := req.Clone(req.Context())
	out.Method, out.URL, out.Host = w.method, target, target.Host
	for name, values := range w.header {
		out.Header[name] = values
	}
	out.Body, out.ContentLength, out.GetBody = http.NoBody, 0, nil
	if w.body != nil && w.length > 0 {
		if out.Body, err = w.body(); err != nil {
			return nil, err
		}
		out.ContentLength = w.length
	}
	return out, nil
}

// send makes one request that changes something, and returns the answer, of whatever status but 401. regclient adds the
// credential: it is given a request of its own that needs the same rights, and wire sends ours in its place.
//
// Errors: UNAVAILABLE, UNAUTHORIZED, the context's.
func (p *Parent) send(ctx context.Context, repo string, w *write) (*call, error) {
	if err := registry.ValidateRepository(repo); err != nil {
		return nil, err
	}
	c := &call{write: w}
	header := p.o.Transport.Timeouts.Header
	if header <= 0 {
		header = 20 * time.Second
	}
	ctx = transport.WithHeaderTimeout(ctx, header+time.Duration(w.length/slowest)*time.Second)
	err := p.run(ctx, c, registry.ErrUnsupported, func(ctx context.Context, r *reg.Reg) error {
		w.failed = nil
		return r.BlobDelete(ctx, p.ref(repo, registry.Reference{}), descriptor.Descriptor{Digest: standIn})
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// standIn is what regclient believes to delete.
const standIn = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

// target is a place at the parent from a Location: path and query alone. Behind proxies its host is often one that only
// the parent's side knows, and none but the parent is ever sent anything.
func target(location string) (string, error) {
	u, err := url.Parse(location)
	if err != nil || !strings.HasPrefix(u.EscapedPath(), "/") || u.Opaque != "" {
		return "", registry.ErrUnavailable.WithMessage("the parent answers with a Location that is no address: %q", clip(location))
	}
	return (&url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery}).String(), nil
}

// refuses turns an answer that is not what was hoped for into an error with the parent's own words. UNAVAILABLE and
// UNAUTHORIZED may pass; every other code is a no.
func (p *Parent) refuses(c *call) *registry.Error {
	said := parseError(c.body)
	why := said.Message
	if why == "" {
		why = http.StatusText(c.status)
	}
	text := func(e *registry.Error) *registry.Error {
		return e.WithMessage("%s answers HTTP %d: %s", p.host, c.status, clip(why))
	}
	switch s := c.status; {
	case isAway(s):
		return text(registry.ErrUnavailable).WithRetryAfter(transport.RetryAfter(c.header))
	case s == http.StatusRequestedRangeNotSatisfiable:
		return text(registry.ErrRangeInvalid)
	case s == http.StatusRequestEntityTooLarge:
		return text(registry.ErrSizeInvalid)
	case s == http.StatusPreconditionFailed && demands(c.write): // else it is a rule of the parent's
		return text(registry.ErrPrecondition)
	case said.Code != "" && s >= 400:
		return text(&registry.Error{Code: said.Code})
	case s == http.StatusForbidden:
		return text(registry.ErrDenied)
	case s == http.StatusConflict:
		return text(registry.ErrConflict)
	}
	return text(registry.ErrUnsupported)
}

// PutManifest is as registry.Writer has it. The parent's word for it is taken when it names the digest, or when it answers
// a HEAD with it.
//
// Errors: those of refuses; UNAVAILABLE for an answer that does not name the digest.
func (p *Parent) PutManifest(ctx context.Context, repo string, ref registry.Reference, m registry.Manifest) (registry.Descriptor, error) {
	want, refs, err := registry.NewManifest(m.MediaType, m.Bytes)
	if err != nil {
		return registry.Descriptor{}, err
	}
	if ref.Digest != "" {
		want.Digest = ref.Digest
	}
	header := http.Header{"Content-Type": {m.MediaType}}
	if ref.Tag != "" {
		demand(ctx, header)
	}
	c, err := p.send(ctx, repo, &write{
		method: http.MethodPut, target: "/v2/" + repo + "/manifests/" + ref.String(), header: header,
		length: int64(len(m.Bytes)), body: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(m.Bytes))), nil },
	})
	if err != nil {
		return registry.Descriptor{}, err
	}
	if c.status != http.StatusCreated {
		return registry.Descriptor{}, p.refuses(c)
	}
	said := c.header.Get("Docker-Content-Digest")
	if said == "" {
		d, err := p.ResolveManifest(ctx, repo, ref)
		if err != nil {
			return registry.Descriptor{}, err
		}
		said = d.Digest.String()
	}
	if said != want.Digest.String() {
		return registry.Descriptor{}, p.lies(want.Digest, said)
	}
	if c.header.Get("Oci-Subject") != "" {
		p.sawList()
	} else if refs.Subject != nil {
		return want.Descriptor, p.refer(ctx, repo, refs.Subject.Digest, registry.ReferrerDescriptor(want.Descriptor, refs))
	}
	return want.Descriptor, nil
}

// demand adds the precondition of a request that changes a tag.
func demand(ctx context.Context, h http.Header) {
	p := registry.PreconditionFrom(ctx)
	if p.Match != "" {
		h.Set("If-Match", p.Match)
	}
	if p.NoneMatch != "" {
		h.Set("If-None-Match", p.NoneMatch)
	}
}

// demands reports whether a request has a precondition.
func demands(w *write) bool {
	return w != nil && (w.header.Get("If-Match") != "" || w.header.Get("If-None-Match") != "")
}

// lies is the error of a parent that says that it has stored something else.
func (p *Parent) lies(want registry.Digest, said string) error {
	return registry.ErrUnavailable.WithMessage("%s says that it stored %s as %q", p.host, want, clip(said))
}

// DeleteManifest implements registry.Deleter. At a parent that does not keep lists of referrers itself the manifest is
// taken off the one that it is in.
func (p *Parent) DeleteManifest(ctx context.Context, repo string, d registry.Digest) error {
	if err := p.unrefer(ctx, repo, d); err != nil {
		return err
	}
	return p.delete(ctx, repo, "/v2/"+repo+"/manifests/"+d.String(), registry.ErrManifestUnknown, nil)
}

// DeleteTag implements registry.Deleter. Azure Container Registry has an API of its own for it.
func (p *Parent) DeleteTag(ctx context.Context, repo, tag string) error {
	p.mu.Lock()
	kind := p.kind
	p.mu.Unlock()
	path := "/v2/" + repo + "/manifests/" + tag
	if kind == registry.KindACR {
		path = "/acr/v1/" + repo + "/_tags/" + tag
	}
	header := http.Header{}
	demand(ctx, header)
	return p.delete(ctx, repo, path, registry.ErrManifestUnknown, header)
}

// DeleteBlob implements registry.Deleter.
func (p *Parent) DeleteBlob(ctx context.Context, repo string, d registry.Digest) error {
	return p.delete(ctx, repo, "/v2/"+repo+"/blobs/"+d.String(), registry.ErrBlobUnknown, nil)
}

func (p *Parent) delete(ctx context.Context, repo, path string, unknown *registry.Error, h http.Header) error {
	c, err := p.send(ctx, repo, &write{method: http.MethodDelete, target: path, header: h})
	switch {
	case err != nil:
		return err
	case c.status >= 200 && c.status < 300:
		return nil
	case c.status == http.StatusNotFound:
		return unknown.WithMessage("%s at %s", unknown.Message, p.host)
	}
	return p.refuses(c)
}

// MountBlob is as registry.Writer has it.
func (p *Parent) MountBlob(ctx context.Context, repo, from string, d registry.Digest) (registry.Descriptor, error) {
	s, err := p.begin(ctx, repo, d, from)
	if err != nil {
		return registry.Descriptor{}, err
	}
	if s != nil {
		return registry.Descriptor{}, errors.Join(registry.ErrBlobUnknown.WithMessage("%s has no %s in %s", p.host, d, from), s.cancel(ctx))
	}
	return p.ResolveBlob(ctx, repo, d)
}
