package syncer

import (
	"context"
	"errors"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxLooks is how often in one attempt a tag is looked at that somebody else moves each time.
const maxLooks = 4

// demand is that a tag stands at the parent where the look at it found it, which the parent compares when it changes the
// tag. A request that is given up, and arrives after somebody else has moved the tag, then does not move it back.
type demand struct {
	isMade bool             // by the last request of the attempt
	at     *registry.Digest // of the last that was made; nil before the first
}

// again makes an attempt, and makes it anew, from its look at the tag on, where the parent says that the tag was moved since
// the look. One that moves each time is left for later, as all that fails is.
func (d *delivery) again(ctx context.Context, attempt func(context.Context) error) error {
	for n := 1; ; n++ {
		d.demand.isMade = false
		err := attempt(ctx)
		if !d.demand.isMade || !errors.Is(err, registry.ErrPrecondition) || n == maxLooks {
			return err
		}
	}
}

// only returns the context of a request that changes the tag where it stands as the look found it, and nowhere else. Only a
// parent of our own kind is asked for that; others may refuse what they do not know. One that refused it, and has the tag
// where it was at the next look too, gets it without: what is between may have answered for it.
func (d *delivery) only(ctx context.Context, at registry.Digest) context.Context {
	if d.kind != registry.KindConnected || d.demand.at != nil && *d.demand.at == at {
		return ctx
	}
	d.demand = demand{isMade: true, at: &at}
	return registry.WithPrecondition(ctx, registry.StandsAt(at))
}
