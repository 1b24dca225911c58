package registrytest

import (
	"fmt"
	"slices"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
)

var listTests = []subtest{
	{"of nothing", func(t *testing.T, r registry.Registry) {
		if got, err := r.Repositories(t.Context(), "", 10); err != nil || len(got) != 0 {
			t.Fatalf("Repositories of an empty registry: %v, %v", got, err)
		}
		_, err := r.Tags(t.Context(), repo, "", 10)
		wantCode(t, "Tags of an unknown repository", err, registry.CodeNameUnknown)
	}},
	{"repositories in order of bytes", func(t *testing.T, r registry.Registry) {
		want := []string{"a", "a-b", "a.b", "a/b", "a/b/c", "a0", "a_b", "b"}
		for i := range want {
			push(t, r, want[(i*5)%len(want)], "latest", NewImage(1, 10))
		}
		for limit := 1; limit <= len(want)+1; limit++ {
			got := pages(t, limit, func(after string, n int) ([]string, error) { return r.Repositories(t.Context(), after, n) })
			if !slices.Equal(got, want) {
				t.Fatalf("limit %d: %v, want %v", limit, got, want)
			}
		}
	}},
	{"tags in order of bytes", func(t *testing.T, r registry.Registry) {
		want := []string{"1", "1.0", "10", "2", "A", "Z", "_", "a", "a-1", "z"}
		for i := range want {
			push(t, r, repo, want[(i*7)%len(want)], NewImage(1, 10))
		}
		push(t, r, repo+"/below", "below", NewImage(1, 10)) // a repository below this one
		push(t, r, repo+"-0", "beside", NewImage(1, 10))
		for limit := 1; limit <= len(want)+1; limit++ {
			got := pages(t, limit, func(after string, n int) ([]string, error) { return r.Tags(t.Context(), repo, after, n) })
			if !slices.Equal(got, want) {
				t.Fatalf("limit %d: %v, want %v", limit, got, want)
			}
		}
	}},
	{"more than one page", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 10)
		push(t, r, repo, "", image)
		for i := range registry.MaxPage + 1 {
			_, err := r.PutManifest(t.Context(), repo, registry.TagReference(fmt.Sprintf("t%04d", i)), image.Manifest)
			must(t, "PutManifest", err)
		}
		got, err := r.Tags(t.Context(), repo, "", registry.MaxPage)
		if err != nil || len(got) != registry.MaxPage {
			t.Fatalf("first page: %d, %v", len(got), err)
		}
		got, err = r.Tags(t.Context(), repo, got[len(got)-1], registry.MaxPage)
		if err != nil || !slices.Equal(got, []string{fmt.Sprintf("t%04d", registry.MaxPage)}) {
			t.Fatalf("second page: %v, %v", got, err)
		}
	}},
}

var referrerTests = []subtest{
	{"of a subject that is not there", func(t *testing.T, r registry.Registry) {
		subject := NewImage(1, 10)
		a := NewReferrer(2, subject.Descriptor, "application/vnd.example.a")
		push(t, r, repo, "", a)
		got, err := r.Referrers(t.Context(), repo, subject.Digest, "")
		must(t, "Referrers", err)
		wantReferrers(t, got, []Image{a}, subject.Digest, "")
		push(t, r, repo, "latest", subject)
		got, err = r.Referrers(t.Context(), repo, subject.Digest, "")
		must(t, "Referrers", err)
		wantReferrers(t, got, []Image{a}, subject.Digest, "")
	}},
	{"by type and in order", func(t *testing.T, r registry.Registry) {
		subject := NewImage(1, 10)
		push(t, r, repo, "latest", subject)
		var all []Image
		for i := range 12 {
			all = append(all, NewReferrer(uint64(i+2), subject.Descriptor, fmt.Sprintf("application/vnd.example.%d", i%3)))
			push(t, r, repo, "", all[i])
		}
		for _, artifactType := range []string{"", "application/vnd.example.0", "application/vnd.example.2", "application/vnd.example"} {
			got, err := r.Referrers(t.Context(), repo, subject.Digest, artifactType)
			must(t, "Referrers", err)
			wantReferrers(t, got, all, subject.Digest, artifactType)
		}
	}},
	{"with the config's media type, and an index", func(t *testing.T, r registry.Registry) {
		subject := NewImage(1, 10)
		config := BlobOf("application/vnd.example.config", []byte(`{"a":1}`))
		old := encode(registry.MediaTypeImageManifest, map[string]any{
			"schemaVersion": 2, "config": config.Descriptor, "layers": []any{}, "subject": subject.Descriptor,
		}, []Blob{config}, nil)
		index := encode(registry.MediaTypeImageIndex, map[string]any{
			"schemaVersion": 2, "manifests": []any{}, "subject": subject.Descriptor, "artifactType": "application/vnd.example.index",
		}, nil, nil)
		push(t, r, repo, "", old)
		push(t, r, repo, "index", index)
		for _, artifactType := range []string{"", "application/vnd.example.config", "application/vnd.example.index"} {
			got, err := r.Referrers(t.Context(), repo, subject.Digest, artifactType)
			must(t, "Referrers", err)
			wantReferrers(t, got, []Image{old, index}, subject.Digest, artifactType)
		}
	}},
	{"belong to their repository", func(t *testing.T, r registry.Registry) {
		subject := NewImage(1, 10)
		push(t, r, repo, "latest", subject)
		push(t, r, other, "latest", subject)
		push(t, r, repo, "", NewReferrer(2, subject.Descriptor, "application/vnd.example.a"))
		if got, err := r.Referrers(t.Context(), other, subject.Digest, ""); err != nil || len(got) != 0 {
			t.Fatalf("Referrers in another repository: %v, %v", got, err)
		}
	}},
	{"go when they are deleted", func(t *testing.T, r registry.Registry) {
		subject := NewImage(1, 10)
		a, b := NewReferrer(2, subject.Descriptor, "x/a"), NewReferrer(3, subject.Descriptor, "x/b")
		push(t, r, repo, "latest", subject)
		push(t, r, repo, "", a)
		push(t, r, repo, "", b)
		must(t, "DeleteManifest", r.DeleteManifest(t.Context(), repo, a.Digest))
		got, err := r.Referrers(t.Context(), repo, subject.Digest, "")
		must(t, "Referrers", err)
		wantReferrers(t, got, []Image{b}, subject.Digest, "")
	}},
}
