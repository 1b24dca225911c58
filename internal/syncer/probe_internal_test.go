package syncer

import (
	"context"
	"errors"
	"testing"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// mute is a parent that does not answer before nobody waits any more.
type mute struct{ Parent }

func (mute) Probe(ctx context.Context) (registry.ParentStatus, registry.LayerInfo, error) {
	<-ctx.Done()
	return registry.ParentStatus{}, registry.LayerInfo{}, context.Cause(ctx)
}

// TestInterruptedProbe: that a question was taken back says nothing about the parent, and no pull is refused for it.
func TestInterruptedProbe(t *testing.T) {
	s := &Syncer{o: Options{Clock: clock.System()}}
	ctx, interrupt := context.WithCancelCause(t.Context())
	interrupt(errInterrupted)
	if _, err := s.probe(ctx, Settings{Parent: mute{}}); !errors.Is(err, errInterrupted) {
		t.Errorf("the probe says %v", err)
	}
	if s.state.refused != nil || s.state.failure != nil {
		t.Errorf("the parent is taken for one that refuses (%v) or is away (%v)", s.state.refused, s.state.failure)
	}
}
