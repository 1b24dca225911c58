package sim

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// The names that plans use.
var (
	repositories = []string{"acme/app", "acme/tool", "line/plc"}
	tags         = []string{"v1", "v2", "latest", "edge", "test"}
)

// content is all that a plan can push: a pure function of its seed.
type content struct {
	seed  uint64
	blobs [][]byte // shared between images
	made  map[registry.Digest]bool
}

// artifact is one thing to push: the blobs, then the manifests, children first.
type artifact struct {
	blobs     [][]byte
	manifests []manifest
}

type manifest struct {
	media string
	body  []byte
}

func (a artifact) root() registry.Digest { return digestOf(a.manifests[len(a.manifests)-1].body) }

func digestOf(b []byte) registry.Digest {
	sum := sha256.Sum256(b)
	return registry.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// sizes of shared blobs: an empty one, tiny ones, some that take several reads and packets.
var sizes = []int{0, 1, 100, 1000, 3000, 9000, 20000, 40000, 70000, 150000}

func newContent(seed uint64) *content {
	c := &content{seed: seed, made: map[registry.Digest]bool{}}
	for i, n := range sizes {
		c.blobs = append(c.blobs, c.bytes(uint64(i), n))
	}
	return c
}

// bytes are n bytes that belong to a name.
func (c *content) bytes(name uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i], key[8+i] = byte(c.seed>>(8*i)), byte(name>>(8*i))
	}
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}

// artifact makes the n-th image, or, for a part of the numbers, an index of two.
func (c *content) artifact(n int) artifact {
	chance := rand.New(rand.NewPCG(c.seed, uint64(n)))
	if chance.IntN(4) != 0 {
		var a artifact
		c.image(&a, chance, uint64(n)*16+1000, "amd64")
		return a
	}
	var a artifact
	var list []map[string]any
	for i, arch := range []string{"amd64", "arm64"} {
		c.image(&a, chance, uint64(n)*16+1000+uint64(i)*4, arch)
		last := a.manifests[len(a.manifests)-1]
		d := descriptor(last.media, last.body)
		d["platform"] = map[string]string{"os": "linux", "architecture": arch}
		list = append(list, d)
	}
	a.add(registry.MediaTypeImageIndex, map[string]any{"schemaVersion": 2, "mediaType": registry.MediaTypeImageIndex, "manifests": list})
	return a
}

// derived makes an image on the layers of the n-th, with one of its own.
func (c *content) derived(n, own int) artifact {
	base, name := c.artifact(n), uint64(n)*1000+uint64(own)+1_000_000
	var a artifact
	layers := []map[string]any{}
	for _, b := range base.blobs {
		layers = append(layers, a.blob(b))
	}
	layers = append(layers, a.blob(c.bytes(name, 1+own*8)))
	config, _ := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "name": name})
	a.add(registry.MediaTypeImageManifest, map[string]any{
		"schemaVersion": 2, "mediaType": registry.MediaTypeImageManifest,
		"config": a.described("application/vnd.oci.image.config.v1+json", config), "layers": layers,
	})
	return a
}

// image adds one with layers of the shared blobs and one of its own.
func (c *content) image(a *artifact, chance *rand.Rand, name uint64, arch string) {
	layers := []map[string]any{}
	for range 1 + chance.IntN(3) {
		layers = append(layers, a.blob(c.blobs[chance.IntN(len(c.blobs))]))
	}
	layers = append(layers, a.blob(c.bytes(name, 1+chance.IntN(12000))))
	config, _ := json.Marshal(map[string]any{"architecture": arch, "os": "linux", "name": name})
	a.add(registry.MediaTypeImageManifest, map[string]any{
		"schemaVersion": 2, "mediaType": registry.MediaTypeImageManifest,
		"config": a.described("application/vnd.oci.image.config.v1+json", config), "layers": layers,
	})
}

// referrer is a document about another manifest.
func (c *content) referrer(n int, subject manifest) artifact {
	var a artifact
	a.add(registry.MediaTypeImageManifest, map[string]any{
		"schemaVersion": 2, "mediaType": registry.MediaTypeImageManifest, "artifactType": "application/vnd.acme.signature",
		"config":  a.described("application/vnd.oci.empty.v1+json", []byte("{}")),
		"layers":  []map[string]any{a.blob(c.bytes(uint64(n)*16+900, 200))},
		"subject": descriptor(subject.media, subject.body),
	})
	return a
}

func (a *artifact) blob(b []byte) map[string]any {
	return a.described("application/vnd.oci.image.layer.v1.tar", b)
}

// described adds a blob and returns its descriptor.
func (a *artifact) described(media string, b []byte) map[string]any {
	a.blobs = append(a.blobs, b)
	return descriptor(media, b)
}

func (a *artifact) add(media string, doc map[string]any) {
	body, err := json.Marshal(doc)
	if err != nil {
		panic(fmt.Sprintf("a manifest of the test: %v", err))
	}
	a.manifests = append(a.manifests, manifest{media: media, body: body})
}

func descriptor(media string, b []byte) map[string]any {
	return map[string]any{"mediaType": media, "digest": digestOf(b), "size": len(b)}
}
