package syncer_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// layerAbove makes p one of our own kind whose list of changes is the log of what happened to it, from the entry that
// the cursor names on. It holds its answer while nothing is new.
type layerAbove struct {
	*parent
	log []registry.Change
}

func newLayerAbove() *layerAbove {
	a := &layerAbove{parent: newParent()}
	a.kind, a.info = registry.KindConnected, registry.LayerInfo{Name: "upper", Mode: registry.ReadOnly, InstanceID: "x"}
	return a
}

func (a *layerAbove) push(t *testing.T, tag string, img registrytest.Image) {
	t.Helper()
	push(t, a.parent, "app", tag, img)
	a.set(func(*parent) { a.log = append(a.log, registry.Change{Repository: "app", Tag: tag, Digest: img.Digest}) })
}

// Changes implements syncer.Layer.
func (a *layerAbove) Changes(ctx context.Context, req registry.ChangesRequest) (registry.Changes, error) {
	if err := a.ask("changes"); err != nil {
		return registry.Changes{}, err
	}
	since, _ := strconv.Atoi(req.Since)
	deadline := time.Now().Add(req.Wait)
	for {
		a.mu.Lock()
		entries := slices.Clone(a.log[since:])
		a.mu.Unlock()
		if len(entries) > 0 || req.Since == "" || !time.Now().Before(deadline) {
			return registry.Changes{Cursor: fmt.Sprint(since + len(entries)), Full: req.Since == "", Entries: entries}, nil
		}
		if ctx.Err() != nil {
			return registry.Changes{}, ctx.Err()
		}
		time.Sleep(time.Second)
	}
}

// TestFailingTagKeepsNothingElse lets one tag fail for a day below a parent of our own kind: the others go on to arrive in
// seconds by the held question, the failing one is tried ever more rarely by itself, over a restart too, and arrives
// once it can.
func TestFailingTagKeepsNothingElse(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		above := newLayerAbove()
		bad := registrytest.NewImage(1, 1000)
		above.push(t, "bad", bad)
		above.push(t, "good", registrytest.NewImage(2, 1000))
		failing := "manifest app " + bad.Digest.String()
		above.broken = map[string]error{failing: registry.ErrDenied.WithMessage("denied")}
		set := settings(t, above.parent, "app")
		set.Parent = above
		r, stop := newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
		time.Sleep(time.Hour)
		mustNotHave(t, r.store, "app", "bad")
		if n := above.count(failing); n < 5 || n > 16 {
			t.Errorf("the failing tag was asked for %d times in an hour", n)
		}
		if n := above.count("changes"); n < 70 || n > 110 {
			t.Errorf("%d questions for changes in an hour, want about one in 50 s", n)
		}
		var st registry.Status
		r.Describe(&st)
		behind := st.Repositories[0].Behind
		if st.Sync.SyncState != registry.SyncFailed || len(behind) != 1 || behind[0].Tag != "bad" || behind[0].Error == "" || !behind[0].NextAttempt.After(time.Now()) {
			t.Errorf("status: %+v, behind %+v", st.Sync, behind)
		}
		next := registrytest.NewImage(3, 1000)
		above.push(t, "good", next)
		time.Sleep(3 * time.Second)
		mustHave(t, r.store, "app", "good", next)
		stop()

		r, stop = newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
		time.Sleep(time.Minute)
		full := above.count("manifest app " + next.Digest.String())
		above.set(func(p *parent) { p.broken = nil })
		time.Sleep(16 * time.Minute)
		mustHave(t, r.store, "app", "bad", bad)
		if n := above.count("manifest app " + next.Digest.String()); n != full || n != 1 {
			t.Errorf("what was here was asked for %d times", n)
		}
		st = registry.Status{}
		r.Describe(&st)
		if st.Sync.SyncState != registry.SyncSucceeded || len(st.Repositories[0].Behind) != 0 || len(st.StatusDetails) != 0 {
			t.Errorf("in the end: %+v %+v %+v", st.Sync, st.Repositories, st.StatusDetails)
		}
		if h := st.History; len(h) < 2 || h[0].State != registry.SyncSucceeded || h[0].TagsMoved != 1 || len(h) > 32 {
			t.Errorf("history: %+v", h)
		}
		stop()
	})
}

// TestFailureThatIsOver lets a tag fail and a referrer, and then makes both needless: the tag and what the referrer is
// came here in another way, or the tag moved on at the parent while it was not listed again. Nothing is tried any more
// and nothing goes back to what had failed.
func TestFailureThatIsOver(t *testing.T) {
	for _, moved := range []bool{false, true} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			above := newLayerAbove()
			bad, subject := registrytest.NewImage(1, 1000), registrytest.NewImage(2, 1000)
			signature := registrytest.NewReferrer(3, subject.Descriptor, "application/vnd.example.signature")
			above.push(t, "good", subject)
			set := settings(t, above.parent, "app")
			set.Parent = above
			r, stop := newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
			time.Sleep(time.Minute)
			above.set(func(p *parent) {
				denied := registry.ErrDenied.WithMessage("denied")
				p.broken = map[string]error{"manifest app " + bad.Digest.String(): denied, "manifest app " + signature.Digest.String(): denied}
			})
			above.push(t, "bad", bad)
			push(t, above.parent, "app", "", signature)
			above.set(func(*parent) {
				above.log = append(above.log, registry.Change{Repository: "app", Subject: subject.Digest, Digest: signature.Digest})
			})
			time.Sleep(2 * time.Minute)
			mustNotHave(t, r.store, "app", "bad")
			want := bad
			if moved { // by a push of ours that was delivered, which the list of changes does not repeat
				want = registrytest.NewImage(4, 1000)
				push(t, above.parent, "app", "bad", want)
			}
			for _, img := range []registrytest.Image{want, signature} {
				tag := map[bool][]string{true: {"bad"}, false: nil}[img.Digest == want.Digest]
				for _, b := range img.Blobs {
					if err := registrytest.PushBlob(t.Context(), r.store, "app", b); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := r.store.CommitImage(t.Context(), registry.Image{Repository: "app", Manifests: []registry.Manifest{img.Manifest}, Tags: tag}); err != nil {
					t.Fatal(err)
				}
			}
			stop()
			above.set(func(p *parent) { p.broken = nil })
			r, stop = newReplica(t, dir, set, syncer.Options{Clock: clock.System()})
			before := above.count("changes")
			time.Sleep(20 * time.Minute)
			if n := above.count("changes") - before; n > 40 {
				t.Errorf("moved %v: %d questions for changes in 20 minutes, want about one in 50 s", moved, n)
			}
			mustHave(t, r.store, "app", "bad", want)
			var st registry.Status
			r.Describe(&st)
			if st.Sync.SyncState != registry.SyncSucceeded || len(st.Repositories[0].Behind) != 0 {
				t.Errorf("moved %v: %+v, behind %+v", moved, st.Sync, st.Repositories[0].Behind)
			}
			stop()
		})
	}
}
