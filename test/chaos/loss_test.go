package chaos

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// inNamespace marks the process that runs in a network of its own.
const inNamespace = "CHAOS_NETWORK"

// TestLoss loses packets between a registry and its parent, in both directions: real ones, of a real TCP, in a network
// namespace of the test's own, by iptables' statistic match (netem needs a kernel module that few build machines have).
// What is counted is what the parent sent; what TCP repeats below that is the loss itself.
func TestLoss(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		for _, tool := range []string{"unshare", "ip", "iptables"} {
			if _, err := exec.LookPath(tool); err != nil || os.Getuid() != 0 {
				t.Skipf("packets are lost in a network namespace: it needs root, unshare, ip and iptables (%s)", tool)
			}
		}
		cmd := exec.CommandContext(t.Context(), "unshare", "-n", os.Args[0], "-test.run=^TestLoss$", "-test.v")
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Error(err)
		}
		return
	}
	tool(t, "ip", "link", "set", "lo", "up", "mtu", "1500", "gso_max_segs", "1")
	sizes := map[int]int{5: 8 * mib, 30: 64 << 10}
	if long {
		sizes = map[int]int{5: 100 * mib, 30: 256 << 10} // 30 % leave about 4 KiB a second
	}
	for loss, size := range sizes {
		t.Run(fmt.Sprintf("%d %%", loss), func(t *testing.T) {
			s := newSite(t, 1)
			img := s.push(repo+":1", size, "big")
			_, port, err := net.SplitHostPort(s.links[0].Addr())
			s.must(err)
			for _, side := range []string{"--dport", "--sport"} {
				rule := []string{"INPUT", "-p", "tcp", side, port, "-m", "statistic", "--mode", "random", "--probability", fmt.Sprintf("0.%02d", loss), "-j", "DROP"}
				tool(t, "iptables", append([]string{"-A"}, rule...)...)
				defer tool(t, "iptables", append([]string{"-D"}, rule...)...)
			}
			began := time.Now()
			s.must(s.layers[0].Start(s.ctx))
			s.wait(s.layers[0], 1)
			sent := s.links[0].Counters()
			t.Logf("%d %% of the packets lost: %d KiB came in %.1f s over %d connections, %d bytes extra", loss, size>>10, time.Since(began).Seconds(), sent.Connections, s.extra(0))
			if s.extra(0) > int64(size/20)+overhead {
				t.Errorf("%d bytes extra for %d", s.extra(0), size)
			}
			if out := tool(t, "iptables", "-nvxL", "INPUT"); strings.Contains(out, " 0        0 DROP") {
				t.Errorf("no packet was lost:\n%s", out)
			}
			s.same(s.layers[0], repo+":1", img)
		})
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
