package edgesim

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxWorkloadConns is how many connections the daemon serves on one module's socket; a further one is closed in
// silence. A connection that is kept alive counts.
const maxWorkloadConns = 10

// maxWorkloadBody bounds a request.
const maxWorkloadBody = 1 << 20

var workloadVersions = []string{
	"2018-06-28", "2019-01-30", "2019-10-22", "2019-11-05", "2020-07-07", "2021-12-07", "2022-08-03",
}

// workload is the workload API on one module's socket. The socket tells who calls, as on a device the caller's process
// does: another module's name is 403.
type workload struct {
	d      *Device
	module string
	path   string

	mu  sync.Mutex
	srv *http.Server
	wg  sync.WaitGroup
}

func newWorkload(d *Device, module, path string) *workload {
	return &workload{d: d, module: module, path: path}
}

// listen opens the socket; its mode is 0666, as modules run as any user.
func (w *workload) listen() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.srv != nil {
		return nil
	}
	if err := os.Remove(w.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: w.path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // a daemon that is down leaves the file: connections are refused
	if err := os.Chmod(w.path, 0o666); err != nil {
		return errors.Join(err, l.Close())
	}
	srv := &http.Server{
		Handler: w, ReadHeaderTimeout: 30 * time.Second,
		ErrorLog: slog.NewLogLogger(quiet{w.d.log.Handler()}, slog.LevelDebug),
	}
	w.srv = srv
	w.wg.Go(func() { _ = srv.Serve(&throttled{Listener: l}) })
	return nil
}

func (w *workload) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.srv != nil {
		_ = w.srv.Close()
		w.wg.Wait()
		w.srv = nil
	}
}

// throttled closes connections over the limit without a word.
type throttled struct {
	net.Listener
	mu   sync.Mutex
	open int
}

func (t *throttled) Accept() (net.Conn, error) {
	for {
		c, err := t.Listener.Accept()
		if err != nil {
			return nil, err
		}
		t.mu.Lock()
		admitted := t.open < maxWorkloadConns
		if admitted {
			t.open++
		}
		t.mu.Unlock()
		if admitted {
			return &countedConn{Conn: c, done: func() { t.mu.Lock(); t.open--; t.mu.Unlock() }}, nil
		}
		_ = c.Close()
	}
}

type countedConn struct {
	net.Conn
	once sync.Once
	done func()
}

func (c *countedConn) Close() error {
	c.once.Do(c.done)
	return c.Conn.Close()
}

// apiError is an answer other than success.
type apiError struct {
	status  int
	message string
}

func (e *apiError) Error() string { return e.message }

func badRequest(message string) error { return &apiError{http.StatusBadRequest, message} }

// ServeHTTP answers one request.
func (w *workload) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	f := w.d.Faults()
	if !pause(r.Context(), f.WorkloadDelay) {
		return
	}
	if f.WorkloadBroken {
		brokenAnswer(rw)
		return
	}
	var (
		status = http.StatusOK
		body   any
		err    error
	)
	if f.WorkloadStatus != 0 {
		err = &apiError{f.WorkloadStatus, "failed by a switch"}
	} else {
		status, body, err = w.answer(r)
	}
	if err != nil {
		status = http.StatusInternalServerError
		if e := new(apiError); errors.As(err, &e) {
			status = e.status
		}
		body = map[string]string{"message": err.Error()}
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(body)
}

// brokenAnswer promises more than it sends.
func brokenAnswer(rw http.ResponseWriter) {
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Content-Length", "4096")
	_, _ = io.WriteString(rw, `{"certificate":"-----BEGIN CERT`)
}

func (w *workload) answer(r *http.Request) (int, any, error) {
	version := r.URL.Query().Get("api-version")
	switch {
	case !r.URL.Query().Has("api-version"):
		return 0, nil, badRequest("api-version not specified")
	case !slices.Contains(workloadVersions, version):
		return 0, nil, badRequest(`invalid api-version "` + version + `"`)
	}
	var path []string
	for p := range strings.SplitSeq(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/") {
		plain, err := url.PathUnescape(p)
		if err != nil || plain == "" {
			return 0, nil, &apiError{http.StatusNotFound, "not found"}
		}
		path = append(path, plain)
	}
	if r.Method == http.MethodGet {
		return w.get(strings.Join(path, "/"))
	}
	module, generation, action := "", "", ""
	switch {
	case len(path) == 5 && path[0] == "modules" && path[2] == "genid" && path[4] != "certificate":
		module, generation, action = path[1], path[3], path[4]
	case len(path) == 6 && path[0] == "modules" && path[2] == "genid" && path[4] == "certificate" && path[5] == "server":
		module, generation, action = path[1], path[3], "certificate/server"
	case len(path) == 4 && path[0] == "modules" && path[2] == "certificate" && path[3] == "identity":
		module, action = path[1], "certificate/identity"
	}
	handler := map[string]func(*workload, string, map[string]string) (int, any, error){
		"sign": (*workload).sign, "encrypt": (*workload).encrypt, "decrypt": (*workload).decrypt,
		"certificate/server": (*workload).serverCertificate, "certificate/identity": (*workload).identityCertificate,
	}[action]
	switch {
	case handler == nil:
		return 0, nil, &apiError{http.StatusNotFound, "not found"}
	case r.Method != http.MethodPost:
		return 0, nil, badRequest("method not allowed")
	}
	body, err := requestBody(r)
	if err != nil {
		return 0, nil, err
	}
	if module != w.module {
		return 0, nil, &apiError{http.StatusForbidden, "forbidden"}
	}
	if body == nil && action != "certificate/identity" {
		return 0, nil, badRequest("missing request body")
	}
	return handler(w, generation, body)
}

// requestBody reads a JSON body. One of another content type is no body, as the daemon sees it.
func requestBody(r *http.Request) (map[string]string, error) {
	doc, err := io.ReadAll(io.LimitReader(r.Body, maxWorkloadBody))
	if err != nil {
		return nil, badRequest(err.Error())
	}
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if len(doc) == 0 || kind != "" && strings.TrimSpace(kind) != "application/json" {
		return nil, nil
	}
	var fields map[string]any
	if err := json.Unmarshal(doc, &fields); err != nil {
		return nil, &apiError{http.StatusUnprocessableEntity, err.Error()}
	}
	out := map[string]string{}
	for k, v := range fields {
		if s, ok := v.(string); ok {
			out[k] = s
		}
	}
	return out, nil
}

func (w *workload) get(path string) (int, any, error) {
	f := w.d.Faults()
	switch path {
	case "modules":
		list := []map[string]any{}
		for _, id := range w.d.Modules() {
			list = append(list, map[string]any{
				"id": id, "name": id, "type": "docker",
				"config": map[string]any{"settings": map[string]any{}, "env": []any{}},
				"status": map[string]any{"runtimeStatus": map[string]string{"status": "running"}},
			})
		}
		return http.StatusOK, map[string]any{"modules": list}, nil
	case "trust-bundle":
		bundle := w.d.TrustBundle()
		if f.WrongBundle {
			stranger, err := NewAuthority()
			if err != nil {
				return 0, nil, err
			}
			bundle = stranger.Bundle()
		}
		if f.EmptyBundle {
			bundle = nil
		}
		return http.StatusOK, map[string]string{"certificate": string(bundle)}, nil
	case "manifest-trust-bundle":
		return http.StatusOK, map[string]string{"certificate": ""}, nil
	}
	return 0, nil, &apiError{http.StatusNotFound, "not found"}
}

// fields takes base64 values out of a request.
func fields(body map[string]string, names ...string) ([][]byte, error) {
	out := make([][]byte, 0, len(names))
	for _, n := range names {
		s, ok := body[n]
		if !ok {
			return nil, &apiError{http.StatusUnprocessableEntity, "missing field `" + n + "`"}
		}
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return nil, badRequest("invalid base64 encoding")
		}
		out = append(out, b)
	}
	return out, nil
}

// sign makes a digest with the module's key; the daemon looks at neither the generation nor keyId and algo.
func (w *workload) sign(_ string, body map[string]string) (int, any, error) {
	in, err := fields(body, "data")
	if err != nil {
		return 0, nil, err
	}
	m, ok := w.d.module(w.module)
	if !ok {
		return 0, nil, errors.New("failed to get module identity")
	}
	return http.StatusOK, map[string]string{"digest": base64.StdEncoding.EncodeToString(sign(m.key, in[0]))}, nil
}

// seal makes the cipher of encrypt and decrypt: what a module of another generation has sealed cannot be opened.
func (w *workload) seal(generation string, iv []byte) (cipher.AEAD, []byte, error) {
	block, err := aes.NewCipher(w.d.masterKey)
	if err != nil {
		return nil, nil, err
	}
	if len(iv) == 0 {
		return nil, nil, badRequest("empty initialization vector")
	}
	aead, err := cipher.NewGCMWithNonceSize(block, len(iv))
	return aead, []byte(w.module + generation), err
}

func (w *workload) encrypt(generation string, body map[string]string) (int, any, error) {
	in, err := fields(body, "plaintext", "initializationVector")
	if err != nil {
		return 0, nil, err
	}
	aead, aad, err := w.seal(generation, in[1])
	if err != nil {
		return 0, nil, err
	}
	sealed := aead.Seal(nil, in[1], in[0], aad)
	return http.StatusOK, map[string]string{"ciphertext": base64.StdEncoding.EncodeToString(sealed)}, nil
}

func (w *workload) decrypt(generation string, body map[string]string) (int, any, error) {
	in, err := fields(body, "ciphertext", "initializationVector")
	if err != nil {
		return 0, nil, err
	}
	aead, aad, err := w.seal(generation, in[1])
	if err != nil {
		return 0, nil, err
	}
	plain, err := aead.Open(nil, in[1], in[0], aad)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, map[string]string{"plaintext": base64.StdEncoding.EncodeToString(plain)}, nil
}

// serverCertificate issues a certificate for a common name and for the module's own name. The expiration that a
// request asks for is ignored.
func (w *workload) serverCertificate(_ string, body map[string]string) (int, any, error) {
	name := body["commonName"]
	if name == "" {
		return 0, nil, &apiError{http.StatusUnprocessableEntity, "missing field `commonName`"}
	}
	return w.issue(leafRequest{
		name: name, hosts: []string{name, strings.TrimPrefix(w.module, "$")}, usage: x509.ExtKeyUsageServerAuth,
	})
}

func (w *workload) identityCertificate(string, map[string]string) (int, any, error) {
	return w.issue(leafRequest{
		name: w.module, usage: x509.ExtKeyUsageClientAuth,
		uri: &url.URL{Scheme: "azureiot", Host: w.d.opts.Hub, Path: "/devices/" + w.d.opts.DeviceID + "/modules/" + w.module},
	})
}

func (w *workload) issue(r leafRequest) (int, any, error) {
	r.rsa, r.from, r.life = true, w.d.now(), w.d.opts.LeafLife
	w.d.mu.Lock()
	ca := w.d.edgeCA
	w.d.mu.Unlock()
	chain, key, notAfter, err := ca.leaf(r)
	if err != nil {
		return 0, nil, err
	}
	k, err := pemKey(key)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusCreated, map[string]any{
		"privateKey":  map[string]string{"type": "key", "bytes": string(k)},
		"certificate": string(chain),
		"expiration":  notAfter.UTC().Format(time.RFC3339),
	}, nil
}
