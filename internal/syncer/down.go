package syncer

import (
	"context"
	"errors"
	"io"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Limits of a graph of manifests, so that a parent cannot make this registry fetch without end.
const (
	maxDepth     = 4       // index in index in index
	maxManifests = 10_000  // in one image
	maxReferrers = 1_000   // followed for one image, those of referrers included
	maxBlob      = 1 << 40 // bytes that one blob may have
)

// referrersOf lists what refers to a manifest at the parent.
type referrersOf func(ctx context.Context, repo string, subject registry.Digest) ([]registry.Descriptor, error)

// image is one image to make present here.
type image struct {
	repo      string
	root      registry.Manifest // bytes may be empty: then they are fetched
	tags      []string
	platforms []string // nil takes all
	referrers referrersOf
	depth     int                      // of referrers to referrers
	followed  map[registry.Digest]bool // referrers of the image that were looked at; shared by all of them
	word      word                     // by which the tags move
}

// graph is what belongs to an image.
type graph struct {
	manifests []registry.Manifest // children before parents
	blobs     []registry.Descriptor
	has       map[registry.Digest]bool // blobs
}

// bring makes an image complete here and then moves its tags: manifests, blobs, what refers to it, and last, in one
// transaction, everything visible. Stopped at any point, it leaves no half image, and the next run goes on.
func (s *Syncer) bring(ctx context.Context, img image) error {
	root := img.root
	if len(root.Bytes) == 0 {
		m, err := s.manifest(ctx, img.repo, root.Descriptor)
		if err != nil {
			return err
		}
		root = m
	}
	var g graph
	seen := map[registry.Digest]bool{}
	if err := s.collect(ctx, img, root, 0, seen, &g); err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	for _, b := range g.blobs {
		group.Go(func() error { return s.fetch.blob(gctx, img.repo, b) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := s.bringReferrers(ctx, img, g.manifests); err != nil {
		return err
	}
	complete := registry.Image{Repository: img.repo, Manifests: g.manifests, Tags: img.tags}
	if s.o.Gate != nil {
		if err := s.o.Gate(ctx, complete); err != nil {
			return err
		}
	}
	kept, err := s.tags.carryOut(ctx, complete, img.word, s.store.CommitImage)
	if len(kept) > 0 {
		s.o.Logger.Info("tags that were pushed here or are locked stay as they are", "repository", img.repo, "tags", strings.Join(kept, " "))
	}
	return err
}

// collect walks the graph below m, depth first, so that children come before parents.
func (s *Syncer) collect(ctx context.Context, img image, m registry.Manifest, depth int, seen map[registry.Digest]bool, g *graph) error {
	if seen[m.Digest] {
		return nil
	}
	seen[m.Digest] = true
	if depth > maxDepth || len(seen) > maxManifests {
		return registry.ErrManifestInvalid.WithMessage("%s in %s is an index of more than %d levels or %d manifests; it is not fetched", img.root.Digest, img.repo, maxDepth, maxManifests)
	}
	refs, err := registry.ParseManifest(m.MediaType, m.Bytes)
	if err != nil {
		return err
	}
	wanted := wantPlatforms(img.platforms)
	for _, child := range refs.Manifests {
		if !wanted(child) {
			continue
		}
		cm, err := s.manifest(ctx, img.repo, child)
		if err != nil {
			return err
		}
		if err := s.collect(ctx, img, cm, depth+1, seen, g); err != nil {
			return err
		}
	}
	if g.has == nil {
		g.has = map[registry.Digest]bool{}
	}
	for _, b := range refs.Blobs {
		if b.Size > maxBlob {
			return registry.ErrManifestInvalid.WithMessage("%s in %s has a blob of %d bytes; at most %d are fetched", img.root.Digest, img.repo, b.Size, int64(maxBlob))
		}
		if !g.has[b.Digest] {
			g.has[b.Digest] = true
			g.blobs = append(g.blobs, b)
		}
	}
	g.manifests = append(g.manifests, m)
	return nil
}

// manifest returns the bytes of a manifest, from here if they are here.
func (s *Syncer) manifest(ctx context.Context, repo string, d registry.Descriptor) (registry.Manifest, error) {
	if d.MediaType != "" {
		if size, ok := s.store.StatContent(ctx, d.Digest); ok && size <= registry.MaxManifestSize {
			if body, err := s.content(ctx, d.Digest); err == nil {
				d.Size = size
				return registry.Manifest{Descriptor: d, Bytes: body}, nil
			}
		}
	}
	if m, ok := s.kept.get(d.Digest); ok {
		return m, nil
	}
	set, _ := s.snapshot()
	if set.Parent == nil {
		return registry.Manifest{}, registry.ErrUnavailable.WithMessage("no parent is configured")
	}
	m, err := set.Parent.GetManifest(ctx, repo, registry.DigestReference(d.Digest))
	s.contact(err)
	if err == nil {
		s.kept.put(m)
	}
	return m, err
}

func (s *Syncer) content(ctx context.Context, d registry.Digest) ([]byte, error) {
	r, err := s.store.OpenContent(ctx, d)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(r, registry.MaxManifestSize))
	return body, errors.Join(err, r.Close())
}

// bringReferrers brings what refers to the manifests (signatures, bills of materials), so that it is here before what
// it speaks of becomes visible.
func (s *Syncer) bringReferrers(ctx context.Context, img image, manifests []registry.Manifest) error {
	if img.referrers == nil || img.depth >= maxDepth {
		return nil
	}
	if img.followed == nil {
		img.followed = map[registry.Digest]bool{}
	}
	for _, m := range manifests {
		list, err := img.referrers(ctx, img.repo, m.Digest)
		if err != nil {
			return err
		}
		for _, d := range list {
			if img.followed[d.Digest] {
				continue
			}
			if len(img.followed) >= maxReferrers {
				s.o.Logger.Warn("too many referrers; the rest is left out", "repository", img.repo, "subject", m.Digest, "referrers", len(list), "limit", maxReferrers)
				return nil
			}
			img.followed[d.Digest] = true
			if _, err := s.store.ResolveManifest(ctx, img.repo, registry.DigestReference(d.Digest)); err == nil {
				continue
			}
			r := image{repo: img.repo, root: registry.Manifest{Descriptor: d}, referrers: img.referrers, depth: img.depth + 1, followed: img.followed}
			if err := s.bring(ctx, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// wantPlatforms returns which children of an index are fetched. Attestations, which BuildKit files under the platform
// unknown/unknown, come along.
func wantPlatforms(platforms []string) func(registry.Descriptor) bool {
	return func(d registry.Descriptor) bool {
		if platforms == nil || d.Platform == nil || d.Platform.OS == "unknown" {
			return true
		}
		for _, p := range platforms {
			parts := strings.SplitN(p, "/", 3)
			if parts[0] == d.Platform.OS && len(parts) > 1 && parts[1] == d.Platform.Architecture &&
				(len(parts) < 3 || parts[2] == d.Platform.Variant) {
				return true
			}
		}
		return false
	}
}
