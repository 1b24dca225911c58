package syncer_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// TestPullAndSyncOfOneTag has a client ask for a tag that is not here yet, and a synchronisation bring it, while the tag
// moves at the parent, and one of the two be later with the older image: whoever was given the newer one is not given the
// older one afterwards.
func TestPullAndSyncOfOneTag(t *testing.T) {
	for _, syncFirst := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newParent()
			older, newer := registrytest.NewImage(1, 1000), registrytest.NewImage(2, 1000)
			held, newerHeld := make(chan struct{}), make(chan struct{})
			gates := map[registry.Digest]chan struct{}{older.Blobs[1].Digest: held}
			if syncFirst {
				gates[newer.Blobs[1].Digest] = newerHeld
			}
			p.read = func(d registry.Digest, _ int64, _ []byte) error {
				if gate := gates[d]; gate != nil {
					<-gate
				}
				return nil
			}
			push(t, p, "app", "other", registrytest.NewImage(3, 10))
			r, stop := newReplica(t, t.TempDir(), settings(t, p, "app"), syncer.Options{})
			defer stop()
			synctest.Wait()
			push(t, p, "app", "v", older)
			look := func(want registrytest.Image) {
				t.Helper()
				if m, err := r.served.GetManifest(t.Context(), "app", registry.TagReference("v")); err != nil || m.Digest != want.Digest {
					t.Errorf("sync first %v: the tag is %s, %v; want %s", syncFirst, m.Digest, err, want.Digest)
				}
			}
			run := func() {
				if err := r.Sync(t.Context()); err != nil {
					t.Error(err)
				}
			}
			var iteration sync.WaitGroup
			if syncFirst {
				iteration.Go(run)
			} else {
				look(older)
			}
			synctest.Wait() // the older image is on its way
			push(t, p, "app", "v", newer)
			if syncFirst {
				look(newer)
			} else {
				run()
			}
			synctest.Wait()
			look(newer)
			close(held)
			synctest.Wait()
			iteration.Wait()
			look(newer)
			close(newerHeld)
			synctest.Wait()
			if d, err := r.store.ResolveManifest(t.Context(), "app", registry.TagReference("v")); err != nil || d.Digest != newer.Digest {
				t.Errorf("sync first %v: in the end the tag is %s, %v", syncFirst, d.Digest, err)
			}
		})
	}
}

// TestListOfBeforeAPull has the parent's list of all tags be of before a tag came to it, which a client pulls before the list
// is carried out: the tag stays, and the parent is asked again.
func TestListOfBeforeAPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		p, told, again := newParent(), make(chan struct{}), make(chan struct{})
		p.kind, p.info = registry.KindConnected, registry.LayerInfo{Name: "upper", Mode: registry.ReadOnly, InstanceID: "x"}
		img := registrytest.NewImage(1, 10)
		push(t, p, "app", "v", img)
		p.changes = func() (registry.Changes, error) {
			if asked.Add(1) == 1 {
				<-told
				return registry.Changes{Cursor: "1", Full: true}, nil
			}
			<-again
			return registry.Changes{Cursor: "2", Full: true, Entries: []registry.Change{{Repository: "app", Tag: "v", Digest: img.Digest}}}, nil
		}
		r, stop := newReplica(t, t.TempDir(), settings(t, p, "app"), syncer.Options{})
		defer stop()
		time.Sleep(2 * time.Minute)
		if m, err := r.served.GetManifest(t.Context(), "app", registry.TagReference("v")); err != nil || m.Digest != img.Digest {
			t.Fatalf("%s, %v", m.Digest, err)
		}
		synctest.Wait()
		close(told)
		time.Sleep(2 * time.Minute)
		if d, err := r.store.ResolveManifest(t.Context(), "app", registry.TagReference("v")); err != nil || d.Digest != img.Digest || asked.Load() < 2 {
			t.Errorf("the tag is %q, %v; the parent was asked %d times", d.Digest, err, asked.Load())
		}
		close(again)
	})
}
