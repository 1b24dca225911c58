package upstream_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

// listless is a site without the referrers API: lists of referrers are an index under a tag. odd may answer in its place.
func listless(t *testing.T) (*site, *host) {
	s := &site{reg: registrytest.NewMemory()}
	return s, start(t, "127.0.0.1", handler(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/referrers/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		s.ServeHTTP(silent{w}, r)
	}))
}

// silent says nothing of subjects.
type silent struct{ http.ResponseWriter }

func (s silent) WriteHeader(status int) {
	s.Header().Del("Oci-Subject")
	s.ResponseWriter.WriteHeader(status)
}

// about is an image at the site and so many signatures of it, which are not there yet.
func about(t *testing.T, s *site, n int) (subject registrytest.Image, tag registry.Reference, list []registrytest.Image) {
	t.Helper()
	subject = registrytest.NewImage(1, 10)
	if err := registrytest.Push(t.Context(), s.reg, "acme/app", "1", subject); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		ref := registrytest.NewReferrer(uint64(2+i), subject.Descriptor, "application/vnd.example.signature")
		for _, b := range ref.Blobs {
			if err := registrytest.PushBlob(t.Context(), s.reg, "acme/app", b); err != nil {
				t.Fatal(err)
			}
		}
		list = append(list, ref)
	}
	return subject, registry.TagReference("sha256-" + subject.Digest.Encoded()), list
}

// listed are the digests under the tag, sorted; nil when there is no tag.
func listed(t *testing.T, s *site, tag registry.Reference) []registry.Digest {
	t.Helper()
	m, err := s.reg.GetManifest(t.Context(), "acme/app", tag)
	if errors.Is(err, registry.ErrManifestUnknown) {
		return nil
	}
	var index struct{ Manifests []registry.Descriptor }
	if err == nil {
		err = json.Unmarshal(m.Bytes, &index)
	}
	if err != nil {
		t.Fatal(err)
	}
	list := []registry.Digest{}
	for _, d := range index.Manifests {
		list = append(list, d.Digest)
	}
	slices.Sort(list)
	return list
}

func digests(list ...registrytest.Image) []registry.Digest {
	all := []registry.Digest{}
	for _, img := range list {
		all = append(all, img.Digest)
	}
	slices.Sort(all)
	return all
}

func put(t *testing.T, p *upstream.Parent, img registrytest.Image) error {
	t.Helper()
	_, err := p.PutManifest(t.Context(), "acme/app", registry.DigestReference(img.Digest), img.Manifest)
	return err
}

// TestListOfReferrers adds and removes signatures of one image, many at once: none takes another one away, and the list
// goes with its last entry.
func TestListOfReferrers(t *testing.T) {
	s, h := listless(t)
	_, tag, list := about(t, s, 8)
	p := connect(t, h, nil)
	each := func(do func(registrytest.Image) error, images ...registrytest.Image) {
		t.Helper()
		var group sync.WaitGroup
		for _, img := range images {
			group.Go(func() {
				if err := do(img); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	}
	remove := func(img registrytest.Image) error { return p.DeleteManifest(t.Context(), "acme/app", img.Digest) }
	each(func(img registrytest.Image) error { return put(t, p, img) }, list...)
	if got, want := listed(t, s, tag), digests(list...); !slices.Equal(got, want) {
		t.Errorf("listed are %v, want %v", got, want)
	}
	each(remove, list[1:]...)
	if got := listed(t, s, tag); !slices.Equal(got, digests(list[0])) {
		t.Errorf("listed are %v after all but the first were deleted", got)
	}
	each(remove, list[0])
	if got := listed(t, s, tag); got != nil {
		t.Errorf("the list is still there, with %v", got)
	}
	if err := p.DeleteManifest(t.Context(), "acme/app", list[0].Digest); !errors.Is(err, registry.ErrManifestUnknown) {
		t.Errorf("deleted twice: %v", err)
	}
	if subject := registrytest.NewImage(1, 10); remove(subject) != nil {
		t.Error("the image itself is not deleted")
	}
}

// TestListCrossed has somebody else write the list as it was before ours: ours is made again.
func TestListCrossed(t *testing.T) {
	s, h := listless(t)
	_, tag, list := about(t, s, 3)
	p := connect(t, h, nil)
	if err := put(t, p, list[0]); err != nil {
		t.Fatal(err)
	}
	before, err := s.reg.GetManifest(t.Context(), "acme/app", tag)
	if err != nil {
		t.Fatal(err)
	}
	cross := func(old registry.Manifest) {
		done := false
		s.odd = func(w http.ResponseWriter, r *http.Request) bool {
			if done || r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, tag.Tag) {
				return false
			}
			done = true
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			serve(s.reg).ServeHTTP(w, r)
			if _, err := s.reg.PutManifest(r.Context(), "acme/app", tag, old); err != nil {
				t.Error(err)
			}
			return true
		}
	}
	cross(before)
	if err := put(t, p, list[1]); err != nil {
		t.Fatal(err)
	}
	if got, want := listed(t, s, tag), digests(list[:2]...); !slices.Equal(got, want) {
		t.Errorf("listed are %v, want %v", got, want)
	}
	if before, err = s.reg.GetManifest(t.Context(), "acme/app", tag); err != nil {
		t.Fatal(err)
	}
	cross(before)
	if err := p.DeleteManifest(t.Context(), "acme/app", list[0].Digest); err != nil {
		t.Fatal(err)
	}
	if got, want := listed(t, s, tag), digests(list[1]); !slices.Equal(got, want) {
		t.Errorf("after a deletion listed are %v, want %v", got, want)
	}
}

// TestListCrossedBeforeADeletion has somebody else write the list as it was after we have looked at ours, and before the
// manifest goes: the second look, which finds no manifest, takes it off the list.
func TestListCrossedBeforeADeletion(t *testing.T) {
	s, h := listless(t)
	_, tag, list := about(t, s, 2)
	p := connect(t, h, nil)
	if err := errors.Join(put(t, p, list[0]), put(t, p, list[1])); err != nil {
		t.Fatal(err)
	}
	before, err := s.reg.GetManifest(t.Context(), "acme/app", tag)
	if err != nil {
		t.Fatal(err)
	}
	s.odd = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodDelete && strings.HasSuffix(r.URL.Path, list[0].Digest.String()) {
			s.odd = nil
			if _, err := s.reg.PutManifest(r.Context(), "acme/app", tag, before); err != nil {
				t.Error(err)
			}
		}
		return false
	}
	if err := p.DeleteManifest(t.Context(), "acme/app", list[0].Digest); err != nil {
		t.Fatal(err)
	}
	if got, want := listed(t, s, tag), digests(list...); !slices.Equal(got, want) {
		t.Fatalf("the other client's list is %v, want %v", got, want)
	}
	if err := p.DeleteManifest(t.Context(), "acme/app", list[0].Digest); !errors.Is(err, registry.ErrManifestUnknown) {
		t.Errorf("looked at once more: %v", err)
	}
	if got, want := listed(t, s, tag), digests(list[1]); !slices.Equal(got, want) {
		t.Errorf("after a second look listed are %v, want %v", got, want)
	}
}

// TestListRefused: a parent that takes no tag away keeps an empty list, one that does not let a list be changed deletes all
// the same, and what an attempt did not list, because it was cut, is listed by the next.
func TestListRefused(t *testing.T) {
	no := func(method string, e *registry.Error, tag registry.Reference) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != method || !strings.HasSuffix(r.URL.Path, tag.Tag) {
				return false
			}
			refuse(w, e)
			return true
		}
	}
	s, h := listless(t)
	_, tag, list := about(t, s, 2)
	p := connect(t, h, nil)
	s.odd = no(http.MethodPut, registry.ErrUnavailable, tag)
	if err := put(t, p, list[0]); !errors.Is(err, registry.ErrUnavailable) {
		t.Fatalf("a list that cannot be written: %v", err)
	}
	s.odd = nil
	for range 2 {
		if err := p.Refer(t.Context(), "acme/app", list[0].Manifest); err != nil {
			t.Fatal(err)
		}
		if got := listed(t, s, tag); !slices.Equal(got, digests(list[0])) {
			t.Errorf("listed are %v", got)
		}
	}
	s.odd = no(http.MethodDelete, registry.ErrUnsupported, tag)
	if err := p.DeleteManifest(t.Context(), "acme/app", list[0].Digest); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, s, tag); got == nil || len(got) > 0 {
		t.Errorf("without its last entry the list is %v", got)
	}
	for _, img := range list {
		if err := put(t, p, img); err != nil {
			t.Fatal(err)
		}
	}
	s.odd = no(http.MethodPut, registry.ErrDenied, tag)
	if err := p.DeleteManifest(t.Context(), "acme/app", list[0].Digest); err != nil {
		t.Errorf("a list that may not be changed keeps what is on it: %v", err)
	}
	if _, err := s.reg.ResolveManifest(t.Context(), "acme/app", registry.DigestReference(list[0].Digest)); !errors.Is(err, registry.ErrManifestUnknown) {
		t.Errorf("after its deletion: %v", err)
	}
}

// TestListThatIsKept: a parent that keeps such lists itself is asked nothing more.
func TestListThatIsKept(t *testing.T) {
	s, h := newSite(t)
	_, tag, list := about(t, s, 1)
	p := connect(t, h, nil)
	h.lines()
	err := errors.Join(put(t, p, list[0]), p.Refer(t.Context(), "acme/app", list[0].Manifest), p.DeleteManifest(t.Context(), "acme/app", list[0].Digest))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(h.lines()); n != 2 {
		t.Errorf("%d requests, want PUT and DELETE", n)
	}
	if got := listed(t, s, tag); got != nil {
		t.Errorf("a list is under the tag: %v", got)
	}
}
