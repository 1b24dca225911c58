package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

const (
	maxErrorBody = 16 << 10
	maxToken     = 1 << 20
	// maxPages bounds the pages of one list.
	maxPages = 10_000
)

// call is one operation at the parent: what the transport has to know of it, and what it saw, which regclient does not
// hand on (status, Retry-After, the body of a blob).
type call struct {
	blob   bool   // the answer's body is handed over unread in response
	offset int64  // of a blob
	pages  bool   // follows links from page to page
	write  *write // what is sent in place of regclient's request; nil for a question

	tokens   int // token requests that were made before this call
	status   int // of the last answer; 0 for none
	header   http.Header
	body     []byte // of the last answer, unless it is a blob
	response *http.Response
	bearer   bool  // the last request had a token
	trouble  error // the first failure that says nothing about content, also where regclient went on after it
	seen     map[string]bool
}

// begin forgets what an earlier attempt saw.
func (c *call) begin(w *wire) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*c = call{blob: c.blob, offset: c.offset, pages: c.pages, write: c.write, tokens: w.tokens, seen: map[string]bool{}}
}

type callKey struct{}

func withCall(ctx context.Context, c *call) context.Context {
	if c.blob {
		ctx = transport.WithBlob(ctx)
	}
	return context.WithValue(ctx, callKey{}, c)
}

// wire is between regclient and the transport. regclient never sees a body that can break off (it would leak a slot
// and hang), a Retry-After (it would obey any), or a blob.
type wire struct {
	next         http.RoundTripper
	clock        clock.Clock
	scheme, host string
	user         string
	password     registry.Secret
	sourceClient string
	basic        atomic.Bool // the parent takes Basic: no need to be asked first

	mu       sync.Mutex
	refused  map[string]time.Time // token requests that were refused, by address
	tokenErr error                // of the last token request; nil when it was good
	tokens   int                  // how many there were
}

// headerSourceClient is how Azure Container Registry learns which software asks.
const headerSourceClient = "X-Meta-Source-Client"

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	c, _ := req.Context().Value(callKey{}).(*call)
	if c == nil {
		return w.token(req)
	}
	req = req.Clone(req.Context())
	own := req.URL.Scheme == w.scheme && req.URL.Host == w.host
	if own && w.user != "" && w.basic.Load() && req.Header.Get("Authorization") == "" {
		req.SetBasicAuth(w.user, w.password.Reveal())
	}
	if own && w.sourceClient != "" {
		req.Header.Set(headerSourceClient, w.sourceClient)
	}
	c.bearer = strings.HasPrefix(req.Header.Get("Authorization"), "Bearer ")
	if c.blob && c.offset > 0 && req.Method == http.MethodGet {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(c.offset, 10)+"-")
	}
	if c.pages && len(c.seen) >= maxPages {
		return nil, c.fail(registry.ErrSizeInvalid.WithMessage("%s: the list has more than %d pages", req.URL.Host, maxPages))
	}
	if registry.IsLocal(req.Context()) {
		req.Header.Set("Cache-Control", "only-if-cached")
	}
	c.status, c.header, c.body = 0, nil, nil
	resp, err := w.exchange(c, req)
	if err != nil {
		return nil, c.fail(err)
	}
	if own && resp.StatusCode == http.StatusUnauthorized && offers(resp.Header, "basic") {
		w.basic.Store(true)
	}
	resp, err = w.take(c, req, resp)
	if err == nil && c.write != nil && resp.StatusCode != http.StatusUnauthorized {
		return answered(resp), nil
	}
	return resp, err
}

// exchange sends a request, or in its place the one that changes something: once, since regclient would send it again
// after a cut without knowing what arrived.
func (w *wire) exchange(c *call, req *http.Request) (*http.Response, error) {
	if c.write == nil {
		return w.next.RoundTrip(req)
	}
	if c.write.failed != nil {
		return nil, c.write.failed
	}
	own, err := c.write.dress(req, w.scheme+"://"+w.host)
	if err != nil {
		c.write.failed = err
		return nil, err
	}
	resp, err := w.next.RoundTrip(own)
	c.write.failed = err
	return resp, err
}

// answered is what regclient is told of an answer that is read from the call.
func answered(resp *http.Response) *http.Response {
	empty := *resp
	empty.StatusCode, empty.Status = http.StatusAccepted, "202 Accepted"
	empty.Header, empty.ContentLength, empty.Body = http.Header{}, 0, http.NoBody
	return &empty
}

func (c *call) fail(err error) error {
	if c.trouble == nil {
		c.trouble = err
	}
	return err
}

// take reads the answer, or keeps a blob's body for the reader and gives regclient an empty one.
func (w *wire) take(c *call, req *http.Request, resp *http.Response) (*http.Response, error) {
	c.status, c.header = resp.StatusCode, resp.Header.Clone()
	resp.Header.Del("Retry-After")
	if c.blob && req.Method == http.MethodGet {
		switch resp.StatusCode {
		case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
			return c.keep(resp), nil
		}
	}
	good := resp.StatusCode >= 200 && resp.StatusCode < 300
	var src io.Reader = resp.Body
	if !good {
		src = io.LimitReader(resp.Body, maxErrorBody)
	}
	body, err := io.ReadAll(src)
	_ = resp.Body.Close()
	if err != nil && good {
		return nil, c.fail(err)
	}
	c.body = body
	resp.Body = io.NopCloser(bytes.NewReader(body))
	if good && req.Method == http.MethodGet {
		resp.ContentLength = int64(len(body))
		resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
		key := req.URL.String()
		if c.pages && c.seen[key] {
			return nil, c.fail(registry.ErrSizeInvalid.WithMessage("%s: the list comes back to the page %s", req.URL.Host, req.URL.RawQuery))
		}
		c.seen[key] = true
	}
	switch s := resp.StatusCode; {
	case isAway(s):
		_ = c.fail(away(req.URL.Host, s, c.header))
	case s == http.StatusForbidden:
		_ = c.fail(registry.ErrDenied.WithMessage("%s denies this operation%s", req.URL.Host, reason(body)))
	}
	return resp, nil
}

// keep takes the response away and returns an empty one in its place.
func (c *call) keep(resp *http.Response) *http.Response {
	c.response = resp
	empty := *resp
	empty.StatusCode, empty.Status = http.StatusOK, "200 OK"
	empty.Header = resp.Header.Clone()
	for _, name := range []string{"Content-Length", "Content-Range", "Content-Encoding"} {
		empty.Header.Del(name)
	}
	empty.ContentLength, empty.Body = 0, http.NoBody
	return &empty
}

// token is a request of regclient to a token server, which comes without a context of ours. One that was refused is
// not sent again for a minute.
func (w *wire) token(req *http.Request) (*http.Response, error) {
	key := req.URL.String()
	w.mu.Lock()
	at, known := w.refused[key]
	w.mu.Unlock()
	if known && w.clock.Now().Sub(at).Abs() < renewEvery {
		return nil, w.tokenFailed(registry.ErrUnauthorized.WithMessage("the token server %s refused the credential less than a minute ago", req.URL.Host))
	}
	resp, err := w.next.RoundTrip(req.WithContext(transport.WithMaxBody(req.Context(), maxToken)))
	if err != nil {
		return nil, w.tokenFailed(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		return nil, w.tokenFailed(err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	switch {
	case isAway(resp.StatusCode):
		return nil, w.tokenFailed(away(req.URL.Host, resp.StatusCode, resp.Header))
	case resp.StatusCode >= 400:
		w.mu.Lock()
		if len(w.refused) > 256 {
			clear(w.refused)
		}
		w.refused[key] = w.clock.Now()
		w.mu.Unlock()
		_ = w.tokenFailed(registry.ErrUnauthorized.WithMessage("the token server %s refuses the credential with HTTP %d%s", req.URL.Host, resp.StatusCode, reason(body)))
	case resp.StatusCode < 300:
		_ = w.tokenFailed(nil)
	}
	return resp, nil
}

// forgive lets token requests that were refused be made again, with another credential.
func (w *wire) forgive() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.refused)
}

// tokenFailed remembers the result of a token request: regclient reports some of them as a plain "unauthorized".
func (w *wire) tokenFailed(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tokenErr = err
	w.tokens++
	return err
}

// tokenTrouble returns what was wrong with the last token request if that was made since.
func (w *wire) tokenTrouble(since int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tokens <= since {
		return nil
	}
	return w.tokenErr
}

// madeToken reports whether a token was made since, and the last request for one was good.
func (w *wire) madeToken(since int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tokens > since && w.tokenErr == nil
}

// offers reports whether a challenge has the scheme, in lower case.
func offers(h http.Header, scheme string) bool {
	for _, v := range h.Values("Www-Authenticate") {
		if name, _, _ := strings.Cut(strings.TrimSpace(v), " "); strings.EqualFold(name, scheme) {
			return true
		}
	}
	return false
}

// wireError is the first entry of an error body (OCI distribution spec, "Error codes").
type wireError struct {
	Code    registry.Code `json:"code"`
	Message string        `json:"message"`
}

func parseError(body []byte) wireError {
	var doc struct {
		Errors []wireError `json:"errors"`
	}
	if json.Unmarshal(body, &doc) != nil || len(doc.Errors) == 0 {
		return wireError{}
	}
	return doc.Errors[0]
}

// reason is what an error body says, cut to a line, or nothing.
func reason(body []byte) string {
	e := parseError(body)
	text := strings.TrimSpace(e.Message)
	if text == "" {
		text = string(e.Code)
	}
	if text == "" {
		return ""
	}
	const limit = 200
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "..."
	}
	return fmt.Sprintf(": %q", text)
}
