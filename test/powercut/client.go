package powercut

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// client speaks the distribution protocol, and nothing else: no retry, no cache.
type client struct {
	base string // http://host:port
	http *http.Client
}

func newClient(addr string) *client {
	return &client{base: "http://" + addr, http: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 8}}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// answer is a whole answer.
type answer struct {
	status int
	header http.Header
	body   []byte
	short  bool // the body ended before its announced length
}

func (c *client) do(ctx context.Context, method, path, contentType string, body []byte) (answer, error) {
	url := path
	if len(path) > 0 && path[0] == '/' {
		url = c.base + path
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.SetBasicAuth(user, password)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for _, t := range []string{
		registry.MediaTypeImageManifest, registry.MediaTypeImageIndex, registry.MediaTypeDockerManifest, registry.MediaTypeDockerList,
	} {
		req.Header.Add("Accept", t)
	}
	resp, err := c.http.Do(req)
	if method == http.MethodGet && errors.Is(err, io.EOF) {
		return answer{status: http.StatusOK, short: true}, nil // the server gave up before the first byte
	}
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		a.short, err = true, nil
	}
	return a, err
}

// want makes an error of an answer with another status.
func (a answer) want(what string, status int) error {
	if a.status == status {
		return nil
	}
	return &refusal{what: what, status: a.status, body: string(a.body[:min(len(a.body), 300)])}
}

// refusal is an answer that was not the one of success.
type refusal struct {
	what   string
	status int
	body   string
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: status %d: %s", r.what, r.status, r.body) }

// pushBlob uploads a blob in one or, with chunks above 1, several requests.
func (c *client) pushBlob(ctx context.Context, repo string, b registrytest.Blob, chunks int) error {
	a, err := c.do(ctx, http.MethodPost, "/v2/"+repo+"/blobs/uploads/", "", nil)
	if err == nil {
		err = a.want("start of an upload", http.StatusAccepted)
	}
	if err != nil {
		return err
	}
	rest := b.Bytes
	for ; chunks > 1 && len(rest) > 1; chunks-- {
		n := len(rest) / chunks
		if a, err = c.do(ctx, http.MethodPatch, c.location(a), "application/octet-stream", rest[:n]); err != nil {
			return err
		}
		if err := a.want("chunk", http.StatusAccepted); err != nil {
			return err
		}
		rest = rest[n:]
	}
	to := c.location(a)
	sep := "?"
	if bytes.ContainsRune([]byte(to), '?') {
		sep = "&"
	}
	if a, err = c.do(ctx, http.MethodPut, to+sep+"digest="+b.Digest.String(), "application/octet-stream", rest); err != nil {
		return err
	}
	return a.want("end of an upload", http.StatusCreated)
}

func (c *client) location(a answer) string { return a.header.Get("Location") }

func (c *client) mount(ctx context.Context, repo, from string, d registry.Digest) error {
	a, err := c.do(ctx, http.MethodPost, fmt.Sprintf("/v2/%s/blobs/uploads/?mount=%s&from=%s", repo, d, from), "", nil)
	if err != nil {
		return err
	}
	return a.want("mount", http.StatusCreated)
}

func (c *client) putManifest(ctx context.Context, repo, ref string, m registry.Manifest) error {
	a, err := c.do(ctx, http.MethodPut, "/v2/"+repo+"/manifests/"+ref, m.MediaType, m.Bytes)
	if err != nil {
		return err
	}
	return a.want("manifest "+ref, http.StatusCreated)
}

func (c *client) remove(ctx context.Context, path string) error {
	a, err := c.do(ctx, http.MethodDelete, path, "", nil)
	if err != nil {
		return err
	}
	return a.want("delete "+path, http.StatusAccepted)
}

// push uploads an image or an index with all that it needs, the tag last.
func (c *client) push(ctx context.Context, repo, tag string, image registrytest.Image) error {
	for _, child := range image.Children {
		if err := c.push(ctx, repo, child.Digest.String(), child); err != nil {
			return err
		}
	}
	for _, b := range image.Blobs {
		if err := c.pushBlob(ctx, repo, b, 1); err != nil {
			return err
		}
	}
	return c.putManifest(ctx, repo, tag, image.Manifest)
}

func (c *client) list(ctx context.Context, path string, into any) error {
	a, err := c.do(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	if err := a.want(path, http.StatusOK); err != nil {
		return err
	}
	return json.Unmarshal(a.body, into)
}

func digestOf(body []byte) registry.Digest {
	sum := sha256.Sum256(body)
	return registry.Digest("sha256:" + hex.EncodeToString(sum[:]))
}
