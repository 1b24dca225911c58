package main

import (
	"crypto/x509"
	"os"
	"os/exec"
	"testing"
)

// TestPublicRoots runs itself where the system has no roots: those of the binary are used.
func TestPublicRoots(t *testing.T) {
	if os.Getenv("SSL_CERT_FILE") == os.DevNull {
		publicRoots()
		pool, err := x509.SystemCertPool()
		if err != nil || pool.Equal(x509.NewCertPool()) {
			t.Fatalf("roots: %v", err)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run", "^TestPublicRoots$")
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+os.DevNull, "SSL_CERT_DIR="+os.DevNull)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
