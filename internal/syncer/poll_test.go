package syncer_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// TestHeldQuestionIsCut: a proxy between the layers is restarted while the parent holds its answer. The question is
// asked again after a moment; it does not wait for the next minute, because nothing says that the parent is away.
func TestHeldQuestionIsCut(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		p.kind, p.info = registry.KindConnected, registry.LayerInfo{Name: "upper", Mode: registry.ReadOnly, InstanceID: "x"}
		cut := make(chan struct{})
		asked := 0
		p.changes = func() (registry.Changes, error) {
			if asked++; asked == 1 {
				return registry.Changes{Cursor: "1", Full: true}, nil
			}
			select {
			case <-cut:
				return registry.Changes{}, away
			case <-time.After(50 * time.Second):
				return registry.Changes{Cursor: "1"}, nil
			}
		}
		_, stop := newReplica(t, dir, settings(t, p, "app"), syncer.Options{})
		for _, after := range []time.Duration{5 * time.Second, 70 * time.Second} { // in the first question, in a later one
			time.Sleep(after)
			before := p.count("changes")
			cut <- struct{}{}
			time.Sleep(3 * time.Second)
			if n := p.count("changes") - before; n != 1 {
				t.Errorf("a question that was cut after %v: %d more within 3 s, want 1", after, n)
			}
		}
		stop()
	})
}
