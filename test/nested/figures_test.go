package nested

import (
	"fmt"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/layer"
)

// ratio is the most that may come down a link for each byte of content.
const ratio = 1.02

// unit is the size of a layer. The race detector makes hashing and copying many times as slow.
var unit = map[bool]int{false: 5 * mib, true: 2 * mib}[layer.Race]

// carried logs and checks what came down each link against the unique content.
func (s *site) carried(what string, before []int64, unique int64) {
	s.t.Helper()
	for i, now := range s.down() {
		r := float64(now-before[i]) / float64(unique)
		s.t.Logf("%-34s link above %s: %9d bytes down, %9d unique, ratio %.4f", what, s.layers[i].name, now-before[i], unique, r)
		if r > ratio || r < 1 {
			s.t.Errorf("%s: ratio %.4f over the link above %s, want 1 to %.2f", what, r, s.layers[i].name, ratio)
		}
	}
}

// TestBytes counts what two repositories with a base in common cost, and a new tag on the same base.
func TestBytes(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		s := newSite(t, k.start(t), 3, "acme/app acme/tool")
		base, err := cloud.Layer("base", 6*unit)
		must(t, err)
		var unique cloud.Unique
		put := func(ref, layer string) string {
			top, err := cloud.Layer(layer, unit)
			must(t, err)
			img, err := cloud.Image(base, top)
			must(t, err)
			_, err = unique.Image(img)
			must(t, err)
			return push(t, s.cloud, ref, img)
		}
		app, tool := put("acme/app:1", "app 1"), put("acme/tool:1", "tool 1")
		s.start()
		s.bottom().has("acme/app", "1", app)
		s.bottom().has("acme/tool", "1", tool)
		s.carried("two repositories, one base", make([]int64, 3), unique.Bytes())

		before, old := s.down(), unique.Bytes()
		next := put("acme/app:2", "app 2")
		_, err = s.layers[0].sync()
		must(t, err)
		s.bottom().has("acme/app", "2", next)
		s.carried("a new tag on the same base", before, unique.Bytes()-old)
		same(t, s.bottom().addr, s.cloud, "acme/app:1", "acme/app:2", "acme/tool:1")
	})
}

// never is a schedule whose next occurrence is months away. The iteration that a start makes up for finds nothing when
// the content comes after it.
func never() string {
	return fmt.Sprintf("0 0 1 %d *", (int(time.Now().UTC().Month())+5)%12+1)
}

// TestPullThrough pulls an image that no layer has, at the bottom, by many clients at once.
func TestPullThrough(t *testing.T) {
	const clients = 20
	eachKind(t, func(t *testing.T, k kind) {
		s := newSite(t, k.start(t), 3, "acme/app")
		for _, l := range s.layers {
			l.schedule(never(), "PT1H")
			l.start()
			l.untilStatus("the iteration of the start is over", func(s registry.Status) bool {
				return s.Sync.SyncState == registry.SyncSucceeded && s.Sync.NextSyncTime.After(time.Now().Add(time.Hour))
			})
		}
		list := index(t, types.OCIImageIndex, map[string]v1.Image{
			"linux/amd64": image(t, unit, "base", "amd64"), "linux/arm64": image(t, unit, "base", "arm64"),
		})
		var unique cloud.Unique
		_, err := unique.Index(list)
		must(t, err)
		want := push(t, s.cloud, "acme/app:1", list)
		before := s.down()
		var asked []int64
		for _, l := range s.layers {
			asked = append(asked, l.status().Traffic.Requests)
		}
		var pulls sync.WaitGroup
		for range clients {
			pulls.Go(func() {
				got, err := cloud.Pull(s.ctx, s.bottom().addr, "acme/app:1")
				if err != nil || got.Digest.String() != want || got.Images != 2 {
					t.Errorf("pulled %+v, %v", got, err)
				}
			})
		}
		began := time.Now()
		pulls.Wait()
		t.Logf("%d first pulls of %d bytes through 3 layers: %v", clients, unique.Bytes(), time.Since(began).Round(time.Millisecond))
		s.bottom().has("acme/app", "1", want)
		s.carried(fmt.Sprintf("%d first pulls at the bottom", clients), before, unique.Bytes())
		for i, l := range s.layers {
			n := l.status().Traffic.Requests - asked[i]
			t.Logf("%s asked its parent %d times", l.name, n)
			if n > 40 { // 3 manifests, 5 blobs, what refers to them, and what the parent is
				t.Errorf("%s asked its parent %d times", l.name, n)
			}
		}
		for _, l := range s.layers {
			l.untilStatus("the image is here whole", func(s registry.Status) bool { return s.Storage.Tags == 1 && len(s.Transfers) == 0 })
			if moved := l.status().Sync.TagsMoved; moved != 0 {
				t.Errorf("%s: %d tags came by a sync iteration", l.name, moved)
			}
		}
	})
}

// TestNothingChanged syncs 1,000 tags and looks at what the second iteration costs.
func TestNothingChanged(t *testing.T) {
	const tags = 1000
	eachKind(t, func(t *testing.T, k kind) {
		s := newSite(t, k.start(t), 2, "acme/app")
		pushMany(t, s.cloud, "acme/app", tags)
		began := time.Now()
		for _, l := range s.layers {
			l.schedule(never(), "PT1H") // only what is asked for
			l.start()
			l.untilStatus("all tags are here", func(st registry.Status) bool {
				return st.Storage.Tags == tags && st.Sync.SyncState == registry.SyncSucceeded
			})
			t.Logf("%s under %s: first sync of %d tags %v, %d requests", l.name, l.status().Parent.Kind, tags,
				time.Since(began).Round(time.Millisecond), l.status().Sync.Requests)
			began = time.Now()
		}
		for i, l := range s.layers {
			before := s.links[i].Counters()
			began := time.Now()
			st, err := l.sync()
			must(t, err)
			after := s.links[i].Counters()
			down, up := after.Down-before.Down, after.Up-before.Up
			t.Logf("%s under %s: second sync: %d requests, %d bytes of bodies; on the link %d down, %d up; %v", l.name, st.Parent.Kind,
				st.Sync.Requests, st.Sync.BytesReceived, down, up, time.Since(began).Round(time.Millisecond))
			if st.Sync.TagsMoved+st.Sync.TagsRemoved != 0 || st.Sync.SyncState != registry.SyncSucceeded {
				t.Errorf("%s: %+v", l.name, st.Sync)
			}
			requests, bytes := int64(tags+10), int64(1<<30)
			if st.Parent.Kind == registry.KindConnected {
				requests, bytes = 10, 2<<10 // the promise is 10 KiB; 1,000 tags of few digests would fit there, compressed
			}
			if st.Sync.Requests > requests || down+up > bytes || st.Sync.Requests < 1 {
				t.Errorf("%s under %s: %d requests, %d bytes; want at most %d and %d", l.name, st.Parent.Kind, st.Sync.Requests, down+up, requests, bytes)
			}
		}
	})
}
