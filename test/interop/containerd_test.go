//go:build interop

package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// containerd starts one of its own, without what needs privileges, and returns ctr for it.
func (d *door) containerd() *client {
	d.t.Helper()
	daemon, ctr := d.client("containerd"), d.client("ctr")
	daemon.file("config.toml", `version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
`)
	ctr.args = []string{"--address", daemon.home + "/sock", "--namespace", "interop"}
	daemon.daemon(d, func() bool { return ctr.succeeds("version") }, "--config", daemon.home+"/config.toml",
		"--root", daemon.home+"/root", "--state", daemon.home+"/state", "--address", daemon.home+"/sock")
	return ctr
}

// hosts configures a registry with TLS as a node's administrator does. Without that ctr speaks http to loopback.
func (d *door) hosts(ctr *client) []string {
	d.t.Helper()
	if !d.tls {
		return []string{"--plain-http"}
	}
	for _, addr := range []string{d.up, d.down} {
		dir := filepath.Join(ctr.home, "hosts", addr)
		must(d.t, os.MkdirAll(dir, 0o700))
		text := fmt.Sprintf("server = \"https://%s\"\n[host.\"https://%[1]s\"]\nca = %q\n", addr, d.caFile)
		must(d.t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600))
	}
	return []string{"--hosts-dir", ctr.home + "/hosts"}
}

// TestContainerd pulls an index through the child and from where it was pushed, and pushes it under other names.
func TestContainerd(t *testing.T) {
	doors(t, func(d *door) {
		c := d.pushed("ctr")
		ctr := d.containerd()
		access := append(d.hosts(ctr), "--user", user+":"+d.password)
		images := func(command string, args ...string) []string {
			return append(append([]string{"images", command}, access...), args...)
		}
		up, down, other := d.up+"/"+d.repo("ctr"), d.down+"/"+d.repo("ctr"), d.up+"/"+d.repo("other")
		d.unseen(d.repo("ctr"))
		ctr.run(images("pull", "--all-platforms", "--snapshotter", "native", down+":1")...)
		contains(d.t, ctr.run("images", "list", "name=="+down+":1"), c.index)
		ctr.run(images("pull", "--platform", "linux/arm64", "--snapshotter", "native", up+":1")...)

		for _, ref := range []string{up + ":2", other + ":1"} {
			ctr.run("images", "tag", down+":1", ref)
			ctr.run(images("push", ref)...)
			d.same(ref, c.index)
		}
		contains(d.t, ctr.fails(images("push", down+":3", down+":1")...), "403 Forbidden")
	})
}
