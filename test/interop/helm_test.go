//go:build interop

package interop

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestHelm pushes a chart and pulls it, from where it was pushed and through the child.
func TestHelm(t *testing.T) {
	doors(t, func(d *door) {
		helm := d.client("helm")
		plain := when(!d.tls, "--plain-http")
		for _, addr := range []string{d.up, d.down} {
			helm.login(d, append([]string{"registry", "login", "--username", user, "--password-stdin", addr}, plain...)...)
		}
		helm.run("create", "line")
		helm.run("package", "line", "--version", "1.2.3")
		chart, err := os.ReadFile(filepath.Join(helm.home, "line-1.2.3.tgz"))
		must(d.t, err)
		_, log := helm.both(append([]string{"push", "line-1.2.3.tgz", "oci://" + d.up + "/" + d.repo("charts")}, plain...)...)
		ref := "/" + d.repo("charts/line")
		contains(d.t, log, d.digest(d.up+ref+":1.2.3"))
		d.unseen(d.repo("charts/line"))

		for _, addr := range []string{d.up, d.down} {
			dir := d.t.TempDir()
			_, log := helm.both(append([]string{"pull", "--destination", dir, "--version", "1.2.3", "oci://" + addr + ref}, plain...)...)
			contains(d.t, log, d.digest(d.up+ref+":1.2.3"))
			got, err := os.ReadFile(filepath.Join(dir, "line-1.2.3.tgz"))
			must(d.t, err)
			if !bytes.Equal(got, chart) {
				d.t.Errorf("from %s came another chart: %d bytes, want %d", addr, len(got), len(chart))
			}
		}
		contains(d.t, helm.run(append([]string{"show", "chart", "oci://" + d.up + ref, "--version", ">=1.0.0"}, plain...)...), "version: 1.2.3")
		contains(d.t, helm.run(append([]string{"template", "oci://" + d.down + ref, "--version", "1.2.3"}, plain...)...), "kind: Deployment")
		contains(d.t, helm.fails(append([]string{"push", "line-1.2.3.tgz", "oci://" + d.down + "/" + d.repo("other")}, plain...)...), "not allowed on this registry")
	})
}
