package access

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// someone is the user that the container image runs as.
const someone = 65532

// TestNoCore kills the real binary with SIGABRT, with a limit that would let it write a core file and the runtime told to
// crash: the kernel writes none, and what the program prints holds no secret. While it runs, another process of its user
// reads neither its memory nor its environment. Root can; nothing keeps that one out.
func TestNoCore(t *testing.T) {
	const canary = "CANARYcore4b1d9e"
	dir := t.TempDir()
	for up := dir; strings.HasPrefix(filepath.Base(filepath.Dir(up)), "Test"); up = filepath.Dir(up) {
		must(t, os.Chmod(filepath.Dir(up), 0o755))
	}
	root := os.Getuid() == 0
	as := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-c", `ulimit -c unlimited; exec "$@"`, "sh"}, args...)...)
		cmd.Dir, cmd.Env = dir, []string{"GOTRACEBACK=crash", "PATH=" + os.Getenv("PATH")}
		if root {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: someone, Gid: someone}}
		}
		return cmd
	}
	if root {
		must(t, os.Chown(dir, someone, someone))
	}
	raw, err := os.ReadFile(built(t))
	must(t, err)
	program := filepath.Join(dir, "connected-registry") // where that user may run it
	must(t, os.WriteFile(program, raw, 0o755))

	// aborted waits for a process that got SIGABRT, and reports whether the kernel wrote a core file.
	aborted := func(cmd *exec.Cmd) bool {
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) {
			t.Fatalf("after SIGABRT: %v", err)
		}
		status, ok := exit.Sys().(syscall.WaitStatus)
		files, _ := filepath.Glob(filepath.Join(dir, "core*"))
		for _, f := range files {
			must(t, os.Remove(f))
		}
		return ok && status.CoreDump() || len(files) > 0
	}
	other := as("sh", "-c", "kill -ABRT $$")
	must(t, other.Start())
	t.Logf("another program writes a core file here: %t", aborted(other))

	addr, release, err := linkproxy.ReservePort()
	must(t, err)
	defer release()
	var said bytes.Buffer
	cmd := as(program, "serve", "--data-dir", filepath.Join(dir, "data"), "--listen", addr, "--management", "")
	cmd.Env = append(cmd.Env, "ACR_REGISTRY_CONNECTION_STRING=ConnectedRegistryName=lower;SyncTokenName=lower;SyncTokenPassword="+canary+";ParentGatewayEndpoint=127.0.0.1:1;ParentEndpointProtocol=http")
	cmd.Stdout, cmd.Stderr = &said, &said
	must(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill() }()
	s := &site{t: t, addr: addr, http: http.DefaultClient}
	s.until("it listens", func() bool {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusUnauthorized
	})
	for _, what := range []string{"environ", "mem", "maps"} {
		path := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), what)
		if out, err := as("head", "-c", "1", path).CombinedOutput(); !bytes.Contains(out, []byte("Permission denied")) {
			t.Errorf("another process of its user reads %s: %v %q", path, err, out)
		}
	}
	must(t, cmd.Process.Signal(syscall.SIGABRT))
	if aborted(cmd) {
		t.Error("a core file was written")
	}
	if !bytes.Contains(said.Bytes(), []byte("SIGABRT")) || bytes.Contains(said.Bytes(), []byte(canary)) {
		t.Errorf("what it printed at its end holds a secret, or is no trace: %.200s", said.String())
	}
}
