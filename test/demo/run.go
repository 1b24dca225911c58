package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/layer"
)

// runToken is the client token of make run.
const runToken = "me"

// writeTokens makes the file of the one client token.
func writeTokens(file, password string) error {
	body, err := json.Marshal(map[string]any{
		"scopeMaps":    map[string]string{"all": layer.Everything("*")},
		"clientTokens": map[string]any{runToken: layer.Token("all", password)},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(file, body, 0o600)
}

// keepRunning is `make run`: one registry with an embedded configuration, ReadWrite, without a parent, until Ctrl-C.
// What is pushed to it stays in .demo/run of the repository.
func keepRunning(ctx context.Context, out *screen, root, listen string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("%w; choose another address: make run LISTEN=127.0.0.1:5001", err)
	}
	_ = ln.Close()
	binary := filepath.Join(root, "bin", "connected-registry")
	if err := layer.Build(ctx, binary); err != nil {
		return err
	}
	password := rand.Text()
	l, err := layer.New(layer.Options{
		Binary: binary, Dir: filepath.Join(root, ".demo", "run"), Name: "first", Mode: registry.ReadWrite, Listen: listen, Closed: true,
		Args: []string{"--tokens", filepath.Join(root, ".demo", "run", "tokens.json")},
	})
	if err == nil {
		err = writeTokens(filepath.Join(l.Dir, "tokens.json"), password)
	}
	if err != nil {
		return err
	}
	if err := l.Start(ctx); err != nil {
		return errors.Join(err, l.Close())
	}
	out.say(`
A registry runs on %[1]s. Its one client token may do everything, with a password of this run.

  login  docker login --username %[5]s --password %[6]s %[1]s
         skopeo login --tls-verify=false --username %[5]s --password %[6]s %[1]s
  push   skopeo copy --dest-tls-verify=false docker://docker.io/library/alpine:3 docker://%[1]s/alpine:3
         docker tag alpine:3 %[1]s/alpine:3 && docker push %[1]s/alpine:3
         make image && skopeo copy --all --dest-tls-verify=false oci:dist/image docker://%[1]s/connected-registry:1
  pull   docker pull %[1]s/alpine:3
  list   curl --user %[5]s:%[6]s http://%[1]s/v2/_catalog
  state  bin/connected-registry status --data-dir %[2]s

  configuration  %[3]s (watched: edit it and see)
  log            %[4]s

Ctrl-C ends it; what was pushed stays for the next time.`,
		l.Addr, l.DataDir(), filepath.Join(l.Dir, "config.json"), l.LogFile(), runToken, password)
	select {
	case <-ctx.Done():
		out.say("\nEnded.")
		return l.Close()
	case <-l.Exited():
		return fmt.Errorf("the registry ended; its log is %s", l.LogFile())
	}
}
