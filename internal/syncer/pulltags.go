package syncer

import (
	"context"
	"errors"
	"slices"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Two move a tag by the parent's word: a list of its tags, and the answer for a client that asked for the tag before it was
// here. Each takes its time until the image is complete, so the older word may come to its end later. A client that was given
// the newer image must not be given the older one after it. Which of them may move the tag is in tagrules.go.

// maxAnswers is how often the parent is asked of a tag of which its lists say something else each time.
const maxAnswers = 3

// newest asks the parent for a manifest, again when a list of the parent says otherwise meanwhile.
func (p *pulls) newest(ctx context.Context, set Settings, repo string, ref registry.Reference) (m registry.Manifest, err error) {
	for range maxAnswers {
		m, err = set.Parent.GetManifest(ctx, repo, ref)
		if err != nil || ref.Tag == "" || p.s.tags.agrees(repo, ref.Tag, m.Digest) {
			break
		}
	}
	return m, err
}

// yield gives up the tags of images that still come for clients, of which a list of the parent says otherwise: they must
// not move a tag back that synchronisation moves on before they are complete. Which of the two is newer, nobody knows; so the
// parent is asked once more.
func (p *pulls) yield(ctx context.Context, set Settings, l listing) {
	for _, x := range p.s.tags.disputes(l) {
		now, err := set.Parent.ResolveManifest(ctx, x.repo, registry.TagReference(x.tag))
		p.s.contact(err)
		if errors.Is(err, registry.ErrManifestUnknown) || errors.Is(err, registry.ErrNameUnknown) {
			now.Digest = saysGone
		}
		p.s.tags.settle(x, now.Digest)
	}
}

// saysGone is what a list says of a tag that the parent has not any more.
const saysGone registry.Digest = "gone"

// says is where a tag stands at the parent by a list, empty where that is silent.
func (l listing) says(repo, tag string) registry.Digest {
	d, listed := l.tags[repo][tag]
	if !listed && (l.all || l.complete[repo]) || slices.Contains(l.gone[repo], tag) {
		return saysGone
	}
	return d
}
