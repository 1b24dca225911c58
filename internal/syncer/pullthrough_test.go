package syncer_test

import (
	"context"
	"errors"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// leaving is a parent that answers a question about a blob when the client has gone.
type leaving struct {
	*parent
	asked chan struct{}
	gone  <-chan struct{}
}

func (p leaving) ResolveBlob(ctx context.Context, repo string, d registry.Digest) (registry.Descriptor, error) {
	close(p.asked)
	<-p.gone
	if err := ctx.Err(); err != nil {
		return registry.Descriptor{}, registry.ErrUnavailable.WithMessage("%v", err).Wrap(err) // as package upstream does
	}
	return p.parent.ResolveBlob(ctx, repo, d)
}

// TestClientThatLeavesIsNotAParentThatIsAway cancels a client's question and asks another.
func TestClientThatLeavesIsNotAParentThatIsAway(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	p := leaving{parent: newParent(), asked: make(chan struct{}), gone: ctx.Done()}
	img := registrytest.NewImage(1, 1000)
	push(t, p.parent, "app", "v1", img)
	set := settings(t, p.parent, "app")
	set.Parent = p
	r := newServing(t, set)
	done := make(chan error, 1)
	go func() {
		_, err := r.served.ResolveBlob(ctx, "app", img.Blobs[1].Digest)
		done <- err
	}()
	<-p.asked
	leave()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) { // the first iteration may have been faster
		t.Errorf("who left got %v", err)
	}
	if _, err := r.served.GetManifest(t.Context(), "app", registry.TagReference("v1")); err != nil {
		t.Errorf("the next client got %v", err)
	}
}

// TestReferrersOfWhatIsNotHere asks for the signatures of an image that nobody has pulled.
func TestReferrersOfWhatIsNotHere(t *testing.T) {
	p := newParent()
	img := registrytest.NewImage(1, 1000)
	push(t, p, "app", "v1", img)
	signature := registrytest.NewReferrer(2, img.Descriptor, "application/vnd.example.signature")
	push(t, p, "app", "", signature)
	r := newServing(t, settings(t, p, "app"))
	list, err := r.served.Referrers(t.Context(), "app", img.Digest, "")
	if err != nil || len(list) != 1 || list[0].Digest != signature.Digest {
		t.Fatalf("referrers: %v, %v", list, err)
	}
	if list, err := r.served.Referrers(t.Context(), "app", img.Digest, "application/other"); err != nil || len(list) != 0 {
		t.Errorf("referrers of another type: %v, %v", list, err)
	}
	if m, err := r.served.GetManifest(t.Context(), "app", registry.DigestReference(signature.Digest)); err != nil || m.Digest != signature.Digest {
		t.Errorf("the signature: %v, %v", m.Digest, err)
	}
	if list, err := r.served.Referrers(t.Context(), "outside", img.Digest, ""); err == nil && len(list) != 0 {
		t.Errorf("out of scope: %v", list)
	}
	p.set(func(p *parent) { p.away = registry.ErrUnavailable })
	other := registrytest.NewImage(3, 1000)
	if list, err := r.served.Referrers(t.Context(), "app", other.Digest, ""); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("with the parent away: %v, %v", list, err)
	}
	early := registrytest.NewReferrer(4, other.Descriptor, "application/vnd.example.signature")
	if err := registrytest.Push(t.Context(), r.store, "app", "", early); err != nil {
		t.Fatal(err)
	}
	warned := ""
	ctx := registry.WithWarnings(t.Context(), func(text string) { warned = text })
	if list, err := r.served.Referrers(ctx, "app", other.Digest, ""); err != nil || len(list) != 1 || list[0].Digest != early.Digest || warned == "" {
		t.Errorf("what was pushed here about it, with the parent away: %v, %v, warning %q", list, err, warned)
	}
}

// TestPushBelowAParent pushes to a ReadWrite registry an image whose base its parent has and it has not, as clients do,
// which ask for the tag and for each blob first; with the parent there, and away.
func TestPushBelowAParent(t *testing.T) {
	for _, away := range []error{nil, registry.ErrUnavailable} {
		p := newParent()
		img := registrytest.NewImage(1, 1000)
		push(t, p, "app", "v1", img)
		set := settings(t, p, "app")
		set.Mode = registry.ReadWrite
		r := newServing(t, set)
		p.set(func(p *parent) { p.away = away })
		if _, err := r.served.ResolveManifest(t.Context(), "app", registry.TagReference("v2")); !errors.Is(err, registry.ErrManifestUnknown) && !errors.Is(err, registry.ErrNameUnknown) {
			t.Errorf("parent %v: a tag that is to be pushed: %v", away, err)
		}
		for _, b := range img.Blobs {
			if _, err := r.served.ResolveBlob(t.Context(), "app", b.Digest); !errors.Is(err, registry.ErrBlobUnknown) && !errors.Is(err, registry.ErrNameUnknown) {
				t.Errorf("parent %v: a blob that is to be pushed: %v", away, err)
			}
		}
		if err := registrytest.Push(t.Context(), r.served, "app", "v2", img); err != nil {
			t.Errorf("parent %v: push: %v", away, err)
		}
	}
}
