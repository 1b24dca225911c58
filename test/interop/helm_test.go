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
		chart := helm.chart("line")
		_, log := helm.both(append([]string{"push", chart, "oci://" + d.up + "/" + d.repo("charts")}, plain...)...)
		ref := "/" + d.repo("charts/line")
		contains(d.t, log, d.digest(d.up+ref+":1.2.3"))
		d.unseen(d.repo("charts/line"))

		for _, addr := range []string{d.up, d.down} {
			puller := *helm
			puller.home = d.t.TempDir()
			_, log := puller.both(append([]string{"pull", "--destination", puller.home, "--version", "1.2.3", "oci://" + addr + ref}, plain...)...)
			contains(d.t, log, d.digest(d.up+ref+":1.2.3"))
			puller.holds("line-1.2.3.tgz", chart)
		}
		contains(d.t, helm.run(append([]string{"show", "chart", "oci://" + d.up + ref, "--version", ">=1.0.0"}, plain...)...), "version: 1.2.3")
		contains(d.t, helm.run(append([]string{"template", "oci://" + d.down + ref, "--version", "1.2.3"}, plain...)...), "kind: Deployment")
		contains(d.t, helm.fails(append([]string{"push", chart, "oci://" + d.down + "/" + d.repo("other")}, plain...)...), "not allowed on this registry")
	})
}

// chart makes a chart of version 1.2.3 and returns its file.
func (c *client) chart(name string) string {
	c.t.Helper()
	c.run("create", name)
	c.run("package", name, "--version", "1.2.3")
	return filepath.Join(c.home, name+"-1.2.3.tgz")
}

// holds compares a file of the client's home with another.
func (c *client) holds(name, with string) {
	c.t.Helper()
	got, err := os.ReadFile(filepath.Join(c.home, name))
	must(c.t, err)
	want, err := os.ReadFile(with)
	must(c.t, err)
	if !bytes.Equal(got, want) {
		c.t.Errorf("%s has %d bytes, want the %d of %s", name, len(got), len(want), with)
	}
}
