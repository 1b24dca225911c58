//go:build interop

package interop

import (
	"encoding/json"
	"testing"
)

// TestSkopeo copies an index up, within the registry, down, and through the child.
func TestSkopeo(t *testing.T) {
	doors(t, func(d *door) {
		c := newContent(d.t, d.repo("skopeo"))
		sk := d.client("skopeo", "--insecure-policy")
		src, dst, one := when(!d.tls, "--src-tls-verify=false"), when(!d.tls, "--dest-tls-verify=false"), when(!d.tls, "--tls-verify=false")
		cp := func(flags []string, from, to string) []byte {
			_, log := sk.both(append(append([]string{"--debug", "copy", "--all", "--preserve-digests"}, flags...), from, to)...)
			return log
		}
		for _, addr := range []string{d.up, d.down} {
			sk.login(d, append(one, "login", "--username", user, "--password-stdin", addr)...)
		}
		up := "docker://" + d.up + "/" + d.repo("skopeo")

		cp(dst, "oci:"+c.layout+":1", up+"/a:1")
		d.same(d.up+"/"+d.repo("skopeo/a:1"), c.index)
		contains(d.t, cp(append(src, dst...), up+"/a:1", up+"/b:1"), "mount=sha256", "... mount OK")
		d.same(d.up+"/"+d.repo("skopeo/b:1"), c.index)

		// Docker's formats: other manifests of the same layers.
		sk.run(append(append([]string{"copy", "--all", "--format", "v2s2"}, append(src, dst...)...), up+"/a:1", up+"/a:docker")...)
		raw := sk.run(append(append([]string{"inspect", "--raw"}, one...), up+"/a:docker")...)
		contains(d.t, raw, "application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json")

		var tags struct{ Tags []string }
		must(d.t, json.Unmarshal(sk.run(append(append([]string{"list-tags"}, one...), up+"/a")...), &tags))
		words(d.t, "tags", []byte(tags.Tags[0]+" "+tags.Tags[len(tags.Tags)-1]), "1", "docker")

		d.unseen(d.repo("skopeo/a"))
		dir := d.t.TempDir()
		cp(src, "docker://"+d.down+"/"+d.repo("skopeo/a:1"), "oci:"+dir+":1")
		if got := named(d.t, dir, "1"); got != c.index {
			d.t.Errorf("through the child came %s, want %s", got, c.index)
		}
		contains(d.t, sk.fails(append(append([]string{"copy"}, dst...), "oci:"+dir+":1", "docker://"+d.down+"/"+d.repo("skopeo/a:2"))...), "not allowed on this registry")

		d.removes(sk, d.up+"/"+d.repo("skopeo/b:1"), append(append([]string{"delete"}, one...), up+"/b:1")...)
		d.same(d.up+"/"+d.repo("skopeo/a:1"), c.index)
	})
}
