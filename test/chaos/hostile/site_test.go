package hostile

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/test/apiproxy"
	"github.com/connected-registry/connected-registry/test/layer"
)

var binary string

func TestMain(m *testing.M) { os.Exit(layer.Main(m.Run, &binary)) }

// The client tokens; each has its name as its password.
const (
	owner   = "owner"   // pushes what has to stay
	mallory = "mallory" // may do anything to hostile/*, read acme/*, and speak for a child that is none
	child   = "layer4"  // the registry below
)

// site is a ReadWrite registry and a ReadOnly one below it, both with TLS and without, and nothing for anonymous clients.
type site struct {
	t      *testing.T
	ctx    context.Context
	tls    *tls.Config
	layers []*layer.Layer // the parent, then the child
	secure []string       // their addresses with TLS
	keep   map[string]string
	image  registrytest.Image
	index  registrytest.Image
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, ctx: t.Context(), keep: map[string]string{}}
	ca, err := apiproxy.NewAuthority("root of " + t.Name())
	s.must(err)
	s.tls = &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12}
	s.start(ca, layer.Options{Dir: t.TempDir(), Name: "layer5", Mode: registry.ReadWrite})
	s.start(ca, layer.Options{
		Dir: t.TempDir(), Name: child, Repositories: map[string]string{"all": "*"},
		Env: []string{layer.ConnectionString(child, child, s.layers[0].Addr, "http")},
	})
	s.fill()
	return s
}

// start runs a registry; its log has every line, because what net/http recovers from stands in the smallest ones.
func (s *site) start(ca *apiproxy.Authority, o layer.Options) {
	s.t.Helper()
	maps := map[string]string{
		owner: layer.Everything("*"), child: layer.Child(child),
		mallory: layer.Everything("hostile/*") + " " + layer.Reads("acme/*") + " " + strings.TrimPrefix(layer.Child("layer9"), layer.Reads("*")+" "),
	}
	tokens := map[string]any{}
	for name := range maps {
		tokens[name] = layer.Token(name, name)
	}
	o.Binary, o.Closed = binary, true
	o.Document = map[string]any{"scopeMaps": maps, "clientTokens": tokens, "logging": map[string]string{"logLevel": "Debug"}}
	c, err := ca.Server("127.0.0.1", "registry", time.Now().Add(time.Hour))
	s.must(err)
	addr, release, err := o.ListenTLS("127.0.0.1", c.Chain, c.Key)
	s.must(err)
	s.t.Cleanup(release)
	o.Args = append(o.Args, "--log-format", "json")
	if len(s.layers) > 0 {
		o.Document["parent"] = map[string]any{"syncProperties": map[string]string{"schedule": "* * * * *"}}
	}
	l, err := layer.New(o)
	s.must(err)
	s.t.Cleanup(func() {
		if err := l.Close(); err != nil {
			s.t.Error(err)
		}
	})
	s.must(l.Start(s.ctx))
	s.must(l.Configured(s.ctx))
	s.layers, s.secure = append(s.layers, l), append(s.secure, addr)
}

// do sends one request of a friend and reads the answer to its end.
func (s *site) do(l *layer.Layer, method, path, contentType string, body []byte) (int, http.Header, []byte) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.ctx, method, "http://"+l.Addr+path, bytes.NewReader(body))
	s.must(err)
	r.SetBasicAuth(owner, owner)
	r.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultTransport.RoundTrip(r)
	s.must(err)
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	s.must(err)
	return resp.StatusCode, resp.Header, got
}

// fill pushes what has to stay, and notes how each layer answers for it.
func (s *site) fill() {
	s.t.Helper()
	s.image, s.index = registrytest.NewImage(1, 5000, 300), registrytest.NewIndex(registrytest.NewImage(3, 10), registrytest.NewImage(4, 10))
	var paths []string
	var push func(repo, tag string, i registrytest.Image)
	push = func(repo, tag string, i registrytest.Image) {
		for _, c := range i.Children {
			push(repo, "", c)
		}
		base := "/v2/" + repo + "/"
		for _, b := range i.Blobs {
			s.want(201, "POST", base+"blobs/uploads/?digest="+b.Digest.String(), "application/octet-stream", b.Bytes)
			paths = append(paths, base+"blobs/"+b.Digest.String())
		}
		if tag != "" {
			s.want(201, "PUT", base+"manifests/"+tag, i.MediaType, i.Bytes)
			paths = append(paths, base+"manifests/"+tag)
		}
		s.want(201, "PUT", base+"manifests/"+i.Digest.String(), i.MediaType, i.Bytes)
		paths = append(paths, base+"manifests/"+i.Digest.String())
	}
	for _, repo := range []string{"acme/app", "hostile/app"} { // the second is for those who may spoil it
		push(repo, "v1", s.image)
		push(repo, "multi", s.index)
	}
	paths = slices.DeleteFunc(paths, func(p string) bool { return strings.HasPrefix(p, "/v2/hostile/") })
	push("acme/app", "docker", registrytest.NewDockerImage(5, 2000))
	push("acme/app", "", registrytest.NewReferrer(6, s.image.Descriptor, "x/a"))
	push("secret", "v1", registrytest.NewImage(7, 1000))
	b := registrytest.NewBlob(8, 999)
	b.Digest = digest.SHA512.FromBytes(b.Bytes)
	s.want(201, "POST", "/v2/acme/app/blobs/uploads/?digest="+b.Digest.String(), "application/octet-stream", b.Bytes)
	paths = append(paths, "/v2/acme/app/blobs/"+b.Digest.String(), "/v2/acme/app/tags/list", "/v2/acme/app/referrers/"+s.image.Digest.String(), "/v2/secret/tags/list")
	for i := range s.layers {
		if i > 0 {
			paths = slices.DeleteFunc(paths, func(p string) bool { return strings.Contains(p, "sha512") || strings.Contains(p, "/referrers/") }) // it syncs what tags need
		}
		ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
		s.must(s.layers[i].Until(ctx, "all of it is there", func(context.Context) (bool, error) {
			for _, p := range paths {
				if got := s.note(i, p); got == "" || got != s.note(0, p) { // a list may be shorter for a while
					return false, nil
				}
			}
			return true, nil
		}))
		cancel()
		for _, p := range paths {
			s.keep[fmt.Sprint(i, p)] = s.note(i, p)
		}
	}
}

func (s *site) want(status int, method, path, contentType string, body []byte) {
	s.t.Helper()
	if got, _, answer := s.do(s.layers[0], method, path, contentType, body); got != status {
		s.t.Fatalf("%s %s: %d %s", method, path, got, answer)
	}
}

// note sums up an answer; it is empty unless the answer is 200.
func (s *site) note(i int, path string) string {
	s.t.Helper()
	status, h, body := s.do(s.layers[i], "GET", path, "", nil)
	if status != http.StatusOK {
		return ""
	}
	return fmt.Sprintf("%s %s %x", h.Get("Content-Type"), h.Get("Docker-Content-Digest"), sha256.Sum256(body))
}

// unchanged checks that all that has to stay has, and what the processes wrote.
func (s *site) unchanged() {
	s.t.Helper()
	for key, want := range s.keep {
		if got := s.note(int(key[0]-'0'), key[1:]); got != want {
			s.t.Errorf("layer %s: %q now, %q before", key, got, want)
		}
	}
	for _, l := range s.layers {
		s.calm(l)
		entries, err := os.ReadDir(l.Dir)
		s.must(err)
		for _, e := range entries {
			if !slices.Contains([]string{"config.json", "data", "log", "tls"}, e.Name()) {
				s.t.Errorf("%s: %s was written beside the data volume", l.Name, e.Name())
			}
		}
	}
}

// maxLine is how long a line of the log may be, in bytes.
const maxLine = 8 << 10

// calm checks a log: whole JSON in every line, of a bounded length, no panic, and nothing that somebody put into it.
func (s *site) calm(l *layer.Layer) {
	s.t.Helper()
	f, err := os.Open(l.LogFile())
	s.must(err)
	defer f.Close()
	in, faults := bufio.NewReaderSize(f, 1<<20), 0
	for n := 1; faults < 10; n++ {
		line, err := in.ReadSlice('\n')
		if err == io.EOF {
			return
		}
		s.must(err)
		var wrong string
		switch {
		case !json.Valid(line):
			wrong = "no JSON"
		case len(line) > maxLine:
			wrong = fmt.Sprintf("%d bytes", len(line))
		case bytes.Contains(line, []byte("panic")) && !bytes.Contains(line, []byte("abort Handler")), bytes.Contains(line, []byte("DATA RACE")):
			wrong = "a panic"
		default:
			continue
		}
		faults++
		s.t.Errorf("%s: line %d of the log: %s: %.1500s", l.Name, n, wrong, line)
	}
}

// dial opens a connection to a layer: plain, or with TLS for the protocol.
func (s *site) dial(i int, protocol string) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	if protocol == "" {
		return d.DialContext(s.ctx, "tcp", s.layers[i].Addr)
	}
	config := s.tls.Clone()
	config.NextProtos = []string{protocol}
	return (&tls.Dialer{NetDialer: &d, Config: config}).DialContext(s.ctx, "tcp", s.secure[i])
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}
