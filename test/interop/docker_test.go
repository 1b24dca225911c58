//go:build interop

package interop

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// daemon starts a program in the background and ends it with the test. It is up when the probe is true.
func (c *client) daemon(d *door, up func() bool, args ...string) {
	c.t.Helper()
	log, err := os.Create(filepath.Join(c.home, "daemon.log"))
	must(c.t, err)
	defer log.Close() // the process has its own
	cmd := exec.CommandContext(c.t.Context(), c.program, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = append(c.env, "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin"), c.home, log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	must(c.t, cmd.Start())
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in the log
		close(exited)
	}()
	c.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-exited
		if body, err := os.ReadFile(log.Name()); c.t.Failed() && err == nil {
			c.t.Logf("%s:\n%s", filepath.Base(c.program), body[max(0, len(body)-4000):])
		}
	})
	d.until(c.program+" is up", func() bool {
		select {
		case <-exited:
			body, _ := os.ReadFile(log.Name())
			c.t.Fatalf("%s has ended:\n%s", c.program, body)
		default:
		}
		return up()
	})
}

// engine starts a Docker engine of its own and returns its client. It touches neither bridges nor packet filters.
func (d *door) engine(args ...string) *client {
	d.t.Helper()
	dockerd, docker := d.client("dockerd"), d.client("docker")
	host := "unix://" + dockerd.home + "/sock"
	d.t.Cleanup(func() { // after its end: where mounts are shared it leaves one behind
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		must(d.t, err)
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dockerd.home+"/") {
				must(d.t, syscall.Unmount(f[4], syscall.MNT_DETACH))
			}
		}
	})
	docker.args = []string{"--host", host}
	dockerd.daemon(d, func() bool { return docker.succeeds("info") }, append([]string{
		"--data-root", dockerd.home + "/data", "--exec-root", dockerd.home + "/exec", "--pidfile", dockerd.home + "/pid", "--host", host,
		"--storage-driver", "vfs", "--iptables=false", "--ip6tables=false", "--bridge=none", "--containerd-namespace", "interop" + filepath.Base(dockerd.home),
	}, args...)...)
	return docker
}

// elsewhere puts an address that is not 127.0.0.0/8 on the loopback device for the time of a test: the Docker engine
// verifies no certificate of an address in that network.
func elsewhere(t *testing.T) string {
	t.Helper()
	const address = "192.0.2.1" // for documentation, RFC 5737
	ip := program(t, "ip")
	change := func(verb string) {
		if out, err := exec.Command(ip, "addr", verb, address+"/32", "dev", "lo").CombinedOutput(); err != nil {
			t.Errorf("ip addr %s: %v: %s", verb, err, out)
		}
	}
	change("replace")
	t.Cleanup(func() { change("del") })
	return address
}

// TestDocker pushes, pulls and makes a list of platforms with an engine that is new for each door.
func TestDocker(t *testing.T) {
	t.Parallel()
	host := elsewhere(t)
	for name, open := range map[string]bool{"anonymous": true, "token": false} {
		t.Run(name, func(t *testing.T) {
			newSite(t, open, host).doors(t, map[bool]func(*door){true: mirror, false: docker}[open])
		})
	}
}

func docker(d *door) {
	c := d.pushed("docker")
	docker := d.engine()
	for _, addr := range []string{d.up, d.down} {
		docker.login(d, "login", "--username", user, "--password-stdin", addr)
	}
	up, down := d.up+"/"+d.repo("docker"), d.down+"/"+d.repo("docker")
	digests := func(image string) []byte {
		return docker.run("image", "inspect", "--format", "{{range .RepoDigests}}{{.}} {{end}}", image)
	}
	d.unseen(d.repo("docker"))
	docker.run("pull", down+":1")
	contains(d.t, digests(down+":1"), down+"@"+c.index)
	docker.run("pull", up+"@"+c.index)
	words(d.t, "image", docker.run("image", "inspect", "--format", "{{.Id}}", up+"@"+c.index), c.config["amd64"])

	must(d.t, os.Mkdir(docker.home+"/context", 0o700))
	docker.file("context/recipe.txt", "one cup")
	docker.file("context/Dockerfile", "FROM "+up+":1\nCOPY recipe.txt /\n")
	docker.env = append(docker.env, "DOCKER_BUILDKIT=0")
	docker.run("build", "--tag", up+":built", docker.home+"/context")
	docker.run("push", up+":built")
	built := d.digest(up + ":built")
	contains(d.t, digests(up+":built"), built)
	d.same(up+":built", built)
	docker.run("tag", up+":built", d.up+"/"+d.repo("other")+":1") // mounts
	contains(d.t, docker.run("push", d.up+"/"+d.repo("other")+":1"), "Mounted from "+d.repo("docker"))
	d.same(d.up+"/"+d.repo("other")+":1", built)
	docker.run("tag", up+":built", down+":2")
	contains(d.t, docker.fails("push", down+":2"), "not allowed on this registry")
	docker.run("pull", down+":built")
	contains(d.t, digests(down+":built"), down+"@"+built)

	// Docker's own list of platforms, of its own kind of images: the client of 20.10 knows no other.
	docker.file("context/Dockerfile", "FROM "+up+"@"+c.images["arm64"]+"\nCOPY recipe.txt /\n")
	docker.run("build", "--tag", up+":arm", docker.home+"/context")
	docker.run("push", up+":arm")
	insecure := when(!d.tls, "--insecure")
	docker.run(append(append([]string{"manifest", "create"}, insecure...), up+":both", up+":built", up+":arm")...)
	list := strings.TrimSpace(string(docker.run(append(append([]string{"manifest", "push"}, insecure...), up+":both")...)))
	d.same(up+":both", list)
}

// mirror pulls what a child that lets everybody pull holds of Docker Hub: names without a host are looked for there
// first.
func mirror(d *door) {
	name := map[bool]string{true: "hub-tls", false: "hub-http"}[d.tls]
	mirrored := d.pushedTo("library/" + name)
	docker := d.engine("--registry-mirror", map[bool]string{true: "https://", false: "http://"}[d.tls]+d.down)
	docker.run("pull", name+":1")
	contains(d.t, docker.run("image", "inspect", "--format", "{{range .RepoDigests}}{{.}} {{end}}", name+":1"), mirrored.index)
}
