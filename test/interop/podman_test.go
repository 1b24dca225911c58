//go:build interop

package interop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// containers returns Podman or Buildah with storage of its own, which needs no kernel's overlay.
func (d *door) containers(name string, args ...string) *client {
	d.t.Helper()
	dir := d.t.TempDir()
	c := d.client(name, append([]string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs"}, args...)...)
	conf := c.home + "/containers.conf"
	must(d.t, os.WriteFile(conf, []byte("[engine]\nevents_logger = \"file\"\ncgroup_manager = \"cgroupfs\"\ntmp_dir = \""+dir+"/tmp\"\n"), 0o600))
	c.env = append(c.env, "CONTAINERS_CONF="+conf)
	return c
}

// verify is the flag with which Podman and Buildah speak http.
func (d *door) verify() []string { return when(!d.tls, "--tls-verify=false") }

// digestOf runs a push, whose last two arguments are from and to, that writes the digest of what it pushed into a file, and returns it.
func (d *door) digestOf(c *client, args ...string) string {
	d.t.Helper()
	file := filepath.Join(c.home, "digest")
	c.run(append(args[:len(args)-2:len(args)-2], "--digestfile", file, args[len(args)-2], args[len(args)-1])...)
	body, err := os.ReadFile(file)
	must(d.t, err)
	return strings.TrimSpace(string(body))
}

// TestPodman pulls, tags, pushes, searches, and makes an index of two platforms.
func TestPodman(t *testing.T) {
	doors(t, func(d *door) {
		c := d.pushed("podman")
		podman := d.containers("podman")
		for _, addr := range []string{d.up, d.down} {
			podman.login(d, append(append([]string{"login"}, d.verify()...), "--username", user, "--password-stdin", addr)...)
		}
		run := func(command string, args ...string) []byte {
			return podman.run(append(append([]string{command}, d.verify()...), args...)...)
		}
		up, down := d.up+"/"+d.repo("podman"), d.down+"/"+d.repo("podman")
		d.unseen(d.repo("podman"))

		id := strings.TrimPrefix(c.config["amd64"], "sha256:")
		words(d.t, "the image through the child", run("pull", "--quiet", down+":1"), id)
		words(d.t, "the image", run("pull", "--quiet", up+":1"), id)
		words(d.t, "the image by digest", run("pull", "--quiet", up+"@"+c.index), id)
		words(d.t, "the other platform", run("pull", "--quiet", "--arch", "arm64", up+":1"), strings.TrimPrefix(c.config["arm64"], "sha256:"))

		// It compresses anew what it has unpacked, so that the manifest is another one. The image is the same.
		pushed := d.digestOf(podman, append(append([]string{"push"}, d.verify()...), id, "docker://"+d.up+"/"+d.repo("podman/amd64:1"))...)
		d.same(d.up+"/"+d.repo("podman/amd64:1"), pushed)
		podman.run("rmi", "--all", "--force")
		words(d.t, "the image that was pushed", run("pull", "--quiet", d.up+"/"+d.repo("podman/amd64:1")), id)
		contains(d.t, podman.fails(append(append([]string{"push"}, d.verify()...), id, "docker://"+down+":2")...), "not allowed on this registry")

		podman.run("manifest", "create", "both")
		for _, arch := range []string{"amd64", "arm64"} {
			podman.run(append(append([]string{"manifest", "add"}, d.verify()...), "both", "docker://"+up+"@"+c.images[arch])...)
		}
		podman.run(append(append([]string{"manifest", "push", "--all"}, d.verify()...), "both", "docker://"+up+":both")...)
		d.same(up+":both", d.digest(up+":both"))
		words(d.t, "tags", run("search", "--list-tags", up), "NAME", "TAG", up, "1", up, "both")
	})
}

// TestBuildah builds an image on a base in the registry, pushes it and builds on it through the child.
func TestBuildah(t *testing.T) {
	doors(t, func(d *door) {
		c := d.pushed("buildah")
		buildah := d.containers("buildah")
		for _, addr := range []string{d.up, d.down} {
			buildah.login(d, append(append([]string{"login"}, d.verify()...), "--username", user, "--password-stdin", addr)...)
		}
		up := d.up + "/" + d.repo("buildah")
		buildah.file("recipe.txt", "one cup")
		build := func(base, tag string) {
			buildah.file("Containerfile", "FROM "+base+"\nCOPY recipe.txt /recipe.txt\n")
			buildah.run(append(append([]string{"bud", "--isolation", "chroot", "--layers", "--tag", tag}, d.verify()...), ".")...)
		}
		build(up+":1", "first")
		first := d.digestOf(buildah, append(append([]string{"push"}, d.verify()...), "first", "docker://"+up+":first")...)
		d.same(up+":first", first)

		d.unseen(d.repo("buildah"))
		build(d.down+"/"+d.repo("buildah")+":first", "second")
		second := d.digestOf(buildah, append(append([]string{"push"}, d.verify()...), "--format", "v2s2", "second", "docker://"+up+":second")...)
		d.same(up+":second", second)
		contains(d.t, buildah.fails(append(append([]string{"push"}, d.verify()...), "second", "docker://"+d.down+"/"+d.repo("buildah:2"))...), "not allowed on this registry")

		buildah.run("manifest", "create", "both")
		buildah.run(append(append([]string{"manifest", "add", "--all"}, d.verify()...), "both", "docker://"+up+":1")...)
		list := d.digestOf(buildah, append(append([]string{"manifest", "push", "--all"}, d.verify()...), "both", "docker://"+up+":both")...)
		d.same(up+":both", list)
		buildah.run(append(append([]string{"pull"}, d.verify()...), up+"@"+c.index)...)
	})
}
