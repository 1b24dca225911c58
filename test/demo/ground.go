package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Ports of a device. The first two are edgeHub's: modules look for it there and nowhere else, and an ordinary user may
// not listen there.
const (
	hubMQTT   = 8883
	hubHTTPS  = 443
	tlsPort   = 8443 // the registry itself, where the link to the layer below has the API proxy's port
	tries     = 8
	childWait = 30 * time.Second // for the demo in its own network to clean up
)

// ground is where the devices stand.
type ground struct {
	hosts   [3]string // loopback addresses, top first
	noTwins error     // why edgeHub's ports cannot be had
}

// findGround looks for three addresses of which the ports are free.
func findGround(needed ...int) (ground, error) {
	var err error
	for range tries {
		var g ground
		n := 1 + rand.IntN(254)
		for i := range g.hosts {
			g.hosts[i] = fmt.Sprintf("127.%d.0.%d", n, 5-i)
		}
		if err = g.try(needed...); err == nil {
			g.noTwins = g.try(hubMQTT, hubHTTPS)
			return g, nil
		}
	}
	return ground{}, fmt.Errorf("a port that the deployment manifests name cannot be had: %w", err)
}

// twins reports whether the modules can have their twins.
func (g ground) twins() bool { return g.noTwins == nil }

// try listens on the ports of each host, for a moment.
func (g ground) try(ports ...int) error {
	for _, host := range g.hosts {
		for _, port := range ports {
			ln, err := net.Listen("tcp4", net.JoinHostPort(host, strconv.Itoa(port)))
			if err != nil {
				return err
			}
			_ = ln.Close()
		}
	}
	return nil
}

// errTold ends the demo that another one ran for, which has said what went wrong.
var errTold = errors.New("")

// ownNetwork is a command that runs this program again, in a network of its own with nothing but loopback, where it may
// use every port. An ordinary user may do that, unless the system is set up otherwise.
func ownNetwork(ctx context.Context, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"-inside"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = childWait
	return cmd, nil
}

// canOwn reports whether that works here.
func canOwn(ctx context.Context) bool {
	cmd, err := ownNetwork(ctx, "-probe")
	return err == nil && cmd.Run() == nil
}

// again runs the demo in a network of its own. What has to be downloaded is downloaded before.
func again(ctx context.Context, root string) error {
	get := exec.CommandContext(ctx, "go", "list", "-deps", "./cmd/connected-registry", "./scripts/image")
	get.Dir, get.Stderr = root, os.Stderr
	if err := get.Run(); err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	cmd, err := ownNetwork(ctx, os.Args[1:]...)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return errTold
	}
	return nil
}

// loopbackUp switches the loopback interface on, which is off in a new network.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
