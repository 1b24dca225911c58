package nested

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// newFloor is newSite with layers that take pushes. The clouds of these tests do not lose power.
func newFloor(t *testing.T, k kind, layers int, scope string) *site {
	t.Helper()
	s := newSite(t, k.start(t), layers, scope)
	for _, l := range s.layers {
		l.doc["mode"] = "ReadWrite"
		l.options = func(o *module.Options) { o.ConfirmAfter = -1 }
	}
	return s
}

// startFloor runs all layers, and waits until they take pushes.
func (s *site) startFloor() {
	s.t.Helper()
	s.start()
	for _, l := range s.layers {
		l.untilStatus("it takes pushes", func(st registry.Status) bool { return st.Mode == registry.ReadWrite })
		header := map[string]string{"Authorization": basicAuth(layer.User, layer.Password)}
		l.until("its tokens are in force", func() bool { return ask(s.t, l.addr, http.MethodGet, "/v2/", header).status == http.StatusOK })
	}
}

// arrives waits until a reference is in the cloud with the digest.
func (s *site) arrives(repo, ref, digest string) {
	s.t.Helper()
	s.bottom().until(repo+":"+ref+" is in the cloud", func() bool {
		return ask(s.t, s.cloud, http.MethodHead, "/v2/"+repo+"/manifests/"+ref, nil).header.Get("Docker-Content-Digest") == digest
	})
}

// drained waits until no layer has anything left to send.
func (s *site) drained() {
	s.t.Helper()
	for _, l := range slices.Backward(s.layers) { // what left one is in the next
		l.untilStatus("its outbox is empty", func(st registry.Status) bool {
			return st.Outbox != nil && st.Outbox.Pending+st.Outbox.Expired+st.Outbox.Refused == 0
		})
	}
}

// TestClimb pushes one of each kind of content at the bottom while every link is away, brings the links back one by one,
// and finds the same in the cloud.
func TestClimb(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		s := newFloor(t, k, 3, k.all)
		s.cut(linkproxy.Plan{Fault: linkproxy.Refuse})
		s.startFloor()
		later := image(t, 2000, "pushed after its signature")
		early, err := cloud.Artifact(later, "application/vnd.example.signature", "early")
		must(t, err)
		d, err := early.Digest()
		must(t, err)
		push(t, s.bottom().addr, "acme/app@"+d.String(), early)
		signed, err := v1.NewHash(push(t, s.bottom().addr, "acme/app:later", later))
		must(t, err)
		refs, subject := everything(t, s.bottom().addr)
		refs = append(refs, "acme/app:later")
		for i := len(s.links) - 1; i >= 0; i-- { // each hop by itself: the layer above has nobody to ask
			must(t, s.links[i].Set(linkproxy.Plan{}))
			_ = module.Control(t.Context(), s.layers[i].dir+"/data", http.MethodPost, "/methods/outboxRetry", map[string]bool{"all": true}, &struct{}{})
			s.layers[i].untilStatus("its outbox is empty", func(st registry.Status) bool { return st.Outbox.Pending == 0 })
		}
		s.drained()
		for _, l := range s.layers {
			same(t, s.cloud, l.addr, refs...)
			for _, of := range []v1.Hash{subject, signed} {
				got, err := cloud.Referrers(t.Context(), s.cloud, "acme/app", of)
				must(t, err)
				if len(got) != 1 {
					t.Errorf("%d referrers of %s in the cloud", len(got), of)
				}
			}
		}
	})
}

// TestClimbBytes counts what goes up each link for two repositories with a base in common, cut every so often.
func TestClimbBytes(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		s := newFloor(t, k, 3, "acme/app acme/tool")
		s.startFloor()
		base, err := cloud.Layer("base", 6*unit)
		must(t, err)
		var unique cloud.Unique
		digests := map[string]string{}
		for _, ref := range []string{"acme/app:1", "acme/tool:1", "acme/app:2"} {
			top, err := cloud.Layer(ref, unit)
			must(t, err)
			img, err := cloud.Image(base, top)
			must(t, err)
			_, err = unique.Image(img)
			must(t, err)
			digests[ref] = push(t, s.bottom().addr, ref, img)
		}
		for ref, d := range digests {
			s.arrives(ref[:len(ref)-2], ref[len(ref)-1:], d)
		}
		s.drained()
		for i, link := range s.links {
			r := float64(link.Counters().Up) / float64(unique.Bytes())
			t.Logf("link above %s: %9d bytes up, %9d unique, ratio %.4f", s.layers[i].name, link.Counters().Up, unique.Bytes(), r)
			if r > ratio || r < 1 {
				t.Errorf("ratio %.4f over the link above %s, want 1 to %.2f", r, s.layers[i].name, ratio)
			}
		}
		same(t, s.cloud, s.bottom().addr, "acme/app:1", "acme/app:2", "acme/tool:1")
	})
}

// TestTwoFloors has two registries below one parent push the same tag: all end with the same one of them.
func TestTwoFloors(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		s := newFloor(t, k, 2, "acme/app")
		other := newNode(t, "other", s.layers[0].addr)
		other.doc["mode"], other.doc["repositories"] = "ReadWrite", map[string]string{"all": "acme/app"}
		other.options = s.bottom().options
		s.startFloor()
		other.start()
		other.untilStatus("it takes pushes", func(st registry.Status) bool { return st.Mode == registry.ReadWrite })
		for range 3 {
			push(t, s.bottom().addr, "acme/app:v", image(t, 5000, "mine", time.Now().String()))
			push(t, other.addr, "acme/app:v", image(t, 5000, "theirs", time.Now().String()))
		}
		head := func(addr string) string {
			return ask(t, addr, http.MethodHead, "/v2/acme/app/manifests/v", nil).header.Get("Docker-Content-Digest")
		}
		s.drained()
		s.bottom().until("all have the same", func() bool {
			d := head(s.cloud)
			return d != "" && d == head(s.layers[0].addr) && d == head(s.bottom().addr) && d == head(other.addr)
		})
		s.drained()
		d := head(s.cloud)
		for range 20 { // it stays so
			if got := []string{head(s.cloud), head(s.layers[0].addr), head(s.bottom().addr), head(other.addr)}; got[0] != d || got[1] != d || got[2] != d || got[3] != d {
				t.Fatalf("the tag moved: %v", got)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
}

// TestClimbDeletes removes at the bottom what is in the cloud: a tag of two, and a signature, which leaves the list of what
// refers to its subject. One of the clouds has no such list of its own: there it is an index under a tag, which goes too.
func TestClimbDeletes(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		s := newFloor(t, k, 2, "acme/app")
		img := image(t, 5000, "a")
		digest := push(t, s.cloud, "acme/app:1", img)
		push(t, s.cloud, "acme/app:2", img)
		s.startFloor()
		s.bottom().has("acme/app", "1", digest)
		s.bottom().has("acme/app", "2", digest)
		subject, err := v1.NewHash(digest)
		must(t, err)
		signatures := func() int {
			list, err := cloud.Referrers(t.Context(), s.cloud, "acme/app", subject)
			must(t, err)
			return len(list)
		}
		var signed []string
		for _, text := range []string{"one", "two"} {
			signature, err := cloud.Artifact(img, "application/vnd.example.signature", text)
			must(t, err)
			d, err := signature.Digest()
			must(t, err)
			signed = append(signed, push(t, s.bottom().addr, "acme/app@"+d.String(), signature))
		}
		s.drained()
		if n := signatures(); n != 2 {
			t.Errorf("%d signatures in the cloud, want 2", n)
		}
		header := map[string]string{"Authorization": basicAuth(layer.User, layer.Password)}
		remove := func(ref string) {
			t.Helper()
			if a := ask(t, s.bottom().addr, http.MethodDelete, "/v2/acme/app/manifests/"+ref, header); a.status != http.StatusAccepted {
				t.Fatalf("%d: %s", a.status, a.body)
			}
			s.drained()
			if a := ask(t, s.cloud, http.MethodHead, "/v2/acme/app/manifests/"+ref, nil); a.status != http.StatusNotFound {
				t.Errorf("%s is in the cloud: %d", ref, a.status)
			}
		}
		remove("2")
		s.arrives("acme/app", "1", digest)
		for i, d := range signed {
			remove(d)
			if n := signatures(); n != 1-i {
				t.Errorf("%d signatures in the cloud, want %d", n, 1-i)
			}
		}
		if a := ask(t, s.cloud, http.MethodHead, "/v2/acme/app/manifests/"+strings.Replace(digest, ":", "-", 1), nil); a.status != http.StatusNotFound {
			t.Errorf("the list that is empty is in the cloud: %d", a.status)
		}
	})
}

// TestTagInPlace moves a tag of an image that only the parent has to another name, as clients do: it takes the manifest
// and puts it back.
func TestTagInPlace(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		s := newFloor(t, k, 1, "acme/app")
		s.bottom().schedule(never(), "PT1H")
		s.startFloor()
		if _, err := s.bottom().sync(); err != nil {
			t.Log(err) // the repository comes later
		}
		digest := push(t, s.cloud, "acme/app:1", image(t, 5_000_000, "a"))
		m := s.bottom().ask(http.MethodGet, "/v2/acme/app/manifests/1")
		if m.status != http.StatusOK {
			t.Fatalf("%d: %s", m.status, m.body)
		}
		must(t, putManifest(t.Context(), http.DefaultClient, s.bottom().addr, "acme/app", "again", m.header.Get("Content-Type"), m.body))
		s.arrives("acme/app", "again", digest)
	})
}
