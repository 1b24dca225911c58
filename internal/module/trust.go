package module

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

// maxBundle bounds a file of roots in bytes.
const maxBundle = 4 << 20

// parentRoots returns what the parent's certificate is verified with, read anew on each dial: the system's roots, the
// trust bundle of the IoT Edge device, which holds the root of the parent's API proxy, and the bundle of --parent-ca.
// One that cannot be read means no connection: failing open would give the credential to whoever is in between.
func (m *Module) parentRoots() (*x509.CertPool, error) {
	if m.o.Roots != nil {
		m.o.Roots()
	}
	var roots *x509.CertPool // nil: the system's alone
	if m.work != nil {
		ctx, cancel := context.WithTimeout(context.Background(), certTimeout)
		defer cancel()
		var err error
		if roots, err = m.work.Roots(ctx, true); err != nil {
			return nil, registry.ErrUnavailable.WithMessage("the trust bundle of the device cannot be read; the parent is not trusted without it").Wrap(err)
		}
	}
	if m.o.ParentCA == "" {
		return roots, nil
	}
	pem, err := readBundle(m.o.ParentCA)
	if err != nil {
		return nil, registry.ErrUnavailable.WithMessage("the bundle of --parent-ca cannot be read; the parent is not trusted without it").Wrap(err)
	}
	if roots == nil {
		if roots, err = x509.SystemCertPool(); err != nil {
			roots = x509.NewCertPool()
		}
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, registry.ErrUnavailable.WithMessage("the bundle of --parent-ca holds no certificate in PEM; the parent is not trusted without one")
	}
	return roots, nil
}

func readBundle(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxBundle {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", path, maxBundle)
	}
	return os.ReadFile(path)
}

// certificateName is the name that clients know this registry by, for the certificate that the workload API makes.
func (m *Module) certificateName() string {
	name := m.env.LoginServer
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	if name == "" {
		name = m.edge.GatewayHostname
	}
	return name
}

// certificateState shows in the status whether the TLS listener has a certificate.
func (m *Module) certificateState(err error) {
	if err == nil {
		m.clear("certificate")
		return
	}
	m.log.Error("the TLS listener's certificate", "error", err)
	m.wrong("certificate", registry.StatusDetail{Type: "Certificate", Code: "CertificateUnavailable", Description: err.Error()})
}

// proxyFor returns how the parent is reached: a cloud registry through the proxy that HTTPS_PROXY names, the layer
// above always directly.
func (m *Module) proxyFor(endpoint string) func(*url.URL) (*url.URL, error) {
	if m.edge.ParentHostname != "" && !twin.IsCloud(endpoint) {
		return nil
	}
	return func(target *url.URL) (*url.URL, error) {
		return http.ProxyFromEnvironment(&http.Request{URL: target})
	}
}
