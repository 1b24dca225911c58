package module

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

// The files of a certificate in ACR_REGISTRY_CERTIFICATE_VOLUME.
const (
	certFile = "tls.crt" // PEM, the leaf first
	keyFile  = "tls.key" // PEM
)

const (
	// certPoll is how often the files are looked at for a change.
	certPoll = 10 * time.Second
	// certRetry bounds the pause after a certificate could not be had.
	certRetry = time.Minute
	// certTimeout bounds one request for a certificate.
	certTimeout = 30 * time.Second
	// certPatience is how long a handshake waits for the first certificate: IoT Edge makes one at each start.
	certPatience = 10 * time.Second
)

// maker makes server certificates: the workload API of IoT Edge.
type maker interface {
	ServerCertificate(ctx context.Context, commonName string) (twin.ServerCertificate, error)
}

// certificates keeps the certificate of the TLS listener: from the files of a volume when they are there, made by the
// workload API otherwise, renewed before it ends. An old one is kept until there is a new one.
type certificates struct {
	dir  string
	make maker // nil outside IoT Edge
	name string
	now  func() time.Time

	mu     sync.Mutex
	first  chan struct{} // closed with the first certificate; nil until somebody waits for it
	cert   *tls.Certificate
	status registry.LoginServerCertificate
	stamp  string // of the files that cert was read from
}

// get is what tls.Config asks at each handshake. Those of the first moments wait for the first certificate, so that a
// client sees a start that takes a while and no failure.
func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, first := c.current()
	if cert != nil {
		return cert, nil
	}
	timer := time.NewTimer(certPatience)
	defer timer.Stop()
	select {
	case <-first:
		cert, _ = c.current()
		return cert, nil
	case <-timer.C:
	}
	return nil, errors.New("there is no certificate yet")
}

// current returns the certificate, or what to wait for.
func (c *certificates) current() (*tls.Certificate, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == nil {
		c.first = make(chan struct{})
	}
	return c.cert, c.first
}

// describe is what the status says of it.
func (c *certificates) describe() registry.LoginServerCertificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// run loads and renews until ctx ends. told hears of each result that is new: nil when there is a certificate again.
func (c *certificates) run(ctx context.Context, told func(error)) {
	retry := time.Second
	for {
		pause, err := c.refresh(ctx)
		told(err)
		if err != nil {
			pause, retry = retry, min(2*retry, certRetry)
		} else {
			retry = time.Second
		}
		if clock.Wait(ctx, pause) != nil {
			return
		}
	}
}

// refresh makes sure that the certificate is there and good for a while, and returns when to look again.
func (c *certificates) refresh(ctx context.Context) (time.Duration, error) {
	stamp, err := c.fileStamp()
	switch {
	case err == nil:
		return certPoll, c.fromFiles(stamp)
	case !errors.Is(err, fs.ErrNotExist):
		return 0, err
	case c.make == nil:
		return 0, fmt.Errorf("%s holds no %s and %s, and there is no IoT Edge to make a certificate", c.dir, certFile, keyFile)
	}
	return c.fromWorkload(ctx)
}

// fileStamp tells one pair of files from another; an error wraps fs.ErrNotExist unless both are there.
func (c *certificates) fileStamp() (string, error) {
	stamp := ""
	for _, name := range []string{certFile, keyFile} {
		info, err := os.Stat(filepath.Join(c.dir, name)) // through symbolic links, as mounted secrets have them
		if err != nil {
			return "", err
		}
		stamp += fmt.Sprintf("%d %d;", info.ModTime().UnixNano(), info.Size())
	}
	return stamp, nil
}

func (c *certificates) fromFiles(stamp string) error {
	c.mu.Lock()
	same := c.cert != nil && c.stamp == stamp
	c.mu.Unlock()
	if same {
		return nil
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(c.dir, certFile), filepath.Join(c.dir, keyFile))
	if err != nil {
		return fmt.Errorf("the certificate in %s: %w", c.dir, err)
	}
	c.set(&cert, stamp, registry.LoginServerCertificate{Type: "LocalDirectory", Location: c.dir})
	return nil
}

// fromWorkload asks for a certificate when the one that is here has less than a third of its life left.
func (c *certificates) fromWorkload(ctx context.Context) (time.Duration, error) {
	c.mu.Lock()
	cert, made := c.cert, c.status.Type == "WorkloadAPI"
	c.mu.Unlock()
	if made {
		if left := renewIn(cert.Leaf, c.now()); left > 0 {
			return min(left, time.Hour), nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, certTimeout)
	defer cancel()
	answer, err := c.make.ServerCertificate(ctx, c.name)
	if err != nil {
		return 0, fmt.Errorf("a server certificate from the workload API: %w", err)
	}
	fresh, err := answer.TLS()
	if err != nil {
		return 0, err
	}
	if fresh.Leaf == nil {
		if fresh.Leaf, err = x509.ParseCertificate(fresh.Certificate[0]); err != nil {
			return 0, err
		}
	}
	c.set(&fresh, "", registry.LoginServerCertificate{Type: "WorkloadAPI", Location: c.name})
	return max(min(renewIn(fresh.Leaf, c.now()), time.Hour), time.Minute), nil
}

// renewIn is how long until two thirds of a certificate's life are over.
func renewIn(leaf *x509.Certificate, now time.Time) time.Duration {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotAfter.Add(-life / 3).Sub(now)
}

func (c *certificates) set(cert *tls.Certificate, stamp string, status registry.LoginServerCertificate) {
	if cert.Leaf != nil {
		status.NotAfter = cert.Leaf.NotAfter
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cert == nil && c.first != nil {
		close(c.first)
	}
	c.cert, c.stamp, c.status = cert, stamp, status
}
