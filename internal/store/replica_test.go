package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// bring fetches what an image needs and commits it.
func bring(t *testing.T, s *Store, repo string, image registrytest.Image, tags ...string) (kept []string) {
	t.Helper()
	var list []registry.Manifest
	var walk func(registrytest.Image)
	walk = func(i registrytest.Image) {
		for _, c := range i.Children {
			walk(c)
		}
		for _, b := range i.Blobs {
			if err := fetchBlob(b).do(t.Context(), s, newOracle()); err != nil {
				t.Fatal(err)
			}
		}
		list = append(list, i.Manifest)
	}
	walk(image)
	kept, err := s.CommitImage(t.Context(), registry.Image{Repository: repo, Manifests: list, Tags: tags})
	if err != nil {
		t.Fatalf("CommitImage: %v", err)
	}
	return kept
}

func states(t *testing.T, s *Store, repo string) map[string]registry.LocalTag {
	t.Helper()
	list, err := s.TagStates(t.Context(), repo)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]registry.LocalTag{}
	for _, tag := range list {
		m[tag.Tag] = tag
	}
	return m
}

func has(t *testing.T, s *Store, repo string, d registry.Digest) bool {
	t.Helper()
	_, err := s.GetManifest(t.Context(), repo, registry.DigestReference(d))
	if err != nil && !errors.Is(err, registry.ErrManifestUnknown) && !errors.Is(err, registry.ErrNameUnknown) {
		t.Fatal(err)
	}
	return err == nil
}

func TestTagOrigin(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	mine, theirs := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)
	if err := registrytest.Push(t.Context(), s, testRepo, "latest", mine); err != nil {
		t.Fatal(err)
	}
	if kept := bring(t, s, testRepo, theirs, "latest", "v2"); !slices.Equal(kept, []string{"latest"}) {
		t.Errorf("kept %v, want latest", kept)
	}
	got := states(t, s, testRepo)
	if tag := got["latest"]; tag.Digest != mine.Digest || !tag.Pushed {
		t.Errorf("a pushed tag was moved: %+v", tag)
	}
	if tag := got["v2"]; tag.Digest != theirs.Digest || tag.Pushed {
		t.Errorf("a tag of the parent: %+v", tag)
	}
	if n, err := s.Untag(t.Context(), testRepo, []string{"latest", "absent"}); err != nil || n != 0 {
		t.Errorf("Untag of a pushed tag: %d, %v", n, err)
	}
	if kept := bring(t, s, testRepo, mine, "latest"); len(kept) != 0 {
		t.Errorf("kept %v though the parent has the same", kept)
	}
	if tag := states(t, s, testRepo)["latest"]; tag.Pushed {
		t.Errorf("the same digest from the parent: %+v, want it to be the parent's", tag)
	}
	if n, err := s.Untag(t.Context(), testRepo, []string{"latest"}); err != nil || n != 1 {
		t.Errorf("Untag: %d, %v", n, err)
	}
	if !has(t, s, testRepo, mine.Digest) {
		t.Error("Untag removed a manifest that a client had pushed")
	}
}

func TestUntag(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	a, b, c := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100), registrytest.NewImage(3, 100)
	index := registrytest.NewIndex(a, b)
	signature := registrytest.NewReferrer(4, index.Descriptor, "application/vnd.example.signature")
	ofSignature := registrytest.NewReferrer(5, signature.Descriptor, "application/vnd.example.timestamp")
	bring(t, s, testRepo, index, "index", "same")
	bring(t, s, testRepo, a, "a")
	bring(t, s, testRepo, c) // by digest
	bring(t, s, testRepo, signature)
	bring(t, s, testRepo, ofSignature)
	untag := func(tag string) {
		t.Helper()
		if n, err := s.Untag(t.Context(), testRepo, []string{tag}); err != nil || n != 1 {
			t.Fatalf("Untag %s: %d, %v", tag, n, err)
		}
	}
	check := func(want map[registry.Digest]bool) {
		t.Helper()
		for d, there := range want {
			if got := has(t, s, testRepo, d); got != there {
				t.Errorf("%s is here: %v, want %v", d, got, there)
			}
		}
	}
	bring(t, s, testRepo, b, "b")
	untag("b") // the index has it
	untag("same")
	check(map[registry.Digest]bool{index.Digest: true, a.Digest: true, b.Digest: true, c.Digest: true, signature.Digest: true, ofSignature.Digest: true})
	untag("index")
	check(map[registry.Digest]bool{index.Digest: false, a.Digest: true, b.Digest: false, c.Digest: true, signature.Digest: false, ofSignature.Digest: false})
	untag("a")
	check(map[registry.Digest]bool{a.Digest: false, c.Digest: true})
	if list, err := s.Referrers(t.Context(), testRepo, index.Digest, ""); err != nil || len(list) != 0 {
		t.Errorf("referrers of what is gone: %v, %v", list, err)
	}
}

func TestMissing(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	a, b := registrytest.NewImage(1, 100), registrytest.NewImage(2, 200)
	index := registrytest.NewIndex(a, b)
	for _, blob := range a.Blobs {
		if err := fetchBlob(blob).do(t.Context(), s, newOracle()); err != nil {
			t.Fatal(err)
		}
	}
	image := registry.Image{Repository: testRepo, Manifests: []registry.Manifest{a.Manifest, index.Manifest}, Tags: []string{"latest"}}
	if _, err := s.CommitImage(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	missing := func(want func(registry.Descriptor) bool) []registry.Descriptor {
		t.Helper()
		list, err := s.Missing(t.Context(), testRepo, index.Digest, want)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if list := missing(nil); len(list) != 1 || list[0].Digest != b.Digest || list[0].Platform == nil {
		t.Errorf("missing %v, want the second child with its platform", list)
	}
	if list := missing(func(d registry.Descriptor) bool { return d.Digest == a.Digest }); len(list) != 0 {
		t.Errorf("missing %v, want none of the wanted", list)
	}
	if err := os.Remove(s.contentPath(a.Blobs[1].Digest)); err != nil {
		t.Fatal(err)
	}
	if list := missing(func(d registry.Descriptor) bool { return d.Digest == a.Digest }); len(list) != 1 || list[0].Digest != a.Blobs[1].Digest {
		t.Errorf("missing %v, want the lost layer", list)
	}
	if _, err := s.Missing(t.Context(), testRepo, b.Digest, nil); !errors.Is(err, registry.ErrManifestUnknown) {
		t.Errorf("Missing of an unknown manifest: %v", err)
	}
}

func TestCommitImageRefuses(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	image := registrytest.NewImage(1, 100)
	lie := image.Manifest
	lie.Digest = digest.FromString("other")
	for name, tt := range map[string]struct {
		image registry.Image
		want  error
	}{
		"without blobs":  {registry.Image{Repository: testRepo, Manifests: []registry.Manifest{image.Manifest}, Tags: []string{"t"}}, registry.ErrManifestBlobUnknown},
		"another digest": {registry.Image{Repository: testRepo, Manifests: []registry.Manifest{lie}, Tags: []string{"t"}}, registry.ErrDigestInvalid},
		"no manifest":    {registry.Image{Repository: testRepo, Tags: []string{"t"}}, registry.ErrManifestInvalid},
		"bad name":       {registry.Image{Repository: "../x", Manifests: []registry.Manifest{image.Manifest}}, registry.ErrNameInvalid},
		"bad tag":        {registry.Image{Repository: testRepo, Manifests: []registry.Manifest{image.Manifest}, Tags: []string{"a/b"}}, registry.ErrTagInvalid},
	} {
		if _, err := s.CommitImage(t.Context(), tt.image); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	if list, err := s.Repositories(t.Context(), "", 10); err != nil || len(list) != 0 {
		t.Errorf("what was refused left %v, %v", list, err)
	}
}

// TestCommits counts what an SD card has to bear.
func TestCommits(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	count := func(fn func()) int64 {
		before := s.commits.Load()
		fn()
		return s.commits.Load() - before
	}
	sizes := slices.Repeat([]int{2000}, 10)
	image := registrytest.NewImage(1, sizes...)
	push := func() {
		for _, b := range image.Blobs {
			u, err := s.StartUpload(t.Context(), testRepo)
			if err != nil {
				t.Fatal(err)
			}
			for part := range slices.Chunk(b.Bytes, 500) {
				if _, err := u.Write(part); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := u.Commit(t.Context(), b.Digest); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.PutManifest(t.Context(), testRepo, registry.TagReference("latest"), image.Manifest); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(push); n > 12 {
		t.Errorf("a push of an image of 10 layers: %d commits, want at most 12", n)
	}
	if n := count(push); n != 0 {
		t.Errorf("the same push again: %d commits, want 0", n)
	}
	synced := registrytest.NewImage(2, sizes...)
	if n := count(func() { bring(t, s, testRepo, synced, "synced") }); n > 12 {
		t.Errorf("an image of 10 layers from the parent: %d commits, want at most 12", n)
	}
	if n := count(func() { bring(t, s, testRepo, synced, "synced") }); n != 0 {
		t.Errorf("the same image again: %d commits, want 0", n)
	}
	document := func() {
		if err := s.PutDocument(t.Context(), "config", []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(document); n != 1 {
		t.Errorf("a new document: %d commits", n)
	}
	if n := count(document); n != 0 {
		t.Errorf("an unchanged document: %d commits, want 0", n)
	}
	if n := count(func() {
		if _, err := s.GetManifest(t.Context(), testRepo, registry.TagReference("latest")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a pull and a collection of nothing: %d commits, want 0", n)
	}
}

// TestGrouping lets many write at once: they share commits, and one that fails takes nobody with it.
func TestGrouping(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	var wg sync.WaitGroup
	wrong := errors.New("wrong")
	const n = 200
	for i := range n {
		wg.Go(func() {
			err := s.update(t.Context(), func(tx *tx) error {
				if err := tx.put(tx.Bucket(bucketDocuments), fmt.Appendf(nil, "d%d", i), []byte("x")); err != nil {
					return err
				}
				if i%10 == 0 {
					return wrong
				}
				return nil
			})
			if failed := errors.Is(err, wrong); failed != (i%10 == 0) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for i := range n {
		body, err := s.Document(t.Context(), fmt.Sprintf("d%d", i))
		if err != nil || (body == nil) != (i%10 == 0) {
			t.Errorf("%d: %q, %v", i, body, err)
		}
	}
	if c := s.commits.Load(); c >= n {
		t.Errorf("%d commits for %d writers", c, n)
	}
}

func TestReserve(t *testing.T) {
	dir := t.TempDir()
	x := &testFS{dir: dir}
	s := openStore(t, dir, Options{FS: x, ReserveBytes: 1 << 20})
	image := registrytest.NewImage(1, 100)
	if err := registrytest.Push(t.Context(), s, testRepo, "latest", image); err != nil {
		t.Fatal(err)
	}
	x.free = 1<<20 + 10
	if _, err := s.StartUpload(t.Context(), testRepo); err != nil {
		t.Errorf("StartUpload with room: %v", err)
	}
	x.free = 1<<20 - 1
	if _, err := s.StartUpload(t.Context(), testRepo); !errors.Is(err, registry.ErrDisk) {
		t.Errorf("StartUpload: %v, want DiskError", err)
	}
	b := registrytest.NewBlob(9, 1000)
	if _, err := s.Partial(t.Context(), b.Digest, b.Size); !errors.Is(err, registry.ErrDisk) {
		t.Errorf("Partial: %v, want DiskError", err)
	}
	next := registrytest.NewImageOf(1, image.Blobs[1:]...)
	next.Bytes = append(bytes.Clone(next.Bytes), ' ')
	if _, err := s.PutManifest(t.Context(), testRepo, registry.TagReference("next"), next.Manifest); !errors.Is(err, registry.ErrDisk) {
		t.Errorf("PutManifest: %v, want DiskError", err)
	}
	if _, err := s.GetManifest(t.Context(), testRepo, registry.TagReference("latest")); err != nil {
		t.Errorf("a pull: %v", err)
	}
	if err := s.DeleteManifest(t.Context(), testRepo, image.Digest); err != nil {
		t.Errorf("a deletion: %v", err)
	}
}

// TestReserveIsGivenBack meets a full volume in a commit.
func TestReserveIsGivenBack(t *testing.T) {
	dir := t.TempDir()
	full := false
	s := openStore(t, dir, Options{hook: func(step string) error {
		if _, err := os.Lstat(dir + "/" + reserveName); step == "commit" && full && err == nil {
			return syscall.ENOSPC
		}
		return nil
	}})
	if _, err := os.Lstat(s.path(reserveName)); err != nil {
		t.Skipf("the volume of this machine is too small for a reserve: %v", err)
	}
	fill(t, s, 1)
	full = true
	if err := s.DeleteTag(t.Context(), "fill/0", "t0"); err != nil {
		t.Errorf("a deletion on a full volume: %v", err)
	}
	full = false
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(s.path(reserveName)); err != nil {
		t.Errorf("the reserve is not made again: %v", err)
	}
}

// TestUnrefer removes what was deleted at the parent, with what refers to it and its content, and nothing that a client
// pushed, a tag holds, or that refers to nothing.
func TestUnrefer(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	image := registrytest.NewImage(1, 100)
	bring(t, s, testRepo, image, "v1")
	referrer := func(seed uint64, subject registry.Descriptor) registrytest.Image {
		return registrytest.NewReferrer(seed, subject, "application/vnd.example.signature")
	}
	signature, tagged, pushed := referrer(2, image.Descriptor), referrer(3, image.Descriptor), referrer(4, image.Descriptor)
	ofSignature := referrer(5, signature.Descriptor)
	bring(t, s, testRepo, signature)
	bring(t, s, testRepo, ofSignature)
	bring(t, s, testRepo, tagged, "signature")
	if err := registrytest.Push(t.Context(), s, testRepo, "", pushed); err != nil {
		t.Fatal(err)
	}
	var c child
	c.follow(t, s, 10, nil)
	all := []registry.Digest{signature.Digest, tagged.Digest, pushed.Digest, image.Digest, registrytest.NewBlob(9, 9).Digest}
	if n, err := s.Unrefer(t.Context(), testRepo, all); err != nil || n != 2 {
		t.Errorf("Unrefer: %d, %v, want the signature and the one of it", n, err)
	}
	for d, want := range map[registry.Digest]bool{
		image.Digest: true, tagged.Digest: true, pushed.Digest: true, signature.Digest: false, ofSignature.Digest: false,
	} {
		if got := has(t, s, testRepo, d); got != want {
			t.Errorf("%s is here: %v, want %v", d, got, want)
		}
	}
	list, err := s.Referrers(t.Context(), testRepo, image.Digest, "")
	if err != nil || len(list) != 2 {
		t.Errorf("%d referrers, %v, want 2", len(list), err)
	}
	if n, full := c.follow(t, s, 10, nil); full || n != 1 {
		t.Errorf("a child is told of %d changes, full %v, want the signature that went", n, full)
	}
	if n, err := s.Unrefer(t.Context(), "other", all); err != nil || n != 0 {
		t.Errorf("Unrefer in a repository that is not here: %d, %v", n, err)
	}
}

// TestReferrersAreWholeOrAnError: over a row that cannot be read, and of a manifest that is not here while names may be
// missing, nobody is told that there are none.
func TestReferrersAreWholeOrAnError(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	image, unsigned := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100)
	bring(t, s, testRepo, image, "v1")
	bring(t, s, testRepo, unsigned, "v2")
	one, two := registrytest.NewReferrer(3, image.Descriptor, "a/b"), registrytest.NewReferrer(4, image.Descriptor, "a/b")
	bring(t, s, testRepo, one)
	bring(t, s, testRepo, two)
	ask := func(repo string, d registry.Digest) (int, error) {
		list, err := s.Referrers(t.Context(), repo, d, "")
		return len(list), err
	}
	absent := registrytest.NewBlob(9, 9).Digest
	s.recovering.Store(true)
	for what, tt := range map[string]struct {
		repo    string
		subject registry.Digest
		n       int
		err     error
	}{
		"signed": {testRepo, image.Digest, 2, nil}, "unsigned": {testRepo, unsigned.Digest, 0, nil},
		"not here": {testRepo, absent, 0, registry.ErrUnavailable}, "in no repository": {"other", absent, 0, registry.ErrUnavailable},
	} {
		if n, err := ask(tt.repo, tt.subject); n != tt.n || !errors.Is(err, tt.err) {
			t.Errorf("%s, while the volume is recovering: %d, %v", what, n, err)
		}
	}
	s.recovering.Store(false)
	if n, err := ask("other", absent); n != 0 || err != nil {
		t.Errorf("in no repository: %d, %v", n, err)
	}
	err := s.update(t.Context(), func(tx *tx) error {
		r, err := tx.repo(testRepo)
		if err != nil {
			return err
		}
		return tx.put(r.referrers, referrerKey(image.Digest, one.Digest), []byte{0xff})
	})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := ask(testRepo, image.Digest); n != 0 || !errors.Is(err, registry.ErrUnavailable) || registry.AsError(err).RetryAfter <= 0 {
		t.Errorf("over a damaged row: %d, %v", n, err)
	}
	bring(t, s, testRepo, one)
	if n, err := ask(testRepo, image.Digest); n != 2 || err != nil {
		t.Errorf("after it was brought again: %d, %v", n, err)
	}
}

// TestImageByDigest: what came by its digest stays when its tag goes, unless a newer image was on its way, or it is of an index
// that goes; it is no referrer, so nobody takes it for one that went.
func TestImageByDigest(t *testing.T) {
	var x testTime
	s := openStore(t, t.TempDir(), x.options())
	asked, late, child, tagged := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100), registrytest.NewImage(3, 100), registrytest.NewImage(4, 100)
	index := registrytest.NewIndex(child)
	bring(t, s, testRepo, asked, "other")
	bring(t, s, testRepo, asked)
	bring(t, s, testRepo, index, "latest")
	bring(t, s, testRepo, child)
	loose := func(img registrytest.Image, tags ...string) {
		t.Helper()
		for _, b := range img.Blobs {
			if err := fetchBlob(b).do(t.Context(), s, newOracle()); err != nil {
				t.Fatal(err)
			}
		}
		image := registry.Image{Repository: testRepo, Manifests: []registry.Manifest{img.Manifest}, Tags: tags, Loose: true}
		if kept, err := s.CommitImage(t.Context(), image); err != nil || len(kept) > 0 {
			t.Fatal(kept, err)
		}
	}
	loose(late)
	loose(tagged, "latest", "other")
	all := []registry.Digest{asked.Digest, late.Digest, child.Digest, tagged.Digest, registrytest.NewBlob(9, 9).Digest}
	if n, err := s.Unrefer(t.Context(), testRepo, all); err != nil || n != 0 {
		t.Errorf("Unrefer of what refers to nothing: %d, %v", n, err)
	}
	for _, d := range all[:4] {
		if !has(t, s, testRepo, d) {
			t.Errorf("%s is not here", d)
		}
	}
	x.pass(25 * time.Hour)
	collect(t, s, GCOptions{})
	for d, want := range map[registry.Digest]bool{asked.Digest: true, tagged.Digest: true, late.Digest: false, index.Digest: false, child.Digest: false} {
		if got := has(t, s, testRepo, d); got != want {
			t.Errorf("%s is here after the grace: %v, want %v", d, got, want)
		}
	}
	if m, err := s.GetManifest(t.Context(), testRepo, registry.TagReference("latest")); err != nil || m.Digest != tagged.Digest {
		t.Errorf("the tag stands at %s, %v", m.Digest, err)
	}
}
