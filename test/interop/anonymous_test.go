//go:build interop

package interop

import (
	"crypto/rand"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/apiproxy"
	"github.com/connected-registry/connected-registry/test/layer"
)

// TestAnonymous: where everybody may pull, each client pulls without having signed in, and nobody pushes. Docker does so in
// its own test, as a client of a mirror.
func TestAnonymous(t *testing.T) {
	t.Parallel()
	newSite(t, true, "127.0.0.1").doors(t, func(d *door) {
		clients := map[string]func(*door, *content, string) (*client, []string){
			"skopeo": anonymousSkopeo, "regctl": anonymousRegctl, "crane": anonymousCrane, "oras": anonymousOras,
			"podman": anonymousContainers("podman"), "buildah": anonymousContainers("buildah"), "ctr": anonymousCtr,
			"helm": anonymousHelm, "notation": anonymousNotation,
		}
		if hasCosign() {
			clients["cosign"] = anonymousCosign
		}
		for name, pull := range clients {
			d.t.Run(name, func(t *testing.T) {
				one := &door{site: d.site, t: t, tls: d.tls, up: d.up, down: d.down}
				c := one.pushed("anonymous/" + name)
				ref := one.down + "/" + one.repo("anonymous/"+name)
				one.unseen(one.repo("anonymous/" + name))
				client, push := pull(one, c, ref)
				client.fails(push...)
				one.gone(one.up + "/nobody:1")
			})
		}
	})
}

func anonymousSkopeo(d *door, c *content, ref string) (*client, []string) {
	sk := d.client("skopeo", "--insecure-policy")
	dir := d.t.TempDir()
	sk.run(append(append([]string{"copy", "--all", "--preserve-digests"}, when(!d.tls, "--src-tls-verify=false")...), "docker://"+ref+":1", "oci:"+dir+":1")...)
	if got := named(d.t, dir, "1"); got != c.index {
		d.t.Errorf("%s, want %s", got, c.index)
	}
	return sk, append(append([]string{"copy", "--all"}, when(!d.tls, "--dest-tls-verify=false")...), "oci:"+dir+":1", "docker://"+d.up+"/nobody:1")
}

func anonymousRegctl(d *door, c *content, ref string) (*client, []string) {
	reg := d.client("regctl")
	for _, addr := range []string{d.up, d.down} {
		if !d.tls {
			reg.run("registry", "set", "--skip-check", "--tls", "disabled", addr)
		}
	}
	dir := d.t.TempDir()
	reg.run("image", "copy", ref+":1", "ocidir://"+dir+":1")
	if got := named(d.t, dir, "1"); got != c.index {
		d.t.Errorf("%s, want %s", got, c.index)
	}
	return reg, []string{"image", "copy", "ocidir://" + dir + ":1", d.up + "/nobody:1"}
}

func anonymousCrane(d *door, c *content, ref string) (*client, []string) {
	crane := d.client("crane", when(!d.tls, "--insecure")...)
	dir := d.t.TempDir()
	crane.run("pull", "--format", "oci", ref+":1", dir)
	if got := named(d.t, dir, ""); got != c.index {
		d.t.Errorf("%s, want %s", got, c.index)
	}
	return crane, []string{"push", c.layout, d.up + "/nobody:1"}
}

func anonymousOras(d *door, c *content, ref string) (*client, []string) {
	oras := d.client("oras")
	dir := d.t.TempDir()
	oras.run(append([]string{"cp", "--to-oci-layout", ref + ":1", dir + ":1"}, when(!d.tls, "--from-plain-http")...)...)
	if got := named(d.t, dir, "1"); got != c.index {
		d.t.Errorf("%s, want %s", got, c.index)
	}
	return oras, append([]string{"cp", "--from-oci-layout", c.layout + ":1", d.up + "/nobody:1"}, when(!d.tls, "--to-plain-http")...)
}

func anonymousContainers(name string) func(*door, *content, string) (*client, []string) {
	return func(d *door, c *content, ref string) (*client, []string) {
		engine := d.containers(name)
		id := strings.TrimPrefix(c.config["amd64"], "sha256:")
		words(d.t, "the image", engine.run(append(append([]string{"pull", "--quiet"}, d.verify()...), ref+":1")...), id)
		return engine, append(append([]string{"push"}, d.verify()...), id, "docker://"+d.up+"/nobody:1")
	}
}

func anonymousCtr(d *door, c *content, ref string) (*client, []string) {
	ctr := d.containerd()
	access := d.hosts(ctr)
	ctr.run(append(append([]string{"images", "pull"}, access...), "--all-platforms", "--snapshotter", "native", ref+":1")...)
	contains(d.t, ctr.run("images", "list", "name=="+ref+":1"), c.index)
	return ctr, append(append([]string{"images", "push"}, access...), d.up+"/nobody:1", ref+":1")
}

// anonymousHelm pulls a chart that somebody with a token pushed.
func anonymousHelm(d *door, _ *content, ref string) (*client, []string) {
	plain := when(!d.tls, "--plain-http")
	builder := d.client("helm")
	builder.login(d, append([]string{"registry", "login", "--username", user, "--password-stdin", d.up}, plain...)...)
	chart := builder.chart("line")
	builder.run(append([]string{"push", chart, "oci://" + d.up + "/" + d.repo("anonymous/helm")}, plain...)...)

	helm := d.client("helm")
	helm.run(append([]string{"pull", "--destination", helm.home, "--version", "1.2.3", "oci://" + ref + "/line"}, plain...)...)
	helm.holds("line-1.2.3.tgz", chart)
	contains(d.t, helm.run(append([]string{"show", "chart", "oci://" + ref + "/line", "--version", "1.2.3"}, plain...)...), "version: 1.2.3")
	return helm, append([]string{"push", chart, "oci://" + d.up + "/nobody"}, plain...)
}

// anonymousNotation verifies what somebody with a token signed.
func anonymousNotation(d *door, c *content, ref string) (*client, []string) {
	plain := when(!d.tls, "--insecure-registry")
	up := d.up + "/" + d.repo("anonymous/notation") + "@" + c.index
	n := d.notation()
	n.run(append([]string{"sign", "--username", user, "--password", d.password, up}, plain...)...)
	contains(d.t, n.run(append([]string{"verify", ref + "@" + c.index}, plain...)...), "Successfully verified")
	contains(d.t, n.run(append([]string{"list", ref + "@" + c.index}, plain...)...), "application/vnd.cncf.notary.signature")
	return n, append([]string{"sign", up}, plain...)
}

// anonymousCosign verifies what somebody with a token signed.
func anonymousCosign(d *door, c *content, ref string) (*client, []string) {
	up := d.up + "/" + d.repo("anonymous/cosign") + "@" + c.index
	builder := d.cosign()
	builder.login(d, "login", d.up, "--username", user, "--password-stdin")
	sign, verify := d.cosignCommands()
	builder.run(append(sign, up)...)

	co := d.client("cosign")
	co.env, co.home = append(co.env, "COSIGN_PASSWORD="), builder.home // the keys; without the sign-in, which is elsewhere in env
	contains(d.t, co.run(append(verify, ref+"@"+c.index)...), c.index)
	return co, append(sign, up)
}

// TestAnonymousBearer: where everybody may pull and the challenge is Bearer, an engine that has signed in pushes, and one
// that has not pulls. With Basic such an engine would never be asked for the credentials that it has.
func TestAnonymousBearer(t *testing.T) {
	t.Parallel()
	ca, err := apiproxy.NewAuthority("nobody's")
	must(t, err)
	s := &site{open: true, password: rand.Text() + "=", ca: ca}
	s.parent = start(t, layer.Options{
		Dir: t.TempDir(), Name: "layer5", Mode: registry.ReadWrite, Closed: true, Args: []string{"--insecure-anonymous-pull", "--bearer-challenge"},
		Document: map[string]any{
			"scopeMaps":    map[string]string{"all": layer.Everything("*")},
			"clientTokens": map[string]any{user: layer.Token("all", s.password)},
		},
	})
	d := &door{site: s, t: t, up: s.parent.Addr, down: s.parent.Addr}
	c := newContent(t, "bearer")

	sk := d.client("skopeo", "--insecure-policy")
	sk.login(d, "login", "--tls-verify=false", "--username", user, "--password-stdin", d.up)
	sk.run("copy", "--all", "--preserve-digests", "--dest-tls-verify=false", "oci:"+c.layout+":1", "docker://"+d.up+"/skopeo:1")
	d.same(d.up+"/skopeo:1", c.index)
	nobody, push := anonymousSkopeo(d, c, d.up+"/skopeo")
	nobody.fails(push...)

	for _, name := range []string{"podman", "buildah"} {
		engine := d.containers(name)
		id := strings.TrimPrefix(c.config["amd64"], "sha256:")
		words(t, name, engine.run("pull", "--quiet", "--tls-verify=false", d.up+"/skopeo:1"), id) // nobody yet
		engine.login(d, "login", "--tls-verify=false", "--username", user, "--password-stdin", d.up)
		pushed := d.digestOf(engine, "push", "--tls-verify=false", id, "docker://"+d.up+"/"+name+":1")
		d.same(d.up+"/"+name+":1", pushed)
	}
	d.gone(d.up + "/nobody:1")
}
