package access

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// limit bounds every wait.
const limit = 40 * time.Second

// empty is the manifest that the tests push: an index of nothing.
const (
	empty     = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
	indexType = "application/vnd.oci.image.index.v1+json"
)

// absent is the digest of nothing that is anywhere.
const absent = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

// The binary is built once, for the tests that run it.
var binary struct {
	sync.Once
	dir string
	err error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if binary.dir != "" {
		_ = os.RemoveAll(binary.dir) // below the system's directory for such
	}
	os.Exit(code)
}

// built returns the path of the real binary.
func built(t *testing.T) string {
	t.Helper()
	binary.Do(func() {
		if binary.dir, binary.err = os.MkdirTemp("", "connected-registry-access-"); binary.err == nil {
			binary.err = layer.Build(context.Background(), filepath.Join(binary.dir, "connected-registry"))
		}
	})
	must(t, binary.err)
	return filepath.Join(binary.dir, "connected-registry")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// digest is the digest of a text, and hash how a password stands in a document; they look alike.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// site is one registry in this process.
type site struct {
	t    testing.TB
	addr string
	dir  string // of the document
	data string // volume
	http *http.Client
}

// start runs a registry with a document until the test ends.
func start(t testing.TB, doc map[string]any, change func(*module.Options)) *site {
	t.Helper()
	addr, release, err := linkproxy.ReservePort()
	must(t, err)
	s := &site{t: t, addr: addr, dir: t.TempDir(), http: &http.Client{Timeout: limit, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}}
	s.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	s.configure(doc)
	ready := make(chan struct{})
	o := module.Options{
		DataDir: filepath.Join(s.dir, "data"), ConfigFile: filepath.Join(s.dir, "config.json"), Listen: addr, Name: "upper", Version: "test",
		AllowInsecureParent: true, Ready: func(string) { close(ready) },
	}
	if change != nil {
		change(&o)
	}
	s.data = o.DataDir
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- module.Run(ctx, o) }()
	t.Cleanup(func() {
		s.http.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		release()
	})
	select {
	case <-ready:
	case <-time.After(limit):
		t.Fatal("the registry does not start")
	}
	return s
}

// configure writes the document in one step.
func (s *site) configure(doc map[string]any) {
	s.t.Helper()
	body, err := json.Marshal(doc)
	must(s.t, err)
	tmp := filepath.Join(s.dir, "config.new")
	must(s.t, os.WriteFile(tmp, body, 0o600))
	must(s.t, os.Rename(tmp, filepath.Join(s.dir, "config.json")))
}

// answer is what a registry said.
type answer struct {
	status int
	code   registry.Code // of its error
	header http.Header
	body   string
}

// request is what is asked; the zero Body is none.
type request struct {
	method, path, body, contentType string
	user, password, bearer          string
	header                          map[string]string
}

func (s *site) ask(r request) answer {
	s.t.Helper()
	var body io.Reader = http.NoBody
	if r.body != "" {
		body = strings.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), r.method, "http://"+s.addr+r.path, body)
	must(s.t, err)
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	if r.user != "" {
		req.SetBasicAuth(r.user, r.password)
	}
	if r.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+r.bearer)
	}
	for k, v := range r.header {
		req.Header.Set(k, v)
	}
	resp, err := s.http.Do(req)
	must(s.t, err)
	raw, err := io.ReadAll(resp.Body)
	must(s.t, err)
	must(s.t, resp.Body.Close())
	a := answer{status: resp.StatusCode, header: resp.Header, body: string(raw)}
	var doc struct {
		Errors []struct{ Code registry.Code }
	}
	if json.Unmarshal(raw, &doc) == nil && len(doc.Errors) > 0 {
		a.code = doc.Errors[0].Code
	}
	return a
}

// token gets an access token.
func (s *site) token(user, password string, scopes ...string) string {
	s.t.Helper()
	query := ""
	for _, scope := range scopes {
		query += "&scope=" + scope
	}
	a := s.ask(request{method: "GET", path: "/acr/oauth2/token?service=x" + query, user: user, password: password})
	var doc struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(bytes.NewReader([]byte(a.body))).Decode(&doc); err != nil || doc.AccessToken == "" {
		s.t.Fatalf("token: %d %s", a.status, a.body)
	}
	return doc.AccessToken
}

// until asks again and again.
func (s *site) until(what string, cond func() bool) {
	s.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.After(limit)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			s.t.Fatalf("waited %v until %s", limit, what)
		}
	}
}
