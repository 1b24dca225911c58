package upstream_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

func TestRegistry(t *testing.T) {
	for name, way := range map[string]func(http.Handler) http.Handler{
		"open":   func(h http.Handler) http.Handler { return h },
		"basic":  basic,
		"bearer": func(h http.Handler) http.Handler { return (&tokens{realm: "/token"}).wrap(h) },
	} {
		t.Run(name, func(t *testing.T) {
			registrytest.Test(t, func(t *testing.T) registry.Registry {
				p := connect(t, start(t, "127.0.0.1", way(serve(registrytest.NewMemory()))), func(o *upstream.Options) {
					if name != "open" {
						login(o)
					}
				})
				return whole{p, registrytest.NewMemory()}
			})
		})
	}
}

// whole is the parent as a registry.Registry: an upload is held here until it is pushed.
type whole struct {
	*upstream.Parent
	held registry.Registry
}

func (w whole) StartUpload(ctx context.Context, repo string) (registry.Upload, error) {
	u, err := w.held.StartUpload(ctx, repo)
	return heldUpload{u, w, repo}, err
}

func (w whole) ResumeUpload(ctx context.Context, repo, id string) (registry.Upload, error) {
	u, err := w.held.ResumeUpload(ctx, repo, id)
	return heldUpload{u, w, repo}, err
}

type heldUpload struct {
	registry.Upload
	w    whole
	repo string
}

func (u heldUpload) Commit(ctx context.Context, d registry.Digest) (registry.Descriptor, error) {
	desc, err := u.Upload.Commit(ctx, d)
	if err != nil {
		return desc, err
	}
	return desc, u.w.PushBlob(ctx, registry.BlobPush{
		Repository: u.repo, Descriptor: desc,
		Open: func(ctx context.Context) (registry.BlobReader, error) { return u.w.held.GetBlob(ctx, u.repo, d) },
	})
}

// memory is content for PushBlob.
type memory struct {
	*bytes.Reader
	d registry.Descriptor
}

func (m memory) Descriptor() registry.Descriptor { return m.d }
func (m memory) Close() error                    { return nil }

// pushOf is the push of a blob to acme/app.
func pushOf(b registrytest.Blob) registry.BlobPush {
	return registry.BlobPush{
		Repository: "acme/app", Descriptor: b.Descriptor,
		Open: func(context.Context) (registry.BlobReader, error) {
			return memory{bytes.NewReader(b.Bytes), b.Descriptor}, nil
		},
	}
}

// site is a parent that counts bytes and can be told to misbehave before a request reaches it.
type site struct {
	reg  registry.Registry
	mu   sync.Mutex
	sent int64
	odd  func(w http.ResponseWriter, r *http.Request) (done bool)
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = metered{r.Body, s}
	s.mu.Lock()
	odd := s.odd
	s.mu.Unlock()
	if odd != nil && odd(w, r) {
		return
	}
	serve(s.reg).ServeHTTP(w, r)
}

func (s *site) bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

type metered struct {
	io.ReadCloser
	s *site
}

func (c metered) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.sent += int64(n)
	return n, err
}

func newSite(t *testing.T) (*site, *host) {
	s := &site{reg: registrytest.NewMemory()}
	return s, start(t, "127.0.0.1", s)
}

// arrived checks that the parent has the blob, whole.
func arrived(t *testing.T, s *site, b registrytest.Blob) {
	t.Helper()
	r, err := s.reg.GetBlob(t.Context(), "acme/app", b.Digest)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, b.Bytes) {
		t.Errorf("the parent has %d bytes of %d, %v", len(got), len(b.Bytes), err)
	}
}

func TestPushBlob(t *testing.T) {
	for _, size := range []int{0, 1, 511 << 10, 512 << 10, 512<<10 + 1, 3 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s, h := newSite(t)
			p, b := connect(t, h, nil), registrytest.NewBlob(1, size)
			if err := p.PushBlob(t.Context(), pushOf(b)); err != nil {
				t.Fatal(err)
			}
			arrived(t, s, b)
			if s.bytes() != int64(size) {
				t.Errorf("%d bytes were sent of %d", s.bytes(), size)
			}
			if n := len(h.lines()); size <= 512<<10 && n != 3 {
				t.Errorf("%d requests, want HEAD, POST, PUT", n)
			}
			if err := p.PushBlob(t.Context(), pushOf(b)); err != nil || s.bytes() != int64(size) {
				t.Errorf("again: %v, %d bytes", err, s.bytes())
			}
		})
	}
}

func TestPushMounts(t *testing.T) {
	s, h := newSite(t)
	b := registrytest.NewBlob(1, 2<<20)
	if err := registrytest.PushBlob(t.Context(), s.reg, "acme/other", b); err != nil {
		t.Fatal(err)
	}
	push := pushOf(b)
	push.From = []string{"acme/wrong", "acme/other"}
	if err := connect(t, h, nil).PushBlob(t.Context(), push); err != nil {
		t.Fatal(err)
	}
	arrived(t, s, b)
	if s.bytes() != 0 {
		t.Errorf("%d bytes were sent of what the parent has", s.bytes())
	}
}

// TestPushIsCut cuts connections in the middle of chunks. Each push goes on where the parent stands, also one of another
// process.
func TestPushIsCut(t *testing.T) {
	s, h := newSite(t)
	b := registrytest.NewBlob(1, 4<<20)
	patches, lost, down := 0, 0, 0
	s.odd = func(_ http.ResponseWriter, r *http.Request) bool {
		if down > 0 && r.Method == http.MethodGet {
			down--
			panic(http.ErrAbortHandler)
		}
		if r.Method != http.MethodPatch {
			return false
		}
		if patches++; patches%2 == 1 {
			lost++
			down = 2 // the question where it stands, and its repetition
			r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, 200<<10), cut{}))
		}
		return false
	}
	push := pushOf(b)
	push.Note = func(session string) { push.Session = session }
	rounds := 0
	for ; rounds < 50; rounds++ {
		if err := connect(t, h, nil).PushBlob(t.Context(), push); err == nil {
			break
		}
	}
	arrived(t, s, b)
	if most := int64(len(b.Bytes)) + int64(lost)*(512<<10); s.bytes() > most {
		t.Errorf("%d bytes were sent of %d, with %d cuts", s.bytes(), len(b.Bytes), lost)
	}
	if rounds < 3 {
		t.Errorf("it was through after %d rounds", rounds)
	}
	if push.Session != "" {
		t.Errorf("the session %q is kept", push.Session)
	}
}

type cut struct{}

func (cut) Read([]byte) (int, error) { panic(http.ErrAbortHandler) }

func TestPushAnswersOddly(t *testing.T) {
	once := func(f func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
		done := false
		return func(w http.ResponseWriter, r *http.Request) bool {
			if done {
				return false
			}
			done = f(w, r)
			return done
		}
	}
	for name, odd := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"a proxy takes less": func(w http.ResponseWriter, r *http.Request) bool {
			if r.ContentLength <= 100<<10 {
				return false
			}
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return true
		},
		"the session is gone": once(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPatch || !strings.HasPrefix(r.Header.Get("Content-Range"), "1048576-") {
				return false
			}
			refuse(w, registry.ErrBlobUploadUnknown)
			return true
		}),
		"no mount": func(w http.ResponseWriter, r *http.Request) bool {
			if !r.URL.Query().Has("mount") {
				return false
			}
			refuse(w, registry.ErrUnsupported)
			return true
		},
		"the range is not taken": once(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPatch {
				return false
			}
			w.Header().Set("Range", "0-99")
			refuse(w, registry.ErrRangeInvalid)
			return true
		}),
	} {
		t.Run(name, func(t *testing.T) {
			s, h := newSite(t)
			s.odd = odd
			b := registrytest.NewBlob(1, 2<<20)
			push := pushOf(b)
			push.From = []string{"acme/other"}
			if err := connect(t, h, login).PushBlob(t.Context(), push); err != nil {
				t.Fatal(err)
			}
			arrived(t, s, b)
		})
	}
}

// TestLocationElsewhere answers with Locations on another host: it is never asked, and the credential and the content stay
// with the parent.
func TestLocationElsewhere(t *testing.T) {
	evil := start(t, "127.0.0.2", handler(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	for _, host := range []string{evil.URL, "//" + evil.endpoint(), "http://user:pass@" + evil.endpoint()} {
		s := &site{reg: registrytest.NewMemory()}
		h := start(t, "127.0.0.1", basic(handler(func(w http.ResponseWriter, r *http.Request) {
			s.ServeHTTP(moved{w, host}, r)
		})))
		b := registrytest.NewBlob(1, 2<<20)
		if err := connect(t, h, login).PushBlob(t.Context(), pushOf(b)); err != nil {
			t.Fatal(err)
		}
		arrived(t, s, b)
	}
	if got := evil.heard(); got != "" {
		t.Errorf("the other host was sent %q", got)
	}
}

// moved puts a host before each Location.
type moved struct {
	http.ResponseWriter
	host string
}

func (m moved) WriteHeader(status int) {
	if loc := m.Header().Get("Location"); loc != "" {
		m.Header().Set("Location", m.host+loc)
	}
	m.ResponseWriter.WriteHeader(status)
}

func TestCreatedWithAnotherDigest(t *testing.T) {
	s, h := newSite(t)
	s.odd = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		w.Header().Set("Docker-Content-Digest", registrytest.NewBlob(9, 9).Digest.String())
		w.WriteHeader(http.StatusCreated)
		return true
	}
	p, img := connect(t, h, nil), registrytest.NewImage(1, 100)
	if err := p.PushBlob(t.Context(), pushOf(img.Blobs[0])); err == nil {
		t.Error("another blob was believed to be this")
	}
	if _, err := p.PutManifest(t.Context(), "acme/app", registry.TagReference("1"), img.Manifest); err == nil {
		t.Error("another manifest was believed to be this")
	}
}

func TestRefusals(t *testing.T) {
	img := registrytest.NewImage(1, 100)
	for _, c := range []struct {
		answer *registry.Error
		want   registry.Code
	}{
		{registry.ErrDenied.WithMessage("quota"), registry.CodeDenied},
		{registry.ErrLocked, registry.CodeDisallowed},
		{registry.ErrManifestBlobUnknown, registry.CodeManifestBlobUnknown},
		{registry.ErrUnsupported, registry.CodeUnsupported},
		{registry.ErrDisk.WithMessage("quota"), registry.CodeUnavailable},
		{registry.ErrTooManyRequests, registry.CodeUnavailable},
		{registry.ErrUnauthorized, registry.CodeUnauthorized},
	} {
		s, h := newSite(t)
		s.odd = func(w http.ResponseWriter, _ *http.Request) bool {
			refuse(w, c.answer)
			return true
		}
		_, err := connect(t, h, login).PutManifest(t.Context(), "acme/app", registry.TagReference("1"), img.Manifest)
		text := c.answer.Message
		if c.want == registry.CodeUnauthorized {
			text = ""
		}
		wantCode(t, err, c.want, text)
	}
}
