// Package chaos breaks links and kills processes under the real binary, and counts what that costs. Its figures are the
// ones that the product promises; `go test -v` prints each as measured.
//
// CHAOS=long takes larger layers and more rounds.
package chaos

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

const (
	mib = 1 << 20
	// lostPerCut is how many bytes may cross the link twice for each cut.
	lostPerCut = 64 << 10
	// overhead is for headers, manifests and lists, in every test.
	overhead = 128 << 10
	patience = 3 * time.Minute
	repo     = "acme/vision"
)

var binary string

// long is the long run.
var long = os.Getenv("CHAOS") == "long"

func TestMain(m *testing.M) { os.Exit(layer.Main(m.Run, &binary)) }

// site is a cloud registry and a chain below it.
type site struct {
	t      *testing.T
	ctx    context.Context
	cloud  *cloud.Cloud
	links  []*linkproxy.Proxy // links[i] is above layers[i]
	layers []*layer.Layer
	unique cloud.Unique
}

// newSite starts the cloud and prepares so many layers; none runs yet.
func newSite(t *testing.T, layers int) *site {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), patience, fmt.Errorf("the test took longer than %v", patience))
	t.Cleanup(cancel)
	s := &site{t: t, ctx: ctx}
	var err error
	if s.cloud, err = cloud.Start(""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.must(s.cloud.Close()) })
	target := s.cloud.Addr
	for i := range layers {
		link, err := linkproxy.New(target)
		s.must(err)
		t.Cleanup(func() { s.must(link.Close()) })
		l, err := layer.New(layer.Options{
			Binary: binary, Dir: t.TempDir(), Name: fmt.Sprintf("layer%d", 5-i), Parent: link.Addr(),
			Repositories: map[string]string{"all": repo + " acme/plc"},
		})
		s.must(err)
		t.Cleanup(func() { s.must(l.Close()) })
		s.links, s.layers, target = append(s.links, link), append(s.layers, l), l.Addr
	}
	return s
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// push makes an image of named layers of n bytes and puts it into the cloud. It returns the image.
func (s *site) push(ref string, n int, names ...string) v1.Image {
	s.t.Helper()
	var layers []v1.Layer
	for _, name := range names {
		l, err := cloud.Layer(name, n)
		s.must(err)
		layers = append(layers, l)
	}
	img, err := cloud.Image(layers...)
	s.must(err)
	_, err = s.unique.Image(img)
	s.must(err)
	s.must(cloud.Push(s.ctx, s.cloud.Addr, ref, img))
	return img
}

// wait waits until a layer holds so many tags.
func (s *site) wait(l *layer.Layer, tags int) {
	s.t.Helper()
	s.must(l.Until(s.ctx, fmt.Sprintf("%d tags are there", tags), func(ctx context.Context) (bool, error) {
		ok, _, err := l.Has(ctx, tags)
		return ok, err
	}))
}

// same pulls at the layer and compares with the image.
func (s *site) same(l *layer.Layer, ref string, img v1.Image) {
	s.t.Helper()
	want, err := img.Digest()
	s.must(err)
	got, err := cloud.Pull(s.ctx, l.Addr, ref)
	s.must(err)
	if got.Digest != want {
		s.t.Errorf("%s at %s is %s, want %s", ref, l.Name, got.Digest, want)
	}
}

// extra is how many bytes more than the content went down a link.
func (s *site) extra(i int) int64 { return s.links[i].Counters().Down - s.unique.Bytes() }

func TestCutLayer(t *testing.T) {
	size, every := 100*mib, int64(10*mib)
	if long {
		size, every = 500*mib, 3*mib
	}
	for name, by := range map[string]linkproxy.CutBy{"FIN": linkproxy.FIN, "RST": linkproxy.RST} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, 1)
			img := s.push(repo+":1", size, "big")
			s.must(s.links[0].Set(linkproxy.Plan{CutAfter: every, CutBy: by}))
			s.must(s.layers[0].Start(s.ctx))
			s.wait(s.layers[0], 1)
			cuts := s.links[0].Counters().Cuts
			t.Logf("%d MiB cut by %s every %d MiB: %d cuts, %d bytes extra (%d a cut)", size/mib, name, every/mib, cuts, s.extra(0), s.extra(0)/int64(max(1, cuts)))
			if want := size/int(every) - 1; cuts < want {
				t.Errorf("%d cuts, want %d or more: the test is not what it says", cuts, want)
			}
			if s.extra(0) > int64(cuts)*lostPerCut+overhead {
				t.Errorf("%d bytes extra for %d cuts", s.extra(0), cuts)
			}
			s.must(s.links[0].Set(linkproxy.Plan{}))
			s.same(s.layers[0], repo+":1", img)
		})
	}
}

func TestKill(t *testing.T) {
	size, rounds := 40*mib, []int{60}
	if long {
		size, rounds = 100*mib, []int{5, 20, 35, 50, 60, 75, 90, 99}
	}
	s := newSite(t, 1)
	img := s.push(repo+":1", size, "big")
	until := func(percent int) {
		select {
		case <-s.links[0].Reached(int64(size / 100 * percent)):
		case <-s.ctx.Done():
			t.Fatal(context.Cause(s.ctx))
		}
	}
	for _, percent := range rounds {
		s.must(s.layers[0].Start(s.ctx))
		until(percent - 1)
		// What a kill loses is what lies unread in the socket: on a link that is slower than its reader, as links are, next
		// to nothing.
		s.must(s.links[0].Set(linkproxy.Plan{BytesPerSecond: mib}))
		until(percent)
		s.must(s.layers[0].Kill())
		s.must(s.links[0].Set(linkproxy.Plan{}))
	}
	s.must(s.layers[0].Start(s.ctx))
	s.wait(s.layers[0], 1)
	t.Logf("%d MiB killed by SIGKILL at %v %%: %d bytes extra", size/mib, rounds, s.extra(0))
	if s.extra(0) > int64(len(rounds))*lostPerCut+overhead {
		t.Errorf("%d bytes extra for %d kills", s.extra(0), len(rounds))
	}
	s.same(s.layers[0], repo+":1", img)
}

func TestStall(t *testing.T) {
	const size, after = 20 * mib, 12 * mib // the rest fits below the next stall
	s := newSite(t, 1)
	img := s.push(repo+":1", size, "big")
	s.must(s.links[0].Set(linkproxy.Plan{StallAfter: after}))
	reached := s.links[0].Reached(after)
	s.must(s.layers[0].Start(s.ctx))
	select {
	case <-reached:
	case <-s.ctx.Done():
		t.Fatal(context.Cause(s.ctx))
	}
	begin := time.Now()
	s.wait(s.layers[0], 1)
	took := time.Since(begin)
	t.Logf("%d MiB stalled after %d MiB: complete %.1f s later, %d bytes extra", size/mib, after/mib, took.Seconds(), s.extra(0))
	if took > 35*time.Second {
		t.Errorf("it took %v, a stall must be seen within 30 s", took)
	}
	if s.extra(0) > lostPerCut+overhead {
		t.Errorf("%d bytes extra", s.extra(0))
	}
	s.must(s.links[0].Set(linkproxy.Plan{}))
	s.same(s.layers[0], repo+":1", img)
}

func TestBytesOverLinks(t *testing.T) {
	s := newSite(t, 3)
	s.push(repo+":1", 8*mib, "base", "vision")
	plc := s.push("acme/plc:1", 8*mib, "base", "plc")
	for _, l := range s.layers {
		s.must(l.Start(s.ctx))
	}
	s.wait(s.layers[2], 2)
	next := s.push(repo+":2", 8*mib, "base", "vision-2")
	s.must(s.layers[0].Sync(s.ctx))
	s.wait(s.layers[2], 3)
	s.same(s.layers[2], "acme/plc:1", plc)
	s.same(s.layers[2], repo+":2", next)
	for i, link := range s.links {
		ratio := float64(link.Counters().Down) / float64(s.unique.Bytes())
		t.Logf("link %d: %d bytes down, %d unique: %.4f", i, link.Counters().Down, s.unique.Bytes(), ratio)
		if ratio > 1.02 {
			t.Errorf("link %d carried %.4f of the unique bytes", i, ratio)
		}
	}
}

func TestCachedTagIsFast(t *testing.T) {
	s := newSite(t, 1)
	s.push(repo+":1", mib, "base")
	l := s.layers[0]
	s.must(l.Start(s.ctx))
	s.wait(l, 1)
	limit := 50 * time.Millisecond
	if layer.Race {
		limit *= 10
	}
	for name, fault := range map[string]linkproxy.Fault{"reset": linkproxy.Reset, "black hole": linkproxy.BlackHole, "gone": linkproxy.Refuse} {
		s.must(s.links[0].Set(linkproxy.Plan{Fault: fault}))
		var slowest time.Duration
		for range 20 {
			begin := time.Now()
			s.get(l, "manifests/1")
			slowest = max(slowest, time.Since(begin))
		}
		t.Logf("cached tag, parent %s: slowest of 20 took %v", name, slowest)
		if slowest > limit {
			t.Errorf("parent %s: %v, want less than %v", name, slowest, limit)
		}
	}
}

// get asks the layer for something of the repository, on a new connection.
func (s *site) get(l *layer.Layer, what string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, "http://"+l.Addr+"/v2/"+repo+"/"+what, http.NoBody)
	s.must(err)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	s.must(err)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		s.t.Errorf("GET %s: %s", what, resp.Status)
	}
}

func TestParallelFirstPulls(t *testing.T) {
	s := newSite(t, 1)
	s.push(repo+":1", mib, "base")
	l := s.layers[0]
	s.must(l.Start(s.ctx))
	s.wait(l, 1)
	before := s.links[0].Counters().Down
	s.unique = cloud.Unique{}
	img := s.push(repo+":2", 10*mib, "one", "two")
	var pulls sync.WaitGroup
	for range 20 {
		pulls.Go(func() {
			if _, err := cloud.Pull(s.ctx, l.Addr, repo+":2"); err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	carried := s.links[0].Counters().Down - before
	t.Logf("20 first pulls at once of %d bytes: %d over the link", s.unique.Bytes(), carried)
	if carried > s.unique.Bytes()+overhead {
		t.Errorf("%d bytes over the link, the image has %d", carried, s.unique.Bytes())
	}
	s.same(l, repo+":2", img)
}

func TestNothingChanged(t *testing.T) {
	tags := 100
	if long {
		tags = 1000
	}
	s := newSite(t, 2)
	img := s.push(repo+":0", 1<<10, "small")
	for i := 1; i < tags; i++ {
		s.must(cloud.Push(s.ctx, s.cloud.Addr, fmt.Sprintf("%s:%d", repo, i), img))
	}
	for _, l := range s.layers {
		s.must(l.Start(s.ctx))
	}
	for _, l := range s.layers {
		s.wait(l, tags)
	}
	for i, l := range s.layers {
		before := s.links[i].Counters()
		s.must(l.Sync(s.ctx))
		status, err := l.Status(s.ctx)
		s.must(err)
		after := s.links[i].Counters()
		down, up := after.Down-before.Down, after.Up-before.Up
		t.Logf("nothing changed in %d tags, parent kind %s: %d requests, %d bytes down, %d up", tags, status.Parent.Kind, status.Sync.Requests, down, up)
		limit := int64(tags + 10)
		if i > 0 {
			limit = 10
			if down+up > 10<<10 {
				t.Errorf("%d bytes under a parent of our own kind, want at most 10 KiB", down+up)
			}
		}
		if status.Sync.Requests > limit {
			t.Errorf("%d requests, want at most %d", status.Sync.Requests, limit)
		}
	}
}

func TestSizes(t *testing.T) {
	if layer.Race {
		t.Skip("the race detector is on: memory and size are not the product's")
	}
	info, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, 1)
	s.push(repo+":1", 20*mib, "base", "vision")
	s.must(s.layers[0].Start(s.ctx))
	s.wait(s.layers[0], 1)
	s.must(s.layers[0].Stop())
	s.must(s.layers[0].Start(s.ctx))
	s.wait(s.layers[0], 1)
	rss, peak := s.layers[0].RSS()
	t.Logf("binary %.1f MiB; memory at rest %.1f MiB, peak %.1f MiB", float64(info.Size())/mib, float64(rss)/mib, float64(peak)/mib)
	if info.Size() > 19*mib {
		t.Errorf("the binary has %d bytes, want at most 19 MiB", info.Size())
	}
	if rss > 20*mib {
		t.Errorf("%d bytes of memory at rest, want at most 20 MiB", rss)
	}
}
