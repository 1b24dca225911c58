//go:build interop

package interop

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/apiproxy"
	"github.com/connected-registry/connected-registry/test/layer"
)

// What clients sign in with, where they have to, and the name of the child.
const (
	user  = "builder"
	child = "layer4"
)

// binary is the product.
var binary string

func TestMain(m *testing.M) { os.Exit(layer.Main(m.Run, &binary)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// site is two registries: the parent takes pushes, the child is ReadOnly, never syncs, and fetches what it is asked for.
// Both speak http and TLS.
type site struct {
	open          bool // the child lets everybody pull
	password      string
	ca            *apiproxy.Authority
	caFile        string
	host          string // of the parent with TLS
	parent, child *layer.Layer
	parentTLS     string
	childTLS      string
}

// start runs one registry.
func start(t *testing.T, o layer.Options) *layer.Layer {
	t.Helper()
	o.Binary = binary
	l, err := layer.New(o)
	must(t, err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if log, err := os.ReadFile(l.LogFile()); t.Failed() && err == nil {
			t.Logf("%s:\n%s", o.Name, log[max(0, len(log)-4000):])
		}
	})
	must(t, l.Start(t.Context()))
	must(t, l.Configured(t.Context()))
	return l
}

func newSite(t *testing.T, open bool, host string) *site {
	t.Helper()
	s := &site{open: open, password: rand.Text() + "=", host: host, caFile: filepath.Join(t.TempDir(), "ca.pem")}
	var err error
	s.ca, err = apiproxy.NewAuthority("root of " + t.Name())
	must(t, err)
	must(t, os.WriteFile(s.caFile, s.ca.Bundle(), 0o600))

	tokens := map[string]any{
		"scopeMaps":    map[string]string{"all": layer.Everything("*"), child: layer.Child(child)},
		"clientTokens": map[string]any{user: layer.Token("all", s.password), child: layer.Token(child, s.password)},
	}
	up := layer.Options{Dir: t.TempDir(), Name: "layer5", Mode: registry.ReadWrite, Closed: true, Document: tokens}
	s.parentTLS = s.serveTLS(t, &up, host)
	s.parent = start(t, up)

	down := layer.Options{Dir: t.TempDir(), Name: child, Closed: true, Document: map[string]any{
		"repositories": map[string]string{"all": "*"},
		"scopeMaps":    tokens["scopeMaps"], "clientTokens": tokens["clientTokens"],
	}}
	// The next sync iteration is half a year away.
	when := map[string]string{"schedule": fmt.Sprintf("0 0 1 %d *", (time.Now().UTC().Month()+5)%12+1), "syncWindow": "PT1H"}
	down.Document["parent"] = map[string]any{"syncProperties": when}
	down.Args = append(down.Args, "--parent-ca", s.caFile)
	down.Env = append(down.Env, layer.ConnectionString(child, s.password, s.parentTLS, "https"))
	if open {
		down.Args = append(down.Args, "--insecure-anonymous-pull")
	}
	s.childTLS = s.serveTLS(t, &down, "127.0.0.1")
	s.child = start(t, down)
	return s
}

// serveTLS makes a certificate for a registry and chooses its address.
func (s *site) serveTLS(t *testing.T, o *layer.Options, host string) string {
	t.Helper()
	c, err := s.ca.Server(host, "registry", time.Now().Add(time.Hour))
	must(t, err)
	addr, release, err := o.ListenTLS(host, c.Chain, c.Key)
	must(t, err)
	t.Cleanup(release)
	return addr
}

// door is one way into a site: over http or TLS.
type door struct {
	*site
	t        *testing.T
	tls      bool
	up, down string // host:port of parent and child
}

// doors runs a test through each door. Each pair of http and TLS shares its registries, and so has to name its
// repositories by d.repo.
func doors(t *testing.T, test func(d *door)) {
	t.Parallel()
	newSite(t, false, "127.0.0.1").doors(t, test)
}

// doors runs a test over http and over TLS.
func (s *site) doors(t *testing.T, test func(d *door)) {
	t.Run("http", func(t *testing.T) { test(&door{site: s, t: t, up: s.parent.Addr, down: s.child.Addr}) })
	t.Run("tls", func(t *testing.T) { test(&door{site: s, t: t, tls: true, up: s.parentTLS, down: s.childTLS}) })
}

// repo is a repository that only this door uses.
func (d *door) repo(name string) string {
	if d.tls {
		return "tls/" + name
	}
	return "http/" + name
}

// when returns the arguments if cond is true, and none otherwise.
func when(cond bool, args ...string) []string {
	if cond {
		return args
	}
	return nil
}

func (d *door) options() []remote.Option {
	return []remote.Option{remote.WithContext(d.t.Context()), remote.WithTransport(&http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: d.ca.Pool(), MinVersion: tls.VersionTLS12}, DisableKeepAlives: true,
	}), remote.WithAuth(&authn.Basic{Username: user, Password: d.password})}
}

func (d *door) ref(text string) name.Reference {
	d.t.Helper()
	r, err := name.ParseReference(text, d.scheme()...)
	must(d.t, err)
	return r
}

// same reads a reference with a client of ours, checks every byte below it, and compares its digest.
func (d *door) same(ref, digest string) {
	d.t.Helper()
	got, err := remote.Get(d.ref(ref), d.options()...)
	if err != nil {
		d.t.Errorf("%s: %v", ref, err)
		return
	}
	if got.Digest.String() != digest {
		d.t.Errorf("%s has the digest %s, want %s", ref, got.Digest, digest)
	}
	if got.MediaType.IsIndex() {
		index, err := got.ImageIndex()
		must(d.t, err)
		err = validate.Index(index)
		if err != nil {
			d.t.Errorf("%s: %v", ref, err)
		}
		return
	}
	img, err := got.Image()
	must(d.t, err)
	if err := validate.Image(img, validate.Fast); err != nil {
		d.t.Errorf("%s: %v", ref, err)
	}
}

// digest asks the registry what a reference is.
func (d *door) digest(ref string) string {
	d.t.Helper()
	got, err := remote.Get(d.ref(ref), d.options()...)
	must(d.t, err)
	return got.Digest.String()
}

// gone fails the test when a reference is still there.
func (d *door) gone(ref string) {
	d.t.Helper()
	if desc, err := remote.Head(d.ref(ref), d.options()...); err == nil {
		d.t.Errorf("%s is still there: %s", ref, desc.Digest)
	}
}

// unseen fails the test when the child holds a repository: then a pull through it would prove nothing. It is asked
// over its catalog, which fetches nothing.
func (d *door) unseen(repo string) {
	d.t.Helper()
	r, err := name.NewRegistry(d.down, d.scheme()...)
	must(d.t, err)
	all, err := remote.Catalog(d.t.Context(), r, d.options()...)
	must(d.t, err)
	if slices.Contains(all, repo) {
		d.t.Errorf("the child holds %s before it was asked", repo)
	}
}

func (d *door) scheme() []name.Option {
	if d.tls {
		return nil
	}
	return []name.Option{name.Insecure}
}

// removes runs a client that deletes a reference.
func (d *door) removes(c *client, ref string, args ...string) {
	d.t.Helper()
	c.run(args...)
	d.gone(ref)
}

// until runs the function until it is true.
func (d *door) until(what string, ok func() bool) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience/4)
	defer cancel()
	must(d.t, d.child.Until(ctx, what, func(context.Context) (bool, error) { return ok(), nil }))
}

// contains fails the test unless the output has each of the parts.
func contains(t *testing.T, out []byte, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !bytes.Contains(out, []byte(p)) {
			t.Errorf("no %q in:\n%s", p, out)
		}
	}
}

// words compares the words of a client's output with those wanted, in any order.
func words(t *testing.T, what string, out []byte, want ...string) {
	t.Helper()
	got := strings.Fields(string(out))
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}
