package volume

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/connected-registry/connected-registry/test/linkproxy"
	"github.com/connected-registry/connected-registry/test/mounts"
)

// uid is the one of the container image.
const uid = 65532

// TestVolumeThatCannotBeUsed starts on a volume that the process may not write, and mends it from outside.
func TestVolumeThatCannotBeUsed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("running the binary as another user needs root")
	}
	tests := map[string]struct {
		spoil, mend func(data string) error
		mount       bool
		says        []string // all of them, to a person
	}{
		"of root, closed": {
			spoil: func(data string) error { return os.Chmod(data, 0o700) },
			mend:  func(data string) error { return chown(data, uid) },
			says:  []string{"%[1]s", "uid 0", "uid 65532", "chown -R 65532"},
		},
		"of root, readable": {
			spoil: func(data string) error { return os.Chmod(data, 0o755) },
			mend:  func(data string) error { return chown(data, uid) },
			says:  []string{"%[1]s", "uid 0", "uid 65532", "chown -R 65532"},
		},
		"mode 0500 of its own": {
			spoil: func(data string) error {
				if err := os.Chown(data, uid, uid); err != nil {
					return err
				}
				return os.Chmod(data, 0o500)
			},
			mend: func(data string) error { return os.Chmod(data, 0o700) },
			says: []string{"%[1]s", "uid 65532", "mode 0500", "chmod -R u+rwX"},
		},
		"files of root inside": {
			spoil: func(data string) error {
				if err := os.Chown(data, uid, uid); err != nil {
					return err
				}
				return os.WriteFile(filepath.Join(data, "meta.db"), nil, 0o600)
			},
			mend: func(data string) error { return chown(data, uid) },
			says: []string{"%[1]s/meta.db", "uid 0", "uid 65532", "chown -R 65532"},
		},
		"mounted read-only": {
			mount: true,
			spoil: func(data string) error {
				if err := os.Chown(data, uid, uid); err != nil {
					return err
				}
				return remount(data, unix.MS_RDONLY)
			},
			mend: func(data string) error { return remount(data, 0) },
			says: []string{"%[1]s", "mounted read-only", "remount"},
		},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			data := filepath.Join(dir, "data")
			if c.mount {
				mounts.Tmpfs(t, data, "size=64m")
			}
			must(t, os.MkdirAll(data, 0o700))
			must(t, c.spoil(data))
			a := newAbove(t)
			first := a.push("acme/first:1", 64*kib, "a")
			d := newDaemon(t, data)
			d.uid = uid
			d.configure(document(a.link.Addr(), "http"))
			d.start()
			var texts []string
			for _, s := range c.says {
				if strings.Contains(s, "%") {
					s = fmt.Sprintf(s, data)
				}
				texts = append(texts, s)
			}
			d.until("clients are told why", func() (bool, string) {
				code, body := d.v2("GET", "")
				return code == http.StatusServiceUnavailable && contains(body, texts), fmt.Sprint(code, " ", body)
			})
			for path, want := range map[string]int{"/healthz": 200, "/readyz": 503, "/status": 200} {
				if code, body := d.health(path); code != want || want == 503 && !contains(body, texts) {
					t.Errorf("%s: %d %s", path, code, body)
				}
			}
			if !contains(d.logged(), texts) {
				t.Errorf("the log does not have all of %q:\n%s", texts, d.tail())
			}
			t.Logf("status:\n%s", hints(d.shows(`(?m)^! Storage DiskError since`, texts[0])))
			d.alive()
			must(t, c.mend(data))
			d.synced(1)
			d.has("acme/first:1", first)
			if code, body := d.health("/readyz"); code != http.StatusOK {
				t.Errorf("ready? %d %s", code, body)
			}
			d.shows(`acme/first +1 +in sync`)
		})
	}
}

func contains(text string, all []string) bool {
	for _, s := range all {
		if !strings.Contains(text, s) {
			return false
		}
	}
	return true
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func chown(dir string, id int) error {
	return filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, id, id)
	})
}

func remount(dir string, flags uintptr) error {
	return unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "")
}

// TestTwoProcesses starts a second process on a volume in use. It takes over when the first ends, in order or not.
func TestTwoProcesses(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"stopped": syscall.SIGTERM, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			data := filepath.Join(scratch(t), "data")
			a := newAbove(t)
			img := a.push("acme/first:1", 64*kib, "a")
			one, two := newDaemon(t, data), newDaemon(t, data)
			for _, d := range []*daemon{one, two} {
				d.configure(document(a.link.Addr(), "http"))
			}
			one.start()
			one.synced(1)
			two.start()
			text := "another process uses the data volume " + data
			two.until("the second says so", func() (bool, string) {
				code, body := two.v2("GET", "acme/first/manifests/1")
				return code == http.StatusServiceUnavailable && strings.Contains(body, text), body
			})
			if code, body := two.health("/readyz"); code != 503 || !strings.Contains(body, text) {
				t.Errorf("/readyz: %d %s", code, body)
			}
			if code, _ := two.health("/healthz"); code != 200 {
				t.Errorf("/healthz: %d", code)
			}
			if s, ok := two.status(); !ok || len(s.StatusDetails) == 0 || !strings.Contains(s.StatusDetails[0].Description, text) {
				t.Errorf("status of the second: %+v", s)
			} else {
				t.Logf("the second: %s %s: %s", s.StatusDetails[0].Type, s.StatusDetails[0].Code, s.StatusDetails[0].Description)
			}
			if !strings.Contains(two.logged(), text) {
				t.Error("the log of the second does not say why")
			}
			one.has("acme/first:1", img)
			one.shows(`acme/first +1 +in sync`)
			before := files(t, filepath.Join(data, "blobs"))
			a.set(linkproxy.Refuse)
			one.end(sig)
			two.until("the second has taken over", func() (bool, string) {
				code, body := two.health("/readyz")
				return code == http.StatusOK, body
			})
			two.has("acme/first:1", img)
			if after := files(t, filepath.Join(data, "blobs")); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("blobs before %q, after %q", before, after)
			}
			a.set(linkproxy.None)
			two.shows(`acme/first +1 +in sync`)
		})
	}
}
