package module

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

// newCertificate makes a self-signed certificate and its key in PEM.
func newCertificate(t *testing.T, name string, from, to time.Time) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(from.Unix()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})
}

// daemon makes certificates of 30 days, or fails.
type daemon struct {
	t    *testing.T
	made int
	away atomic.Bool
}

func (d *daemon) ServerCertificate(_ context.Context, name string) (twin.ServerCertificate, error) {
	if d.away.Load() {
		return twin.ServerCertificate{}, errors.New("closed without an answer")
	}
	d.made++
	now := time.Now()
	cert, key := newCertificate(d.t, name, now, now.Add(30*24*time.Hour))
	return twin.ServerCertificate{Key: registry.Secret(key), Chain: cert, Expiry: now.Add(30 * 24 * time.Hour)}, nil
}

// TestCertificateIsRenewed runs three months: the certificate never ends, and a daemon that is away for a day in the
// last third is no reason to be without one.
func TestCertificateIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &daemon{t: t}
		c := &certificates{dir: t.TempDir(), make: d, name: "edge.example", now: time.Now}
		ctx, cancel := context.WithCancel(t.Context())
		go c.run(ctx, func(error) {})
		for hour := range 24 * 90 {
			time.Sleep(time.Hour)
			d.away.Store(hour/24 == 20)
			cert, err := c.get(nil)
			if err != nil || !time.Now().Before(cert.Leaf.NotAfter) {
				t.Fatalf("after %d hours: %v", hour, err)
			}
		}
		cancel()
		synctest.Wait()
		if d.made < 4 || d.made > 6 {
			t.Errorf("%d certificates in three months, want one each 20 days", d.made)
		}
		if s := c.describe(); s.Type != "WorkloadAPI" || s.NotAfter.IsZero() {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestCertificateFromTheVolume(t *testing.T) {
	dir := t.TempDir()
	d := &daemon{t: t}
	c := &certificates{dir: dir, make: d, name: "edge.example", now: time.Now}
	put := func(name string, body []byte, at time.Time) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, body, 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now().Truncate(time.Second)
	cert, key := newCertificate(t, "one.example", now, now.Add(time.Hour))
	put(certFile, cert, now)
	put(keyFile, key, now)
	if _, err := c.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := c.get(nil); err != nil || got.Leaf.Subject.CommonName != "one.example" || d.made != 0 {
		t.Errorf("certificate %v, %v; %d made though the volume has one", got.Leaf.Subject, err, d.made)
	}
	put(keyFile, []byte("not a key"), now.Add(time.Second))
	if _, err := c.refresh(t.Context()); err == nil {
		t.Error("a key that is none was taken")
	}
	if got, err := c.get(nil); err != nil || got.Leaf.Subject.CommonName != "one.example" {
		t.Errorf("the certificate that was good is gone: %v", err)
	}
	cert, key = newCertificate(t, "two.example", now, now.Add(time.Hour))
	put(certFile, cert, now.Add(2*time.Second))
	put(keyFile, key, now.Add(2*time.Second))
	if _, err := c.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := c.get(nil); got.Leaf.Subject.CommonName != "two.example" {
		t.Errorf("after a rotation: %v", got.Leaf.Subject)
	}
}

func TestNoCertificate(t *testing.T) {
	c := &certificates{dir: t.TempDir(), now: time.Now}
	if _, err := c.refresh(t.Context()); err == nil {
		t.Error("no files, no IoT Edge: want an error that says so")
	}
	synctest.Test(t, func(t *testing.T) {
		if _, err := c.get(nil); err == nil {
			t.Error("a handshake without a certificate succeeded")
		}
	})
}

// TestHandshakeWaits is a client that comes before the daemon has made the certificate.
func TestHandshakeWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &daemon{t: t}
		d.away.Store(true)
		c := &certificates{dir: t.TempDir(), make: d, name: "edge.example", now: time.Now}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go c.run(ctx, func(error) {})
		time.AfterFunc(2*time.Second, func() { d.away.Store(false) })
		cert, err := c.get(nil)
		if err != nil || cert.Leaf.Subject.CommonName != "edge.example" {
			t.Errorf("got %v, %v", cert, err)
		}
		cancel()
		synctest.Wait()
	})
}
