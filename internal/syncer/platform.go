package syncer

import (
	"context"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// unwanted returns why a manifest is not here although its index is: its platform is not in scope. It returns nil for
// any other miss. Only what is here, or on its way, is looked at.
func (s *Syncer) unwanted(ctx context.Context, repo string, d registry.Digest) error {
	set, _ := s.snapshot()
	if !set.Scope.MatchRepository(repo) || set.Scope.Platforms(repo, "") == nil {
		return nil // every platform is wanted
	}
	for _, m := range s.indexes(ctx, repo) {
		child, ok := childOf(m, d)
		if !ok || child.Platform == nil {
			continue
		}
		wanted := set.Scope.Platforms(repo, "")
		if wantPlatforms(wanted)(child) {
			return nil
		}
		slices.Sort(wanted)
		return registry.ErrManifestUnknown.WithMessage("%s is the %s image of an index here, and of %s only %s is in scope: add the platform to repositories of the configuration",
			d, platformName(child.Platform), repo, strings.Join(slices.Compact(wanted), ", "))
	}
	return nil
}

// indexes returns the indexes of a repository that are tagged here, or that a client was just given.
func (s *Syncer) indexes(ctx context.Context, repo string) []registry.Manifest {
	list := s.pulls.indexes(repo)
	tags, err := s.store.TagStates(ctx, repo)
	if err != nil {
		return list
	}
	seen := map[registry.Digest]bool{}
	for _, t := range tags {
		if seen[t.Digest] {
			continue
		}
		seen[t.Digest] = true
		m, err := s.store.GetManifest(ctx, repo, registry.DigestReference(t.Digest))
		if err == nil && registry.IsIndex(m.MediaType) {
			list = append(list, m)
		}
	}
	return list
}

func (p *pulls) indexes(repo string) []registry.Manifest {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []registry.Manifest
	for key, e := range p.manifests {
		if strings.HasPrefix(key, repo+"@") && registry.IsIndex(e.manifest.MediaType) {
			list = append(list, e.manifest)
		}
	}
	return list
}

// childOf returns the entry of an index for the digest.
func childOf(index registry.Manifest, d registry.Digest) (registry.Descriptor, bool) {
	refs, err := registry.ParseManifest(index.MediaType, index.Bytes)
	if err != nil {
		return registry.Descriptor{}, false
	}
	i := slices.IndexFunc(refs.Manifests, func(c registry.Descriptor) bool { return c.Digest == d })
	if i < 0 {
		return registry.Descriptor{}, false
	}
	return refs.Manifests[i], true
}

func platformName(p *registry.Platform) string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}
