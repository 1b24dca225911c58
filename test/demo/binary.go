package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// buildImage runs scripts/image, which leaves the binaries as well, and tells its lines.
func buildImage(ctx context.Context, out *screen, root, image, binaries string) error {
	if err := os.MkdirAll(binaries, 0o700); err != nil {
		return err
	}
	args := []string{"run", "./scripts/image", "-out", image, "-binaries", binaries, "-version", version}
	if host := runtime.GOOS + "/" + runtime.GOARCH; runtime.GOOS != "linux" || (runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64") {
		if err := goTool(ctx, out, root, "build", "-trimpath", "-o", hostBinary(binaries), "./cmd/connected-registry"); err != nil {
			return fmt.Errorf("build for %s: %w", host, err)
		}
	}
	return goTool(ctx, out, root, args...)
}

// hostBinary is the program that runs here: on Linux the very file that is in the image.
func hostBinary(binaries string) string {
	return filepath.Join(binaries, "connected-registry-"+runtime.GOOS+"-"+runtime.GOARCH)
}

// goTool runs the go command at the root of the repository, tells what it writes, and fails with what it complains of.
func goTool(ctx context.Context, out *screen, root string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	var complaints strings.Builder
	cmd.Stderr = &complaints
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for sc := bufio.NewScanner(pipe); sc.Scan(); {
		out.say("%s", sc.Text())
	}
	if err := cmd.Wait(); err != nil {
		return errors.Join(fmt.Errorf("go %s: %w", args[0], err), errors.New(strings.TrimSpace(complaints.String())))
	}
	return nil
}
