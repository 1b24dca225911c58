package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// patience is how long a client waits for one answer, in simulated time. A request that takes longer hangs.
const patience = 3 * time.Minute

// client is someone who pushes and pulls, over a link of its own that is never broken.
type client struct {
	http *http.Client
	to   string
}

func (n *network) client(from, to string) *client {
	return &client{to: to, http: &http.Client{Transport: &http.Transport{DialContext: n.dialer(from), DisableKeepAlives: true, DisableCompression: true}}}
}

// reply is an answer; a connection that failed has none.
type reply struct {
	status int
	header http.Header
	body   []byte
	took   time.Duration
}

// verdict is what became of a request that changes something.
type verdict string

const (
	done    verdict = "done"    // acknowledged
	refused verdict = "refused" // by the registry: nothing changed
	unknown verdict = "unknown" // nobody told
)

// verdict of the answer: one that the disk or the shutdown gave in the middle is unknown.
func (r reply) verdict(err error) verdict {
	switch {
	case err != nil || r.status >= 500:
		return unknown
	case r.status/100 == 2:
		return done
	}
	return refused
}

// errHang is what no client may see.
var errHang = errors.New("no answer")

// ask sends one request.
func (c *client) ask(method, path, media string, body []byte) (reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.to+":5000"+path, bytes.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if media != "" {
		req.Header.Set("Content-Type", media)
	}
	req.Header.Set("Accept", accept)
	req.SetBasicAuth("floor", "open sesame")
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%s %s: %w in %v", method, path, errHang, patience)
		}
		return reply{}, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if ctx.Err() != nil {
		err = fmt.Errorf("%s %s: %w in %v", method, path, errHang, patience)
	}
	return reply{status: resp.StatusCode, header: resp.Header, body: got, took: time.Since(began)}, err
}

var accept = strings.Join([]string{registry.MediaTypeImageManifest, registry.MediaTypeImageIndex, registry.MediaTypeDockerManifest, registry.MediaTypeDockerList}, ", ")

// push uploads an artifact and gives it a tag; an empty tag leaves it by digest. Each of what is below the root counts
// for itself in the result: the first that is not done ends it.
func (c *client) push(repo, tag string, a artifact) (verdict, error) {
	for _, b := range a.blobs {
		if v, err := c.pushBlob(repo, b); v != done {
			return v, err
		}
	}
	for i, m := range a.manifests {
		ref := digestOf(m.body).String()
		if i == len(a.manifests)-1 && tag != "" {
			ref = tag
		}
		r, err := c.ask(http.MethodPut, "/v2/"+repo+"/manifests/"+ref, m.media, m.body)
		if v := r.verdict(err); v != done {
			return v, r.explain(err)
		}
	}
	return done, nil
}

// explain is an error with the text of the answer.
func (r reply) explain(err error) error {
	if err == nil && r.status/100 != 2 {
		err = fmt.Errorf("%d: %s", r.status, strings.TrimSpace(string(r.body)))
	}
	return err
}

// pushBlob uploads what is not there.
func (c *client) pushBlob(repo string, b []byte) (verdict, error) {
	d := digestOf(b)
	r, err := c.ask(http.MethodHead, "/v2/"+repo+"/blobs/"+d.String(), "", nil)
	if err == nil && r.status == http.StatusOK {
		return done, nil
	}
	if err != nil {
		return unknown, err
	}
	r, err = c.ask(http.MethodPost, "/v2/"+repo+"/blobs/uploads/", "", nil)
	if v := r.verdict(err); v != done {
		return v, r.explain(err)
	}
	at := r.header.Get("Location")
	if i := strings.Index(at, "/v2/"); i > 0 {
		at = at[i:]
	}
	sign := "?"
	if strings.Contains(at, "?") {
		sign = "&"
	}
	r, err = c.ask(http.MethodPut, at+sign+"digest="+d.String(), "application/octet-stream", b)
	return r.verdict(err), r.explain(err)
}

// drop deletes a tag or, by digest, a manifest.
func (c *client) drop(repo, ref string) (verdict, error) {
	r, err := c.ask(http.MethodDelete, "/v2/"+repo+"/manifests/"+ref, "", nil)
	return r.verdict(err), r.explain(err)
}

// resolve returns the digest of a reference; false when there is none.
func (c *client) resolve(repo, ref string) (registry.Digest, bool) {
	r, err := c.ask(http.MethodHead, "/v2/"+repo+"/manifests/"+ref, "", nil)
	return registry.Digest(r.header.Get("Docker-Content-Digest")), err == nil && r.status == http.StatusOK
}

// list returns the tags of a repository.
func (c *client) list(repo string) (map[string]registry.Digest, error) {
	r, err := c.ask(http.MethodGet, "/v2/"+repo+"/tags/list", "", nil)
	all := map[string]registry.Digest{}
	if err != nil || r.status == http.StatusNotFound {
		return all, err
	}
	var doc struct{ Tags []string }
	if err := json.Unmarshal(r.body, &doc); err != nil {
		return nil, fmt.Errorf("%d: %s: %w", r.status, r.body, err)
	}
	for _, tag := range doc.Tags {
		if d, ok := c.resolve(repo, tag); ok {
			all[tag] = d
		}
	}
	return all, nil
}

// tree is what a pull found: the root, and how long the slowest answer took.
type tree struct {
	root    registry.Digest
	slowest time.Duration
	absent  string // what is not there, when the pull failed with an answer
}

// errLie is content with another digest.
var errLie = errors.New("other content than its digest")

// pull reads a manifest and all below it. Errors: what went wrong with a connection, errLie, errHang; an answer that
// says no is in the tree.
func (c *client) pull(repo, ref string) (tree, error) {
	r, err := c.ask(http.MethodGet, "/v2/"+repo+"/manifests/"+ref, "", nil)
	t := tree{slowest: r.took}
	if err != nil {
		return t, err
	}
	if r.status != http.StatusOK {
		t.absent = fmt.Sprintf("%s/%s: %s", repo, ref, r.explain(nil))
		return t, nil
	}
	t.root = digestOf(r.body)
	if said := r.header.Get("Docker-Content-Digest"); said != t.root.String() || strings.HasPrefix(ref, "sha256:") && ref != said {
		return t, fmt.Errorf("%s %s: said %s and sent %s: %w", repo, ref, said, t.root, errLie)
	}
	var doc struct {
		Config    *registry.Descriptor
		Layers    []registry.Descriptor
		Manifests []registry.Descriptor
	}
	if err := json.Unmarshal(r.body, &doc); err != nil {
		return t, err
	}
	for _, m := range doc.Manifests {
		child, err := c.pull(repo, m.Digest.String())
		t.slowest, t.absent = max(t.slowest, child.slowest), child.absent
		if err != nil || t.absent != "" {
			return t, err
		}
	}
	if doc.Config != nil {
		doc.Layers = append(doc.Layers, *doc.Config)
	}
	for _, b := range doc.Layers {
		r, err := c.ask(http.MethodGet, "/v2/"+repo+"/blobs/"+b.Digest.String(), "", nil)
		t.slowest = max(t.slowest, r.took)
		if err != nil {
			return t, err
		}
		if r.status != http.StatusOK {
			t.absent = fmt.Sprintf("%s@%s: blob %s: %s", repo, t.root, b.Digest, r.explain(nil))
			return t, nil
		}
		if digestOf(r.body) != b.Digest {
			return t, fmt.Errorf("%s blob %s: %d bytes of %d: %w", repo, b.Digest, len(r.body), b.Size, errLie)
		}
	}
	return t, nil
}
