package nested

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// everything pushes one of each kind of content and returns the references.
func everything(t *testing.T, addr string) (refs []string, subject v1.Hash) {
	t.Helper()
	add := func(ref string) { refs = append(refs, ref) }
	base := image(t, 300_000, "base", "app")
	push(t, addr, "acme/app:1", base)
	add("acme/app:1")
	push(t, addr, "acme/tool:1", image(t, 300_000, "base", "tool")) // the same base in another repository
	add("acme/tool:1")
	push(t, addr, "acme/app:all", index(t, types.OCIImageIndex, map[string]v1.Image{
		"linux/amd64": image(t, 5000, "amd64"), "linux/arm64": image(t, 5000, "arm64"), "linux/arm/v7": image(t, 5000, "arm"),
	}))
	add("acme/app:all")
	push(t, addr, "acme/docker:1", docker(t, "d1", "d2"))
	add("acme/docker:1")
	push(t, addr, "acme/docker:all", index(t, types.DockerManifestList, map[string]v1.Image{
		"linux/amd64": docker(t, "d1"), "linux/arm64": docker(t, "d3"),
	}))
	add("acme/docker:all")
	push(t, addr, "acme/recipe:1", artifact(t, "mix", "")) // with a layer of 0 bytes
	add("acme/recipe:1")
	signature, err := cloud.Artifact(base, "application/vnd.acme.signature", "signed")
	must(t, err)
	digest, err := signature.Digest()
	must(t, err)
	push(t, addr, "acme/app@"+digest.String(), signature)
	subject, err = base.Digest()
	must(t, err)
	return refs, subject
}

// TestChain syncs three layers, takes every parent away in each way there is, starts all from cold in that state, and
// brings the links back.
func TestChain(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		s := newSite(t, k.start(t), 3, k.all)
		refs, subject := everything(t, s.cloud)
		s.start()
		s.settled(refs)
		for _, l := range s.layers {
			same(t, l.addr, s.cloud, refs...)
			got, err := cloud.Referrers(t.Context(), l.addr, "acme/app", subject)
			must(t, err)
			if want, err := cloud.Referrers(t.Context(), s.cloud, "acme/app", subject); err != nil || len(got) != 1 || !slices.Equal(got, want) {
				t.Errorf("%s: referrers %v, want %v (%v)", l.name, got, want, err)
			}
		}
		if k.referrers {
			s.unsign("acme/app", subject)
		}
		for _, ref := range []string{"acme/app:all", "acme/docker:all"} { // a client that is not ours
			p, err := cloud.Pull(t.Context(), s.bottom().addr, ref)
			if want := map[string]int{"acme/app:all": 3, "acme/docker:all": 2}[ref]; err != nil || p.Images != want {
				t.Errorf("%s: %+v, %v", ref, p, err)
			}
		}
		for _, fault := range []struct {
			name string
			plan linkproxy.Plan
		}{
			{"resetting", linkproxy.Plan{Fault: linkproxy.Reset}},
			{"black-holed", linkproxy.Plan{Fault: linkproxy.BlackHole}},
			{"gone", linkproxy.Plan{Fault: linkproxy.Refuse}},
		} {
			s.cut(fault.plan)
			s.serves(fault.name, refs)
		}
		for _, l := range slices.Backward(s.layers) {
			l.end()
		}
		for _, l := range slices.Backward(s.layers) { // each before the one above it
			began := time.Now()
			l.run()
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("%s took %v to start without a network", l.name, took)
			}
		}
		s.serves("gone, from cold", refs)
		want := push(t, s.cloud, "acme/tool:2", image(t, 300_000, "base", "tool2"))
		for _, l := range s.layers {
			l.untilStatus("it sees that the parent is away", func(s registry.Status) bool {
				return s.ConnectionState == registry.Offline && detail(s, "ParentUnreachable") != ""
			})
		}
		s.cut(linkproxy.Plan{})
		back := time.Now()
		s.bottom().has("acme/tool", "2", want)
		t.Logf("a new tag is at the bottom %v after the link came back", time.Since(back).Round(time.Millisecond))
		same(t, s.bottom().addr, s.cloud, "acme/tool:2")
	})
}

// unsign deletes what refers to the subject in the cloud, and waits until it went at each layer.
func (s *site) unsign(repo string, subject v1.Hash) {
	s.t.Helper()
	list, err := cloud.Referrers(s.t.Context(), s.cloud, repo, subject)
	must(s.t, err)
	for _, d := range list {
		if a := ask(s.t, s.cloud, http.MethodDelete, "/v2/"+repo+"/manifests/"+d.String(), nil); a.status != http.StatusAccepted {
			s.t.Fatalf("DELETE of a signature: %d: %s", a.status, a.body)
		}
	}
	_, err = s.layers[0].sync()
	must(s.t, err)
	for _, l := range s.layers {
		l.until("the signature went", func() bool {
			list, err := cloud.Referrers(s.t.Context(), l.addr, repo, subject)
			return err == nil && len(list) == 0
		})
	}
}

// settled waits until the references are at the bottom as they are in the cloud.
func (s *site) settled(refs []string) {
	s.t.Helper()
	for _, ref := range refs {
		repo, tag, _ := strings.Cut(ref, ":")
		digest := ask(s.t, s.cloud, http.MethodHead, "/v2/"+repo+"/manifests/"+tag, nil).header.Get("Docker-Content-Digest")
		s.bottom().has(repo, tag, digest)
	}
}

// serves reads every reference at every layer, and fails when one takes long: nothing may wait for the parent.
func (s *site) serves(parent string, refs []string) {
	s.t.Helper()
	const bound = time.Second // the promise is 50 ms; this machine is shared
	var slowest, sum time.Duration
	n := 0
	for _, l := range s.layers {
		for _, ref := range refs {
			repo, tag, _ := strings.Cut(ref, ":")
			for _, what := range []string{"/v2/" + repo + "/manifests/" + tag, "/v2/" + repo + "/tags/list", "/v2/_catalog"} {
				a := l.ask(http.MethodGet, what)
				if a.status != http.StatusOK {
					s.t.Errorf("parent %s: %s %s answers %d: %s", parent, l.name, what, a.status, a.body)
				}
				if a.took > bound {
					s.t.Errorf("parent %s: %s %s took %v", parent, l.name, what, a.took)
				}
				slowest, sum, n = max(slowest, a.took), sum+a.took, n+1
			}
			content(s.t, l.addr, repo, tag)
		}
	}
	s.t.Logf("parent %-16s %d answers of 3 layers: mean %v, slowest %v", parent+":", n, (sum / time.Duration(n)).Round(time.Microsecond), slowest.Round(time.Microsecond))
}
