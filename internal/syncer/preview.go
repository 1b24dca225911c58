package syncer

import (
	"context"
	"maps"
	"slices"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Preview says what an iteration would do now: which images it would fetch, in their order, with how many bytes, what
// would go, and how long the link would take. It asks the parent for lists and manifests, which are kept for the
// iteration that may follow, and changes nothing.
//
// Errors: those of asking the parent; UNSUPPORTED where no repositories are configured.
func (s *Syncer) Preview(ctx context.Context) (registry.SyncPreview, error) {
	out := registry.SyncPreview{Images: []registry.PreviewImage{}}
	set, _ := s.snapshot()
	if set.Parent == nil || len(set.Scope) == 0 {
		return out, errNothingToSync(set)
	}
	kind, err := s.probe(ctx, set)
	if err != nil {
		return out, err
	}
	l, _, err := s.discover(ctx, set, kind, true, 0, nil)
	if err == nil {
		err = s.again(ctx, set, &l, true)
	}
	if err != nil {
		return out, err
	}
	p, _, err := s.prepare(ctx, set, &l, iteration{asked: true, verify: true})
	if err != nil {
		return out, err
	}
	first := slices.IndexFunc(p.fetch, func(w want) bool { return !w.first })
	if first < 0 {
		first = len(p.fetch)
	}
	seen := map[registry.Digest]bool{}
	for _, group := range [][]want{p.fetch[:first], p.fetch[first:]} {
		for part := range slices.Chunk(group, batch) {
			if err := s.measure(ctx, set, part, seen); err != nil {
				return out, err
			}
			for _, w := range part {
				image := registry.PreviewImage{Repository: w.repo, Tags: w.tags, Digest: w.digest, Bytes: w.bytes}
				if w.err != nil {
					image.Error = message(w.err)
				}
				out.Images = append(out.Images, image)
				out.Bytes += w.bytes
			}
		}
	}
	for _, repo := range slices.Sorted(maps.Keys(p.untag)) {
		out.Removed = append(out.Removed, registry.PreviewRemoval{Repository: repo, Tags: p.untag[repo]})
	}
	if l.failed != nil {
		out.NotListed = message(l.failed)
	}
	out.Budgets = s.o.Link.Budgets()
	out.BytesPerSecond, out.SpeedSource = expectedSpeed(s.o.Link.Speed())
	if out.BytesPerSecond > 0 {
		out.Seconds = (out.Bytes + out.BytesPerSecond - 1) / out.BytesPerSecond
	}
	return out, nil
}
