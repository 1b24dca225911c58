package module

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// socketName is the control socket in the data volume. Whoever may write there is the operator, so it asks for no
// password: it works through docker exec.
const socketName = "control.sock"

// maxStatus bounds a status that is read over the network, in bytes.
const maxStatus = 16 << 20

// withSocket calls do with a path of the control socket that is short enough for the kernel (108 bytes), whatever the
// length of the data volume's path.
func withSocket(dataDir string, do func(path string) error) error {
	dir, err := os.Open(dataDir)
	if err != nil {
		return notRunning(dataDir, err)
	}
	defer dir.Close()
	path := filepath.Join(dataDir, socketName)
	if len(path) > 100 {
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)
	}
	return do(path)
}

// notRunning is why nobody answers, for a person who may be on another machine than the registry, or beside its container.
func notRunning(dataDir string, err error) error {
	return fmt.Errorf("no registry is running on the data volume %s: %w: ask where it runs, with docker exec for a container, or name its volume with --data-dir", dataDir, err)
}

// control serves the control socket. The data volume is locked by this process, so a socket that is there already is
// one that a killed process left.
func (m *Module) control(ctx context.Context) {
	ln, err := m.o.ListenControl(ctx)
	if err != nil {
		m.log.Error("no control socket: the operator's commands will not reach this process", "error", err)
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", m.writeStatus)
	mux.HandleFunc("POST /methods/{name}", m.serveMethod)
	server := transport.NewServer(mux, transport.ServerOptions{Logger: m.log})
	server.ConnContext = controlOrigin
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(ln); err != nil && !errors.Is(err, http.ErrServerClosed) {
		m.log.Error("control socket", "error", err)
	}
	_ = os.Remove(filepath.Join(m.dataDir, socketName)) // a stopped process has none
}

// listenControl opens the socket in the data volume, for its owner alone.
func (m *Module) listenControl(ctx context.Context) (ln net.Listener, err error) {
	name := filepath.Join(m.dataDir, socketName)
	err = withSocket(m.dataDir, func(path string) error {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		var err error
		if ln, err = (&net.ListenConfig{}).Listen(ctx, "unix", path); err != nil {
			return err
		}
		return os.Chmod(name, 0o600)
	})
	return ln, err
}

// Control asks the module that runs on the data volume. An answer of an error is returned as the *registry.Error that
// it holds.
func Control(ctx context.Context, dataDir, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return withSocket(dataDir, func(socket string) error {
		client := &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
			},
		}}
		req, err := http.NewRequestWithContext(ctx, method, "http://module"+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return notRunning(dataDir, errors.Unwrap(err))
		}
		defer resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			var body struct{ Errors []registry.Error }
			if json.NewDecoder(resp.Body).Decode(&body) == nil && len(body.Errors) > 0 {
				return &body.Errors[0]
			}
			return fmt.Errorf("control socket: %s", resp.Status)
		}
		return json.NewDecoder(resp.Body).Decode(out)
	})
}

// StatusWithoutVolume asks the management listener at addr. A module that cannot use its data volume has no control
// socket there, but it says at this address why. ok is false when nobody answers, or one that has its volume open: that
// is not who was asked for.
func StatusWithoutVolume(ctx context.Context, addr string) (s registry.Status, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/status", http.NoBody)
	if err != nil {
		return s, false
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return s, false
	}
	defer resp.Body.Close()
	err = json.NewDecoder(io.LimitReader(resp.Body, maxStatus)).Decode(&s)
	return s, err == nil && resp.StatusCode == http.StatusOK && s.Storage.State == "unavailable" && s.InstanceID == ""
}
