package distribution_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/store"
)

// The rest of the OCI distribution spec 1.1, by its sections. What pull_test.go and push_test.go have is not repeated.

// TestMountWithoutSource is "Mounting a blob from another repository": the from parameter is optional, and a registry that
// finds the content by itself answers 201; who cannot be served gets 202 and pushes.
func TestMountWithoutSource(t *testing.T) {
	st := registries["store"](t).(*store.Store)
	s := newServer(t, st, distribution.Options{Holders: st.BlobHolders})
	open, secret := registrytest.NewBlob(1, 100), registrytest.NewBlob(2, 100)
	s.push("acme/app", "v1", registrytest.NewImageOf(1, open)) // narrow may read it
	s.push("acme/secret", "v1", registrytest.NewImageOf(2, secret))
	s.push("zzz", "v1", registrytest.NewImageOf(3, open, secret)) // narrow may not
	at := "/v2/mine/blobs/uploads/?mount="

	s.wantCreated("who may read one of the repositories", s.do("narrow", "POST", at+open.Digest.String(), nil), "mine", open.Digest)
	s.wantBlob("mine", open)
	for what, target := range map[string]string{
		"nobody gives it to who may read none": at + secret.Digest.String(), "unknown": at + absent,
		"a digest that is none": at + "sha256:x", "a digest that is none, with a source": at + "x&from=acme/app", "a source that is none": at + open.Digest.String() + "&from=../x",
	} {
		s.want(what, s.do("narrow", "POST", target, nil), 202, "Location", "*", "Range", "0-0", "Docker-Content-Digest", "-")
	}
	s.wantError("it was not mounted", s.do("narrow", "GET", "/v2/mine/blobs/"+secret.Digest.String(), nil), 404, registry.CodeBlobUnknown)
	s.wantCreated("who may read all", s.do("all", "POST", at+secret.Digest.String(), nil), "mine", secret.Digest)

	broken := newServer(t, st, distribution.Options{Holders: func(context.Context, registry.Digest, int) ([]string, error) { return nil, registry.ErrUnavailable }})
	broken.wantError("the index does not answer", broken.do("all", "POST", at+absent, nil), 503, registry.CodeUnavailable)
	without := newServer(t, st, distribution.Options{})
	without.want("a registry that does not look", without.do("all", "POST", at+open.Digest.String(), nil), 202, "Location", "*")
}

// TestChunksOfAnySize is "Pushing a blob in chunks": OCI-Chunk-Min-Length says what the least is, and it is taken.
func TestChunksOfAnySize(t *testing.T) {
	eachRegistry(t, readWrite, func(t *testing.T, s *server) {
		a := s.do("all", "POST", uploads, nil)
		s.want("end-4a", a, 202, "OCI-Chunk-Min-Length", "1")
		at := a.header.Get("Location")
		b := registrytest.NewBlob(1, 5)
		for i := range b.Bytes {
			s.want("a byte", s.do("all", "PATCH", at, body(b.Bytes[i:i+1]), "Content-Range", fmt.Sprintf("%d-%d", i, i)), 202, "Range", fmt.Sprintf("0-%d", i))
		}
		s.wantCreated("end-6", s.do("all", "PUT", at+"?digest="+b.Digest.String(), nil), "acme/app", b.Digest)
	})
}

// TestHeadOfLists: what GET answers, HEAD answers without the body (RFC 9110, 9.3.2).
func TestHeadOfLists(t *testing.T) {
	eachRegistry(t, bothModes, func(t *testing.T, s *server) {
		image := registrytest.NewImage(1, 10)
		s.push("acme/app", "v1", image)
		s.push("acme/app", "v2", image)
		s.push("acme/app", "", registrytest.NewReferrer(2, image.Descriptor, "a/b"))
		for _, path := range []string{"/v2/_catalog", "/v2/acme/app/tags/list?n=1", "/v2/acme/app/referrers/" + image.Digest.String() + "?artifactType=a/b"} {
			get, head := s.do("all", "GET", path, nil), s.do("all", "HEAD", path, nil)
			s.want("HEAD "+path, head, 200, "Content-Length", fmt.Sprint(len(get.body)))
			for _, key := range []string{"Content-Type", "Link", "OCI-Filters-Applied"} {
				if got, want := head.header.Get(key), get.header.Get(key); got != want {
					t.Errorf("HEAD %s: %s %q, want %q", path, key, got, want)
				}
			}
			if len(head.body) != 0 {
				t.Errorf("HEAD %s: %q", path, head.body)
			}
		}
	})
}

// TestReferrersTagSchema is "Unavailable Referrers API" and "Enabling the Referrers API": a client that knows no
// referrers API keeps an index under the tag sha256-<hex>. It is a tag as any other, and what it lists and has a subject
// is among the referrers.
func TestReferrersTagSchema(t *testing.T) {
	eachRegistry(t, readWrite, func(t *testing.T, s *server) {
		image := registrytest.NewImage(1, 10)
		one, two := registrytest.NewReferrer(2, image.Descriptor, "a/b"), registrytest.NewReferrer(3, image.Descriptor, "c/d")
		tag := strings.Replace(image.Digest.String(), ":", "-", 1)
		path := "/v2/acme/app/manifests/" + tag
		s.push("acme/app", "", one) // the subject comes last: a registry takes a missing one
		s.push("acme/app", "", two)
		s.push("acme/app", "v1", image)
		for _, list := range [][]registrytest.Image{{one}, {one, two}} { // the client reads, adds and writes
			index := registrytest.NewIndex(list...)
			s.want("PUT "+tag, s.do("all", "PUT", path, body(index.Bytes), "Content-Type", index.MediaType), 201, "Docker-Content-Digest", index.Digest.String(), "OCI-Subject", "-")
			a := s.do("all", "GET", path, nil)
			s.want("GET "+tag, a, 200, "Content-Type", index.MediaType, "Docker-Content-Digest", index.Digest.String())
		}
		var got struct{ Manifests []registry.Descriptor }
		a := s.do("all", "GET", "/v2/acme/app/referrers/"+image.Digest.String(), nil)
		if err := json.Unmarshal(a.body, &got); err != nil || len(got.Manifests) != 2 {
			t.Errorf("referrers: %s, %v: want two, and not the index under the tag", a.body, err)
		}
		s.want("DELETE "+tag, s.do("all", "DELETE", path, nil), 202)
		s.want("the API does not need the tag", s.do("all", "GET", "/v2/acme/app/referrers/"+image.Digest.String(), nil), 200)
	})
}

// TestUnusualManifests is "Pushing Manifests": their bytes are kept, whatever is in them that the registry does not know.
func TestUnusualManifests(t *testing.T) {
	eachRegistry(t, readWrite, func(t *testing.T, s *server) {
		empty, small := registrytest.BlobOf("", nil), registrytest.BlobOf("", []byte("{}"))
		for _, b := range []registrytest.Blob{empty, small} {
			s.wantCreated("blob", s.do("all", "POST", uploads+"?digest="+b.Digest.String(), body(b.Bytes)), "acme/app", b.Digest)
		}
		config := fmt.Sprintf(`{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2,"data":"e30="}`, small.Digest)
		layer := fmt.Sprintf(`{"mediaType":"application/octet-stream","digest":%q,"size":0}`, empty.Digest)
		foreign := `{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"` + absent + `","size":9,"urls":["http://127.0.0.1:1/"]}`
		for name, doc := range map[string]string{
			"a descriptor with data":       `{"schemaVersion":2,"config":` + config + `,"layers":[` + config + `]}`,
			"a layer of no bytes":          `{"schemaVersion":2,"config":` + config + `,"layers":[` + layer + `]}`,
			"no layers":                    `{"schemaVersion":2,"config":` + config + `,"layers":[]}`,
			"spaces and an unknown field":  "{ \n\t\"schemaVersion\": 2, \"x-new\": [1.50, null],\"config\":" + config + `,"layers":[]}` + "\n",
			"a layer that is not held":     `{"schemaVersion":2,"config":` + config + `,"layers":[` + foreign + `]}`,
			"a subject that is not there":  `{"schemaVersion":2,"config":` + config + `,"layers":[],"subject":{"mediaType":"a/b","digest":"` + absent + `","size":1}}`,
			"annotations with any Unicode": `{"schemaVersion":2,"config":` + config + `,"layers":[],"annotations":{"k":"é\u0000\ud83d\ude00"}}`,
		} {
			d, d512 := digest.FromString(doc), digest.SHA512.FromString(doc)
			for _, ref := range []string{"tag", d.String(), d512.String()} {
				want := d
				if ref == d512.String() {
					want = d512
				}
				header := []string{"Docker-Content-Digest", want.String(), "Location", "/v2/acme/app/manifests/" + want.String()}
				if strings.Contains(doc, "subject") {
					header = append(header, "OCI-Subject", absent)
				}
				path := "/v2/acme/app/manifests/" + ref
				s.want(name+", PUT "+ref, s.do("all", "PUT", path, body([]byte(doc)), "Content-Type", registry.MediaTypeImageManifest), 201, header...)
				if a := s.do("all", "GET", path, nil); string(a.body) != doc || a.status != 200 {
					t.Errorf("%s, GET %s: %d %s", name, ref, a.status, a.body)
				}
			}
		}
	})
}

// TestCatalogUnderPushes walks the catalog and a tag list while others push and delete: what was there all the time
// comes exactly once.
func TestCatalogUnderPushes(t *testing.T) {
	eachRegistry(t, readWrite, func(t *testing.T, s *server) {
		image := registrytest.NewImage(1, 10)
		var fixed []string
		for i := range 30 {
			fixed = append(fixed, fmt.Sprintf("m%02d", i))
			s.push(fixed[i], "v1", image)
			s.push("list", fixed[i], image)
		}
		var stop atomic.Bool
		done := make(chan error, 1)
		go func() {
			for i := 0; i < 200 && !stop.Load(); i++ { // bounded: a walk has to end
				name := fmt.Sprintf("%cx%d", 'a'+i%26, i)
				err := errors.Join(registrytest.Push(context.Background(), s.reg, name, "v1", image), registrytest.Push(context.Background(), s.reg, "list", name, image),
					s.reg.DeleteTag(context.Background(), "list", name))
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
		for range 5 {
			for _, path := range []string{"/v2/_catalog?n=3", "/v2/list/tags/list?n=3"} {
				var all []string
				for next := path; next != ""; {
					a := s.do("all", "GET", next, nil)
					var doc struct{ Repositories, Tags []string }
					if err := json.Unmarshal(a.body, &doc); err != nil {
						t.Fatal(err)
					}
					all = append(append(all, doc.Repositories...), doc.Tags...)
					next, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
				}
				if !slices.IsSorted(all) || len(slices.Compact(slices.Clone(all))) != len(all) {
					t.Errorf("%s: not in order, or twice: %v", path, all)
				}
				for _, name := range fixed {
					if !slices.Contains(all, name) {
						t.Errorf("%s: %s is missing from %v", path, name, all)
					}
				}
			}
		}
		stop.Store(true)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
