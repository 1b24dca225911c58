package registrytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// parallel runs n functions at once and returns their errors.
func parallel(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// index is which of the images has a digest.
func index(images []Image, d registry.Digest) int {
	return slices.IndexFunc(images, func(i Image) bool { return i.Digest == d })
}

var concurrentTests = []subtest{
	{"pushes of the same content", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 20_000, 30_000)
		must(t, "push", parallel(8, func(i int) error {
			return Push(t.Context(), r, fmt.Sprintf("%s/%d", repo, i%3), "latest", image)
		}))
		for i := range 3 {
			name := fmt.Sprintf("%s/%d", repo, i)
			wantManifest(t, r, name, registry.TagReference("latest"), image.Manifest)
			for _, b := range image.Blobs {
				wantBlob(t, r, name, b)
			}
		}
	}},
	{"a moving tag is always one of its manifests", func(t *testing.T, r registry.Registry) {
		images := []Image{NewImage(1, 100), NewImage(2, 100), NewImage(3, 100)}
		for _, image := range images {
			push(t, r, repo, "latest", image)
		}
		must(t, "move and read", parallel(6, func(i int) error {
			for n := range 20 {
				if i < 3 {
					if _, err := r.PutManifest(t.Context(), repo, registry.TagReference("latest"), images[i].Manifest); err != nil {
						return err
					}
					continue
				}
				if err := readAll(t.Context(), r, "latest"); err != nil {
					return fmt.Errorf("read %d: %w", n, err)
				}
			}
			return nil
		}))
	}},
	{"of moves from one manifest one is made", func(t *testing.T, r registry.Registry) {
		var images []Image
		for i := range 6 {
			images = append(images, NewImage(uint64(i+1), 100))
			push(t, r, repo, "", images[i])
		}
		at := images[5].Digest
		push(t, r, repo, "latest", images[5])
		for range 5 {
			errs := make([]error, 5)
			ctx := registry.WithPrecondition(t.Context(), registry.StandsAt(at))
			_ = parallel(5, func(i int) error {
				_, errs[i] = r.PutManifest(ctx, repo, registry.TagReference("latest"), images[i].Manifest)
				return nil
			})
			moved := 0
			for i, err := range errs {
				if err != nil {
					wantCode(t, "PutManifest", err, registry.CodePrecondition)
				} else if images[i].Digest != at {
					moved++
				}
			}
			now, err := r.ResolveManifest(t.Context(), repo, registry.TagReference("latest"))
			if must(t, "ResolveManifest", err); moved != 1 || errs[index(images, now.Digest)] != nil {
				t.Fatalf("%d moves were made: %v", moved, errs)
			}
			at = now.Digest
		}
	}},
	{"reads of what is deleted end cleanly", func(t *testing.T, r registry.Registry) {
		image := NewImage(1, 100_000)
		push(t, r, repo, "latest", image)
		must(t, "delete and read", parallel(6, func(i int) error {
			for range 10 {
				if i == 0 {
					if err := errors.Join(r.DeleteManifest(t.Context(), repo, image.Digest), Push(t.Context(), r, repo, "latest", image)); err != nil {
						return err
					}
					continue
				}
				err := readAll(t.Context(), r, "latest")
				if err != nil && !errors.Is(err, registry.ErrManifestUnknown) && !errors.Is(err, registry.ErrBlobUnknown) {
					return err
				}
			}
			return nil
		}))
		wantManifest(t, r, repo, registry.TagReference("latest"), image.Manifest)
	}},
	{"one of many gets the upload", func(t *testing.T, r registry.Registry) {
		u := start(t, r, []byte("x"))
		must(t, "Close", u.Close())
		var mu sync.Mutex
		var got []registry.Upload
		must(t, "resume", parallel(8, func(int) error {
			u, err := r.ResumeUpload(t.Context(), repo, u.ID())
			if errors.Is(err, registry.ErrBlobUploadInvalid) {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			got = append(got, u)
			return err
		}))
		if len(got) != 1 {
			t.Fatalf("%d callers got the session, want 1", len(got))
		}
		must(t, "Cancel", got[0].Cancel(t.Context()))
	}},
}

// readAll reads a tag's manifest and all its blobs and verifies them.
func readAll(ctx context.Context, r registry.Reader, tag string) error {
	m, err := r.GetManifest(ctx, repo, registry.TagReference(tag))
	if err != nil {
		return err
	}
	if err := verify(m.Digest, m.Bytes); err != nil {
		return err
	}
	refs, err := registry.ParseManifest(m.MediaType, m.Bytes)
	if err != nil {
		return err
	}
	for _, d := range refs.Blobs {
		b, err := r.GetBlob(ctx, repo, d.Digest)
		if err != nil {
			return err
		}
		content, err := io.ReadAll(b)
		if err := errors.Join(err, b.Close(), verify(d.Digest, content)); err != nil {
			return err
		}
	}
	return nil
}

func verify(d registry.Digest, content []byte) error {
	if got := d.Algorithm().FromBytes(content); got != d {
		return fmt.Errorf("content of %s has the digest %s", d, got)
	}
	return nil
}
