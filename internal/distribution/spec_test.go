package distribution_test

import (
	"bufio"
	"os"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/store"
)

// specChecks are the checks of what testdata/oci-distribution-1.1.txt lists, by name.
var specChecks = map[string]func(x *spec){}

func checks(more map[string]func(x *spec)) struct{} {
	for name, check := range more {
		if specChecks[name] != nil {
			panic("two checks are called " + name)
		}
		specChecks[name] = check
	}
	return struct{}{}
}

// spec is one check, with a repository of its own.
type spec struct {
	*server
	repo  string
	base  string // /v2/<repo>/
	image registrytest.Image
}

// TestSpec has a test for each line of the list, called by section and name: go test -run
// TestSpec/listing-tags/tags-order. It fails when a line has no check, and when a check is for no line.
func TestSpec(t *testing.T) {
	f, err := os.Open("testdata/oci-distribution-1.1.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	st := registries["store"](t).(*store.Store)
	s := newServer(t, st, distribution.Options{Holders: st.BlobHolders})
	seen := map[string]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		part := strings.Split(lines.Text(), " | ")
		if len(part) != 4 {
			t.Fatalf("%q: want section, keyword, name and words", lines.Text())
		}
		section, keyword, name, words := part[0], part[1], part[2], part[3]
		check := specChecks[name]
		if check == nil || seen[name] {
			t.Errorf("%s, %s %q: no check %q, or the line is there twice", section, keyword, words, name)
			continue
		}
		seen[name] = true
		t.Run(section+"/"+name, func(t *testing.T) {
			sub := *s
			sub.t = t
			repo := "spec/" + strings.ToLower(name)
			check(&spec{server: &sub, repo: repo, base: "/v2/" + repo + "/", image: registrytest.NewImage(uint64(len(seen)), 500, 20)})
			if t.Failed() {
				t.Logf("spec.md#%s, %s: %s", section, keyword, words)
			}
		})
	}
	for name := range specChecks {
		if !seen[name] {
			t.Errorf("check %s is for no line of the list", name)
		}
	}
}

// What the checks send; paths are below the repository of the check.

func (x *spec) get(path string, header ...string) answer { return x.send("GET", path, nil, header...) }

func (x *spec) head(path string, header ...string) answer {
	return x.send("HEAD", path, nil, header...)
}

func (x *spec) send(method, path string, content []byte, header ...string) answer {
	x.t.Helper()
	if !strings.HasPrefix(path, "/") {
		path = x.base + path
	}
	return x.do("all", method, path, body(content), header...)
}

func (x *spec) put(ref string, i registrytest.Image, header ...string) answer {
	x.t.Helper()
	return x.send("PUT", "manifests/"+ref, i.Bytes, append([]string{"Content-Type", i.MediaType}, header...)...)
}

// pushed pushes an image as clients do; an empty tag pushes by digest.
func (x *spec) pushed(tag string, i registrytest.Image) {
	x.t.Helper()
	for _, c := range i.Children {
		x.pushed("", c)
	}
	x.blobs(i)
	if tag == "" {
		tag = i.Digest.String()
	}
	x.want("push of "+tag, x.put(tag, i), 201)
}

func (x *spec) blobs(i registrytest.Image) {
	x.t.Helper()
	for _, b := range i.Blobs {
		x.want("push of a blob", x.send("POST", "blobs/uploads/?digest="+b.Digest.String(), b.Bytes), 201)
	}
}

func (x *spec) blob() registrytest.Blob { return x.image.Blobs[1] }

func (x *spec) session() string {
	x.t.Helper()
	a := x.send("POST", "blobs/uploads/", nil)
	x.want("POST", a, 202, "Location", "*")
	return a.header.Get("Location")
}

// readOnly is a registry that deletes nothing, with an image under v1.
func (x *spec) readOnly() *spec {
	x.t.Helper()
	s := newServer(x.t, registrytest.NewMemory(), distribution.Options{})
	s.mode = registry.ReadOnly
	s.push(x.repo, "v1", x.image)
	return &spec{server: s, repo: x.repo, base: x.base, image: x.image}
}
