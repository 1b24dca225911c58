//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/test/layer"
)

// certificate is one for 127.0.0.1, in files; the zero one stands for plain http.
type certificate struct {
	file, key string
	roots     *x509.CertPool
}

func newCertificate(dir string) (c certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return c, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return c, err
	}
	c = certificate{file: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key"), roots: x509.NewCertPool()}
	body := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	c.roots.AppendCertsFromPEM(body)
	return c, errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(c.file, body, 0o600),
		os.WriteFile(c.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
}

// client is one with connections of its own.
func (i *instance) client(limit time.Duration) *http.Client {
	return &http.Client{Timeout: limit, Transport: &http.Transport{
		MaxIdleConnsPerHost: 300, DisableCompression: true, WriteBufferSize: 256 << 10,
		TLSClientConfig: &tls.Config{RootCAs: i.cert.roots, MinVersion: tls.VersionTLS12},
	}}
}

// accepts are the media types that clients ask for.
var accepts = []string{registry.MediaTypeImageManifest, registry.MediaTypeImageIndex, registry.MediaTypeDockerManifest, registry.MediaTypeDockerList}

func get(ctx context.Context, c *http.Client, method, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header["Accept"] = accepts
	return c.Do(req)
}

// pusher uploads. It takes no status but the one of success.
type pusher struct {
	client *http.Client
	base   string
}

func (i *instance) pusher() pusher {
	return pusher{client: i.client(10 * time.Minute), base: i.url("")}
}

func (p pusher) do(ctx context.Context, method, url, media string, body []byte, want int) (http.Header, error) {
	if strings.HasPrefix(url, "/") {
		url = p.base + url
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if media != "" {
		req.Header.Set("Content-Type", media)
	}
	req.SetBasicAuth(layer.User, layer.Password) // who knows nobody does not look
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
	if resp.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, said)
	}
	return resp.Header, nil
}

// blob uploads in one PUT, or before it in chunks of so many bytes.
func (p pusher) blob(ctx context.Context, repo string, b registrytest.Blob, chunk int) error {
	h, err := p.do(ctx, http.MethodPost, "/v2/"+repo+"/blobs/uploads/", "", nil, http.StatusAccepted)
	rest := b.Bytes
	for err == nil && chunk > 0 && len(rest) > 0 {
		n := min(chunk, len(rest))
		h, err = p.do(ctx, http.MethodPatch, h.Get("Location"), "application/octet-stream", rest[:n], http.StatusAccepted)
		rest = rest[n:]
	}
	if err != nil {
		return err
	}
	to, sep := h.Get("Location"), "?"
	if strings.Contains(to, "?") {
		sep = "&"
	}
	_, err = p.do(ctx, http.MethodPut, to+sep+"digest="+b.Digest.String(), "application/octet-stream", rest, http.StatusCreated)
	return err
}

// image uploads an image or an index with all that it needs; empty tags push by digest.
func (p pusher) image(ctx context.Context, repo, tag string, image registrytest.Image) error {
	for _, b := range image.Blobs {
		if err := p.blob(ctx, repo, b, 0); err != nil {
			return err
		}
	}
	for _, child := range image.Children {
		if err := p.image(ctx, repo, child.Digest.String(), child); err != nil {
			return err
		}
	}
	return p.manifest(ctx, repo, tag, image.Manifest)
}

func (p pusher) manifest(ctx context.Context, repo, ref string, m registry.Manifest) error {
	h, err := p.do(ctx, http.MethodPut, "/v2/"+repo+"/manifests/"+ref, m.MediaType, m.Bytes, http.StatusCreated)
	if err == nil && h.Get("Docker-Content-Digest") != m.Digest.String() {
		err = fmt.Errorf("%s/%s: stored as %q, want %s", repo, ref, h.Get("Docker-Content-Digest"), m.Digest)
	}
	return err
}

// ask is a request as it goes over the wire, and the only answer that is right.
type ask struct {
	request []byte
	head    bool
	digest  string // in Docker-Content-Digest, where the answer has one
	body    []byte
}

func newAsk(method, addr, path, digest string, body []byte) ask {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: %s\r\n\r\n", method, path, addr, strings.Join(append(accepts, "*/*"), ", "))
	return ask{request: b.Bytes(), head: method == http.MethodHead, digest: digest, body: body}
}

// wire is a connection that is kept alive. It parses no more than it checks, so that the client is not what is measured.
type wire struct {
	conn net.Conn
	in   *bufio.Reader
	buf  []byte
}

func (i *instance) dial(ctx context.Context, buffer int) (*wire, error) {
	d := &net.Dialer{Timeout: 10 * time.Second}
	c, err := d.DialContext(ctx, "tcp", i.addr)
	if err != nil {
		return nil, err
	}
	if i.cert.file != "" {
		t := tls.Client(c, &tls.Config{RootCAs: i.cert.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c = t
	}
	return &wire{conn: c, in: bufio.NewReaderSize(c, 32<<10), buf: make([]byte, buffer)}, nil
}

// do sends the request and checks the answer: status, length, digest, and each byte.
func (w *wire) do(a *ask) error {
	if _, err := w.conn.Write(a.request); err != nil {
		return err
	}
	line, err := w.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
		return fmt.Errorf("%.60s answers %q", a.request, line)
	}
	length := -1
	for {
		line, err := w.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch value = bytes.TrimSpace(value); {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return err
			}
		case bytes.EqualFold(name, []byte("Docker-Content-Digest")) && string(value) != a.digest:
			return fmt.Errorf("%.60s: digest %q, want %s", a.request, value, a.digest)
		}
	}
	if length != len(a.body) {
		return fmt.Errorf("%.60s: length %d, want %d", a.request, length, len(a.body))
	}
	if a.head {
		return nil
	}
	for rest := a.body; len(rest) > 0; {
		n, err := w.in.Read(w.buf[:min(len(w.buf), len(rest))])
		if !bytes.Equal(w.buf[:n], rest[:n]) {
			return fmt.Errorf("%.60s: wrong bytes", a.request)
		}
		if rest = rest[n:]; err != nil && len(rest) > 0 {
			return err
		}
	}
	return nil
}

// drive keeps conns connections busy with the asks, each beginning elsewhere, until more says no, which is told for how
// long they have been. It returns how many were answered, and how long that took without the dialling.
func (i *instance) drive(ctx context.Context, conns, buffer int, asks []ask, more func(time.Duration) bool) (done int64, took time.Duration, err error) {
	var wires []*wire
	defer func() {
		for _, w := range wires {
			_ = w.conn.Close()
		}
	}()
	for range conns {
		w, err := i.dial(ctx, buffer)
		if err != nil {
			return 0, 0, err
		}
		wires = append(wires, w)
		if err := w.do(&asks[0]); err != nil { // what a connection costs is not what is measured
			return 0, 0, fmt.Errorf("%s: %w", i.name, err)
		}
	}
	var count atomic.Int64
	var group sync.WaitGroup
	failed := make(chan error, conns)
	began := time.Now()
	for n, w := range wires {
		group.Go(func() {
			for k := n; more(time.Since(began)) && ctx.Err() == nil; k++ {
				if err := w.do(&asks[k%len(asks)]); err != nil {
					failed <- fmt.Errorf("%s: %w", i.name, err)
					return
				}
				count.Add(1)
			}
		})
	}
	group.Wait()
	took = time.Since(began)
	close(failed)
	return count.Load(), took, errors.Join(<-failed, ctx.Err())
}
