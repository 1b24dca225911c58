package edgesim_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/test/edgesim"
)

func TestWorkloadRules(t *testing.T) {
	d := device(t)
	c := workload(t, d, "mod")
	const sign = "/modules/mod/genid/1/sign"
	good := map[string]string{"keyId": "primary", "algo": "HMACSHA256", "data": "eA=="}
	iv := map[string]string{"plaintext": "eA==", "initializationVector": "aXY="}
	for _, tt := range []struct {
		name, path, contentType string
		body                    any
		status                  int
		want                    string
	}{
		{"sign", sign + apiVersion, "application/json", good, 200, "digest"},
		{"with a charset", sign + apiVersion, "application/json; charset=utf-8", good, 200, "digest"},
		{"without content type", sign + apiVersion, "", good, 200, "digest"},
		{"as text", sign + apiVersion, "text/plain", good, 400, "missing request body"},
		{"oldest version", sign + "?api-version=2018-06-28", "", good, 200, "digest"},
		{"no version", sign, "", good, 400, "api-version not specified"},
		{"bad version", sign + "?api-version=2099-01-01", "", good, 400, "invalid api-version"},
		{"another module", "/modules/other/genid/1/sign" + apiVersion, "", good, 403, "forbidden"},
		{"no data", sign + apiVersion, "", map[string]string{}, 422, "data"},
		{"no base64", sign + apiVersion, "", map[string]string{"data": "~"}, 400, "base64"},
		{"no object", sign + apiVersion, "", []int{1}, 422, ""},
		{"unknown action", "/modules/mod/genid/1/x" + apiVersion, "", good, 404, "not found"},
		{"no generation", "/modules/mod/genid//sign" + apiVersion, "", good, 404, "not found"},
		{"encrypt", "/modules/mod/genid/1/encrypt" + apiVersion, "", iv, 200, "ciphertext"},
		{"encrypt for another", "/modules/other/genid/1/encrypt" + apiVersion, "", iv, 403, "forbidden"},
		{"encrypt without vector", "/modules/mod/genid/1/encrypt" + apiVersion, "", map[string]string{"plaintext": ""}, 422, "initializationVector"},
		{"certificate without name", "/modules/mod/genid/1/certificate/server" + apiVersion, "", map[string]string{}, 422, "commonName"},
		{"another's certificate", "/modules/other/genid/1/certificate/server" + apiVersion, "", good, 403, "forbidden"},
		{"another's identity", "/modules/other/certificate/identity" + apiVersion, "", good, 403, "forbidden"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, body := post(t, c, tt.path, tt.contentType, tt.body)
			if code != tt.status || !strings.Contains(fmt.Sprint(body), tt.want) {
				t.Errorf("%d %v", code, body)
			}
		})
	}
	for path, want := range map[string]int{
		"/modules" + apiVersion: 200, "/trust-bundle": 400, "/trust-bundle" + apiVersion: 200,
		"/manifest-trust-bundle" + apiVersion: 200, "/x" + apiVersion: 404,
	} {
		if code, body := get(t, c, path); code != want {
			t.Errorf("%s: %d %v", path, code, body)
		}
	}
	if s, err := os.Stat(strings.TrimPrefix(d.Env("mod")["IOTEDGE_WORKLOADURI"], "unix://")); err != nil || s.Mode().Perm() != 0o666 {
		t.Errorf("socket %v %v", s, err)
	}
}

func TestEncryption(t *testing.T) {
	d := device(t)
	c := workload(t, d, "mod")
	iv := base64.StdEncoding.EncodeToString([]byte("a vector of any length"))
	_, sealed := post(t, c, "/modules/mod/genid/7/encrypt"+apiVersion, "",
		map[string]string{"plaintext": base64.StdEncoding.EncodeToString([]byte("secret")), "initializationVector": iv})
	open := map[string]string{"ciphertext": sealed["ciphertext"].(string), "initializationVector": iv}
	if code, out := post(t, c, "/modules/mod/genid/7/decrypt"+apiVersion, "", open); code != 200 || out["plaintext"] != "c2VjcmV0" {
		t.Errorf("%d %v", code, out)
	}
	if code, out := post(t, c, "/modules/mod/genid/8/decrypt"+apiVersion, "", open); code != 500 {
		t.Errorf("another generation: %d %v", code, out)
	}
}

func TestWorkloadCertificates(t *testing.T) {
	d := device(t, func(o *edgesim.Options) { o.LeafLife = 90 * time.Second })
	c := workload(t, d, "mod")
	for _, host := range []string{"edge-l4", "127.0.0.9"} {
		code, out := post(t, c, "/modules/mod/genid/1/certificate/server"+apiVersion, "",
			map[string]string{"commonName": host, "expiration": time.Now().Add(time.Hour).Format(time.RFC3339)})
		if code != http.StatusCreated {
			t.Fatalf("%d %v", code, out)
		}
		key := out["privateKey"].(map[string]any)
		pair, err := tls.X509KeyPair([]byte(out["certificate"].(string)), []byte(key["bytes"].(string)))
		if err != nil || key["type"] != "key" || len(pair.Certificate) != 2 {
			t.Fatalf("%v, %d certificates", err, len(pair.Certificate))
		}
		between := x509.NewCertPool()
		ca, err := x509.ParseCertificate(pair.Certificate[1])
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(ca)
		for _, name := range []string{host, "mod"} {
			if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots(t, d), Intermediates: between}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if want := pair.Leaf.NotAfter.Format(time.RFC3339); out["expiration"] != want || time.Until(pair.Leaf.NotAfter) > 91*time.Second {
			t.Errorf("expiration %v, certificate's %s", out["expiration"], want)
		}
	}
	code, out := post(t, c, "/modules/mod/certificate/identity"+apiVersion, "", nil)
	if code != http.StatusCreated || !strings.Contains(out["certificate"].(string), "BEGIN CERTIFICATE") {
		t.Errorf("identity: %d %v", code, out)
	}
}

// TestThrottle holds ten connections: the eleventh is closed without an answer.
func TestThrottle(t *testing.T) {
	d := device(t)
	path := strings.TrimPrefix(d.Env("mod")["IOTEDGE_WORKLOADURI"], "unix://")
	dial := func() net.Conn {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		return c
	}
	ask := func(c net.Conn) error {
		// A connection that was closed already fails here or there.
		if _, err := io.WriteString(c, "GET /trust-bundle"+apiVersion+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.Body.Close()
	}
	var held []net.Conn
	for range 10 {
		c := dial()
		if err := ask(c); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	if err := ask(dial()); err == nil {
		t.Error("the eleventh connection was served")
	}
	_ = held[0].Close()
	for end := time.Now().Add(patience); ask(dial()) != nil; {
		if time.Now().After(end) {
			t.Fatal("never served again")
		}
	}
}

func TestWorkloadFaults(t *testing.T) {
	d := device(t)
	call := func() error {
		c := workload(t, d, "mod")
		c.Timeout = 200 * time.Millisecond
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x/trust-bundle"+apiVersion, nil)
		if err != nil {
			return err
		}
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		doc, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		return fmt.Errorf("%d %s", resp.StatusCode, doc)
	}
	good := call().Error()
	for name, tt := range map[string]struct {
		faults edgesim.Faults
		want   func(error) bool
	}{
		"down":   {edgesim.Faults{WorkloadDown: true}, func(err error) bool { return strings.Contains(err.Error(), "refused") }},
		"status": {edgesim.Faults{WorkloadStatus: 503}, func(err error) bool { return strings.HasPrefix(err.Error(), "503 ") }},
		"slow":   {edgesim.Faults{WorkloadDelay: time.Minute}, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
		"broken": {edgesim.Faults{WorkloadBroken: true}, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"wrong bundle": {edgesim.Faults{WrongBundle: true}, func(err error) bool {
			return strings.HasPrefix(err.Error(), "200 ") && err.Error() != good
		}},
		"empty bundle": {edgesim.Faults{EmptyBundle: true}, func(err error) bool { return err.Error() == "200 {\"certificate\":\"\"}\n" }},
		"none":         {edgesim.Faults{}, func(err error) bool { return err.Error() == good }},
	} {
		d.SetFaults(func(f *edgesim.Faults) { *f = tt.faults })
		if err := call(); !tt.want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
