package edgesim

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"sync"
	"time"
)

// Lives of certificates: certd issues for 30 days unless told otherwise, an Edge CA lives for 90.
const (
	rootLife = 10 * 365 * 24 * time.Hour
	caLife   = 90 * 24 * time.Hour
	leafLife = 30 * 24 * time.Hour
)

// Authority is the root under which the Edge CAs of all layers stand, so that a child trusts its parent. It is safe
// for concurrent use.
type Authority struct {
	mu     sync.Mutex
	issuer *issuer
	old    [][]byte // PEM of earlier roots that are still trusted
}

// issuer is a CA certificate with its key.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// NewAuthority makes a root.
func NewAuthority() (*Authority, error) {
	root, err := newIssuer("edgesim root", time.Now(), rootLife, nil)
	if err != nil {
		return nil, err
	}
	return &Authority{issuer: root}, nil
}

// Rotate replaces the root; with keepOld the bundle holds the earlier roots as well. Devices get an Edge CA under the
// new root by RotateEdgeCA.
func (a *Authority) Rotate(keepOld bool) error {
	root, err := newIssuer("edgesim root", time.Now(), rootLife, nil)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if keepOld {
		a.old = append(a.old, a.issuer.pem)
	} else {
		a.old = nil
	}
	a.issuer = root
	return nil
}

// Bundle returns the trusted roots as PEM.
func (a *Authority) Bundle() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := append([]byte{}, a.issuer.pem...)
	for _, p := range a.old {
		b = append(b, p...)
	}
	return b
}

func (a *Authority) current() *issuer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.issuer
}

// newIssuer makes a CA certificate, signed by parent, or by itself when there is none.
func newIssuer(name string, now time.Time, life time.Duration, parent *issuer) (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t, err := template(name, now, life)
	if err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	signer, signKey := t, crypto.Signer(key)
	if parent != nil {
		signer, signKey = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, signer, key.Public(), signKey)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &issuer{cert: cert, key: key, pem: pemCert(der)}, nil
}

// leafRequest says what a certificate is to hold.
type leafRequest struct {
	name  string
	hosts []string // DNS names or IP addresses
	uri   *url.URL
	usage x509.ExtKeyUsage
	from  time.Time
	life  time.Duration
	rsa   bool // the workload API's keys are RSA-2048
}

// leaf issues a certificate; the PEM is the leaf and the issuing CA.
func (i *issuer) leaf(r leafRequest) (chain []byte, key crypto.Signer, notAfter time.Time, err error) {
	if r.rsa {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	t, err := template(r.name, r.from, r.life)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	t.ExtKeyUsage = []x509.ExtKeyUsage{r.usage}
	for _, h := range r.hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	if r.uri != nil {
		t.URIs = []*url.URL{r.uri}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, i.cert, key.Public(), i.key)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	return append(pemCert(der), i.pem...), key, t.NotAfter, nil
}

func template(name string, now time.Time, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Minute),
		NotAfter:     now.Add(life),
	}, nil
}

func pemCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func pemKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// serverCerts are edgeHub's certificates: the good one and those of the faults.
type serverCerts struct{ good, expired, unknown, otherHost *tls.Certificate }

// issueServer makes edgeHub's certificates under an Edge CA.
func issueServer(ca *issuer, hosts []string, now time.Time) (serverCerts, error) {
	stranger, err := newIssuer("another root", now, rootLife, nil)
	if err != nil {
		return serverCerts{}, err
	}
	var s serverCerts
	for _, c := range []struct {
		into   **tls.Certificate
		issuer *issuer
		hosts  []string
		from   time.Time
		life   time.Duration
	}{
		{&s.good, ca, hosts, now, leafLife},
		{&s.expired, ca, hosts, now.Add(-leafLife - 24*time.Hour), leafLife},
		{&s.unknown, stranger, hosts, now, leafLife},
		{&s.otherHost, ca, []string{"another-device.invalid"}, now, leafLife},
	} {
		chain, key, _, err := c.issuer.leaf(leafRequest{
			name: hosts[0], hosts: c.hosts, usage: x509.ExtKeyUsageServerAuth, from: c.from, life: c.life,
		})
		if err != nil {
			return serverCerts{}, err
		}
		k, err := pemKey(key)
		if err != nil {
			return serverCerts{}, err
		}
		pair, err := tls.X509KeyPair(chain, k)
		if err != nil {
			return serverCerts{}, fmt.Errorf("edgeHub's certificate: %w", err)
		}
		*c.into = &pair
	}
	return s, nil
}
