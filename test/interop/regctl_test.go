//go:build interop

package interop

import (
	"bytes"
	"strings"
	"testing"
)

// TestRegctl copies an index with what refers to it, and uses what the distribution specification 1.1 has more than 1.0:
// removal of a single tag, referrers with a filter.
func TestRegctl(t *testing.T) {
	doors(t, func(d *door) {
		c := newContent(d.t, d.repo("regctl"))
		reg := d.client("regctl")
		reg.env = append(reg.env, "REGCTL_CONFIG="+reg.home+"/regctl.json")
		for _, addr := range []string{d.up, d.down} {
			if !d.tls {
				reg.run("registry", "set", "--skip-check", "--tls", "disabled", addr)
			}
			reg.login(d, "registry", "login", "--user", user, "--pass-stdin", addr)
		}
		a, b := d.up+"/"+d.repo("regctl/a"), d.up+"/"+d.repo("regctl/b")

		reg.run("image", "copy", "ocidir://"+c.layout+":1", a+":1")
		d.same(a+":1", c.index)
		put := reg.client("sbom", "artifact", "put", "--artifact-type", "application/vnd.example.sbom", "--subject", a+":1")
		put("{}")
		reg.client("note", "artifact", "put", "--artifact-type", "application/vnd.example.note", "--subject", a+":1")("x")
		out := reg.run("artifact", "list", "--format", "{{range .Descriptors}}{{.ArtifactType}} {{end}}", a+":1")
		words(d.t, "referrers", out, "application/vnd.example.sbom", "application/vnd.example.note")
		filter := []string{"artifact", "list", "--filter-artifact-type", "application/vnd.example.sbom", "--format", "{{range .Descriptors}}{{.ArtifactType}} {{end}}"}
		words(d.t, "referrers of one type", reg.run(append(filter, a+":1")...), "application/vnd.example.sbom")

		_, log := reg.both("--verbosity", "trace", "image", "copy", "--referrers", a+":1", b+":1")
		if n := strings.Count(string(log), "mount=sha256"); n == 0 || bytes.Contains(log, []byte("Failed to mount blob")) {
			d.t.Errorf("%d mounts:\n%s", n, log)
		}
		d.same(b+":1", c.index)
		words(d.t, "referrers of the copy", reg.run(append(filter, b+":1")...), "application/vnd.example.sbom")

		reg.run("image", "copy", a+":1", a+":2")
		words(d.t, "tags", reg.run("tag", "ls", a), "1", "2")
		contains(d.t, reg.run("repo", "ls", d.up), d.repo("regctl/a"), d.repo("regctl/b"))
		words(d.t, "digest of a platform", reg.run("image", "digest", "--platform", "linux/arm64", a+":1"), c.images["arm64"])

		down := d.down + "/" + d.repo("regctl/a")
		d.unseen(d.repo("regctl/a"))
		to := d.t.TempDir()
		reg.run("image", "copy", "--referrers", down+":1", "ocidir://"+to+":1")
		if got := named(d.t, to, "1"); got != c.index {
			d.t.Errorf("through the child came %s, want %s", got, c.index)
		}
		if got := reg.run("artifact", "list", "--format", "{{range .Descriptors}}{{.ArtifactType}} {{end}}", down+":1"); len(strings.Fields(string(got))) != 2 {
			d.t.Errorf("referrers through the child: %s", got)
		}

		reg.run("tag", "rm", a+":2")
		words(d.t, "tags when one is removed", reg.run("tag", "ls", a), "1")
		d.same(a+":1", c.index)
		contains(d.t, reg.fails("tag", "rm", down+":1"), "not allowed on this registry")
		d.removes(reg, b+":1", "manifest", "delete", "--force-tag-dereference", "--referrers", b+":1")
	})
}

// client returns a function that runs the client with a file of this text.
func (c *client) client(file string, args ...string) func(text string) {
	return func(text string) {
		c.t.Helper()
		c.run(append(args, "--file", c.file(file, text))...)
	}
}
