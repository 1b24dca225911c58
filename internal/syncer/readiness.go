package syncer

import (
	"context"
	"errors"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Readiness says of each image how much of it is here and what is missing. What is here is answered without the parent;
// the parent is asked only for what is not. free is the room on the data volume.
func (s *Syncer) Readiness(ctx context.Context, images []string, free int64) registry.Readiness {
	out := registry.Readiness{Ready: true, FreeBytes: free}
	missing := map[registry.Digest]int64{}
	for _, name := range images {
		r := registry.ImageReadiness{Image: name}
		repo, ref, err := parseImage(name)
		if err != nil {
			r.State, r.Reason = registry.Absent, message(err)
		} else {
			lacks := s.readinessOf(ctx, repo, ref, &r)
			for _, d := range lacks {
				missing[d.Digest] = d.Size
				r.MissingBytes += d.Size
			}
			r.MissingBlobs = len(lacks)
		}
		out.Ready = out.Ready && r.State == registry.Complete
		out.Images = append(out.Images, r)
	}
	for _, size := range missing {
		out.MissingBytes += size
	}
	out.Fits = out.MissingBytes <= free
	return out
}

// parseImage reads an image as deployment manifests name it: [host[:port]/]repository[:tag][@digest]. The host does
// not matter: it is this registry, by whatever name, or the one that this is a replica of.
func parseImage(name string) (repo string, ref registry.Reference, err error) {
	rest, digest, pinned := strings.Cut(name, "@")
	if host, path, ok := strings.Cut(rest, "/"); ok && strings.ContainsAny(host, ".:$") || host == "localhost" {
		rest = path
	}
	repo, tag := rest, "latest"
	if i := strings.LastIndex(rest, ":"); i > strings.LastIndex(rest, "/") {
		repo, tag = rest[:i], rest[i+1:]
	}
	if err := registry.ValidateRepository(repo); err != nil {
		return "", ref, err
	}
	if pinned {
		d, err := registry.ParseDigest(digest)
		return repo, registry.DigestReference(d), err
	}
	return repo, registry.TagReference(tag), registry.ValidateTag(tag)
}

// readinessOf fills in the state of one image and returns what of it is not here.
func (s *Syncer) readinessOf(ctx context.Context, repo string, ref registry.Reference, r *registry.ImageReadiness) []registry.Descriptor {
	set, _ := s.snapshot()
	var platforms []string
	if set.Scope.MatchRepository(repo) {
		platforms = set.Scope.Platforms(repo, ref.Tag)
	}
	if d, err := s.store.ResolveManifest(ctx, repo, ref); err == nil {
		r.Digest, r.State = d.Digest, registry.Complete
		lacks, err := s.store.Missing(ctx, repo, d.Digest, wantPlatforms(platforms))
		if err != nil || len(lacks) > 0 {
			r.State = registry.Partially
		}
		if err != nil {
			r.Reason = message(err)
		}
		return lacks
	}
	if !set.Scope.MatchRepository(repo) || (ref.Tag != "" && !set.Scope.MatchTag(repo, ref.Tag)) {
		r.State, r.Reason = registry.OutOfScope, "it is not in repositories of the configuration"
		return nil
	}
	if set.Parent == nil {
		r.State, r.Reason = registry.Unknown, "no parent is configured"
		return nil
	}
	lacks, digest, err := s.missingAtParent(ctx, set, repo, ref, platforms)
	r.Digest = digest
	switch {
	case err == nil:
		r.State = registry.Partially
	case errors.Is(err, registry.ErrManifestUnknown) || errors.Is(err, registry.ErrNameUnknown):
		r.State, r.Reason = registry.Absent, "the parent does not have it"
	default:
		r.State, r.Reason = registry.Unknown, message(err)
	}
	return lacks
}

// missingAtParent reads the manifests of an image at the parent and lists the content that is not here, its manifests
// included.
func (s *Syncer) missingAtParent(ctx context.Context, set Settings, repo string, ref registry.Reference, platforms []string) ([]registry.Descriptor, registry.Digest, error) {
	root, err := set.Parent.GetManifest(ctx, repo, ref)
	s.contact(err)
	if err != nil {
		return nil, "", err
	}
	var g graph
	if err := s.collect(ctx, image{repo: repo, root: root, platforms: platforms}, root, 0, map[registry.Digest]bool{}, &g); err != nil {
		return nil, root.Digest, err
	}
	needed := g.blobs
	for _, m := range g.manifests {
		needed = append(needed, m.Descriptor)
	}
	var lacks []registry.Descriptor
	for _, d := range needed {
		if size, ok := s.store.StatContent(ctx, d.Digest); !ok || size != d.Size {
			lacks = append(lacks, d)
		}
	}
	return lacks, root.Digest, nil
}
