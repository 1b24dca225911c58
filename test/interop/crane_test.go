//go:build interop

package interop

import (
	"bytes"
	"testing"
)

// TestCrane pushes an index, copies it within the registry by mounts, lists, tags, deletes, and pulls through the child.
func TestCrane(t *testing.T) {
	doors(t, func(d *door) {
		c := newContent(d.t, d.repo("crane"))
		crane := d.client("crane", when(!d.tls, "--insecure")...)
		for _, addr := range []string{d.up, d.down} {
			crane.login(d, "auth", "login", addr, "--username", user, "--password-stdin")
		}
		a, b := d.up+"/"+d.repo("crane/a"), d.up+"/"+d.repo("crane/b")

		crane.run("push", "--index", c.layout, a+":1")
		d.same(a+"@"+named(d.t, c.layout, "1"), c.index)
		// A layout may be pushed as an index of its own around what it holds; the index itself is in it.
		crane.run("tag", a+"@"+c.index, "index")
		d.same(a+":index", c.index)
		_, log := crane.both("--verbose", "copy", a+":index", b+":1")
		contains(d.t, log, "mount=sha256")
		if bytes.Contains(log, []byte("PATCH /v2/")) {
			d.t.Errorf("layers are uploaded, where they could have been mounted:\n%s", log)
		}
		d.same(b+":1", c.index)

		words(d.t, "tags", crane.run("ls", a), "1", "index")
		words(d.t, "digest", crane.run("digest", b+":1"), c.index)
		words(d.t, "digest of a platform", crane.run("digest", "--platform", "linux/arm64", b+":1"), c.images["arm64"])
		contains(d.t, crane.run("catalog", d.up), d.repo("crane/a"), d.repo("crane/b"))
		crane.run("validate", "--remote", b+":1")

		d.unseen(d.repo("crane/a"))
		dir := d.t.TempDir()
		crane.run("pull", "--format", "oci", d.down+"/"+d.repo("crane/a")+":index", dir)
		if got := named(d.t, dir, ""); got != c.index {
			d.t.Errorf("through the child came %s, want %s", got, c.index)
		}
		contains(d.t, crane.fails("push", c.layout, d.down+"/"+d.repo("crane/a")+":2"), "DENIED")

		d.removes(crane, b+":1", "delete", b+"@"+c.index)
		d.same(a+":index", c.index)
	})
}
