package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func fakeSpec() Spec {
	spec := Spec{Version: "1.2.3", Revision: "0123abc", Created: time.Unix(1_700_000_000, 0).UTC(), CA: []byte("a bundle")}
	for _, name := range []string{"linux/amd64", "linux/arm64", "linux/arm/v7"} {
		p, err := parsePlatform(name)
		if err != nil {
			panic(err)
		}
		spec.Binaries = append(spec.Binaries, Binary{Platform: p, Body: bytes.Repeat([]byte(name), 10_000)})
	}
	return spec
}

// files returns the content of every file below dir.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := os.ReadFile(p)
		rel, relErr := filepath.Rel(dir, p)
		all[filepath.ToSlash(rel)] = string(body)
		return errors.Join(err, relErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTwoBuildsAreEqual(t *testing.T) {
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	one, err := Write(a, fakeSpec())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Write(b, Spec{Version: "old"}); err != nil { // what was there is replaced
		t.Fatal(err)
	}
	two, err := Write(b, fakeSpec())
	if err != nil {
		t.Fatal(err)
	}
	if one.Digest != two.Digest {
		t.Errorf("digests differ: %s, %s", one.Digest, two.Digest)
	}
	left, right := files(t, a), files(t, b)
	if len(left) != len(right) {
		t.Errorf("%d files and %d files", len(left), len(right))
	}
	for name, body := range left {
		if right[name] != body {
			t.Errorf("%s differs", name)
		}
	}
}

func TestLayoutIsValid(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "image")
	spec := fakeSpec()
	root, err := Write(dir, spec)
	if err != nil {
		t.Fatal(err)
	}
	all := files(t, dir)
	if got := all["oci-layout"]; got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout: %s", got)
	}
	seen := 2 // oci-layout, index.json
	get := func(d ocispec.Descriptor, into any) []byte {
		t.Helper()
		body := []byte(all["blobs/sha256/"+d.Digest.Encoded()])
		if digest.FromBytes(body) != d.Digest || int64(len(body)) != d.Size {
			t.Fatalf("%s: %d bytes there, of another digest or size", d.Digest, len(body))
		}
		if into != nil {
			if err := json.Unmarshal(body, into); err != nil {
				t.Fatal(err)
			}
		}
		seen++
		return body
	}
	var top, index ocispec.Index
	if err := json.Unmarshal([]byte(all["index.json"]), &top); err != nil {
		t.Fatal(err)
	}
	if len(top.Manifests) != 1 || top.Manifests[0].Digest != root.Digest || top.Manifests[0].Annotations[ocispec.AnnotationRefName] != "1.2.3" {
		t.Fatalf("index.json: %+v", top.Manifests)
	}
	get(top.Manifests[0], &index)
	for i, d := range index.Manifests {
		var m ocispec.Manifest
		var c ocispec.Image
		get(d, &m)
		get(m.Config, &c)
		if !samePlatform(*d.Platform, spec.Binaries[i].Platform) || !samePlatform(c.Platform, *d.Platform) {
			t.Errorf("platforms: descriptor %+v, config %+v", d.Platform, c.Platform)
		}
		if c.Config.User != "65532:65532" || c.Config.Labels[ocispec.AnnotationVersion] != "1.2.3" {
			t.Errorf("config: %+v", c.Config)
		}
		plain := gunzip(t, get(m.Layers[0], nil))
		if got := digest.FromBytes(plain); got != c.RootFS.DiffIDs[0] {
			t.Errorf("diff id %s, the layer's tar is %s", c.RootFS.DiffIDs[0], got)
		}
		checkLayer(t, plain, spec.Binaries[i].Body)
	}
	if len(index.Manifests) != 3 || seen != len(all) {
		t.Errorf("%d images; %d of %d files are reachable", len(index.Manifests), seen, len(all))
	}
}

func samePlatform(a, b ocispec.Platform) bool {
	return a.OS == b.OS && a.Architecture == b.Architecture && a.Variant == b.Variant
}

func gunzip(t *testing.T, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

func checkLayer(t *testing.T, plain, binary []byte) {
	t.Helper()
	var names []string
	tr := tar.NewReader(bytes.NewReader(plain))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		switch h.Name {
		case "connected-registry":
			body, err := io.ReadAll(tr)
			if err != nil || !bytes.Equal(body, binary) || h.Mode != 0o755 || h.Uid != 0 {
				t.Errorf("binary: mode %o, uid %d, %v", h.Mode, h.Uid, err)
			}
		case "var/acr/data/":
			if h.Uid != user || h.Gid != user || h.Typeflag != tar.TypeDir {
				t.Errorf("data directory: %+v", h)
			}
		}
	}
	want := []string{
		"connected-registry", "etc/", "etc/ssl/", "etc/ssl/certs/", "etc/ssl/certs/ca-certificates.crt",
		"var/", "var/acr/", "var/acr/data/",
	}
	if !slices.Equal(names, want) {
		t.Errorf("layer holds %q", names)
	}
}

// TestRun builds a real, small program for two platforms, which must come out static and stamped.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	src := "package main\nvar version string\nfunc main() { print(version) }\n"
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "image")
	args := []string{"-out", out, "-package", filepath.Join(dir, "main.go"), "-version", "9.8.7-test", "-platforms", "linux/amd64,linux/arm/v7"}
	if err := run(t.Context(), args); err != nil {
		t.Fatal(err)
	}
	stamped := 0
	for name, body := range files(t, out) {
		if plain := []byte(body); strings.HasPrefix(body, "\x1f\x8b") {
			plain = gunzip(t, plain)
			if !bytes.Contains(plain, []byte("9.8.7-test")) {
				t.Errorf("%s: the version is not in the binary", name)
			}
			stamped++
		}
	}
	if stamped != 2 {
		t.Errorf("%d layers, want 2", stamped)
	}
}

func TestBadArguments(t *testing.T) {
	for name, args := range map[string][]string{
		"flag":     {"-nothing"},
		"platform": {"-platforms", "linux"},
		"bundle":   {"-ca", "/does/not/exist"},
		"package":  {"-package", "./does-not-exist", "-platforms", "linux/amd64", "-out", filepath.Join(t.TempDir(), "x")},
	} {
		if err := run(t.Context(), args); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
