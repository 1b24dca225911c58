// Package volume gives the real binary what a person may give it by mistake or by bad luck - a full disk, a volume of
// another owner, a second process, a damaged index, damaged content, a parent that is none, a broken configuration -
// and looks where a person looks: the HTTP answer, "connected-registry status", the log. Each time nothing may be lost,
// the process stays, and it goes on by itself when the cause is gone.
package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/mounts"
)

const (
	patience = 90 * time.Second // for one thing to happen; the longest pause of the product is a minute
	kib      = 1 << 10
	mib      = 1 << 20
)

var (
	binary string
	// base is a directory that every user may enter, for processes of another uid.
	base string
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run starts this test anew in a mount namespace of its own, where that is possible, and else runs here: then the tests
// that need mounts say why they do not run.
func run(m *testing.M) int {
	if code, done := mounts.Enter(); done {
		return code
	}
	dir, err := os.MkdirTemp("", "connected-registry-volume-")
	if err == nil {
		defer os.RemoveAll(dir)
		base, binary = dir, filepath.Join(dir, "connected-registry")
		err = layer.Build(context.Background(), binary)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// scratch returns an empty directory below base, as TempDir is below one that other users may not enter.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(base, "")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
