package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// TestClimbKilled pushes at the bottom of three layers, kills each of them at random and cuts the links while that climbs:
// every push that was acknowledged is in the cloud in the end, byte for byte.
func TestClimbKilled(t *testing.T) {
	images, kills, size := 4, 6, 2*mib
	if long {
		images, kills, size = 12, 60, 8*mib
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	s := newSite(t, 3)
	for _, l := range s.layers {
		l.Mode = registry.ReadWrite
		s.must(l.Configure())
		s.must(l.Start(s.ctx))
		s.must(l.Until(s.ctx, "it takes pushes", func(ctx context.Context) (bool, error) {
			st, err := l.Status(ctx)
			return err == nil && st.Mode == registry.ReadWrite, nil // the socket comes after the listener
		}))
	}
	for _, link := range s.links {
		s.must(link.Set(linkproxy.Plan{BytesPerSecond: 4 * mib}))
	}
	bottom := s.layers[2]
	pushed := map[string]v1.Hash{}
	for i := range images {
		layer, err := cloud.Layer(fmt.Sprint("climbs ", i), size)
		s.must(err)
		img, err := cloud.Image(layer)
		s.must(err)
		_, err = s.unique.Image(img)
		s.must(err)
		ref := fmt.Sprintf("%s:v%d", repo, i)
		s.must(cloud.Push(s.ctx, bottom.Addr, ref, img))
		pushed[ref], err = img.Digest()
		s.must(err)
	}
	for range kills {
		select {
		case <-time.After(time.Duration(rnd.IntN(400)) * time.Millisecond): // the moment is the point
		case <-s.ctx.Done():
		}
		s.links[rnd.IntN(3)].CutAll(linkproxy.RST)
		victim := s.layers[rnd.IntN(3)]
		s.must(victim.Kill())
		s.must(victim.Start(s.ctx))
	}
	for ref, want := range pushed {
		s.must(bottom.Until(s.ctx, ref+" is in the cloud", func(ctx context.Context) (bool, error) {
			r, err := cloud.Ref(s.cloud.Addr, ref)
			if err != nil {
				return false, err
			}
			d, err := remote.Head(r, remote.WithContext(ctx))
			return err == nil && d.Digest == want, nil
		}))
		got, err := cloud.Pull(s.ctx, s.cloud.Addr, ref)
		s.must(err)
		if got.Digest != want {
			t.Errorf("%s is %s in the cloud, want %s", ref, got.Digest, want)
		}
	}
	for i, link := range s.links {
		up := link.Counters().Up
		t.Logf("link above %s: %d bytes up, %d unique, ratio %.3f with %d kills", s.layers[i].Name, up, s.unique.Bytes(), float64(up)/float64(s.unique.Bytes()), kills)
		if extra := up - s.unique.Bytes() - overhead; extra > int64(kills)*3*2*mib {
			t.Errorf("%d bytes went up the link above %s again", extra, s.layers[i].Name)
		}
	}
}
