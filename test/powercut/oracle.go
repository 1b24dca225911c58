package powercut

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// fact is what is known of one path: what the last acknowledged request made of it, and what requests without an
// answer may have made of it since. A value is a digest; "" is that nothing is there.
type fact struct {
	acked   string
	pending []string
}

// oracle is what clients know. A path is written by one client only, so that its history is a line.
type oracle struct {
	mu     sync.Mutex
	facts  map[string]*fact
	acks   int // requests that were acknowledged or seen
	served int // tags that were found whole
	lost   []string
	wrong  []string // other or short bytes, served as if they were right
	broken []string // tags that are served and lack a part
}

func newOracle() *oracle { return &oracle{facts: map[string]*fact{}} }

// try notes that a request is under way that gives each of the paths a value.
func (o *oracle) try(value string, paths ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range paths {
		f := o.facts[p]
		if f == nil {
			f = &fact{}
			o.facts[p] = f
		}
		f.pending = append(f.pending, value)
	}
}

// ack notes that it was acknowledged.
func (o *oracle) ack(value string, paths ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.acks++
	for _, p := range paths {
		f := o.facts[p]
		f.acked = value
		// What was tried before has been overtaken; of a tag that the parent moves, later values stay possible.
		f.pending = f.pending[slices.Index(f.pending, value)+1:]
	}
}

func (o *oracle) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.acks
}

// problems is how much went wrong.
func (o *oracle) problems() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Concat(o.lost, o.wrong, o.broken)
}

// verify reads back every path.
func (o *oracle) verify(ctx context.Context, c *client) error {
	o.mu.Lock()
	paths := make([]string, 0, len(o.facts))
	for p := range o.facts {
		paths = append(paths, p)
	}
	o.mu.Unlock()
	return each(paths, func(path string) error {
		a, err := c.do(ctx, http.MethodGet, path, "", nil)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return o.settle(path, a)
	})
}

// each runs fn for all with a few at once.
func each(all []string, fn func(string) error) error {
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for w := range errs {
		wg.Go(func() {
			for i := w; i < len(all) && errs[w] == nil; i += len(errs) {
				errs[w] = fn(all[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// complete counts the wrong bytes that were served to their end; what breaks off misleads nobody.
func (o *oracle) complete() (n int) {
	for _, w := range o.wrong {
		if !strings.Contains(w, "short true") {
			n++
		}
	}
	return n
}

// settle compares an answer with what is known of the path, and takes it as what is known from now on.
func (o *oracle) settle(path string, a answer) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	f := o.facts[path]
	allowed := append([]string{f.acked}, f.pending...)
	found := ""
	switch a.status {
	case http.StatusOK:
		found = string(digestOf(a.body))
		if a.short || !slices.Contains(allowed, found) {
			o.wrong = append(o.wrong, fmt.Sprintf("%s: %d bytes of %s, short %t, want one of %q", path, len(a.body), found, a.short, allowed))
			return nil
		}
	case http.StatusNotFound:
		if !slices.Contains(allowed, "") {
			o.lost = append(o.lost, fmt.Sprintf("%s: %s, want one of %q", path, strings.TrimSpace(string(a.body)), allowed))
			f.acked, f.pending = "", slices.DeleteFunc(allowed, func(v string) bool { return v == "" }) // it may come again
			return nil
		}
	default:
		return fmt.Errorf("%s: status %d: %s", path, a.status, a.body)
	}
	if later := slices.Index(f.pending, found); later >= 0 {
		f.pending = f.pending[later+1:]
	}
	f.acked = found
	if !strings.Contains(path, syncedRepo) {
		f.pending = nil // nobody has a request under way now; only the parent's tags may still come
	}
	return nil
}

// walk reads every tag that the registry lists, with all that belongs to it.
func (o *oracle) walk(ctx context.Context, c *client) error {
	var repos struct{ Repositories []string }
	if err := c.list(ctx, "/v2/_catalog?n=1000", &repos); err != nil {
		return err
	}
	for _, repo := range repos.Repositories {
		var tags struct{ Tags []string }
		if err := c.list(ctx, "/v2/"+repo+"/tags/list?n=1000", &tags); err != nil {
			return err
		}
		err := each(tags.Tags, func(tag string) error {
			missing, err := o.part(ctx, c, repo, "/v2/"+repo+"/manifests/"+tag, "")
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.served++; missing != "" {
				o.broken = append(o.broken, fmt.Sprintf("%s:%s lacks %s", repo, tag, missing))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// part reads a manifest and what is below it, and says what is not there or has other bytes.
func (o *oracle) part(ctx context.Context, c *client, repo, path string, want registry.Digest) (missing string, err error) {
	a, err := c.do(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return "", err
	}
	if a.status != http.StatusOK || a.short || (want != "" && digestOf(a.body) != want) {
		return fmt.Sprintf("%s (status %d, %d bytes)", path, a.status, len(a.body)), nil
	}
	refs, err := registry.ParseManifest(a.header.Get("Content-Type"), a.body)
	if err != nil {
		return "", err
	}
	for _, m := range refs.Manifests {
		if missing, err = o.part(ctx, c, repo, "/v2/"+repo+"/manifests/"+m.Digest.String(), m.Digest); missing != "" || err != nil {
			return missing, err
		}
	}
	for _, b := range refs.Blobs {
		a, err := c.do(ctx, http.MethodGet, "/v2/"+repo+"/blobs/"+b.Digest.String(), "", nil)
		if err != nil {
			return "", err
		}
		if a.status != http.StatusOK || a.short || digestOf(a.body) != b.Digest {
			return fmt.Sprintf("%s (status %d, %d of %d bytes)", b.Digest, a.status, len(a.body), b.Size), nil
		}
	}
	return "", nil
}

// saw notes a value that a client has read of a path that somebody else writes; false when it cannot be.
func (o *oracle) saw(path, value string) bool {
	o.mu.Lock()
	f := o.facts[path]
	known := f.acked == value
	coming := slices.Contains(f.pending, value)
	o.mu.Unlock()
	if coming {
		o.ack(value, path)
	}
	return known || coming
}
