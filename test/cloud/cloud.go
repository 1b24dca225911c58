// Package cloud is the registry above the top layer: olareg, which is not ours, in this process, and what is pushed to
// it with go-containerregistry, which is not ours either.
package cloud

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"

	"github.com/connected-registry/connected-registry/test/layer"
)

// Cloud is a running registry.
type Cloud struct {
	Addr string // host:port

	registry *olareg.Server
	mu       sync.RWMutex // held by requests: closing the registry under one is a race in it
	closed   bool
	server   *http.Server
	done     chan struct{}
}

// Start serves dir on a free port of 127.0.0.1; an empty dir is memory.
func Start(dir string) (*Cloud, error) {
	conf := config.Config{Log: slog.New(slog.DiscardHandler)}
	conf.Storage.StoreType = config.StoreMem
	if dir != "" {
		conf.Storage.StoreType, conf.Storage.RootDir = config.StoreDir, dir
	}
	conf.Storage.GC.Frequency = -1
	yes := true
	conf.API.DeleteEnabled = &yes
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &Cloud{Addr: ln.Addr().String(), registry: olareg.New(conf), done: make(chan struct{})}
	c.server = &http.Server{Handler: c, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		_ = c.server.Serve(ln) // ends with Close
		close(c.done)
	}()
	return c, nil
}

// Guarded serves the same content over https to who has the password, as a cloud registry does. The caller closes it.
func (c *Cloud) Guarded(user, password string) *httptest.Server {
	return httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, p, _ := r.BasicAuth()
		if u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="cloud"`)
			http.Error(w, "sign in", http.StatusUnauthorized)
			return
		}
		c.ServeHTTP(w, r)
	}))
}

// ServeHTTP is the registry.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.closed {
		c.registry.ServeHTTP(w, r)
	}
}

// Close ends it.
func (c *Cloud) Close() error {
	err := c.server.Close()
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return errors.Join(err, c.registry.Close())
}

// Ref is repository:tag or repository@digest at a registry on loopback.
func Ref(addr, ref string) (name.Reference, error) {
	return name.ParseReference(addr+"/"+ref, name.Insecure)
}

// signed gives each request the token of the tests. The client alone would do so where GET /v2/ asks for it, which a
// registry that lets everybody pull does not.
type signed struct{ http.RoundTripper }

func (s signed) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth(layer.User, layer.Password)
	return s.RoundTripper.RoundTrip(r)
}

// Push uploads an image, an index or an artifact with all that belongs to it, as layer.User.
func Push(ctx context.Context, addr, ref string, what remote.Taggable) error {
	r, err := Ref(addr, ref)
	if err != nil {
		return err
	}
	return remote.Push(r, what, remote.WithContext(ctx), remote.WithTransport(signed{remote.DefaultTransport}))
}

// Pulled is what a pull found.
type Pulled struct {
	Digest v1.Hash
	Bytes  int64 // of the layers of each platform
	Images int   // 1, or as many as an index has
}

// Pull downloads an image or an index with every platform and checks each digest. The options say who pulls, and what
// is trusted; none is anonymous.
func Pull(ctx context.Context, addr, ref string, who ...remote.Option) (Pulled, error) {
	r, err := Ref(addr, ref)
	if err != nil {
		return Pulled{}, err
	}
	d, err := remote.Get(r, append(who, remote.WithContext(ctx))...)
	if err != nil {
		return Pulled{}, err
	}
	p := Pulled{Digest: d.Digest}
	if !d.MediaType.IsIndex() {
		img, err := d.Image()
		if err != nil {
			return p, err
		}
		return p, p.add(img)
	}
	index, err := d.ImageIndex()
	if err != nil {
		return p, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return p, err
	}
	for _, child := range m.Manifests {
		img, err := index.Image(child.Digest)
		if err != nil {
			return p, err
		}
		if err := p.add(img); err != nil {
			return p, err
		}
	}
	return p, nil
}

// add downloads one image and checks it.
func (p *Pulled) add(img v1.Image) error {
	if err := validate.Image(img); err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			return err
		}
		p.Bytes += n
	}
	p.Images++
	return nil
}

// Referrers returns the digests of what refers to a manifest, in the registry's order.
func Referrers(ctx context.Context, addr, repository string, subject v1.Hash, who ...remote.Option) ([]v1.Hash, error) {
	d, err := name.NewDigest(addr+"/"+repository+"@"+subject.String(), name.Insecure)
	if err != nil {
		return nil, err
	}
	index, err := remote.Referrers(d, append(who, remote.WithContext(ctx))...)
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var all []v1.Hash
	for _, x := range m.Manifests {
		all = append(all, x.Digest)
	}
	return all, nil
}
