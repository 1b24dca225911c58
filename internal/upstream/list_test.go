package upstream_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

// lister serves a list as registries of different manners do.
type lister struct {
	key     string // tags or repositories
	entries []string
	ignoreN bool // gives everything
	noLast  bool // does not know last
	max     int  // entries of a page, whatever is asked for; 0 is no limit
}

func (l lister) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	list := l.entries
	if last := q.Get("last"); last != "" && !l.noLast {
		// As OCI says: what comes after last, in the order of the registry.
		if i := slices.Index(list, last); i >= 0 {
			list = list[i+1:]
		} else if slices.IsSorted(list) {
			i, _ := slices.BinarySearch(list, last)
			list = list[i:]
		}
	}
	n, err := strconv.Atoi(q.Get("n"))
	if err != nil || l.ignoreN {
		n = len(list)
	}
	if l.max > 0 {
		n = min(n, l.max)
	}
	if n < len(list) && !l.noLast {
		list = list[:n]
		next := url.Values{"n": {strconv.Itoa(n)}, "last": {list[n-1]}}
		w.Header().Set("Link", fmt.Sprintf("<%s?%s>; rel=\"next\"", r.URL.Path, next.Encode()))
	} else if n < len(list) {
		list = list[:n]
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"name": "acme/app", l.key: list})
}

// allOf collects a list page by page.
func allOf(limit int, next func(after string, limit int) ([]string, error)) ([]string, error) {
	var all []string
	for after := ""; ; after = all[len(all)-1] {
		got, err := next(after, limit)
		if err != nil || len(got) > limit {
			return all, fmt.Errorf("page of %d: %w", len(got), err)
		}
		if all = append(all, got...); len(got) < limit {
			return all, nil
		}
	}
}

func TestListsOfManyManners(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		entries := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9]{1,3}`), 0, 30, rapid.ID).Draw(rt, "entries")
		l := lister{entries: entries, max: rapid.SampledFrom([]int{0, 1, 3, 10}).Draw(rt, "max")}
		limit := rapid.SampledFrom([]int{1, 2, 7, 1000}).Draw(rt, "limit")
		// That a list is out of order shows only in a page of some length.
		if limit < 1000 || rapid.Bool().Draw(rt, "sorted") {
			slices.Sort(l.entries)
		}
		if rapid.Bool().Draw(rt, "ignores n") {
			l.ignoreN = true
		}
		if l.max == 0 && slices.IsSorted(l.entries) {
			l.noLast = rapid.Bool().Draw(rt, "ignores last")
		}
		want := slices.Sorted(slices.Values(l.entries))
		for _, l.key = range []string{"tags", "repositories"} {
			s := start(t, "127.0.0.1", l)
			p := connect(t, s, nil)
			got, err := allOf(limit, func(after string, n int) ([]string, error) {
				if l.key == "tags" {
					return p.Tags(t.Context(), "acme/app", after, n)
				}
				return p.Repositories(t.Context(), after, n)
			})
			if err != nil || !slices.Equal(got, want) {
				rt.Fatalf("%s of %+v by %d: %v, %v", l.key, l, limit, got, err)
			}
			p.Close()
			s.Close()
		}
	})
}

func TestLongListOutOfOrder(t *testing.T) {
	l := lister{key: "tags", max: 500}
	for i := range 2500 {
		l.entries = append(l.entries, fmt.Sprintf("v%04d", i*1999%2500))
	}
	p := connect(t, start(t, "127.0.0.1", l), nil)
	got, err := allOf(1000, func(after string, n int) ([]string, error) { return p.Tags(t.Context(), "acme/app", after, n) })
	if err != nil || !slices.Equal(got, slices.Sorted(slices.Values(l.entries))) {
		t.Errorf("%d entries, %v", len(got), err)
	}
}

// TestListOfOnePage lists just as many tags as a page has: whether there are more is asked in a few bytes, and the list
// is not read again.
func TestListOfOnePage(t *testing.T) {
	l := lister{key: "tags"}
	for i := range registry.MaxPage {
		l.entries = append(l.entries, fmt.Sprintf("v%04d", i))
	}
	var asked []string
	p := connect(t, start(t, "127.0.0.1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RawQuery)
		l.ServeHTTP(w, r)
	})), nil)
	got, err := allOf(registry.MaxPage, func(after string, n int) ([]string, error) { return p.Tags(t.Context(), "acme/app", after, n) })
	if err != nil || !slices.Equal(got, l.entries) {
		t.Errorf("%d entries, %v", len(got), err)
	}
	if !slices.Equal(asked, []string{"n=1000", "last=v0999&n=1"}) {
		t.Errorf("asked %q", asked)
	}
}

func TestListsThatDoNotEnd(t *testing.T) {
	page := 0
	tests := map[string]http.HandlerFunc{
		"the same page again": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", `<`+r.URL.Path+`?last=a&n=1000>; rel="next"`)
			_, _ = io.WriteString(w, `{"name":"acme/app","tags":["a"]}`)
		},
		"two pages in a circle": func(w http.ResponseWriter, r *http.Request) {
			next := map[string]string{"": "a", "a": "b", "b": "a"}[r.URL.Query().Get("last")]
			w.Header().Set("Link", `<`+r.URL.Path+`?last=`+next+`&n=1000>; rel="next"`)
			_, _ = io.WriteString(w, `{"name":"acme/app","tags":["x"]}`)
		},
		"always another page": func(w http.ResponseWriter, r *http.Request) {
			page++
			w.Header().Set("Link", fmt.Sprintf(`<%s?last=%d&n=1000>; rel="next"`, r.URL.Path, page))
			_, _ = io.WriteString(w, `{"name":"acme/app","tags":[]}`)
		},
		"an endless page": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"name":"acme/app","tags":["a"`)
			for {
				if _, err := w.Write(bytes.Repeat([]byte(`,"a"`), 1000)); err != nil {
					return
				}
			}
		},
	}
	for name, h := range tests {
		t.Run(name, func(t *testing.T) {
			p := connect(t, start(t, "127.0.0.1", h), nil)
			_, err := p.Tags(t.Context(), "acme/app", "", 1000)
			wantCode(t, err, registry.CodeSizeInvalid, "127.0.0.1")
		})
	}
	if page != 10_000 {
		t.Errorf("%d pages followed", page)
	}
}

func TestLinkToAnotherHost(t *testing.T) {
	evil := start(t, "127.0.0.2", handler(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"name":"acme/app","tags":["evil"]}`)
	}))
	p := connect(t, start(t, "127.0.0.1", basic(handler(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", `<`+evil.URL+r.URL.Path+`?last=a>; rel="next"`)
		if strings.Contains(r.URL.Path, "/referrers/") {
			w.Header().Set("Content-Type", registry.MediaTypeImageIndex)
			_, _ = io.WriteString(w, `{"schemaVersion":2,"mediaType":"`+registry.MediaTypeImageIndex+`","manifests":[]}`)
			return
		}
		if strings.Contains(r.URL.Path, "/manifests/") {
			refuse(w, registry.ErrManifestUnknown)
			return
		}
		_, _ = io.WriteString(w, `{"name":"acme/app","tags":["a"]}`)
	}))), func(o *upstream.Options) { login(o); o.Transport.Data = []string{evil.URL} })
	_, err := p.Tags(t.Context(), "acme/app", "", 10)
	wantCode(t, err, registry.CodeDenied, "127.0.0.2")
	_, err = p.Referrers(t.Context(), "acme/app", registrytest.NewBlob(1, 1).Digest, "")
	wantCode(t, err, registry.CodeDenied, "127.0.0.2")
	if heard := evil.heard(); heard != "" {
		t.Errorf("the other host was sent %q", heard)
	}
}

func TestBadNamesAreDropped(t *testing.T) {
	p := connect(t, start(t, "127.0.0.1", handler(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"name":"acme/app","tags":["ok","../../etc/passwd","a b","","`+strings.Repeat("x", 200)+`"],"repositories":["ok/1","/abs","UP","../x"]}`)
	})), nil)
	if got, err := p.Tags(t.Context(), "acme/app", "", 10); err != nil || !slices.Equal(got, []string{"ok"}) {
		t.Errorf("tags %q, %v", got, err)
	}
	if got, err := p.Repositories(t.Context(), "", 10); err != nil || !slices.Equal(got, []string{"ok/1"}) {
		t.Errorf("repositories %q, %v", got, err)
	}
	for _, limit := range []int{-1, 0, 1001} {
		_, err := p.Tags(t.Context(), "acme/app", "", limit)
		wantCode(t, err, registry.CodePageInvalid, "")
	}
	for _, repo := range []string{"", "../x", "a//b", "UP", "a?b", "a#b", "a%2fb"} {
		_, err := p.Tags(t.Context(), repo, "", 10)
		wantCode(t, err, registry.CodeNameInvalid, "")
	}
}

func TestNoCatalog(t *testing.T) {
	for _, status := range []int{404, 405, 501} {
		p := connect(t, start(t, "127.0.0.1", handler(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })), nil)
		_, err := p.Repositories(t.Context(), "", 10)
		wantCode(t, err, registry.CodeUnsupported, "127.0.0.1")
	}
}

// A registry without the referrers API has the list under a tag; a registry that stumbles has not lost its referrers.
func TestReferrersFallBack(t *testing.T) {
	reg, content := filled(t)
	image := content.Repositories["acme/app"].Tags["1.0"]
	var entries []registry.Descriptor
	for _, r := range content.Repositories["acme/app"].Referrers[:2] {
		entries = append(entries, registry.Descriptor{MediaType: r.MediaType, Digest: r.Digest, Size: r.Size, ArtifactType: "application/vnd.example"})
	}
	index, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": registry.MediaTypeImageIndex, "manifests": entries})
	m, _, err := registry.NewManifest(registry.MediaTypeImageIndex, index)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reg.PutManifest(t.Context(), "acme/app", registry.TagReference(strings.Replace(string(image.Digest), ":", "-", 1)), m); err != nil {
		t.Fatal(err)
	}
	status := 404
	p := connect(t, start(t, "127.0.0.1", handler(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/referrers/") && status != 0 {
			w.WriteHeader(status)
			return
		}
		serve(reg).ServeHTTP(w, r)
	})), nil)
	for _, status = range []int{500, 503, 429} {
		_, err := p.Referrers(t.Context(), "acme/app", image.Digest, "")
		wantCode(t, err, registry.CodeUnavailable, strconv.Itoa(status))
	}
	status = 0 // it recovers, and is believed at once
	if got, err := p.Referrers(t.Context(), "acme/app", image.Digest, ""); err != nil || len(got) != 3 {
		t.Errorf("after a fault: %d referrers, %v", len(got), err)
	}
	p = connect(t, start(t, "127.0.0.1", handler(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/referrers/") {
			http.NotFound(w, r)
			return
		}
		serve(reg).ServeHTTP(w, r)
	})), nil)
	if got, err := p.Referrers(t.Context(), "acme/app", image.Digest, ""); err != nil || len(got) != 2 {
		t.Errorf("by the tag: %v, %v", got, err)
	}
}
