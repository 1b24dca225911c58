package access

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/store"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// This registry verifies no signature. What it owes to those who do is that signatures get there as they were made, that
// a list of them is what the parent or a client said last, and that a list which it does not know is never an empty one:
// that would be the word "unsigned".

const (
	imageType = "application/vnd.oci.image.manifest.v1+json"
	signature = "application/vnd.example.signature"
)

// below starts a registry under another one, with a link between them.
func (s *site) below(t *testing.T, name string, mode registry.Mode, change func(*module.Options)) (*site, *linkproxy.Proxy) {
	t.Helper()
	link, err := linkproxy.New(s.addr)
	must(t, err)
	t.Cleanup(func() { must(t, link.Close()) })
	doc := document(mode)
	doc["repositories"] = map[string]any{"all": "acme/app"}
	doc["parent"] = map[string]any{"gatewayEndpoint": link.Addr(), "protocol": "http"}
	lower := start(t, doc, func(o *module.Options) {
		o.Lookup = func(variable string) (string, bool) {
			if variable != "ACR_REGISTRY_CONNECTION_STRING" {
				return "", false
			}
			return "ConnectedRegistryName=" + name + ";SyncTokenName=all;SyncTokenPassword=pw-all;ParentGatewayEndpoint=" + link.Addr() + ";ParentEndpointProtocol=http", true
		}
		if change != nil {
			change(o)
		}
	})
	lower.ready()
	return lower, link
}

// sync runs one iteration. What it says of the iteration is returned.
func (s *site) sync() (err error) {
	s.t.Helper()
	s.until("the control socket answers", func() bool {
		err = module.Control(s.t.Context(), s.data, http.MethodPost, "/methods/sync", nil, new(any))
		return err == nil || !strings.Contains(err.Error(), "no registry is running")
	})
	return err
}

// get asks for something of acme/app.
func (s *site) get(path string) answer {
	s.t.Helper()
	return s.ask(request{method: "GET", path: "/v2/acme/app/" + path, user: "all", password: "pw-all"})
}

// put pushes a manifest and returns its digest.
func (s *site) put(tag, manifest string) string {
	s.t.Helper()
	d := digest(manifest)
	if tag == "" {
		tag = d
	}
	a := s.ask(request{method: "PUT", path: "/v2/acme/app/manifests/" + tag, user: "all", password: "pw-all", body: manifest, contentType: imageType})
	if a.status != http.StatusCreated {
		s.t.Fatalf("manifest: %d %s", a.status, a.body)
	}
	return d
}

// image pushes an image and returns its digest.
func (s *site) image(t *testing.T, tag string) string {
	t.Helper()
	config := fmt.Sprintf(`{"tag":%q}`, tag)
	s.push(t, "all", "acme/app", config)
	return s.put(tag, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`,
		imageType, digest(config), len(config)))
}

// signed is a signature of a subject, written as no encoder of this registry would.
func (s *site) signed(t *testing.T, subject, payload string) string {
	t.Helper()
	for _, blob := range []string{"{}", payload} {
		s.push(t, "all", "acme/app", blob)
	}
	return fmt.Sprintf("{ \"subject\" : {\"digest\":%q, \"size\": 7,\"mediaType\":%q},\n\t\"schemaVersion\":2, \"mediaType\":%[2]q, \"artifactType\":%q,\r\n"+
		`"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},"layers":[{"mediaType":"application/octet-stream","digest":%q,"size":%d}],`+
		`"annotations":{"b":"\u00e9<>& \/","a":"é","A":"1e2"}, "unknown":[1.50, 1e3]}`+"\n\n", subject, imageType, signature, digest("{}"), digest(payload), len(payload))
}

// lists returns the digests of an answer with a list of referrers.
func lists(t *testing.T, a answer) []string {
	t.Helper()
	var index struct{ Manifests []struct{ Digest string } }
	if a.status != http.StatusOK || json.Unmarshal([]byte(a.body), &index) != nil || index.Manifests == nil {
		t.Fatalf("referrers: %d %s", a.status, a.body)
	}
	var list []string
	for _, m := range index.Manifests {
		list = append(list, m.Digest)
	}
	return list
}

// mustList checks who refers to a subject.
func (s *site) mustList(t *testing.T, what, subject string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := lists(t, s.get("referrers/"+subject)); !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// rolledBack: a signature that was withdrawn at the top is withdrawn in each layer, and neither another synchronisation
// nor a start brings it back; one that came later is there.
func rolledBack(t *testing.T) {
	top := start(t, document(registry.ReadWrite), nil)
	image := top.image(t, "v1")
	old := top.put("", top.signed(t, image, "old"))
	middle, _ := top.below(t, "lower", registry.ReadOnly, nil)
	dir := t.TempDir()
	keep := func(o *module.Options) { o.DataDir = dir }
	var withdrawn string
	t.Run("", func(t *testing.T) {
		bottom, _ := middle.below(t, "lowest", registry.ReadOnly, keep)
		sync := func() {
			must(t, middle.sync())
			must(t, bottom.sync())
		}
		sync()
		bottom.mustList(t, "as it was signed", image, old)
		later := top.put("", top.signed(t, image, "later"))
		if a := top.ask(request{method: "DELETE", path: "/v2/acme/app/manifests/" + old, user: "all", password: "pw-all"}); a.status != http.StatusAccepted {
			t.Fatalf("delete: %d %s", a.status, a.body)
		}
		for range 2 {
			sync()
			for _, s := range []*site{top, middle, bottom} {
				s.mustList(t, "withdrawn", image, later)
			}
		}
		withdrawn = later
	})
	bottom, _ := middle.below(t, "lowest", registry.ReadOnly, keep)
	bottom.mustList(t, "after a start", image, withdrawn)
	must(t, bottom.sync())
	bottom.mustList(t, "after a start and a synchronisation", image, withdrawn)
	if a := bottom.get("manifests/" + old); a.status != http.StatusNotFound {
		t.Errorf("the signature that was withdrawn: %d", a.status)
	}
}

// unreadSignature: what cannot be read, or can be read in two ways, is refused by push and by synchronisation, and stands
// in no list.
func unreadSignature(t *testing.T) {
	top := start(t, document(registry.ReadWrite), nil)
	image, other := top.image(t, "v1"), top.image(t, "v2")
	good := top.signed(t, image, "good")
	listed := top.put("", good)
	subject := fmt.Sprintf(`"subject" : {"digest":%q, "size": 7,"mediaType":%q}`, image, imageType)
	if !strings.Contains(good, subject) {
		t.Fatal("no subject to change")
	}
	bad := map[string]string{
		"half a document": good[:len(good)/2], "another version": strings.Replace(good, `"schemaVersion":2`, `"schemaVersion":2.0`, 1), "no object": `"subject":"` + image + `"`, "no digest": `"subject":{"size":7}`,
		"a digest of nothing known": `"subject":{"digest":"md5:d41d8cd98f00b204e9800998ecf8427e","size":7}`,
		"a digest and more":         `"subject":{"digest":"` + image + ` ","size":7}`, "a negative size": `"subject":{"digest":"` + image + `","size":-7}`,
		"two subjects":         `"subject":{"digest":"` + other + `","size":7},` + subject,
		"two digests":          `"subject":{"digest":"` + other + `","digest":"` + image + `","size":7}`,
		"a Subject":            `"Subject":{"digest":"` + image + `","size":7}`,
		"a Digest and another": `"subject":{"Digest":"` + image + `","digest":"` + other + `","size":7}`,
	}
	for what, text := range bad {
		if strings.HasPrefix(text, `"`) {
			bad[what] = strings.Replace(good, subject, text, 1)
		}
	}
	for what, text := range bad {
		a := top.ask(request{method: "PUT", path: "/v2/acme/app/manifests/" + digest(text), user: "all", password: "pw-all", body: text, contentType: imageType})
		if a.status != http.StatusBadRequest || a.code != registry.CodeManifestInvalid || a.header.Get("Oci-Subject") != "" {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	top.mustList(t, "after all that was refused", image, listed)
	top.mustList(t, "of the other image", other)

	// A parent that took them all, and has other bytes under one digest.
	changed := strings.Replace(good, `"unknown"`, `"changed"`, 1)
	served := map[string]string{digest(changed): good}
	for _, text := range bad {
		served[digest(text)] = text
	}
	target, err := url.Parse("http://" + top.addr)
	must(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	parent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.SetBasicAuth("all", "pw-all")
		last := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		w.Header().Set("Content-Type", imageType)
		switch {
		case strings.HasPrefix(r.URL.Path, registry.LayerPath):
			w.WriteHeader(http.StatusNotFound)
		case strings.Contains(r.URL.Path, "/manifests/") && served[last] != "":
			w.Header().Set("Docker-Content-Digest", last)
			_, _ = io.WriteString(w, served[last])
		case strings.HasSuffix(r.URL.Path, "/referrers/"+image):
			var entries []map[string]any
			for d := range served {
				entries = append(entries, map[string]any{"mediaType": imageType, "digest": d, "size": len(served[d]), "artifactType": signature})
			}
			w.Header().Set("Content-Type", indexType)
			_ = json.NewEncoder(w).Encode(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": entries})
		default:
			w.Header().Del("Content-Type")
			proxy.ServeHTTP(w, r)
		}
	}))
	defer parent.Close()
	doc := document(registry.ReadOnly)
	doc["repositories"] = map[string]any{"all": "acme/app"}
	doc["parent"] = map[string]any{"gatewayEndpoint": strings.TrimPrefix(parent.URL, "http://"), "protocol": "http"}
	lower := start(t, doc, nil)
	lower.ready()
	if err := lower.sync(); err == nil {
		t.Error("nobody is told that the signatures of an image cannot be read")
	}
	if a := lower.get("manifests/v2"); a.status != http.StatusOK {
		t.Errorf("the image beside it: %d %s", a.status, a.body)
	}
	for d, text := range served {
		if a := lower.get("manifests/" + d); a.status < 400 {
			t.Errorf("%q is served: %d", text, a.status)
		}
		if _, err := os.Stat(filepath.Join(lower.data, "blobs", "sha256", d[7:9], d[7:])); err == nil {
			t.Errorf("%q is kept", text)
		}
	}
}

// sameBytes: a signature and what it signs have the same bytes in each layer, and bytes that changed on a disk are not
// served under their digest.
func sameBytes(t *testing.T) {
	top := start(t, document(registry.ReadWrite), nil)
	image := top.image(t, "v1")
	text := top.signed(t, image, "payload")
	sum := top.put("", text)
	middle, _ := top.below(t, "lower", registry.ReadOnly, nil)
	must(t, middle.sync())
	check := func(t *testing.T, s *site, may int) {
		t.Helper()
		for path, want := range map[string]string{"manifests/" + sum: text, "blobs/" + digest("payload"): "payload", "manifests/" + image: ""} {
			a := s.get(path)
			if a.status == may && may != http.StatusOK {
				continue
			}
			if a.status != http.StatusOK || want != "" && a.body != want || digest(a.body) != path[strings.Index(path, "/")+1:] {
				t.Errorf("%s: %d %q", path, a.status, a.body)
			}
		}
	}
	dir := t.TempDir()
	keep := func(o *module.Options) { o.DataDir = dir }
	t.Run("", func(t *testing.T) {
		bottom, _ := middle.below(t, "lowest", registry.ReadOnly, keep)
		must(t, bottom.sync())
		for _, s := range []*site{top, middle, bottom} {
			check(t, s, http.StatusOK)
			s.mustList(t, "in each layer", image, sum)
		}
	})
	must(t, filepath.WalkDir(filepath.Join(dir, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err == nil && len(raw) > 0 {
			raw[len(raw)/2] ^= 1
			err = os.WriteFile(path, raw, 0o600)
		}
		return err
	}))
	bottom, link := middle.below(t, "lowest", registry.ReadOnly, func(o *module.Options) { o.DataDir, o.Patience = dir, 1 })
	must(t, link.Set(linkproxy.Plan{Fault: linkproxy.Refuse}))
	check(t, bottom, http.StatusServiceUnavailable)
	bottom.mustList(t, "beside changed content", image, sum)
}

// broken is a file system that takes nothing any more, and gives no content.
type broken struct {
	store.OSFS
	writes, reads atomic.Pointer[syscall.Errno]
}

func (b *broken) fails(write bool) error {
	e := b.reads.Load()
	if write {
		e = b.writes.Load()
	}
	if e == nil {
		return nil
	}
	return *e
}

func (b *broken) Create(path string) (store.File, error) {
	if err := b.fails(true); err != nil {
		return nil, err
	}
	return b.OSFS.Create(path)
}

func (b *broken) Open(path string, write bool) (store.File, error) {
	if err := b.fails(write); err != nil {
		return nil, err
	}
	return b.OSFS.Open(path, write)
}

func (b *broken) Rename(from, to string) error {
	if err := b.fails(true); err != nil {
		return err
	}
	return b.OSFS.Rename(from, to)
}

func (b *broken) Free(path string) (int64, error) {
	if b.fails(true) != nil {
		return 0, nil
	}
	return b.OSFS.Free(path)
}

// failingDisk: on a disk that is full, read-only or unreadable, and over an index that is damaged, a list of signatures is
// whole or an error.
func failingDisk(t *testing.T) {
	disk := &broken{}
	top := start(t, document(registry.ReadWrite), func(o *module.Options) {
		o.OpenStore = func(ctx context.Context, dir string, so store.Options) (*store.Store, error) {
			so.FS = disk
			return store.Open(ctx, dir, so)
		}
	})
	image := top.image(t, "v1")
	text := top.signed(t, image, "payload")
	sum := top.put("", text)
	unread := top.put("", top.signed(t, image, "another"))
	for _, no := range []syscall.Errno{syscall.ENOSPC, syscall.EROFS} {
		disk.writes.Store(&no)
		top.mustList(t, no.Error(), image, sum, unread)
		if a := top.get("manifests/" + sum); a.status != http.StatusOK || a.body != text {
			t.Errorf("%v: %d %q", no, a.status, a.body)
		}
		if a := top.ask(request{method: "POST", path: "/v2/acme/app/blobs/uploads/", user: "all", password: "pw-all"}); a.status < 500 {
			t.Errorf("%v: a push is answered %d", no, a.status)
		}
	}
	gone := syscall.EIO
	disk.reads.Store(&gone)
	top.mustList(t, "content that cannot be read", image, sum, unread)
	disk.reads.Store(nil)
	disk.writes.Store(nil)

	index := filepath.Join(top.data, "meta.db")
	top.until("the storage is well", func() bool { return top.status().Storage.State == "ok" })
	f, err := os.OpenFile(index, os.O_WRONLY, 0) // this one, and not what takes its place
	must(t, err)
	defer f.Close()
	info, err := f.Stat()
	must(t, err)
	for page := int64(2); page < info.Size()/4096; page++ {
		_, err = f.WriteAt(make([]byte, 4096), page*4096)
		must(t, err)
		a := top.get("referrers/" + image)
		if a.status == http.StatusOK && !slices.Equal(lists(t, a), slices.Sorted(slices.Values([]string{sum, unread}))) || a.status != http.StatusOK && a.status < 500 {
			t.Errorf("with page %d of the index gone: %d %s", page, a.status, a.body)
		}
	}
	top.until("the list is back", func() bool {
		a := top.get("referrers/" + image)
		if a.status >= 500 {
			return false
		}
		return len(lists(t, a)) == 2
	})
}

// unknownSignatures: with the parent away, of what is not here nobody is told that it has no signatures; where some are
// known, the answer has them and says that there may be others, through all layers.
func unknownSignatures(t *testing.T) {
	top := start(t, document(registry.ReadWrite), nil)
	image := top.image(t, "v1")
	sum := top.put("", top.signed(t, image, "payload"))
	middle, away := top.below(t, "lower", registry.ReadWrite, nil)
	bottom, _ := middle.below(t, "lowest", registry.ReadOnly, nil)
	bottom.mustList(t, "of what is not here", image, sum)
	other := digest("an image that is not here")
	bottom.mustList(t, "of what is nowhere", other)
	must(t, away.Set(linkproxy.Plan{Fault: linkproxy.Refuse}))
	for what, s := range map[string]*site{"below": bottom, "below the cut": middle} {
		a := s.get("referrers/" + other)
		if a.status != http.StatusServiceUnavailable || a.code != registry.CodeUnavailable || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	early := middle.put("", middle.signed(t, other, "early"))
	for what, s := range map[string]*site{"below": bottom, "below the cut": middle} {
		s.until(what+" the answer is what is known", func() bool { return s.get("referrers/"+other).status == http.StatusOK }) // not within seconds of a failure
		a := s.get("referrers/" + other)
		if got := lists(t, a); !slices.Equal(got, []string{early}) || !strings.HasPrefix(a.header.Get("Warning"), `299 - "the parent cannot be asked`) {
			t.Errorf("%s: %q, warning %q", what, got, a.header.Get("Warning"))
		}
	}
	if a := bottom.get("referrers/" + image); a.header.Get("Warning") != "" && a.status != http.StatusOK {
		t.Errorf("an error with a warning: %d", a.status)
	}
}
