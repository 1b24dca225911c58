package powercut

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/test/layer"
)

// omitting names the step that a registry built with the tag omitsteps leaves out.
const omitting = "CONNECTED_REGISTRY_OMIT"

// crippled builds the registry that can leave out steps.
func crippled(t *testing.T) string {
	t.Helper()
	path := filepath.Join(workDir, "connected-registry-omitsteps")
	if binaries[path] {
		return path
	}
	root, err := layer.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", "omitsteps", "-o", path, "./cmd/connected-registry")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	binaries[path] = true
	return path
}

// TestOmittedSteps proves that the power cuts see something: with each step of the commit protocol left out, they find
// what it is there for. The syncs of directories are not among them: who syncs another file on the same file system at
// that moment takes the names along. TestOrderOfSyscalls and the store's TestSwitch and TestPowerCut see those.
func TestOmittedSteps(t *testing.T) {
	if count(t, 0, 1) == 0 {
		t.Skip("runs with POWERCUT=n (make test-chaos-short)")
	}
	mustMount(t, "ext4")
	path := crippled(t)
	for _, tt := range []struct {
		steps  string
		rounds int // until it is found, at most
		found  func(*oracle) int
		not    func(*oracle) int
	}{
		{"", 5, func(*oracle) int { return 1 }, func(o *oracle) int { return len(o.problems()) }}, // the build alone changes nothing
		{"file-sync", 20, func(o *oracle) int { return len(o.lost) }, (*oracle).complete},
		{"file-sync,size-check", 20, func(o *oracle) int { return len(o.wrong) }, nil},
		{"index-sync", 40, func(o *oracle) int { return len(o.lost) }, nil},
		{"content", 40, func(o *oracle) int { return len(o.lost) }, nil},
		{"flush", 40, func(o *oracle) int { return len(o.lost) }, nil},
		{"order", 60, func(o *oracle) int { return len(o.broken) }, nil},
	} {
		t.Run(tt.steps, func(t *testing.T) {
			t.Setenv(omitting, tt.steps)
			found, ran := 0, 0
			s := seed(t)
			for v := uint64(0); ran < tt.rounds && (found == 0 || tt.steps == ""); v++ {
				r, err := newRig(t.Context(), t.TempDir(), path, "ext4", "", s+v)
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; i < perVolume && ran < tt.rounds && err == nil; i++ {
					err = r.round(t.Context(), powerCut, uint64(ran))
					ran++
				}
				found += tt.found(r.oracle)
				if tt.not != nil && tt.not(r.oracle) > 0 {
					t.Errorf("found what another step is there for: %q", r.oracle.problems()[:1])
				}
				if e := r.close(); tt.steps == "" || e != nil {
					err = errors.Join(err, e)
				} else if err != nil { // a registry that lost what it had is seen to in many ways
					t.Log(err)
					err = nil
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d cuts: %d lost, %d wrong, %d tags broken, of %d acknowledged", ran, len(r.oracle.lost), len(r.oracle.wrong), len(r.oracle.broken), r.oracle.count())
			}
			if found == 0 {
				t.Errorf("%d cuts found nothing: the harness is blind", ran)
			}
		})
	}
}

// TestOrderOfSyscalls reads from strace what one push asks of the kernel: fsync of the file, rename to the name of its
// content, fsync of the directory, then the log, which is all for small content; and sees each step that is left out.
func TestOrderOfSyscalls(t *testing.T) {
	if count(t, 0, 1) == 0 {
		t.Skip("runs with POWERCUT=n (make test-chaos-short)")
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("there is no strace: apt-get install strace")
	}
	path := crippled(t)
	for _, tt := range []struct{ steps, lacks string }{
		{"", ""},
		{"file-sync", "fsync of the file"},
		{"dir-sync", "fsync of the directory"},
		{"order", "log after the name"},
		{"index-sync", "log after the name"},
	} {
		t.Run(tt.steps, func(t *testing.T) {
			t.Setenv(omitting, tt.steps)
			// Somebody else's row that is committed in between looks like one of these: it is not there each time.
			var lacks string
			for i := 0; i == 0 || i < 4 && lacks != tt.lacks; i++ {
				var err error
				if lacks, err = traced(t.Context(), t.TempDir(), path); err != nil {
					t.Fatal(err)
				}
			}
			if lacks != tt.lacks {
				t.Errorf("lacks %q, want %q", lacks, tt.lacks)
			}
		})
	}
}

// traced pushes one image to a registry under strace and returns the first step that some content lacks.
func traced(ctx context.Context, base, binary string) (lacks string, err error) {
	trace := filepath.Join(base, "trace")
	wrapper := filepath.Join(base, "traced")
	script := fmt.Sprintf("#!/bin/sh\nexec strace -D -f -y -o %s -e trace=fsync,fdatasync,rename,renameat,renameat2 %s \"$@\"\n", trace, binary)
	if err := os.WriteFile(wrapper, []byte(script), 0o700); err != nil {
		return "", err
	}
	r, err := newRig(ctx, base, wrapper, "", "", 1)
	if err != nil {
		return "", err
	}
	image := registrytest.NewImage(1, 50_000, 70_000)
	last := registrytest.NewBlob(2, 60_000) // nothing after it syncs the log
	err = errors.Join(r.client.push(ctx, "local/app", "v1", image), r.client.pushBlob(ctx, "local/app", last, 1))
	pid := r.layer.Pid()
	if err = errors.Join(err, r.close(), ended(trace, pid)); err != nil {
		return "", err
	}
	large := map[string]bool{image.Digest.Encoded(): false, last.Digest.Encoded(): true}
	for _, b := range image.Blobs {
		large[b.Digest.Encoded()] = b.Size > 16<<10
	}
	f, err := os.Open(trace)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return order(bufio.NewScanner(f), large)
}

// ended waits for the end of a trace: strace ends after what it traces.
func ended(trace string, pid int) error {
	end := regexp.MustCompile(fmt.Sprintf(`(?m)^%d +\+\+\+ exited`, pid)) // it pads what is shorter than five digits
	for range 3000 {
		if body, _ := os.ReadFile(trace); end.Match(body) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s has no end", trace)
}

var (
	renamed = regexp.MustCompile(`rename\w*\((?:AT_FDCWD[^,]*, )?"([^"]+)", (?:AT_FDCWD[^,]*, )?"([^"]+)"`)
	flushed = regexp.MustCompile(`(fsync|fdatasync)\(\d+<([^>]+)>`)
)

// order follows the files that get the names of content, large or small, one after the other: a client that waits for
// each answer leaves nothing side by side.
func order(lines *bufio.Scanner, content map[string]bool) (lacks string, err error) {
	synced := map[string]bool{}   // files since their fsync
	dirs := map[string][]string{} // directories that wait for theirs, with the names in them
	waiting := map[string]bool{}  // names that only lack the sync of the log
	named, over := 0, false
	for !over && lines.Scan() {
		line := lines.Text()
		if m := renamed.FindStringSubmatch(line); m != nil {
			large, is := content[filepath.Base(m[2])]
			dir := filepath.Dir(m[2])
			switch {
			case is && large && !synced[m[1]]:
				return "fsync of the file", nil
			case is && large:
				dirs[dir] = append(dirs[dir], m[2])
			case is:
				waiting[m[2]] = true
			}
			if is {
				named++
			}
		}
		m := flushed.FindStringSubmatch(line)
		switch {
		case m == nil:
		case filepath.Base(m[2]) == "meta.db":
			over = named == len(content) // the orderly end, which syncs all
		case strings.HasPrefix(filepath.Base(m[2]), "redo-"): // not redo.new, of the orderly end
			clear(waiting) // names without their directory go on waiting: it may be another's record
		default:
			synced[m[2]] = true
			for _, name := range dirs[m[2]] {
				waiting[name] = true
			}
			delete(dirs, m[2])
		}
	}
	switch {
	case lines.Err() != nil:
		return "", lines.Err()
	case named != len(content):
		return "", fmt.Errorf("%d of %d names were given", named, len(content))
	case len(dirs) > 0:
		return "fsync of the directory", nil
	case len(waiting) > 0:
		return "log after the name", nil
	}
	return "", nil
}
