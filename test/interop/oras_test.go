//go:build interop

package interop

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// TestOras pushes artifacts, attaches documents to them, copies a whole graph and pulls it through the child.
func TestOras(t *testing.T) {
	doors(t, func(d *door) {
		c := newContent(d.t, d.repo("oras"))
		oras := d.client("oras")
		plain := when(!d.tls, "--plain-http")
		from, to := when(!d.tls, "--from-plain-http"), when(!d.tls, "--to-plain-http")
		for _, addr := range []string{d.up, d.down} {
			oras.login(d, append([]string{"login", "--username", user, "--password-stdin", addr}, plain...)...)
		}
		run := func(args ...string) []byte { return oras.run(append(args, plain...)...) }
		a, b := d.up+"/"+d.repo("oras/a"), d.up+"/"+d.repo("oras/b")

		oras.run(append([]string{"cp", "--from-oci-layout", c.layout + ":1", a + ":1"}, to...)...)
		d.same(a+":1", c.index)
		oras.file("recipe.txt", "one cup")
		oras.file("sbom.json", `{"sbom": true}`)
		run("push", "--artifact-type", "application/vnd.example.recipe", a+":recipe", "recipe.txt:text/plain")
		run("attach", "--artifact-type", "application/vnd.example.sbom", a+":1", "sbom.json:application/json")
		run("attach", "--artifact-type", "application/vnd.example.note", a+":1", "recipe.txt:text/plain")
		d.referrers(oras, a+":1", plain, 2, "")
		d.referrers(oras, a+":1", plain, 1, "application/vnd.example.sbom")
		words(d.t, "tags", run("repo", "tags", a), "1", "recipe")
		contains(d.t, run("repo", "ls", d.up), d.repo("oras/a"))
		contains(d.t, run("manifest", "fetch", "--descriptor", a+":1"), c.index)

		contains(d.t, oras.run(append(append([]string{"cp", "--recursive", a + ":1", b + ":1,2"}, from...), to...)...), "Mounted")
		d.same(b+":1", c.index)
		d.same(b+":2", c.index)
		d.referrers(oras, b+":1", plain, 2, "")

		d.unseen(d.repo("oras/a"))
		down := d.down + "/" + d.repo("oras/a")
		layout := filepath.Join(oras.home, "pulled")
		oras.run(append([]string{"cp", "--recursive", "--to-oci-layout", down + ":1", layout + ":1"}, from...)...)
		if got := named(d.t, layout, "1"); got != c.index {
			d.t.Errorf("through the child came %s, want %s", got, c.index)
		}
		d.referrers(oras, down+":1", plain, 2, "")
		run("pull", "--output", oras.home+"/out", down+":recipe")
		if got, err := os.ReadFile(oras.home + "/out/recipe.txt"); err != nil || string(got) != "one cup" {
			d.t.Errorf("the artifact came as %q: %v", got, err)
		}
		contains(d.t, oras.fails(append([]string{"push", down + ":2", "recipe.txt:text/plain"}, plain...)...), "not allowed on this registry")

		d.blobs(oras, b, plain)
		d.removes(oras, b+":1", append([]string{"manifest", "delete", "--force", b + "@" + c.index}, plain...)...)
	})
}

// blobs pushes, fetches and deletes one, by itself.
func (d *door) blobs(oras *client, repo string, plain []string) {
	d.t.Helper()
	var blob struct{ Digest string }
	must(d.t, json.Unmarshal(oras.run(append([]string{"blob", "push", "--descriptor", repo, oras.file("blob", "a blob of its own")}, plain...)...), &blob))
	if got := oras.run(append([]string{"blob", "fetch", "--output", "-", repo + "@" + blob.Digest}, plain...)...); string(got) != "a blob of its own" {
		d.t.Errorf("the blob came back as %q", got)
	}
	oras.run(append([]string{"blob", "delete", "--force", repo + "@" + blob.Digest}, plain...)...)
	oras.fails(append([]string{"blob", "fetch", "--output", "-", repo + "@" + blob.Digest}, plain...)...)
}

// referrers compares how many the client finds.
func (d *door) referrers(oras *client, ref string, plain []string, want int, artifactType string) {
	d.t.Helper()
	if n := d.count(oras, ref, plain, artifactType); n != want {
		d.t.Errorf("%s has %d referrers of type %q, want %d", ref, n, artifactType, want)
	}
}

func (d *door) count(oras *client, ref string, plain []string, artifactType string) int {
	d.t.Helper()
	args := append([]string{"discover", "--format", "json", ref}, plain...)
	if artifactType != "" {
		args = append(args, "--artifact-type", artifactType)
	}
	var got struct{ Manifests, Referrers []json.RawMessage } // one or the other, by the client's version
	must(d.t, json.Unmarshal(oras.run(args...), &got))
	return len(got.Manifests) + len(got.Referrers)
}

// file writes a file into the client's home, and returns its name there.
func (c *client) file(name, text string) string {
	c.t.Helper()
	must(c.t, os.WriteFile(filepath.Join(c.home, name), []byte(text), 0o600))
	return name
}
