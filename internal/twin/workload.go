package twin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	workloadVersion = "2020-07-07" // of the API; 1.1 and later have it
	workloadAtOnce  = 3            // requests; the API closes the eleventh of a socket without an answer
	workloadTries   = 6
	workloadAnswer  = 1 << 20 // bytes
	workloadPause   = 100 * time.Millisecond
	workloadCap     = 5 * time.Second
)

// WorkloadOptions are the options of a Workload. The zero value works.
type WorkloadOptions struct {
	Timeout time.Duration // of one call with all its attempts; 0 is 30 s
	// Dial opens connections; nil is the machine's. The network is "unix" or "tcp".
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Rand func() float64 // in [0, 1), for jitter
	Log  *slog.Logger
}

// Workload is a client of the workload API: what the security daemon of IoT Edge does for this module. Equal calls at
// one time are one request. An attempt that is closed without an answer, because others of the device are busy there,
// or is answered with 5xx, is made again with jitter.
type Workload struct {
	edge   Edge
	o      WorkloadOptions
	base   string
	client *http.Client
	slots  chan struct{}
	flight singleflight.Group
}

// WorkloadError is an answer of the workload API that is no success.
type WorkloadError struct {
	Status  int
	Message string
}

// Error returns status and message.
func (e *WorkloadError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("%d %s %s", e.Status, http.StatusText(e.Status), e.Message))
}

// ServerCertificate is a certificate of this module for its listener.
type ServerCertificate struct {
	Key    registry.Secret // PEM
	Chain  []byte          // PEM: the leaf, then the edge CA
	Expiry time.Time
}

// TLS returns the certificate as crypto/tls wants it.
func (c ServerCertificate) TLS() (tls.Certificate, error) {
	return tls.X509KeyPair(c.Chain, []byte(c.Key.Reveal()))
}

// NewWorkload returns a client for the module that edge describes.
func NewWorkload(edge Edge, o WorkloadOptions) (*Workload, error) {
	address, err := parseWorkloadURI(edge.WorkloadURI)
	if err != nil {
		return nil, fmt.Errorf("workload API: %w", err)
	}
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	w := &Workload{edge: edge, o: o, base: address.base, slots: make(chan struct{}, workloadAtOnce)}
	dial := o.Dial
	if address.socket != "" {
		w.base = "http://workload"
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return o.Dial(ctx, "unix", address.socket) }
	}
	// No proxy, no kept connection: the daemon may be another process by the next call.
	w.client = &http.Client{
		Transport:     &http.Transport{DialContext: dial, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return w, nil
}

// Sign returns the HMAC-SHA256 of data by the module's primary key.
func (w *Workload) Sign(ctx context.Context, data []byte) ([]byte, error) {
	in := struct {
		KeyID string `json:"keyId"`
		Algo  string `json:"algo"`
		Data  []byte `json:"data"` // base64
	}{"primary", "HMACSHA256", data}
	var out struct {
		Digest string `json:"digest"`
	}
	if err := w.call(ctx, "sign", http.MethodPost, w.modulePath("sign"), in, &out); err != nil {
		return nil, err
	}
	digest, err := base64.StdEncoding.DecodeString(out.Digest)
	if err != nil || len(digest) == 0 {
		return nil, errors.New("workload API: sign: the answer has no digest")
	}
	return digest, nil
}

// TrustBundle returns the certificates, PEM, that the modules of this device trust.
func (w *Workload) TrustBundle(ctx context.Context) ([]byte, error) {
	var out struct {
		Certificate string `json:"certificate"`
	}
	if err := w.call(ctx, "trust-bundle", http.MethodGet, "/trust-bundle", nil, &out); err != nil {
		return nil, err
	}
	if !x509.NewCertPool().AppendCertsFromPEM([]byte(out.Certificate)) {
		return nil, errors.New("workload API: trust-bundle: there is no certificate in it")
	}
	return []byte(out.Certificate), nil
}

// Roots returns the trust bundle as a pool, with the system's roots in it when system is set: a parent may have a
// public certificate, edgeHub has none. It is read anew each time, and without it there is no pool.
func (w *Workload) Roots(ctx context.Context, system bool) (*x509.CertPool, error) {
	bundle, err := w.TrustBundle(ctx)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if system {
		if p, err := x509.SystemCertPool(); err == nil { // an image from scratch has none
			pool = p
		}
	}
	pool.AppendCertsFromPEM(bundle) // TrustBundle has seen that there is one
	return pool, nil
}

// ServerCertificate has a new certificate made for a listener; the name, a host or an address, and the module's own
// name are in it. It is good for some 30 days, so ask again when most of that is over.
func (w *Workload) ServerCertificate(ctx context.Context, commonName string) (ServerCertificate, error) {
	if commonName == "" || len(commonName) > 253 {
		return ServerCertificate{}, errors.New("workload API: certificate/server: want a common name of 1 to 253 bytes")
	}
	in := struct {
		CommonName string `json:"commonName"`
		Expiration string `json:"expiration"` // required; the daemon has its own mind
	}{commonName, "2099-12-31T00:00:00Z"}
	var out struct {
		PrivateKey struct {
			Type  string `json:"type"`
			Bytes string `json:"bytes"`
		} `json:"privateKey"`
		Certificate string    `json:"certificate"`
		Expiration  time.Time `json:"expiration"`
	}
	const call = "certificate/server"
	if err := w.call(ctx, call, http.MethodPost, w.modulePath("certificate/server"), in, &out); err != nil {
		return ServerCertificate{}, err
	}
	if out.PrivateKey.Type != "key" {
		return ServerCertificate{}, fmt.Errorf("workload API: %s: the private key is of type %q, want key", call, clip(out.PrivateKey.Type))
	}
	c := ServerCertificate{Key: registry.Secret(out.PrivateKey.Bytes), Chain: []byte(out.Certificate), Expiry: out.Expiration}
	pair, err := c.TLS()
	if err != nil {
		return ServerCertificate{}, fmt.Errorf("workload API: %s: key and certificate do not go together", call)
	}
	if c.Expiry.IsZero() || pair.Leaf.NotAfter.Before(c.Expiry) {
		c.Expiry = pair.Leaf.NotAfter
	}
	return c, nil
}

// modulePath is the path of a call about this module.
func (w *Workload) modulePath(call string) string {
	return "/modules/" + url.PathEscape(w.edge.ModuleID) + "/genid/" + url.PathEscape(w.edge.Generation) + "/" + call
}

// call makes a request and decodes the answer into out. Equal calls share one request, which goes on when the caller
// that began it has gone.
func (w *Workload) call(ctx context.Context, name, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("workload API: %s: %w", name, err)
		}
	}
	answer := w.flight.DoChan(method+" "+path+" "+string(body), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.o.Timeout)
		defer cancel()
		return w.retry(ctx, name, method, path, body)
	})
	select {
	case <-ctx.Done():
		return fmt.Errorf("workload API: %s: %w", name, ctx.Err())
	case r := <-answer:
		if r.Err != nil {
			return fmt.Errorf("workload API: %s: %w", name, r.Err)
		}
		raw, _ := r.Val.([]byte)
		if err := json.Unmarshal(raw, out); err != nil {
			return fmt.Errorf("workload API: %s: the answer is not the JSON that is wanted", name) // its text may hold a key
		}
		return nil
	}
}

// retry makes attempts until one is answered with something that another attempt would not change.
func (w *Workload) retry(ctx context.Context, name, method, path string, body []byte) ([]byte, error) {
	pause := workloadPause
	for try := 1; ; try++ {
		raw, err := w.attempt(ctx, method, path, body)
		var answer *WorkloadError
		if err == nil || errors.As(err, &answer) && answer.Status < 500 || try == workloadTries || ctx.Err() != nil {
			return raw, err
		}
		w.o.Log.Debug("workload API: trying again", "call", name, "attempt", try, "error", err)
		if clock.Wait(ctx, pause/2+time.Duration(w.o.Rand()*float64(pause))) != nil {
			return nil, err
		}
		pause = min(2*pause, workloadCap)
	}
}

// attempt makes one request.
func (w *Workload) attempt(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	select {
	case w.slots <- struct{}{}:
		defer func() { <-w.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	req, err := http.NewRequestWithContext(ctx, method, w.base+path+"?api-version="+workloadVersion, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json") // required: the daemon reads no other body
	}
	resp, err := w.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the call is named already
		}
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, workloadAnswer+1))
	switch {
	case err != nil:
		return nil, err
	case len(raw) > workloadAnswer:
		return nil, &WorkloadError{Message: fmt.Sprintf("the answer has more than %d bytes", workloadAnswer)}
	case resp.StatusCode/100 != 2:
		var problem struct{ Message string }
		_ = json.Unmarshal(raw, &problem) // an answer without a message is told by its status
		return nil, &WorkloadError{Status: resp.StatusCode, Message: clip(problem.Message)}
	}
	return raw, nil
}
