package module

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"os"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

// maxBundle bounds a file of roots in bytes.
const maxBundle = 4 << 20

// parentRoots returns what the parent's certificate is verified with, read anew on each dial: the system's roots and,
// where --parent-ca names a bundle, its roots too. A bundle that cannot be read means no connection: failing open
// would give the credential to whoever is in between.
func (m *Module) parentRoots() (*x509.CertPool, error) {
	if m.o.ParentCA == "" {
		return nil, nil // the system's alone
	}
	info, err := os.Stat(m.o.ParentCA)
	if err == nil && info.Size() > maxBundle {
		err = fmt.Errorf("%d bytes are more than a bundle of certificates has", info.Size())
	}
	var pem []byte
	if err == nil {
		pem, err = os.ReadFile(m.o.ParentCA)
	}
	if err != nil {
		return nil, registry.ErrUnavailable.WithMessage("the bundle of --parent-ca cannot be read; the parent is not trusted without it").Wrap(err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, registry.ErrUnavailable.WithMessage("the bundle of --parent-ca holds no certificate in PEM; the parent is not trusted without one")
	}
	return roots, nil
}

// proxyFor returns how the parent is reached: a cloud registry through the proxy that HTTPS_PROXY names, the layer
// above always directly.
func (m *Module) proxyFor(endpoint string) func(*url.URL) (*url.URL, error) {
	_, nested := m.o.Lookup("IOTEDGE_PARENTHOSTNAME")
	if nested && !twin.IsCloud(endpoint) {
		return nil
	}
	return func(target *url.URL) (*url.URL, error) {
		return http.ProxyFromEnvironment(&http.Request{URL: target})
	}
}
