package upstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/regclient/regclient/scheme/reg"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

const (
	// maxScopeQuery bounds the repository parameters in bytes: proxies between layers take 8 KiB of a request line.
	maxScopeQuery = 6 << 10
	// maxWait bounds a long poll, as the layer above does.
	maxWait = 55 * time.Second
	// maxUnzipped bounds what a compressed answer may become, in bytes.
	maxUnzipped = 16 << 20
)

// Probe finds out what kind of registry the parent is, and whether it takes the credential.
//
// Errors: CONFLICT as a connected registry gives it, when the two do not fit together; UNAUTHORIZED, DENIED;
// UNSUPPORTED for a host that is no registry; UNAVAILABLE.
func (p *Parent) Probe(ctx context.Context) (registry.ParentStatus, registry.LayerInfo, error) {
	status := registry.ParentStatus{GatewayEndpoint: p.o.Endpoint, Protocol: p.o.Protocol}
	info, ours, err := p.askLayer(ctx)
	if err != nil {
		return status, registry.LayerInfo{}, err
	}
	kind := registry.KindConnected
	if ours {
		status.Mode, status.InstanceID = info.Mode, info.InstanceID
	} else if kind, err = p.foreign(ctx); err != nil {
		return status, registry.LayerInfo{}, err
	}
	status.Kind = kind
	p.mu.Lock()
	p.kind = kind
	p.mu.Unlock()
	return status, info, nil
}

// askLayer asks what a connected registry answers and no other registry does.
func (p *Parent) askLayer(ctx context.Context) (info registry.LayerInfo, ours bool, err error) {
	c, err := p.ask(ctx, registry.LayerPath, nil, true)
	if err != nil {
		return info, false, err
	}
	switch {
	case c.status == http.StatusOK:
		body, err := unzip(c)
		if err != nil || json.Unmarshal(body, &info) != nil || info.APIVersion == "" || info.InstanceID == "" {
			return registry.LayerInfo{}, false, nil
		}
		if p.o.Username != "" {
			p.wire.basic.Store(true) // it took it: no need to be asked first
		}
		return info, true, nil
	case c.status == http.StatusUnauthorized && offers(c.header, "bearer"):
		return info, false, nil // a token server decides; asked about below
	case c.status == http.StatusConflict:
		return info, false, p.conflict(c)
	case c.status == http.StatusUnauthorized, isAway(c.status):
		return info, false, p.refusal(c, registry.ErrUnsupported)
	}
	return info, false, nil
}

// foreign tells Azure Container Registry from others, and checks that it is a registry and takes the credential.
func (p *Parent) foreign(ctx context.Context) (registry.ParentKind, error) {
	var c call
	err := p.run(ctx, &c, registry.ErrUnsupported.WithMessage("%s is no registry: it does not know /v2/", p.host), func(ctx context.Context, r *reg.Reg) error {
		_, err := r.Ping(ctx, p.ref("", registry.Reference{}))
		return err
	})
	if err != nil {
		return registry.KindUnknown, err
	}
	acr, err := p.ask(ctx, "/acr/v1/_catalog", url.Values{"n": {"1"}}, false)
	if err != nil {
		return registry.KindUnknown, err
	}
	if isACR(acr) {
		return registry.KindACR, nil
	}
	return registry.KindOCI, nil
}

// isACR knows the metadata API by its answer, with and without access (it is asked without a credential).
func isACR(c *call) bool {
	switch c.status {
	case http.StatusOK:
		var doc struct {
			Registry     string    `json:"registry"`
			Repositories *[]string `json:"repositories"`
		}
		return json.Unmarshal(c.body, &doc) == nil && doc.Registry != "" && doc.Repositories != nil
	case http.StatusUnauthorized:
		return slices.ContainsFunc(c.header.Values("Www-Authenticate"), func(v string) bool {
			return strings.HasPrefix(strings.ToLower(v), "bearer ") && strings.Contains(v, "/oauth2/token\"")
		})
	}
	return false
}

// Changes asks a connected registry what changed since a cursor. An unchanged answer costs one request of a few
// hundred bytes.
//
// Errors: UNSUPPORTED for a parent of another kind; otherwise as Probe.
func (p *Parent) Changes(ctx context.Context, req registry.ChangesRequest) (registry.Changes, error) {
	p.mu.Lock()
	kind := p.kind
	p.mu.Unlock()
	if kind != registry.KindConnected && kind != registry.KindUnknown {
		return registry.Changes{}, registry.ErrUnsupported.WithMessage("%s is no connected registry: it has no list of changes", p.host)
	}
	wait := min(max(req.Wait, 0), maxWait).Truncate(time.Second)
	q := url.Values{"repository": req.Scope}
	if len(q.Encode()) > maxScopeQuery {
		q.Del("repository") // the answer is then about all that may be read, and filtered by whoever asked
	}
	if req.Since != "" {
		q.Set("since", req.Since)
	}
	if wait > 0 {
		q.Set("wait", strconv.Itoa(int(wait/time.Second)))
	}
	header := p.o.Transport.Timeouts.Header
	if header <= 0 {
		header = 20 * time.Second
	}
	c, err := p.ask(transport.WithHeaderTimeout(ctx, wait+header), registry.LayerPath+"changes", q, true)
	if err != nil {
		return registry.Changes{}, err
	}
	switch c.status {
	case http.StatusNotModified:
		cursor := req.Since
		if tag, err := strconv.Unquote(c.header.Get("Etag")); err == nil && tag != "" {
			cursor = tag // what changed is outside the scope, and need not be looked at again
		}
		return registry.Changes{Cursor: cursor}, nil
	case http.StatusOK:
		return p.parseChanges(c)
	}
	return registry.Changes{}, p.refusal(c, registry.ErrUnsupported.WithMessage("%s has no list of changes", p.host))
}

// parseChanges reads the answer and drops entries that are not well formed.
func (p *Parent) parseChanges(c *call) (registry.Changes, error) {
	var changes registry.Changes
	body, err := unzip(c)
	if err == nil {
		err = json.Unmarshal(body, &changes)
	}
	if err != nil || changes.Cursor == "" {
		return registry.Changes{}, registry.ErrUnavailable.WithMessage("the answer of %s is no list of changes", p.host).Wrap(err)
	}
	all := len(changes.Entries)
	changes.Entries = slices.DeleteFunc(changes.Entries, func(e registry.Change) bool { return !wellFormed(e) })
	if n := all - len(changes.Entries); n > 0 {
		p.log.Warn("the parent's list of changes has entries that are not well formed", "parent", p.host, "dropped", n)
	}
	return changes, nil
}

// wellFormed checks what becomes part of requests and file names.
func wellFormed(e registry.Change) bool {
	digest := func(d registry.Digest) bool {
		_, err := registry.ParseDigest(string(d))
		return err == nil
	}
	if registry.ValidateRepository(e.Repository) != nil || (e.Tag == "") == (e.Subject == "") {
		return false
	}
	if e.Subject != "" {
		return digest(e.Subject) && digest(e.Digest)
	}
	return registry.ValidateTag(e.Tag) == nil && (e.Digest == "" || digest(e.Digest))
}

// ask sends one GET of our own to the parent. With introduce it carries the credential, unasked, and says who we are.
// An answer of any status is no error.
func (p *Parent) ask(ctx context.Context, path string, query url.Values, introduce bool) (*call, error) {
	return p.question(ctx, http.MethodGet, path, query, nil, introduce)
}

// question is ask with any method, and with a body unless it is nil.
func (p *Parent) question(ctx context.Context, method, path string, query url.Values, body []byte, introduce bool) (*call, error) {
	c := &call{}
	c.begin(p.wire)
	target := p.origin + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	var content io.Reader
	if body != nil {
		content = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(withCall(ctx, c), method, target, content)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if introduce {
		req.Header.Set("Accept-Encoding", "gzip")
		for name, value := range map[string]string{
			registry.HeaderChildName: p.o.Name, registry.HeaderChildInstance: p.o.InstanceID, registry.HeaderChildMode: string(p.o.Mode),
		} {
			if value != "" {
				req.Header.Set(name, value)
			}
		}
		if p.relay.Load() != nil { // the header has to differ where nothing was settled, or the question is held
			req.Header.Set(registry.HeaderRelay, p.settledRelay())
		}
		if err := p.introduce(ctx, req, path); err != nil {
			return nil, err
		}
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return nil, p.explain(ctx, c, err, registry.ErrUnsupported)
	}
	_ = resp.Body.Close() // it is in c.body
	if v := c.header.Get(registry.HeaderRelay); introduce && v != "" {
		p.relay.Store(&v)
	}
	return c, nil
}

// unzip returns the body of an answer as it was before compression.
func unzip(c *call) ([]byte, error) {
	if c.header.Get("Content-Encoding") != "gzip" {
		return c.body, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(c.body))
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(z, maxUnzipped+1))
	if err == nil && len(body) > maxUnzipped {
		err = registry.ErrSizeInvalid.WithMessage("the answer unpacks to more than %d bytes", maxUnzipped)
	}
	return body, err
}

// clip bounds a text of the parent.
func clip(s string) string {
	const limit = 300
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}
