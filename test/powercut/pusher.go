package powercut

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// pusher is one client. It writes to a repository of its own and mounts from there to another one of its own.
type pusher struct {
	r           *rig
	c           *client
	rng         *rand.Rand
	repo, other string
	tags        map[string]registrytest.Image // that it pushed in this round, by tag
}

func (r *rig) pusher(i int, rng *rand.Rand) *pusher {
	return &pusher{
		r: r, c: newClient(r.layer.Addr), rng: rng, tags: map[string]registrytest.Image{},
		repo: fmt.Sprintf("local/app%d", i), other: fmt.Sprintf("local/copy%d", i),
	}
}

// work sends requests until one fails.
func (p *pusher) work(ctx context.Context) error {
	defer p.c.close()
	for ctx.Err() == nil {
		step := p.image
		switch n := p.rng.IntN(10); {
		case n == 0 && len(p.tags) > 0:
			step = p.untag
		case n == 1 && len(p.tags) > 0:
			step = p.removeImage
		case n == 2:
			step = p.index
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// must runs a request, and lets the oracle know before and after.
func (p *pusher) must(value string, do func() error, paths ...string) error {
	p.r.oracle.try(value, paths...)
	if err := do(); err != nil {
		return err
	}
	p.r.oracle.ack(value, paths...)
	return nil
}

func blobPath(repo string, b registrytest.Blob) string {
	return "/v2/" + repo + "/blobs/" + b.Digest.String()
}

// size is that of a layer in bytes: mostly so small that the log has it, sometimes of many pages.
func (p *pusher) size() int {
	switch n := p.rng.IntN(12); {
	case n == 0:
		return 200_000 + p.rng.IntN(300_000)
	case n < 5:
		return 16<<10 + p.rng.IntN(20_000)
	}
	return 1 + p.rng.IntN(12_000)
}

func (p *pusher) tag() string { return fmt.Sprintf("t%d", p.rng.IntN(12)) }

func (p *pusher) newImage() registrytest.Image {
	sizes := make([]int, 1+p.rng.IntN(3))
	for i := range sizes {
		sizes[i] = p.size()
	}
	return registrytest.NewImage(p.r.next.Add(1), sizes...)
}

func (p *pusher) blobs(ctx context.Context, image registrytest.Image) error {
	for _, b := range image.Blobs {
		err := p.must(b.Digest.String(), func() error { return p.c.pushBlob(ctx, p.repo, b, 1+p.rng.IntN(3)) }, blobPath(p.repo, b))
		if err != nil {
			return err
		}
	}
	return nil
}

// image pushes an image under a tag that may stand already, and often mounts it into another repository.
func (p *pusher) image(ctx context.Context) error {
	image, tag := p.newImage(), p.tag()
	if err := p.blobs(ctx, image); err != nil {
		return err
	}
	err := p.must(image.Digest.String(), func() error { return p.c.putManifest(ctx, p.repo, tag, image.Manifest) },
		tagPath(p.repo, tag), tagPath(p.repo, image.Digest.String()))
	if err != nil {
		return err
	}
	p.tags[tag] = image
	if p.rng.IntN(3) > 0 {
		return nil
	}
	for _, b := range image.Blobs {
		err := p.must(b.Digest.String(), func() error { return p.c.mount(ctx, p.other, p.repo, b.Digest) }, blobPath(p.other, b))
		if err != nil {
			return err
		}
	}
	return p.must(image.Digest.String(), func() error { return p.c.putManifest(ctx, p.other, tag, image.Manifest) },
		tagPath(p.other, tag), tagPath(p.other, image.Digest.String()))
}

// index pushes an index of two images, one of them often with a signature, before it or after.
func (p *pusher) index(ctx context.Context) error {
	one, two, tag := p.newImage(), p.newImage(), p.tag()
	images := []registrytest.Image{one, two}
	if p.rng.IntN(2) == 0 {
		signature := registrytest.NewReferrer(p.r.next.Add(1), one.Descriptor, "application/vnd.example.signature")
		images = slices.Insert(images, p.rng.IntN(3), signature)
	}
	for _, image := range images {
		if err := p.blobs(ctx, image); err != nil {
			return err
		}
		d := image.Digest.String()
		if err := p.must(d, func() error { return p.c.putManifest(ctx, p.repo, d, image.Manifest) }, tagPath(p.repo, d)); err != nil {
			return err
		}
	}
	index := registrytest.NewIndex(one, two)
	delete(p.tags, tag)
	return p.must(index.Digest.String(), func() error { return p.c.putManifest(ctx, p.repo, tag, index.Manifest) },
		tagPath(p.repo, tag), tagPath(p.repo, index.Digest.String()))
}

// any returns one of the tags.
func (p *pusher) any() string {
	var tags []string
	for tag := range p.tags {
		tags = append(tags, tag)
	}
	slices.Sort(tags)
	return tags[p.rng.IntN(len(tags))]
}

func (p *pusher) untag(ctx context.Context) error {
	tag := p.any()
	path := tagPath(p.repo, tag)
	delete(p.tags, tag)
	return p.must("", func() error { return p.c.remove(ctx, path) }, path)
}

// removeImage deletes by digest: the tag goes with it.
func (p *pusher) removeImage(ctx context.Context) error {
	tag := p.any()
	path := tagPath(p.repo, p.tags[tag].Digest.String())
	delete(p.tags, tag)
	return p.must("", func() error { return p.c.remove(ctx, path) }, path, tagPath(p.repo, tag))
}
