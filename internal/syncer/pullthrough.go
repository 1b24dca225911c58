package syncer

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

const (
	// missDeadline bounds how long a client waits for a manifest that is not here. The container engine behind IoT Edge
	// gives up at 30 s, so the answer is out well before.
	missDeadline = 15 * time.Second
	// breaker is how long after the parent did not answer a miss is refused at once.
	breaker = 10 * time.Second
	// pendingTags is how long the digest of a tag that is being brought is taken for the tag's without asking again.
	pendingTags = 30 * time.Second
	// maxPending bounds the manifests that clients asked for and that are not complete here yet.
	maxPending = 1024
)

// pulls is what clients asked for that is on its way: manifests that were given out already, while the blobs below
// them still arrive.
type pulls struct {
	s      *Syncer
	flight singleflight.Group

	mu        sync.Mutex
	manifests map[string]pending // repository@digest
}

type pending struct {
	manifest registry.Manifest
	blobs    []registry.Descriptor
}

func newPulls(s *Syncer) *pulls {
	return &pulls{s: s, manifests: map[string]pending{}}
}

// PullThrough returns inner with what is in scope at the parent added to it. What inner has is answered by inner alone,
// and so is every question in a context of registry.WithLocal.
func (s *Syncer) PullThrough(inner registry.Registry) registry.Registry {
	return &pullThrough{Registry: inner, s: s}
}

type pullThrough struct {
	registry.Registry
	s *Syncer
}

// GetManifest fetches a manifest that is not here, and brings the rest of the image after it.
func (p *pullThrough) GetManifest(ctx context.Context, repo string, ref registry.Reference) (registry.Manifest, error) {
	m, err := p.Registry.GetManifest(ctx, repo, ref)
	if !isMiss(err) || registry.IsLocal(ctx) {
		return m, err
	}
	return p.miss(ctx, repo, ref, err)
}

// ResolveManifest is GetManifest: a client that asks whether it is there asks for it next.
func (p *pullThrough) ResolveManifest(ctx context.Context, repo string, ref registry.Reference) (registry.Descriptor, error) {
	d, err := p.Registry.ResolveManifest(ctx, repo, ref)
	if !isMiss(err) || registry.IsLocal(ctx) {
		return d, err
	}
	m, asked := p.miss(ctx, repo, ref, err)
	if errors.Is(asked, registry.ErrUnavailable) && p.s.takesPushes() {
		return registry.Descriptor{}, err // containerd looks for the tag before it pushes, and stops at anything but 404
	}
	return m.Descriptor, asked
}

// takesPushes reports whether a client that asks whether something is there may be one that pushes.
func (s *Syncer) takesPushes() bool {
	set, _ := s.snapshot()
	return set.Mode == registry.ReadWrite
}

// miss takes a miss to the parent, unless it is of a platform that is not in scope.
func (p *pullThrough) miss(ctx context.Context, repo string, ref registry.Reference, miss error) (registry.Manifest, error) {
	if ref.Digest != "" {
		if err := p.s.unwanted(ctx, repo, ref.Digest); err != nil {
			return registry.Manifest{}, err
		}
	}
	if kept, err := p.s.tags.queued(ctx, repo, ref.Tag, ref.Digest); kept || err != nil {
		return registry.Manifest{}, miss // it was deleted here, which the parent does not know yet
	}
	return p.s.pulls.manifest(ctx, repo, ref, miss)
}

// GetBlob joins the transfer of a blob that is not here and reads it while it arrives.
func (p *pullThrough) GetBlob(ctx context.Context, repo string, d registry.Digest) (registry.BlobReader, error) {
	r, err := p.Registry.GetBlob(ctx, repo, d)
	if !isMiss(err) || registry.IsLocal(ctx) {
		return r, err
	}
	want, err := p.s.pulls.blob(ctx, repo, d, err)
	if err != nil {
		return nil, err
	}
	if size, ok := p.s.store.StatContent(ctx, d); ok && size == want.Size {
		return p.s.store.OpenContent(ctx, d)
	}
	return newGrowingReader(ctx, p.s.fetch.join(repo, want, transport.Waiting)), nil
}

// ResolveBlob answers for a blob that the parent has; where clients push, for what is here alone: a client that hears
// that a blob is there does not upload it, and its manifest would be refused.
func (p *pullThrough) ResolveBlob(ctx context.Context, repo string, d registry.Digest) (registry.Descriptor, error) {
	desc, err := p.Registry.ResolveBlob(ctx, repo, d)
	if !isMiss(err) || registry.IsLocal(ctx) || p.s.takesPushes() {
		return desc, err
	}
	return p.s.pulls.blob(ctx, repo, d, err)
}

// Referrers asks the parent about a manifest that is not here or still on its way: a signature is looked for before, and
// often without, a pull of what it signs, and "none" would be a wrong answer. What is here has its referrers here too. With
// the parent away those that were pushed here are told, with a warning: who signs what is not here yet asks for its
// signature afterwards.
func (p *pullThrough) Referrers(ctx context.Context, repo string, d registry.Digest, artifactType string) ([]registry.Descriptor, error) {
	here, err := p.Registry.Referrers(ctx, repo, d, artifactType)
	unsure := errors.Is(err, registry.ErrUnavailable) // the parent may know
	if err != nil && !isMiss(err) && !unsure {
		return nil, err
	}
	_, miss := p.Registry.ResolveManifest(ctx, repo, registry.DigestReference(d))
	switch {
	case miss != nil && !isMiss(miss):
		return nil, miss
	case miss == nil || registry.IsLocal(ctx):
		return here, err
	}
	all, aerr := p.s.pulls.referrers(ctx, repo, d, artifactType, here, err)
	if len(here) > 0 && errors.Is(aerr, registry.ErrUnavailable) {
		registry.Warn(ctx, "the parent cannot be asked: what refers to this manifest and was not pushed here is not listed")
		return here, nil
	}
	if aerr == nil && unsure {
		registry.Warn(ctx, "the index of the data volume is being repaired: what was pushed here may not be listed")
	}
	return all, aerr
}

func isMiss(err error) bool {
	return errors.Is(err, registry.ErrManifestUnknown) || errors.Is(err, registry.ErrNameUnknown) || errors.Is(err, registry.ErrBlobUnknown)
}

// parent returns the parent if a miss may be taken to it, or the error that the client gets.
func (p *pulls) parent(repo, tag string, miss error) (Settings, error) {
	set, _ := p.s.snapshot()
	if set.Parent == nil || !set.PullThrough || !set.Scope.MatchRepository(repo) || (tag != "" && !set.Scope.MatchTag(repo, tag)) {
		return set, miss
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if err := p.s.o.Link.Spent(); err != nil {
		return set, p.away(repo, err, registry.AsError(err).RetryAfter)
	}
	if p.s.state.refused != nil && !errors.Is(p.s.state.refused, errInterrupted) { // which says nothing of the parent
		return set, p.away(repo, p.s.state.refused, 0)
	}
	if age := p.s.o.Clock.Now().Sub(p.s.state.lastFailure); p.s.state.failure != nil && age >= 0 && age < breaker {
		return set, p.away(repo, p.s.state.failure, breaker-age)
	}
	return set, nil
}

// away is the answer for what is in scope, not here, and cannot be had now.
func (p *pulls) away(repo string, cause error, after time.Duration) error {
	return registry.ErrUnavailable.WithMessage("%s is in scope but not here yet, and the parent cannot be asked: %s", repo, message(cause)).
		WithRetryAfter(max(after, time.Second)).Wrap(cause)
}

// manifest answers a miss. However many ask, the parent is asked once.
func (p *pulls) manifest(ctx context.Context, repo string, ref registry.Reference, miss error) (registry.Manifest, error) {
	set, err := p.parent(repo, ref.Tag, miss)
	if m, ok := p.known(repo, ref); ok {
		return m, nil
	}
	if err != nil {
		return registry.Manifest{}, err
	}
	return ask(ctx, p, repo+"@"+ref.String(), func(ctx context.Context) (registry.Manifest, error) {
		if m, ok := p.known(repo, ref); ok {
			return m, nil
		}
		w := word{mark: p.s.tags.mark(), client: true}
		if ref.Tag != "" {
			defer p.s.tags.asking(repo, ref.Tag)()
			if m, err := p.s.store.GetManifest(ctx, repo, ref); err == nil { // it came meanwhile
				return m, nil
			}
		}
		kind, err := p.s.probe(ctx, set)
		if err != nil {
			return registry.Manifest{}, p.failed(ctx, set, repo, err)
		}
		m, err := p.newest(ctx, set, repo, ref)
		p.s.contact(err)
		if err != nil {
			return registry.Manifest{}, p.failed(ctx, set, repo, err)
		}
		return m, p.bring(set, kind, repo, ref, m, w)
	})
}

// failed tells a parent that is away, which no miss is taken to for a while, from one that cannot give this. That our
// credential is refused is not for the client to mend: it would be asked for its own.
func (p *pulls) failed(ctx context.Context, set Settings, repo string, err error) error {
	if isAnswer(err) && p.s.alone(ctx, set, err) {
		if errors.Is(err, registry.ErrUnavailable) || errors.Is(err, registry.ErrUnauthorized) {
			return p.away(repo, err, 0)
		}
		return err
	}
	if !errors.Is(err, registry.ErrUnauthorized) {
		p.s.contact(registry.ErrUnavailable.WithMessage("%s", message(err)).Wrap(err))
	}
	return p.away(repo, err, max(breaker, registry.AsError(err).RetryAfter))
}

// known returns a manifest that is on its way.
func (p *pulls) known(repo string, ref registry.Reference) (registry.Manifest, bool) {
	d := ref.Digest
	if ref.Tag != "" {
		d = p.s.tags.gave(repo, ref.Tag, p.s.o.Clock.Now())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.manifests[repo+"@"+d.String()]
	return e.manifest, ok
}

// bring notes the manifest as on its way and starts bringing the image, in the background, at once.
func (p *pulls) bring(set Settings, kind registry.ParentKind, repo string, ref registry.Reference, m registry.Manifest, w word) error {
	refs, err := registry.ParseManifest(m.MediaType, m.Bytes)
	if err != nil {
		return err
	}
	key := repo + "@" + m.Digest.String()
	p.mu.Lock()
	defer p.mu.Unlock()
	_, under := p.manifests[key]
	if len(p.manifests) >= maxPending && !under {
		return registry.ErrTooManyRequests.WithMessage("%d images are being fetched for clients already; try again", maxPending).WithRetryAfter(breaker)
	}
	if ref.Tag != "" {
		p.s.tags.give(repo, ref.Tag, givenTag{digest: m.Digest, until: p.s.o.Clock.Now().Add(pendingTags)})
	}
	p.manifests[key] = pending{manifest: m, blobs: refs.Blobs}
	if under && ref.Tag == "" {
		return nil
	}
	img := image{repo: repo, root: m, platforms: set.Scope.Platforms(repo, ref.Tag), referrers: p.s.referrers(set, kind, listing{}), word: w}
	if ref.Tag != "" {
		img.tags = []string{ref.Tag}
	}
	if ref.Tag == "" && registry.IsIndex(m.MediaType) {
		img.platforms = set.Scope.Platforms(repo, "")
	}
	p.s.tasks.Go(func() { p.complete(key, repo, ref, img) })
	return nil
}

// complete brings an image and forgets that it was on its way.
func (p *pulls) complete(key, repo string, ref registry.Reference, img image) {
	err := p.s.bring(transport.WithClass(p.s.base, transport.Waiting), img)
	if err != nil {
		p.s.o.Logger.Warn("an image that a client asked for is not complete; the next pull or sync goes on", "repository", repo, "reference", ref, "error", err)
	}
	p.mu.Lock()
	delete(p.manifests, key)
	p.mu.Unlock()
	if ref.Tag != "" {
		p.s.tags.took(repo, ref.Tag, img.root.Digest)
	}
}

// referrers adds to those here what the parent has.
func (p *pulls) referrers(
	ctx context.Context, repo string, d registry.Digest, artifactType string, here []registry.Descriptor, missing error,
) ([]registry.Descriptor, error) {
	outside := registry.ErrManifestUnknown.WithMessage("%s is out of scope", repo)
	set, err := p.parent(repo, "", outside)
	if errors.Is(err, outside) {
		return here, missing
	}
	if err != nil {
		return nil, err
	}
	type answer struct {
		list    []registry.Descriptor
		warning string
	}
	found, err := ask(ctx, p, repo+"?"+d.String()+"?"+artifactType, func(ctx context.Context) (a answer, err error) {
		if _, err := p.s.probe(ctx, set); err != nil {
			return a, p.failed(ctx, set, repo, err)
		}
		ctx = registry.WithWarnings(ctx, func(text string) { a.warning = text })
		a.list, err = set.Parent.Referrers(ctx, repo, d, artifactType)
		p.s.contact(err)
		if err != nil && !isMiss(err) {
			return a, p.failed(ctx, set, repo, err)
		}
		return a, nil
	})
	if err != nil {
		return nil, err
	}
	registry.Warn(ctx, found.warning)
	all := slices.Clone(here)
	for _, r := range found.list {
		kept, err := p.s.tags.queued(ctx, repo, "", r.Digest)
		if err != nil {
			return nil, err
		}
		if !kept { // else it was deleted here, which the parent does not know yet
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b registry.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return slices.CompactFunc(all, func(a, b registry.Descriptor) bool { return a.Digest == b.Digest }), nil
}

// ask puts a question to the parent once, however many clients have it. It is the registry's question, not the client's:
// that a client has gone says nothing about the parent, and must not be taken for its silence.
func ask[T any](ctx context.Context, p *pulls, key string, question func(context.Context) (T, error)) (T, error) {
	result := p.flight.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(transport.WithClass(p.s.base, transport.Waiting), missDeadline)
		defer cancel()
		return question(ctx)
	})
	var none T
	select {
	case r := <-result:
		if r.Err != nil {
			return none, r.Err
		}
		return r.Val.(T), nil
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// blob finds out what a missing blob is: from a manifest on its way, or from the parent.
func (p *pulls) blob(ctx context.Context, repo string, d registry.Digest, miss error) (registry.Descriptor, error) {
	set, err := p.parent(repo, "", miss)
	if desc, ok := p.knownBlob(repo, d); ok {
		return desc, nil
	}
	if err != nil {
		return registry.Descriptor{}, err
	}
	return ask(ctx, p, repo+"#"+d.String(), func(ctx context.Context) (registry.Descriptor, error) {
		if _, err := p.s.probe(ctx, set); err != nil {
			return registry.Descriptor{}, p.failed(ctx, set, repo, err)
		}
		desc, err := set.Parent.ResolveBlob(ctx, repo, d)
		p.s.contact(err)
		if err != nil {
			return registry.Descriptor{}, p.failed(ctx, set, repo, err)
		}
		return desc, nil
	})
}

func (p *pulls) knownBlob(repo string, d registry.Digest) (registry.Descriptor, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, e := range p.manifests {
		if len(key) <= len(repo) || key[:len(repo)] != repo || key[len(repo)] != '@' {
			continue
		}
		for _, b := range e.blobs {
			if b.Digest == d {
				return b, true
			}
		}
	}
	return registry.Descriptor{}, false
}
