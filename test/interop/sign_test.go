//go:build interop

package interop

import (
	"os"
	"path/filepath"
	"testing"
)

// TestNotation signs an index, and verifies it where it was signed and through the child.
func TestNotation(t *testing.T) {
	doors(t, func(d *door) {
		c := d.pushed("notation")
		n := d.notation()
		flags := append(when(!d.tls, "--insecure-registry"), "--username", user, "--password", d.password)
		run := func(args ...string) []byte { return n.run(append(args, flags...)...) }
		up, down := d.up+"/"+d.repo("notation")+"@"+c.index, d.down+"/"+d.repo("notation")+"@"+c.index

		contains(d.t, n.fails(append([]string{"verify", up}, flags...)...), "no signature is associated")
		run("sign", up)
		run("sign", "--signature-format", "cose", up)
		contains(d.t, run("verify", up), "Successfully verified")
		contains(d.t, run("list", up), "application/vnd.cncf.notary.signature")

		d.unseen(d.repo("notation"))
		contains(d.t, run("verify", down), "Successfully verified")
		contains(d.t, run("inspect", down), "application/jose+json", "application/cose")
		contains(d.t, n.fails(append([]string{"sign", down}, flags...)...), "not allowed on this registry")
		d.same(down, c.index)
	})
}

// notation returns a client with a key of its own, which it trusts.
func (d *door) notation() *client {
	d.t.Helper()
	n := d.client("notation")
	n.run("cert", "generate-test", "--default", "example.com")
	policy := `{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"], "signatureVerification": {"level": "strict"},
		"trustStores": ["ca:example.com"], "trustedIdentities": ["*"]}]}`
	must(d.t, os.WriteFile(filepath.Join(n.home, "config", "notation", "trustpolicy.json"), []byte(policy), 0o600))
	return n
}

// hasCosign reports whether cosign is here, or has to be.
func hasCosign() bool {
	_, err := os.Stat(filepath.Join("..", "..", ".tools", "bin", "cosign"))
	return err == nil || os.Getenv("INTEROP") == "long"
}

// cosign returns a client with a key of its own.
func (d *door) cosign() *client {
	d.t.Helper()
	co := d.client("cosign")
	co.env = append(co.env, "COSIGN_PASSWORD=")
	co.run("generate-key-pair")
	return co
}

// cosignCommands sign and verify with that key, without a log that has to be asked.
func (d *door) cosignCommands() (sign, verify []string) {
	plain := when(!d.tls, "--allow-http-registry")
	sign = append([]string{
		"sign", "--key", "cosign.key", "--tlog-upload=false", "--use-signing-config=false", "--new-bundle-format=false", "-y",
	}, plain...)
	return sign, append([]string{"verify", "--key", "cosign.pub", "--insecure-ignore-tlog=true", "--new-bundle-format=false"}, plain...)
}

// TestCosign signs an index with a key, and verifies it where it was signed and through the child. It takes minutes to
// build: make test-interop-long does, and make test-interop uses what is there.
func TestCosign(t *testing.T) {
	if !hasCosign() {
		t.Skip("cosign is missing: make test-interop-long builds it")
	}
	doors(t, func(d *door) {
		c := d.pushed("cosign")
		co := d.cosign()
		for _, addr := range []string{d.up, d.down} {
			co.login(d, "login", addr, "--username", user, "--password-stdin")
		}
		up, down := d.up+"/"+d.repo("cosign")+"@"+c.index, d.down+"/"+d.repo("cosign")+"@"+c.index
		sign, verify := d.cosignCommands()

		co.fails(append(verify, up)...)
		co.run(append(sign, up)...)
		contains(d.t, co.run(append(verify, up)...), c.index)
		d.unseen(d.repo("cosign"))
		contains(d.t, co.run(append(verify, down)...), c.index) // the signature is a tag: no waiting for a list of referrers
		contains(d.t, co.fails(append(sign, down)...), "not allowed on this registry")

		// The same as a referrer.
		other := d.pushed("oci11")
		co.env = append(co.env, "COSIGN_EXPERIMENTAL=1")
		up, down = d.up+"/"+d.repo("oci11")+"@"+other.index, d.down+"/"+d.repo("oci11")+"@"+other.index
		verify = append(verify, "--experimental-oci11")
		co.run(append(sign, "--registry-referrers-mode", "oci-1-1", up)...)
		contains(d.t, co.run(append(verify, up)...), other.index)
		contains(d.t, co.run(append(verify, down)...), other.index)
	})
}
