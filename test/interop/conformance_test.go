//go:build interop

package interop

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// suite is the OCI distribution specification's own. Its version is pinned in the module ../conformance.
const suite = "github.com/opencontainers/distribution-spec/conformance"

// cases is how many have to run and pass: the suite skips what it takes for unsupported. All it has are 68, of which 5
// are other ways to prepare the same thing.
const cases = "63"

// TestConformance runs the suite against the binary, over http and TLS, with a token.
func TestConformance(t *testing.T) {
	dir, err := filepath.Abs(filepath.Join("..", "conformance"))
	must(t, err)
	program := filepath.Join(t.TempDir(), "conformance")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, suite)
	build.Dir, build.Env = dir, append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go test -c %s: %v\n%s", suite, err, out)
	}
	doors(t, func(d *door) {
		scheme := map[bool]string{false: "http://", true: "https://"}[d.tls]
		ctx, cancel := context.WithTimeout(d.t.Context(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, "-test.count=1", "-ginkgo.noColor")
		cmd.Dir = d.t.TempDir()
		cmd.Env = []string{
			"PATH=" + os.Getenv("PATH"), "HOME=" + cmd.Dir, "SSL_CERT_FILE=" + d.caFile, "OCI_REPORT_DIR=none", "OCI_HIDE_SKIPPED_WORKFLOWS=0",
			"OCI_ROOT_URL=" + scheme + d.up, "OCI_NAMESPACE=" + d.repo("conformance"), "OCI_CROSSMOUNT_NAMESPACE=" + d.repo("crossmount"),
			"OCI_TEST_PULL=1", "OCI_TEST_PUSH=1", "OCI_TEST_CONTENT_DISCOVERY=1",
			"OCI_TEST_CONTENT_MANAGEMENT=1", "OCI_USERNAME=" + user, "OCI_PASSWORD=" + d.password,
		}
		out, err := cmd.CombinedOutput()
		passed := regexp.MustCompile(`(\d+) Passed`).FindSubmatch(out)
		if err != nil || passed == nil || string(passed[1]) != cases {
			d.t.Errorf("%q passed, want %s: %v\n%s", passed, cases, err, out)
		}
	})
}
