package apiproxy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"strings"
	"time"
)

// Authority is the root that all devices of a site trust.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// Certificate is what a server shows: PEM, the leaf first, then the authority of its device.
type Certificate struct {
	Chain, Key []byte
}

// NewAuthority makes a root.
func NewAuthority(name string) (*Authority, error) {
	return newAuthority(name, nil)
}

func newAuthority(name string, parent *Authority) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := unsigned(name, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
	t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	if parent == nil {
		parent = &Authority{cert: t, key: key}
	}
	cert, err := parent.sign(t, key.Public())
	return &Authority{cert: cert, key: key}, err
}

// Bundle is the trust bundle of every device: the root alone.
func (a *Authority) Bundle() []byte { return encode("CERTIFICATE", a.cert.Raw) }

// Pool is the bundle for a client in this process.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Server makes the certificate of the module on a device, as a device's own authority (the Edge CA) signs it: the host
// is the common name, and host and module are what it is good for; the key is RSA. It is good from an hour ago until
// the time given.
func (a *Authority) Server(host, module string, until time.Time) (Certificate, error) {
	edge, err := newAuthority("Edge CA of "+host, a)
	if err != nil {
		return Certificate{}, err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return Certificate{}, err
	}
	t := unsigned(host, time.Now().Add(-time.Hour), until)
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	t.DNSNames = []string{strings.ToLower(module)}
	if ip := net.ParseIP(host); ip != nil {
		t.IPAddresses = []net.IP{ip}
	} else {
		t.DNSNames = append(t.DNSNames, host)
	}
	leaf, err := edge.sign(t, key.Public())
	if err != nil {
		return Certificate{}, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	return Certificate{
		Chain: bytes.Join([][]byte{encode("CERTIFICATE", leaf.Raw), encode("CERTIFICATE", edge.cert.Raw)}, nil),
		Key:   encode("PRIVATE KEY", pkcs8),
	}, err
}

func (a *Authority) sign(t *x509.Certificate, public crypto.PublicKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, public, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func unsigned(name string, from, until time.Time) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // rand.Reader does not fail
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: from, NotAfter: until, BasicConstraintsValid: true,
	}
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
