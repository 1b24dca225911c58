package chaos

import (
	"context"
	"fmt"
	"os/exec"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// TestOnce interrupts an iteration that was asked for with "connected-registry sync", months before the schedule has one,
// in the middle of a layer. It goes on by itself, and no more crosses the link twice than lay unread in the socket.
func TestOnce(t *testing.T) {
	const size = 24 * mib
	for _, cause := range []struct {
		name      string
		interrupt func(*site, *exec.Cmd)
	}{
		{"kill -9", func(s *site, _ *exec.Cmd) {
			s.must(s.layers[0].Kill())
			s.must(s.layers[0].Start(s.ctx))
		}},
		{"reboot", func(s *site, _ *exec.Cmd) {
			s.must(s.layers[0].Stop())
			s.must(s.layers[0].Start(s.ctx))
		}},
		{"kill -9 of the command", func(s *site, sync *exec.Cmd) { s.must(sync.Process.Kill()) }},
		{"another parent", func(s *site, _ *exec.Cmd) {
			other, err := linkproxy.New(s.cloud.Addr)
			s.must(err)
			s.t.Cleanup(func() { s.must(other.Close()) })
			s.links = append(s.links, other)
			s.layers[0].Parent = other.Addr()
			s.schedule("0 3 1 6 *", "PT1H")
			select {
			case <-other.Reached(mib): // the bytes come over it
			case <-s.ctx.Done():
				s.t.Fatal(context.Cause(s.ctx))
			}
		}},
	} {
		t.Run(cause.name, func(t *testing.T) {
			s := newSite(t, 1)
			s.schedule("0 3 1 6 *", "PT1H")
			s.push(repo+":0", 1000, "small")
			l := s.layers[0]
			s.must(l.Start(s.ctx))
			s.must(l.Until(s.ctx, "it can be asked", func(ctx context.Context) (bool, error) {
				_, err := l.Status(ctx)
				return err == nil, nil
			}))
			s.must(l.Sync(s.ctx))
			img := s.push(repo+":1", size, "big")
			sync := exec.CommandContext(s.ctx, binary, "sync", "--data-dir", l.DataDir())
			s.must(sync.Start())
			s.middle(size)
			cause.interrupt(s, sync)
			s.must(s.links[0].Set(linkproxy.Plan{}))
			_ = sync.Wait() // whether it was answered is not what this is about
			s.once(img, 2)
		})
	}
	if long { // for a minute or two
		t.Run("end of a window", func(t *testing.T) { windowEnds(t, size) })
	}
}

// windowEnds lets the hour of a window end in the middle of a layer; the next window goes on.
func windowEnds(t *testing.T, size int) {
	s := newSite(t, 1)
	began := time.Now().UTC().Add(-59 * time.Minute)
	s.schedule(fmt.Sprintf("%d %d * * *", began.Minute(), began.Hour()), "PT1H")
	img := s.push(repo+":1", size, "big")
	s.must(s.layers[0].Start(s.ctx))
	s.middle(size)
	s.must(s.links[0].Set(linkproxy.Plan{BytesPerSecond: 64 << 10}))
	s.must(s.layers[0].Until(s.ctx, "the window is over", func(ctx context.Context) (bool, error) {
		st, err := s.layers[0].Status(ctx)
		return err == nil && len(st.Transfers) == 0 && st.Sync.SyncState == registry.SyncTimedOut, nil
	}))
	s.must(s.links[0].Set(linkproxy.Plan{}))
	s.schedule("* * * * *", "")
	s.once(img, 1)
}

// document is the configuration of the first layer.
func (s *site) document() map[string]any {
	if s.layers[0].Document == nil {
		s.layers[0].Document = map[string]any{}
	}
	return s.layers[0].Document
}

// schedule puts a schedule in force at the first layer, and what else changed in its document.
func (s *site) schedule(cron, window string) {
	s.t.Helper()
	sync := map[string]string{"schedule": cron}
	if window != "" {
		sync["syncWindow"] = window
	}
	s.document()["parent"] = map[string]any{"gatewayEndpoint": s.layers[0].Parent, "protocol": "http", "syncProperties": sync}
	s.must(s.layers[0].Configure())
}

// middle waits until half of a layer of so many bytes came, over a link that is slower than its reader from then on, as
// links are.
func (s *site) middle(size int) {
	s.t.Helper()
	for _, percent := range []int{45, 50} {
		select {
		case <-s.links[0].Reached(int64(size / 100 * percent)):
		case <-s.ctx.Done():
			s.t.Fatal(context.Cause(s.ctx))
		}
		s.must(s.links[0].Set(linkproxy.Plan{BytesPerSecond: mib}))
	}
}

// once waits until so many tags are here, and counts what crossed all links; one interruption may cost what a cut may.
func (s *site) once(img v1.Image, tags int) {
	s.t.Helper()
	l := s.layers[0]
	s.wait(l, tags)
	down := int64(0)
	for _, link := range s.links {
		down += link.Counters().Down
	}
	extra := down - s.unique.Bytes()
	s.t.Logf("%d bytes down, %d unique, %d extra: %.4f", down, s.unique.Bytes(), extra, float64(down)/float64(s.unique.Bytes()))
	if extra > lostPerCut+overhead {
		s.t.Errorf("%d bytes extra", extra)
	}
	s.same(l, repo+":1", img)
}
