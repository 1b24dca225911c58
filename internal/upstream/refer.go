package upstream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"

	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// A parent that does not keep lists of what refers to a subject itself has them as an index under a tag (OCI distribution
// spec, "Referrers Tag Schema"), which clients change. A list is read, changed, written and read again, since nobody can
// say "only if it is still as it was": who writes at the same time may have taken our change away with it.

// rewrites is how often a list is changed before that is left to a later attempt.
const rewrites = 5

// referrersTag names the list of a subject: the algorithm and the digest, each cut to a length.
func referrersTag(subject registry.Digest) registry.Reference {
	algorithm, hex := subject.Algorithm().String(), subject.Encoded()
	return registry.TagReference(algorithm[:min(len(algorithm), 32)] + "-" + hex[:min(len(hex), 64)])
}

// keepsLists reports whether the parent is of a kind that keeps lists of referrers itself.
func (p *Parent) keepsLists() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kind == registry.KindConnected || p.kind == registry.KindACR || p.lister
}

// sawList notes that the parent keeps such lists itself: it said so of a manifest that it took.
func (p *Parent) sawList() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lister = true
}

// Refer makes sure that the parent lists a manifest that it has among what refers to its subject. It is for what an
// earlier attempt may have put without coming that far; of a manifest without a subject it asks nothing.
//
// Errors: as PutManifest.
func (p *Parent) Refer(ctx context.Context, repo string, m registry.Manifest) error {
	d, refs, err := registry.NewManifest(m.MediaType, m.Bytes)
	if err != nil || refs.Subject == nil || p.keepsLists() {
		return err
	}
	list, err := p.Referrers(ctx, repo, refs.Subject.Digest, "")
	if err != nil || slices.ContainsFunc(list, func(o registry.Descriptor) bool { return o.Digest == d.Digest }) {
		return err
	}
	return p.refer(ctx, repo, refs.Subject.Digest, registry.ReferrerDescriptor(d.Descriptor, refs))
}

// refer adds a manifest to the list of what refers to its subject.
func (p *Parent) refer(ctx context.Context, repo string, subject registry.Digest, d registry.Descriptor) error {
	return p.relist(ctx, repo, subject, func(list []registry.Descriptor) ([]registry.Descriptor, bool) {
		if slices.ContainsFunc(list, func(o registry.Descriptor) bool { return o.Digest == d.Digest }) {
			return nil, false
		}
		return append(list, d), true
	})
}

// maxRemoved bounds the subjects that are kept of what was deleted.
const maxRemoved = 1000

// removed is what was deleted.
type removed struct {
	repo   string
	digest registry.Digest
}

// unrefer takes a manifest that is about to be deleted off the list of what refers to its subject. It comes before the
// deletion: afterwards only this process can say what its subject was, to look once more whether another client that
// wrote the list at the same time put the manifest back on it. A list that may not be changed does not keep it.
//
// Errors: MANIFEST_UNKNOWN for a manifest that is not there, UNAVAILABLE, the context's.
func (p *Parent) unrefer(ctx context.Context, repo string, d registry.Digest) error {
	if p.keepsLists() {
		return nil
	}
	subject, err := p.subject(ctx, repo, d)
	if subject != "" {
		rerr := p.relist(ctx, repo, subject, func(list []registry.Descriptor) ([]registry.Descriptor, bool) {
			rest := slices.DeleteFunc(slices.Clone(list), func(o registry.Descriptor) bool { return o.Digest == d })
			return rest, len(rest) < len(list)
		})
		err = cmp.Or(rerr, err)
	}
	var said *registry.Error
	switch {
	case err == nil:
	case !errors.As(err, &said), errors.Is(err, registry.ErrUnavailable), errors.Is(err, registry.ErrUnauthorized),
		errors.Is(err, registry.ErrManifestUnknown), errors.Is(err, registry.ErrNameUnknown):
		return err
	default:
		p.log.Warn("a manifest is deleted at the parent without being taken off the list of what refers to its subject",
			"parent", p.host, "repository", repo, "digest", d, "error", err)
	}
	return nil
}

// subject returns what a manifest refers to, empty for nothing. What was deleted by this process is known for a while.
//
// Errors: as GetManifest, MANIFEST_UNKNOWN also where the subject is known.
func (p *Parent) subject(ctx context.Context, repo string, d registry.Digest) (registry.Digest, error) {
	key := removed{repo, d}
	m, err := p.GetManifest(ctx, repo, registry.DigestReference(d))
	if errors.Is(err, registry.ErrManifestUnknown) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.removed[key], err
	}
	if err != nil {
		return "", err
	}
	refs, err := registry.ParseManifest(m.MediaType, m.Bytes)
	if err != nil || refs.Subject == nil {
		return "", err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed == nil || len(p.removed) >= maxRemoved {
		p.removed = map[removed]registry.Digest{}
	}
	p.removed[key] = refs.Subject.Digest
	return refs.Subject.Digest, nil
}

// relist changes a list until it needs no change. change returns what it has to be, and whether it is not that yet. Two
// changes of this process go one after the other; one by somebody else that crosses ours is seen, and ours made again.
func (p *Parent) relist(ctx context.Context, repo string, subject registry.Digest, change func([]registry.Descriptor) ([]registry.Descriptor, bool)) error {
	select {
	case p.relisting <- struct{}{}:
		defer func() { <-p.relisting }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	tag := referrersTag(subject)
	for range rewrites {
		index, err := p.list(ctx, repo, tag)
		if err != nil {
			return err
		}
		next, changed := change(index.Manifests)
		if !changed {
			return nil
		}
		index.Manifests = next
		if err := p.writeList(ctx, repo, tag, index); err != nil {
			return err
		}
	}
	return registry.ErrUnavailable.WithMessage("others change the list of referrers %s of %s at %s all the time", tag, repo, p.host)
}

// list reads a list; one that is not there is empty.
func (p *Parent) list(ctx context.Context, repo string, tag registry.Reference) (ocispec.Index, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: registry.MediaTypeImageIndex}
	m, err := p.GetManifest(ctx, repo, tag)
	switch {
	case errors.Is(err, registry.ErrManifestUnknown), errors.Is(err, registry.ErrNameUnknown):
		return index, nil
	case err != nil:
		return index, err
	case json.Unmarshal(m.Bytes, &index) != nil || m.MediaType != registry.MediaTypeImageIndex:
		return index, registry.ErrConflict.WithMessage("%s has something else under the tag %s of %s, where the list of referrers belongs", p.host, tag, repo)
	}
	index.Subject = nil // a list that is about something would be put on a list itself
	return index, nil
}

// writeList puts a list. One without entries goes, where the parent takes tags away; else it stays, empty.
func (p *Parent) writeList(ctx context.Context, repo string, tag registry.Reference, index ocispec.Index) error {
	if len(index.Manifests) == 0 {
		err := p.DeleteTag(ctx, repo, tag.Tag)
		var said *registry.Error
		if err == nil || !errors.As(err, &said) || errors.Is(err, registry.ErrUnavailable) {
			return err
		}
		index.Manifests = []registry.Descriptor{}
	}
	body, err := json.Marshal(index)
	if err != nil {
		return err
	}
	_, err = p.PutManifest(ctx, repo, tag, registry.Manifest{Descriptor: registry.Descriptor{MediaType: registry.MediaTypeImageIndex}, Bytes: body})
	return err
}
