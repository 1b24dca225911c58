package twin_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/twin"
)

// daemon serves h as the workload API on a unix socket, and returns a client for it.
func daemon(t *testing.T, h http.HandlerFunc, change ...func(*twin.WorkloadOptions)) *twin.Workload {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "workload.sock")
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: ln, Config: &http.Server{Handler: h}}
	server.Start()
	t.Cleanup(server.Close)
	return client(t, "unix://"+socket, change...)
}

func client(t *testing.T, uri string, change ...func(*twin.WorkloadOptions)) *twin.Workload {
	t.Helper()
	o := twin.WorkloadOptions{Timeout: patience, Rand: func() float64 { return 0 }}
	for _, c := range change {
		c(&o)
	}
	w, err := twin.NewWorkload(twin.Edge{WorkloadURI: uri, ModuleID: "connected registry/é", Generation: "63?7"}, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func hangUp(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = conn.Close()
	}
}

// Gaps 1 and 19: the request is JSON, names are escaped, the version is given, and the status of the answer counts.
func TestGap01SignIsJSON(t *testing.T) {
	var got struct{ KeyID, Algo, Data string }
	w := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Content-Type") != "application/json" || r.Method != http.MethodPost {
			t.Errorf("%s with content type %q", r.Method, r.Header.Get("Content-Type"))
		}
		if want := "/modules/connected%20registry%2F%C3%A9/genid/63%3F7/sign?api-version=2020-07-07"; r.RequestURI != want {
			t.Errorf("asked %s, want %s", r.RequestURI, want)
		}
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		fmt.Fprint(w, `{"digest":"AAEC"}`)
	})
	digest, err := w.Sign(t.Context(), []byte("data\n1"))
	if err != nil || string(digest) != "\x00\x01\x02" {
		t.Fatalf("%x, %v", digest, err)
	}
	if got.KeyID != "primary" || got.Algo != "HMACSHA256" || got.Data != "ZGF0YQox" {
		t.Errorf("asked for %+v", got)
	}
}

func TestWorkloadErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   string
		tries  int32
	}{
		{"another module", 403, `{"message":"caller not authorized"}`, "sign: 403 Forbidden caller not authorized", 1},
		{"not found", 404, `<html>`, "sign: 404 Not Found", 1},
		{"trouble", 500, `{"message":"keyd is away"}`, "sign: 500 Internal Server Error keyd is away", 6},
		{"no JSON", 200, `digest`, "sign: the answer is not the JSON", 1},
		{"no digest", 200, `{}`, "sign: the answer has no digest", 1},
		{"no base64", 200, `{"digest":"%%%"}`, "sign: the answer has no digest", 1},
		{"endless", 200, `{"digest":"` + strings.Repeat("A", 1<<20) + `"}`, "more than 1048576 bytes", 1},
		{"a redirect", 307, ``, "307 Temporary Redirect", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var tries atomic.Int32
			w := daemon(t, func(w http.ResponseWriter, _ *http.Request) {
				tries.Add(1)
				w.Header().Set("Location", "http://169.254.169.254/")
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			})
			_, err := w.Sign(t.Context(), []byte("x"))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "workload API: ") {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if tries.Load() != tt.tries {
				t.Errorf("%d attempts, want %d", tries.Load(), tt.tries)
			}
			var answer *twin.WorkloadError
			if errors.As(err, &answer) && answer.Status != 0 && answer.Status != tt.status {
				t.Errorf("status %d", answer.Status)
			}
		})
	}
}

// The eleventh request of a socket is closed without an answer: it is made again.
func TestWorkloadRetriesWhatWasClosed(t *testing.T) {
	var tries atomic.Int32
	w := daemon(t, func(w http.ResponseWriter, _ *http.Request) {
		switch tries.Add(1) {
		case 1:
			hangUp(w)
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			fmt.Fprint(w, `{"digest":"AAEC"}`)
		}
	})
	if _, err := w.Sign(t.Context(), []byte("x")); err != nil || tries.Load() != 3 {
		t.Errorf("%v after %d attempts", err, tries.Load())
	}
}

// Gap 19: a call is bounded, and one who waits can leave.
func TestWorkloadIsBounded(t *testing.T) {
	release := make(chan struct{})
	w := daemon(t, func(http.ResponseWriter, *http.Request) { <-release }, func(o *twin.WorkloadOptions) { o.Timeout = 50 * time.Millisecond })
	defer close(release)
	if _, err := w.Sign(t.Context(), []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hanging daemon: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.TrustBundle(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	gone := client(t, "unix://"+filepath.Join(t.TempDir(), "none.sock"), func(o *twin.WorkloadOptions) { o.Timeout = 3 * time.Second })
	if _, err := gone.Sign(t.Context(), []byte("x")); err == nil || !strings.Contains(err.Error(), "none.sock") {
		t.Errorf("no socket: %v", err)
	}
}

// Equal calls are one request, and never are more than a few under way.
func TestWorkloadAtOnce(t *testing.T) {
	var requests, now, most atomic.Int32
	w := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		_, _ = io.Copy(io.Discard, r.Body)
		time.Sleep(20 * time.Millisecond) // that requests could meet
		fmt.Fprint(w, `{"digest":"AAEC"}`)
	})
	var group sync.WaitGroup
	for i := range 40 {
		group.Go(func() {
			if _, err := w.Sign(t.Context(), []byte{byte(i % 20)}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if most.Load() > 3 || requests.Load() >= 40 {
		t.Errorf("%d requests, %d at once", requests.Load(), most.Load())
	}
}

// Gap 19: each client has its own socket; the library's has that of the first call in the process.
func TestGap19TwoDevicesInOneProcess(t *testing.T) {
	one := daemon(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"digest":"AQ=="}`) })
	two := daemon(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"digest":"Ag=="}`) })
	a, errA := one.Sign(t.Context(), nil)
	b, errB := two.Sign(t.Context(), nil)
	if errA != nil || errB != nil || string(a) != "\x01" || string(b) != "\x02" {
		t.Errorf("%x %v, %x %v", a, errA, b, errB)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"digest":"Aw=="}`) }))
	defer server.Close()
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	if c, err := client(t, server.URL+"/").Sign(t.Context(), nil); err != nil || string(c) != "\x03" {
		t.Errorf("over http: %x %v", c, err)
	}
}

// pair makes a certificate that ends at the given time, and its key, PEM.
func pair(t *testing.T, end time.Time) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: end, DNSNames: []string{"edge"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}))
}

func TestWorkloadTrustBundle(t *testing.T) {
	cert, _ := pair(t, time.Now().Add(time.Hour))
	var body atomic.Value
	body.Store(cert)
	w := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI != "/trust-bundle?api-version=2020-07-07" {
			t.Errorf("asked %s", r.RequestURI)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"certificate": body.Load()})
	})
	got, err := w.TrustBundle(t.Context())
	if err != nil || string(got) != cert {
		t.Fatalf("%s, %v", got, err)
	}
	for _, system := range []bool{false, true} {
		if pool, err := w.Roots(t.Context(), system); err != nil || pool == nil {
			t.Errorf("roots: %v", err)
		}
	}
	// Gap 2: what is no certificate is no trust.
	for _, empty := range []string{"", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		body.Store(empty)
		if pool, err := w.Roots(t.Context(), true); err == nil || pool != nil {
			t.Errorf("bundle %q: %v, %v, want an error and no pool", empty, pool, err)
		}
	}
}

func TestWorkloadServerCertificate(t *testing.T) {
	end := time.Now().Add(30 * 24 * time.Hour).UTC().Truncate(time.Second)
	cert, key := pair(t, end)
	other, _ := pair(t, end)
	answer := func(cert, key, kind string, expiration time.Time) string {
		body, _ := json.Marshal(map[string]any{"privateKey": map[string]string{"type": kind, "bytes": key}, "certificate": cert, "expiration": expiration})
		return string(body)
	}
	for _, tt := range []struct {
		name, body, wrong string
		want              time.Time
	}{
		{name: "good", body: answer(cert, key, "key", end.Add(-time.Hour)), want: end.Add(-time.Hour)},
		{name: "the certificate ends sooner", body: answer(cert, key, "key", end.Add(time.Hour)), want: end},
		{name: "a reference", body: answer(cert, key, "ref", end), wrong: `type "ref"`},
		{name: "another key", body: answer(other, key, "key", end), wrong: "do not go together"},
		{name: "nothing", body: `{}`, wrong: "type"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := daemon(t, func(w http.ResponseWriter, r *http.Request) {
				var in struct{ CommonName string }
				if !strings.HasSuffix(r.URL.Path, "/certificate/server") || json.NewDecoder(r.Body).Decode(&in) != nil || in.CommonName != "edge-l4" {
					t.Errorf("asked %s for %q", r.URL.Path, in.CommonName)
				}
				w.WriteHeader(http.StatusCreated)
				fmt.Fprint(w, tt.body)
			})
			c, err := w.ServerCertificate(t.Context(), "edge-l4")
			if tt.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wrong) || strings.Contains(err.Error(), "PRIVATE") {
					t.Errorf("error %v, want one with %q", err, tt.wrong)
				}
				return
			}
			if err != nil || !c.Expiry.Equal(tt.want) {
				t.Fatalf("%+v, %v, want expiry %v", c, err, tt.want)
			}
			if pair, err := c.TLS(); err != nil || pair.Leaf.DNSNames[0] != "edge" {
				t.Errorf("TLS: %v", err)
			}
			if strings.Contains(fmt.Sprintf("%v %+v", c, c), "PRIVATE") {
				t.Error("the key is printed")
			}
		})
	}
	if _, err := client(t, "unix:///none").ServerCertificate(t.Context(), ""); err == nil {
		t.Error("a certificate for nobody")
	}
}
