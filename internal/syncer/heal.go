package syncer

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// healAgain is when the parent is asked again for lost content that it did not have.
const healAgain = time.Hour

// damaged lists what the volume lost and the parent may have.
func (s *Syncer) damaged(ctx context.Context) []registry.Damage {
	list, err := s.store.Damaged(ctx)
	if err != nil {
		s.o.Logger.Error("damaged content cannot be listed", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Clock.Now()
	ask := list[:0]
	for _, d := range list {
		if age := now.Sub(s.unhealed[d.Digest]); age < 0 || age >= healAgain {
			ask = append(ask, d)
		}
	}
	return ask
}

// heal fetches by its digest what the volume lost, whatever tag it is under and wherever that came from. What the
// parent does not have keeps no other.
func (s *Syncer) heal(ctx context.Context, set Settings, list []registry.Damage) error {
	group, gctx := errgroup.WithContext(transport.WithClass(ctx, transport.First))
	group.SetLimit(max(set.Parallel, 1))
	for _, d := range list {
		group.Go(func() error {
			err := s.healOne(gctx, set, d)
			s.noteHealed(d.Digest, err)
			if err == nil {
				s.o.Logger.Info("damaged content is healed from the parent", "repository", d.Repository, "digest", d.Digest)
				return nil
			}
			s.o.Logger.Warn("damaged content is not healed yet", "repository", d.Repository, "digest", d.Digest, "error", err)
			if !s.alone(gctx, set, err) {
				return err
			}
			return nil
		})
	}
	return group.Wait()
}

func (s *Syncer) healOne(ctx context.Context, set Settings, d registry.Damage) error {
	if !d.Manifest {
		return s.fetch.blob(ctx, d.Repository, d.Descriptor)
	}
	m, err := set.Parent.GetManifest(ctx, d.Repository, registry.DigestReference(d.Digest))
	s.contact(err)
	if err != nil {
		return err
	}
	p, err := s.store.Partial(ctx, d.Digest, d.Size)
	if err != nil {
		return err
	}
	if at := p.Size(); at < int64(len(m.Bytes)) { // bytes that are there already are checked with the others
		if _, err := p.Write(m.Bytes[at:]); err != nil {
			return errors.Join(err, p.Discard())
		}
	}
	return p.Commit(ctx)
}

// noteHealed remembers that the parent does not have the content, and forgets it again. A parent that is away is asked
// in the next iteration.
func (s *Syncer) noteHealed(d registry.Digest, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unhealed, d)
	for _, no := range []error{registry.ErrBlobUnknown, registry.ErrManifestUnknown, registry.ErrNameUnknown, registry.ErrDenied} {
		if errors.Is(err, no) {
			s.unhealed[d] = s.o.Clock.Now()
		}
	}
}
