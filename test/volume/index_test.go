package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// filled is a stopped registry with two images in sync; each case works on a copy of its volume.
type filled struct {
	*above
	data        string
	first, next v1.Image
}

func newFilled(t *testing.T) filled {
	t.Helper()
	f := filled{above: newAbove(t), data: filepath.Join(scratch(t), "data")}
	f.first = f.push("acme/first:1", 300*kib, "a", "b")
	f.next = f.push("acme/next:1", 300*kib, "a", "c")
	d := newDaemon(t, f.data)
	d.configure(document(f.link.Addr(), "http"))
	d.start()
	d.synced(2)
	d.end(syscall.SIGTERM)
	return f
}

// copy returns a process, not started yet, on a copy of the volume, and its own link to the cloud.
func (f filled) copy(t *testing.T) (*daemon, *above) {
	t.Helper()
	link, err := linkproxy.New(f.cloud.Addr)
	must(t, err)
	t.Cleanup(func() { _ = link.Close() })
	data := filepath.Join(scratch(t), "data")
	must(t, os.Mkdir(data, 0o700))
	copyTree(t, f.data, data)
	d := newDaemon(t, data)
	d.configure(document(link.Addr(), "http"))
	return d, &above{t: t, cloud: f.cloud, link: link}
}

// bare removes what the store could restore an index from beside the blobs.
func bare(t *testing.T, data string) {
	t.Helper()
	list, err := os.ReadDir(data)
	must(t, err)
	for _, e := range list {
		if !slices.Contains([]string{"meta.db", "blobs", "partial", "uploads", "reserve"}, e.Name()) {
			must(t, os.RemoveAll(filepath.Join(data, e.Name())))
		}
	}
}

// damage spoils an index.
func damage(r *rand.Rand, kind string, b []byte) []byte {
	switch kind {
	case "random bytes":
		b = make([]byte, r.IntN(64*kib)+1)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	case "truncated":
		b = b[:r.IntN(len(b))]
	case "zeroed page":
		clear(written(r, b))
	case "flipped bytes":
		for range 1 + r.IntN(40) {
			written(r, b)[r.IntN(4096)] ^= byte(1 + r.IntN(255))
		}
	case "empty":
		b = nil
	}
	return b
}

// written returns one of the pages that were ever written to.
func written(r *rand.Rand, b []byte) []byte {
	for {
		p := r.IntN(len(b)/4096) * 4096
		if page := b[p : p+4096]; slices.ContainsFunc(page, func(c byte) bool { return c != 0 }) {
			return page
		}
	}
}

// TestDamagedIndex starts on damaged indexes beside content that is there, with snapshots of the index and without.
func TestDamagedIndex(t *testing.T) {
	const cases = 30
	f := newFilled(t)
	good, err := os.ReadFile(filepath.Join(f.data, "meta.db"))
	must(t, err)
	kinds := []string{"random bytes", "truncated", "zeroed page", "flipped bytes", "empty", "missing"}
	var noticed, silent atomic.Int32
	t.Cleanup(func() {
		t.Logf("%d damages were noticed at the start, %d touched nothing that is used", noticed.Load(), silent.Load())
		if noticed.Load() < 15 && !t.Failed() && noticed.Load()+silent.Load() == cases {
			t.Error("that is too few")
		}
	})
	for seed := range cases {
		kind := kinds[seed%len(kinds)]
		t.Run(fmt.Sprintf("%s %d", kind, seed), func(t *testing.T) {
			t.Parallel()
			d, a := f.copy(t)
			if seed%4 < 3 {
				bare(t, d.data)
			}
			path := filepath.Join(d.data, "meta.db")
			if kind == "missing" {
				must(t, os.Remove(path))
			} else {
				r := rand.New(rand.NewPCG(1, uint64(seed)))
				must(t, os.WriteFile(path, damage(r, kind, slices.Clone(good)), 0o600))
			}
			blobs := filepath.Join(d.data, "blobs")
			before, crossed := files(t, blobs), a.down()
			d.start()
			d.synced(2)
			d.has("acme/first:1", f.first)
			d.has("acme/next:1", f.next)
			// Whatever was taken for rubbish would go now.
			if out, err := d.run("gc"); err != nil && !strings.Contains(out, "being rebuilt") {
				t.Errorf("gc: %v: %s", err, out)
			}
			if after := files(t, blobs); !slices.Equal(before, after) {
				t.Errorf("files of blobs before %q, after %q", before, after)
			}
			cost := a.down() - crossed
			if cost > 64*kib {
				t.Errorf("%d bytes crossed the link for what is here", cost)
			}
			if strings.Contains(d.logged(), "the index is") {
				noticed.Add(1)
			} else {
				silent.Add(1)
			}
			d.alive()
		})
	}
}

// TestRecovering lets the rebuild take long enough to be looked at: a large file has to be hashed.
func TestRecovering(t *testing.T) {
	f := newFilled(t)
	d, a := f.copy(t)
	bare(t, d.data)
	const size = 4 << 30 // seconds to hash, so that there is a middle
	h := sha256.New()
	_, err := io.CopyN(h, zeros{}, size)
	must(t, err)
	name := hex.EncodeToString(h.Sum(nil))
	file, err := os.Create(filepath.Join(d.data, "blobs", "sha256", name[:2], name))
	must(t, err)
	must(t, file.Truncate(size)) // no block of it is on the disk
	must(t, file.Close())
	must(t, os.Remove(filepath.Join(d.data, "meta.db")))
	a.set(linkproxy.Refuse)
	before := files(t, filepath.Join(d.data, "blobs"))
	d.start()
	status := d.shows(`STORAGE +recovering`)
	t.Logf("%s", storage(status))
	if out, err := d.run("gc"); err == nil || !strings.Contains(out, "nothing is collected while the index is being rebuilt") {
		t.Errorf("gc in the middle: %v: %s", err, out)
	} else {
		t.Logf("gc: %s", strings.TrimSpace(out))
	}
	if !strings.Contains(d.logged(), "the index is being rebuilt from the content") {
		t.Errorf("the log does not say so:\n%s", d.tail())
	}
	// The parent is away: the registry is there and says what it lacks and why.
	code, body := d.v2("GET", "acme/first/manifests/1")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "the parent cannot be asked") || !strings.Contains(body, a.link.Addr()) {
		t.Errorf("a pull: %d %s", code, body)
	} else {
		t.Logf("pull: %d %s", code, strings.TrimSpace(body))
	}
	if code, body := d.v2("GET", ""); code != http.StatusOK {
		t.Errorf("/v2/: %d %s", code, body)
	}
	d.shows(`STORAGE +ok`)
	crossed := a.down()
	a.set(linkproxy.None)
	d.synced(2)
	d.has("acme/first:1", f.first)
	if cost := a.down() - crossed; cost > 64*kib {
		t.Errorf("%d bytes crossed the link for what is here", cost)
	}
	if after := files(t, filepath.Join(d.data, "blobs")); !slices.Equal(before, after) {
		t.Errorf("files of blobs before %q, after %q", before, after)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// storage is the line of a status about the volume.
func storage(status string) string {
	for line := range strings.Lines(status) {
		if strings.HasPrefix(line, "STORAGE") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// TestDamagedContent damages one file of content, of a layer and of a manifest, before a start without the parent.
func TestDamagedContent(t *testing.T) {
	f := newFilled(t)
	layers, err := f.next.Layers()
	must(t, err)
	layer, err := layers[1].Digest()
	must(t, err)
	manifest, err := f.next.Digest()
	must(t, err)
	damages := map[string]func(path string) error{
		"short":   func(path string) error { return os.Truncate(path, 100) },
		"missing": os.Remove,
		"longer":  func(path string) error { return os.Truncate(path, 400*kib) },
		"flipped": func(path string) error {
			b, err := os.ReadFile(path)
			if err == nil {
				b[50] ^= 1
				err = os.WriteFile(path, b, 0o600)
			}
			return err
		},
	}
	for what, c := range map[string]struct {
		digest v1.Hash
		path   string
	}{
		"layer":    {layer, "acme/next/blobs/" + layer.String()},
		"manifest": {manifest, "acme/next/manifests/1"},
	} {
		for name, spoil := range damages {
			t.Run(what+" "+name, func(t *testing.T) {
				t.Parallel()
				d, a := f.copy(t)
				must(t, spoil(filepath.Join(d.data, "blobs", "sha256", c.digest.Hex[:2], c.digest.Hex)))
				a.set(linkproxy.Refuse)
				d.start()
				d.shows(`ParentUnreachable`)
				code, body := d.v2("GET", c.path)
				sum := sha256.Sum256([]byte(body))
				whole := code == http.StatusOK && hex.EncodeToString(sum[:]) == c.digest.Hex
				switch {
				case whole:
					t.Error("a damaged file was served whole: the test damages nothing")
				case code == 0 && name == "flipped" && what == "layer":
					t.Logf("the answer is cut before its end: %s", body) // its size is right: it is found while it is read
				case code != http.StatusServiceUnavailable:
					t.Errorf("%d, %d bytes", code, len(body))
				default:
					t.Logf("%d %s", code, strings.TrimSpace(body))
				}
				d.has("acme/first:1", f.first)
				a.set(linkproxy.None)
				_, _ = d.run("sync") // what it found is in the status
				d.synced(2)
				d.shows(`acme/next +1 +in sync`)
				d.has("acme/next:1", f.next)
				d.alive()
			})
		}
	}
}
