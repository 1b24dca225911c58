//go:build interop

package interop

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// pushed is content in a repository above, put there by a client of ours: the test is about another one.
func (d *door) pushed(name string) *content {
	d.t.Helper()
	c := newContent(d.t, d.repo(name))
	index, err := layout.ImageIndexFromPath(c.layout)
	must(d.t, err)
	m, err := index.IndexManifest()
	must(d.t, err)
	inner, err := index.ImageIndex(m.Manifests[0].Digest)
	must(d.t, err)
	must(d.t, remote.Push(d.ref(d.up+"/"+d.repo(name)+":1"), inner, d.options()...))
	return c
}

// TestNotation signs an index, and verifies it where it was signed and through the child.
func TestNotation(t *testing.T) {
	doors(t, func(d *door) {
		c := d.pushed("notation")
		n := d.client("notation")
		n.run("cert", "generate-test", "--default", "example.com")
		policy := `{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"], "signatureVerification": {"level": "strict"},
			"trustStores": ["ca:example.com"], "trustedIdentities": ["*"]}]}`
		must(d.t, os.WriteFile(filepath.Join(n.home, "config", "notation", "trustpolicy.json"), []byte(policy), 0o600))
		flags := when(!d.tls, "--insecure-registry")
		if d.signIn {
			flags = append(flags, "--username", user, "--password", d.password)
		}
		run := func(args ...string) []byte { return n.run(append(args, flags...)...) }
		up, down := d.up+"/"+d.repo("notation")+"@"+c.index, d.down+"/"+d.repo("notation")+"@"+c.index

		contains(d.t, n.fails(append([]string{"verify", up}, flags...)...), "no signature is associated")
		run("sign", up)
		run("sign", "--signature-format", "cose", up)
		contains(d.t, run("verify", up), "Successfully verified")
		contains(d.t, run("list", up), "application/vnd.cncf.notary.signature")

		d.unseen(d.repo("notation"))
		d.until("the signatures are in the child", func() bool { return n.succeeds(append([]string{"verify", down}, flags...)...) })
		contains(d.t, run("inspect", down), "application/jose+json", "application/cose")
		contains(d.t, n.fails(append([]string{"sign", down}, flags...)...), "not allowed on this registry")
		d.same(down, c.index)
	})
}
