package syncer

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxKept bounds the manifests that are kept in memory between being measured and being brought, in bytes.
const maxKept = 16 << 20

// keptManifests are the manifests that were fetched last, so that each crosses the link once although it is read to
// measure, to preview and to bring an image.
type keptManifests struct {
	mu    sync.Mutex
	list  map[registry.Digest]registry.Manifest
	order []registry.Digest
	bytes int
}

func (k *keptManifests) get(d registry.Digest) (registry.Manifest, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m, ok := k.list[d]
	return m, ok
}

func (k *keptManifests) put(m registry.Manifest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.list[m.Digest]; ok {
		return
	}
	if k.list == nil {
		k.list = map[registry.Digest]registry.Manifest{}
	}
	k.list[m.Digest] = m
	k.order = append(k.order, m.Digest)
	for k.bytes += len(m.Bytes); k.bytes > maxKept; k.order = k.order[1:] {
		k.bytes -= len(k.list[k.order[0]].Bytes)
		delete(k.list, k.order[0])
	}
}

// measure finds out how many bytes of each image are not here, and puts small ones before large ones. What several
// images share counts for the first of them; seen is what others had before. An image that cannot be measured has its
// error; one that concerns all is returned.
func (s *Syncer) measure(ctx context.Context, set Settings, wants []want, seen map[registry.Digest]bool) error {
	missing := make([][]registry.Descriptor, len(wants))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(max(set.Parallel, 4))
	for i := range wants {
		group.Go(func() error {
			w := &wants[i]
			w.index = i
			missing[i], w.err = s.lacks(gctx, *w, platformsOf(set.Scope, *w))
			for _, d := range missing[i] {
				w.bytes += d.Size
			}
			if w.err != nil && !s.alone(gctx, set, w.err) {
				return w.err
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	slices.SortStableFunc(wants, func(a, b want) int { return cmp.Compare(a.bytes, b.bytes) })
	for i := range wants {
		w := &wants[i]
		w.lacks = slices.DeleteFunc(missing[w.index], func(d registry.Descriptor) bool {
			known := seen[d.Digest]
			seen[d.Digest] = true
			return known
		})
		w.bytes = s.left(ctx, w.lacks)
	}
	return nil
}

// left is how many bytes of the blobs are not here.
func (s *Syncer) left(ctx context.Context, blobs []registry.Descriptor) (bytes int64) {
	for _, d := range blobs {
		if size, ok := s.store.StatContent(ctx, d.Digest); !ok || size != d.Size {
			bytes += max(d.Size-s.store.PartialSize(d.Digest), 0)
		}
	}
	return bytes
}

// stillLeft is how many bytes each image that is on its way lacks at this moment, by repository and digest.
func (s *Syncer) stillLeft() map[subject]int64 {
	s.mu.Lock()
	all := maps.Clone(s.state.lacks)
	s.mu.Unlock()
	left := make(map[subject]int64, len(all))
	for image, blobs := range all {
		left[image] = s.left(s.base, blobs)
	}
	return left
}

// lacks lists the blobs of an image that are not here.
func (s *Syncer) lacks(ctx context.Context, w want, platforms []string) ([]registry.Descriptor, error) {
	root, err := s.manifest(ctx, w.repo, registry.Descriptor{Digest: w.digest})
	if err != nil {
		return nil, err
	}
	var g graph
	if err := s.collect(ctx, image{repo: w.repo, root: root, platforms: platforms}, root, 0, map[registry.Digest]bool{}, &g); err != nil {
		return nil, err
	}
	var list []registry.Descriptor
	for _, d := range g.blobs {
		if size, ok := s.store.StatContent(ctx, d.Digest); !ok || size != d.Size {
			list = append(list, d)
		}
	}
	return list, nil
}
