package syncer

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Two move a tag by the parent's word: a list of its tags, and the answer for a client that asked for the tag before it was
// here. Each takes its time until the image is complete, so the older word may come to its end later. A client that was given
// the newer image must not be given the older one after it.

// maxAnswers is how often the parent is asked of a tag of which its lists say something else each time.
const maxAnswers = 3

// askedTag is a tag of which the parent is being asked.
type askedTag struct {
	said registry.Digest // by a list of the parent meanwhile
	done chan struct{}
}

// newest asks the parent for a manifest, again when a list of the parent says otherwise meanwhile.
func (p *pulls) newest(ctx context.Context, set Settings, repo string, ref registry.Reference) (m registry.Manifest, err error) {
	for range maxAnswers {
		if m, err = set.Parent.GetManifest(ctx, repo, ref); err != nil || ref.Tag == "" {
			return m, err
		}
		p.mu.Lock()
		a := p.asked[repo+":"+ref.Tag]
		same := a.said == "" || a.said == m.Digest
		a.said = ""
		p.mu.Unlock()
		if same {
			break
		}
	}
	return m, nil
}

// tagged makes an image visible under its tag, unless the parent told otherwise of the tag while the image came: then it
// is here by its digest, for those who pull it.
func (p *pulls) tagged(repo, tag string, d registry.Digest) func(context.Context, registry.Image, func(registry.Image) error) error {
	return func(_ context.Context, image registry.Image, commit func(registry.Image) error) error {
		p.commit.RLock()
		defer p.commit.RUnlock()
		p.mu.Lock()
		if p.tags[repo+":"+tag].digest != d {
			image.Tags, image.Loose = nil, true
		}
		p.mu.Unlock()
		return commit(image)
	}
}

// beside moves tags to an image by a list of the parent, without those that clients were told something newer of: the image
// of that is on its way. Of a tag that the parent is being asked of, the answer comes first.
func (p *pulls) beside(ctx context.Context, image registry.Image, commit func(registry.Image) error) error {
	for {
		p.commit.RLock()
		tags, wait := p.free(image)
		if wait == nil {
			defer p.commit.RUnlock()
			image.Loose = len(tags) < len(image.Tags)
			image.Tags = tags
			return commit(image)
		}
		p.commit.RUnlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// free lists the tags of an image that no client is on the way to something else under; wait is closed when the parent has
// answered for one of which it is being asked.
func (p *pulls) free(image registry.Image) (tags []string, wait <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, tag := range image.Tags {
		name := image.Repository + ":" + tag
		if a := p.asked[name]; a != nil {
			return nil, a.done
		}
		if on, ok := p.tags[name]; !ok || on.digest == image.Root().Digest {
			tags = append(tags, tag)
		}
	}
	return tags, nil
}

// asking notes that the parent is being asked of a tag, until the result is called.
func (p *pulls) asking(repo, tag string) (done func()) {
	name, a := repo+":"+tag, &askedTag{done: make(chan struct{})}
	p.commit.Lock()
	defer p.commit.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[name] = a
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.asked, name)
		close(a.done)
	}
}

// yield gives up the tags of images that still come for clients, of which a list of the parent says otherwise: they must
// not move a tag back that synchronisation moves on before they are complete. Which of the two is newer, nobody knows; so the
// parent is asked once more.
func (p *pulls) yield(ctx context.Context, set Settings, l listing) {
	p.mu.Lock()
	for name, a := range p.asked {
		a.said = cmp.Or(l.says(name), a.said)
	}
	doubt := map[string]registry.Digest{}
	for name, pending := range p.tags {
		if said := l.says(name); said != "" && said != pending.digest {
			doubt[name] = pending.digest
		}
	}
	p.mu.Unlock()
	for name, pending := range doubt {
		repo, tag := splitName(name)
		now, err := set.Parent.ResolveManifest(ctx, repo, registry.TagReference(tag))
		p.s.contact(err)
		if err == nil && now.Digest == pending {
			continue
		}
		p.commit.Lock()
		p.mu.Lock()
		if p.tags[name].digest == pending {
			delete(p.tags, name)
		}
		p.mu.Unlock()
		p.commit.Unlock()
	}
}

// saysGone is what a list says of a tag that the parent has not any more.
const saysGone registry.Digest = "gone"

// says is where repository:tag stands at the parent by a list, empty where that is silent.
func (l listing) says(name string) registry.Digest {
	repo, tag := splitName(name)
	d, listed := l.tags[repo][tag]
	if !listed && (l.all || l.complete[repo]) || slices.Contains(l.gone[repo], tag) {
		return saysGone
	}
	return d
}

// splitName splits repository:tag.
func splitName(name string) (repo, tag string) {
	i := strings.LastIndexByte(name, ':')
	return name[:i], name[i+1:]
}
