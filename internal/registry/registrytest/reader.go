package registrytest

import (
	"bytes"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// ReadLister is the half of a Registry that a parent offers.
type ReadLister interface {
	registry.Reader
	registry.Lister
}

// TestReader is the conformance suite of what only reads. The registry that newReader returns holds content and
// nothing else; it is called once for each sub-test.
func TestReader(t *testing.T, content Content, newReader func(t *testing.T) ReadLister) {
	t.Helper()
	tests := []struct {
		name string
		run  func(t *testing.T, r ReadLister, c Content)
	}{
		{"every manifest by tag and by digest", readManifests},
		{"every blob of every image", readBlobs},
		{"blob by ranges", readRanges},
		{"what is not there has its code", readAbsent},
		{"a blob is read only through its repository", readMembership},
		{"repositories by pages", readRepositories},
		{"tags by pages", readTags},
		{"referrers by type", readReferrers},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, newReader(t), content) })
	}
}

func readManifests(t *testing.T, r ReadLister, c Content) {
	for name, rc := range c.Repositories {
		for tag, image := range rc.Tags {
			wantManifest(t, r, name, registry.TagReference(tag), image.Manifest)
			wantManifest(t, r, name, registry.DigestReference(image.Digest), image.Manifest)
			for _, child := range image.Children {
				wantManifest(t, r, name, registry.DigestReference(child.Digest), child.Manifest)
			}
		}
		for _, image := range rc.Referrers {
			wantManifest(t, r, name, registry.DigestReference(image.Digest), image.Manifest)
		}
	}
}

func readBlobs(t *testing.T, r ReadLister, c Content) {
	for name, rc := range c.Repositories {
		for _, image := range append(slices.Collect(maps.Values(rc.Tags)), rc.Referrers...) {
			for _, part := range append([]Image{image}, image.Children...) {
				for _, b := range part.Blobs {
					wantBlob(t, r, name, b)
				}
			}
		}
	}
}

// largest returns the largest blob of the content and a repository that has it.
func largest(c Content) (repo string, b Blob) {
	for name, rc := range c.Repositories {
		for _, image := range rc.Tags {
			for _, x := range image.Blobs {
				if x.Size > b.Size {
					repo, b = name, x
				}
			}
		}
	}
	return repo, b
}

func readRanges(t *testing.T, r ReadLister, c Content) {
	name, want := largest(c)
	for _, span := range [][2]int64{{0, 1}, {1, 100}, {want.Size / 2, want.Size/2 + 7}, {want.Size - 1, want.Size}, {want.Size, want.Size}, {0, want.Size}} {
		b, err := r.GetBlob(t.Context(), name, want.Digest)
		must(t, "GetBlob", err)
		at, err := b.Seek(span[0], io.SeekStart)
		if err != nil || at != span[0] {
			t.Fatalf("Seek(%d): %d, %v", span[0], at, err)
		}
		got, err := io.ReadAll(io.LimitReader(b, span[1]-span[0]))
		must(t, "read range", err)
		if !bytes.Equal(got, want.Bytes[span[0]:span[1]]) {
			t.Errorf("range %v: %d other bytes", span, len(got))
		}
		must(t, "Close", b.Close())
	}
	b, err := r.GetBlob(t.Context(), name, want.Digest)
	must(t, "GetBlob", err)
	defer func() { must(t, "Close", b.Close()) }()
	end, err := b.Seek(0, io.SeekEnd) // this is how net/http learns the size
	if err != nil || end != want.Size {
		t.Fatalf("Seek to the end: %d, %v, want %d", end, err, want.Size)
	}
	if d := b.Descriptor(); d.Size != want.Size {
		t.Errorf("size %d after Seek to the end, want %d", d.Size, want.Size)
	}
	if at, err := b.Seek(-5, io.SeekEnd); err != nil || at != want.Size-5 {
		t.Fatalf("Seek(-5, end): %d, %v", at, err)
	}
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, want.Bytes[want.Size-5:]) {
		t.Errorf("last five bytes: %x, %v", got, err)
	}
}

func readAbsent(t *testing.T, r ReadLister, c Content) {
	ctx := t.Context()
	for _, ref := range []registry.Reference{registry.TagReference("not-there"), registry.DigestReference(absent), registry.DigestReference(absent512)} {
		for name := range c.Repositories {
			_, err := r.GetManifest(ctx, name, ref)
			wantCode(t, "GetManifest "+ref.String(), err, registry.CodeManifestUnknown)
			_, err = r.ResolveManifest(ctx, name, ref)
			wantCode(t, "ResolveManifest "+ref.String(), err, registry.CodeManifestUnknown)
		}
		_, err := r.GetManifest(ctx, "not/there", ref)
		wantCode(t, "GetManifest of an unknown repository", err, registry.CodeNameUnknown, registry.CodeManifestUnknown)
		_, err = r.ResolveManifest(ctx, "not/there", ref)
		wantCode(t, "ResolveManifest of an unknown repository", err, registry.CodeNameUnknown, registry.CodeManifestUnknown)
	}
	name, _ := largest(c)
	_, err := r.ResolveBlob(ctx, name, absent)
	wantCode(t, "ResolveBlob", err, registry.CodeBlobUnknown)
	wantCode(t, "GetBlob", getBlob(t, r, name, absent), registry.CodeBlobUnknown)
	_, err = r.ResolveBlob(ctx, "not/there", absent)
	wantCode(t, "ResolveBlob of an unknown repository", err, registry.CodeNameUnknown, registry.CodeBlobUnknown)
	wantCode(t, "GetBlob of an unknown repository", getBlob(t, r, "not/there", absent), registry.CodeNameUnknown, registry.CodeBlobUnknown)
	_, err = r.Tags(ctx, "not/there", "", 10)
	wantCode(t, "Tags of an unknown repository", err, registry.CodeNameUnknown)
	for _, repo := range []string{name, "not/there"} {
		if list, err := r.Referrers(ctx, repo, absent, ""); err != nil || len(list) != 0 {
			t.Errorf("Referrers of nothing in %s: %v, %v", repo, list, err)
		}
	}
}

// getBlob opens a blob and reads one byte: a reader over a link may learn only then that it is not there.
func getBlob(t *testing.T, r registry.Reader, repo string, d registry.Digest) error {
	t.Helper()
	b, err := r.GetBlob(t.Context(), repo, d)
	if err != nil {
		return err
	}
	_, err = b.Read(make([]byte, 1))
	_ = b.Close()
	return err
}

func readMembership(t *testing.T, r ReadLister, c Content) {
	b := c.Repositories["acme/base-tools"].Tags["a"].Blobs[1]
	wantBlob(t, r, "acme/base-tools", b)
	_, err := r.ResolveBlob(t.Context(), "acme/base", b.Digest)
	wantCode(t, "ResolveBlob through another repository", err, registry.CodeBlobUnknown)
	wantCode(t, "GetBlob through another repository", getBlob(t, r, "acme/base", b.Digest), registry.CodeBlobUnknown)
}

// pages collects a list page by page and checks the size of each.
func pages(t *testing.T, limit int, next func(after string, limit int) ([]string, error)) []string {
	t.Helper()
	var all []string
	for after := ""; ; after = all[len(all)-1] {
		got, err := next(after, limit)
		must(t, "list after "+after, err)
		if len(got) > limit {
			t.Fatalf("page of %d entries after %q, limit %d", len(got), after, limit)
		}
		all = append(all, got...)
		if len(got) < limit {
			return all
		}
		if len(all) > 10*registry.MaxPage {
			t.Fatal("pages never end")
		}
	}
}

func readRepositories(t *testing.T, r ReadLister, c Content) {
	want := slices.Sorted(maps.Keys(c.Repositories))
	for _, limit := range []int{1, 2, len(want), len(want) + 1, registry.MaxPage} {
		got := pages(t, limit, func(after string, n int) ([]string, error) { return r.Repositories(t.Context(), after, n) })
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: %v, want %v", limit, got, want)
		}
	}
	got, err := r.Repositories(t.Context(), "acme/app-not-there", 2) // an entry that does not exist is a place all the same
	if err != nil || !slices.Equal(got, []string{"acme/base", "acme/base-tools"}) {
		t.Errorf("after an entry that is not there: %v, %v", got, err)
	}
}

func readTags(t *testing.T, r ReadLister, c Content) {
	for name, rc := range c.Repositories {
		want := slices.Sorted(maps.Keys(rc.Tags))
		for _, limit := range []int{1, 7, len(want), registry.MaxPage} {
			got := pages(t, limit, func(after string, n int) ([]string, error) { return r.Tags(t.Context(), name, after, n) })
			if !slices.Equal(got, want) {
				t.Errorf("%s, limit %d: %v, want %v", name, limit, got, want)
			}
		}
	}
	got, err := r.Tags(t.Context(), "many", "v1.20zz", 3)
	if err != nil || !slices.Equal(got, []string{"v1.21", "v1.22", "v1.23"}) {
		t.Errorf("after a tag that is not there: %v, %v", got, err)
	}
	if got, err := r.Tags(t.Context(), "many", "~", 3); err != nil || len(got) != 0 {
		t.Errorf("after the last: %v, %v", got, err)
	}
}

func readReferrers(t *testing.T, r ReadLister, c Content) {
	for name, rc := range c.Repositories {
		for _, image := range rc.Tags {
			for _, artifactType := range []string{"", "application/vnd.example.sbom", "application/vnd.example.signature", "application/vnd.example.none"} {
				got, err := r.Referrers(t.Context(), name, image.Digest, artifactType)
				must(t, "Referrers", err)
				wantReferrers(t, got, rc.Referrers, image.Digest, artifactType)
			}
		}
	}
}

// wantReferrers compares a referrers list with those of all that have the subject and the type.
func wantReferrers(t *testing.T, got []registry.Descriptor, all []Image, subject registry.Digest, artifactType string) {
	t.Helper()
	var want []registry.Descriptor
	for _, image := range all {
		refs, err := registry.ParseManifest(image.MediaType, image.Bytes)
		must(t, "ParseManifest", err)
		if refs.Subject.Digest == subject && (artifactType == "" || artifactType == refs.ArtifactType) {
			want = append(want, registry.ReferrerDescriptor(image.Descriptor, refs))
		}
	}
	slices.SortFunc(want, func(a, b registry.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	if len(got) != len(want) {
		t.Fatalf("%d referrers of type %q, want %d: %v", len(got), artifactType, len(want), got)
	}
	for i := range want {
		wantDescriptor(t, "referrer", got[i], want[i])
		if got[i].ArtifactType != want[i].ArtifactType || !maps.Equal(got[i].Annotations, want[i].Annotations) {
			t.Errorf("referrer %s: type %q annotations %v, want %q %v", got[i].Digest, got[i].ArtifactType, got[i].Annotations, want[i].ArtifactType, want[i].Annotations)
		}
	}
}
