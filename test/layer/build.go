package layer

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// modulePath is the product's module.
const modulePath = "github.com/connected-registry/connected-registry"

// Root is the directory of the product's module; call it from somewhere below the test module.
func Root(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", modulePath).Output()
	if err != nil {
		return "", fmt.Errorf("go list -m %s: %w", modulePath, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Build makes the product's binary at path, as it is released: static and stripped. When the caller is built with the
// race detector, so is the binary; then a race that it finds fails Stop.
func Build(ctx context.Context, path string) error {
	root, err := Root(ctx)
	if err != nil {
		return err
	}
	if err := look(root); err != nil {
		return err
	}
	args := []string{"build", "-trimpath", "-o", path}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if Race {
		args, env = append(args, "-race"), append(os.Environ(), "CGO_ENABLED=1")
	} else {
		args = append(args, "-ldflags", "-s -w")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/connected-registry")...)
	cmd.Dir, cmd.Env = root, env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// look opens every directory of the product's sources: go test caches a result by the files that the test opened, and
// what a go command opens for it does not count.
func look(root string) error {
	for _, part := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, part), func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			_, err = os.ReadDir(p)
			return err
		})
		if err != nil {
			return err
		}
	}
	_, err := os.ReadFile(filepath.Join(root, "go.mod"))
	return err
}
