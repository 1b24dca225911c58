package syncer

import (
	"context"
	"errors"
	"testing"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// mute is a parent that does not answer before nobody waits any more.
type mute struct{ Parent }

func (mute) Probe(ctx context.Context) (registry.ParentStatus, registry.LayerInfo, error) {
	<-ctx.Done()
	return registry.ParentStatus{}, registry.LayerInfo{}, context.Cause(ctx)
}

// TestInterruptedProbe: that a question was taken back says nothing about the parent, and no pull is refused for it.
func TestInterruptedProbe(t *testing.T) {
	link := transport.NewLink(transport.LinkOptions{})
	defer link.Close()
	s := &Syncer{o: Options{Clock: clock.System(), Link: link}}
	ctx, interrupt := context.WithCancelCause(t.Context())
	interrupt(errInterrupted)
	if _, err := s.probe(ctx, Settings{Parent: mute{}}); !errors.Is(err, errInterrupted) {
		t.Errorf("the probe says %v", err)
	}
	s.settings = Settings{Parent: mute{}, PullThrough: true, Scope: registry.Scope{{Repository: "app"}}}
	if _, err := newPulls(s).parent("app", "", registry.ErrManifestUnknown); err != nil {
		t.Errorf("a pull is refused: %v", err)
	}
}
