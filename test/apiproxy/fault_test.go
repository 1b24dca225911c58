//go:build interop

package apiproxy

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// TestRestartInMidSync: each proxy on the way is restarted while a layer comes down, over a slow path to the registry;
// what is here is not sent again.
func TestRestartInMidSync(t *testing.T) {
	chains(t, func(t *testing.T, s *site) {
		const size = 16 * mebibyte
		img := image(t, "large", size)
		must(t, cloud.Push(s.ctx, s.cloud.Addr, "acme/app:1", img))
		for _, l := range s.layers[:2] {
			if l.registry != nil {
				link, err := linkproxy.New(l.registry.addr)
				must(t, err)
				t.Cleanup(func() { must(t, link.Close()) })
				must(t, link.Set(linkproxy.Plan{BytesPerSecond: 6 * mebibyte}))
				l.proxy.Registry = link.Addr()
			}
		}
		s.start()
		restart := func(l, child *stratum, received int64) {
			child.registry.until("a part of the layer is here", func(st registry.Status) bool {
				return len(st.Transfers) == 1 && st.Transfers[0].Received > received
			})
			must(t, l.proxy.Stop())
			must(t, l.proxy.Start(s.ctx))
		}
		child := s.bottom()
		if s.middle().registry != nil {
			child = s.middle()
		}
		restart(s.top(), child, 3*mebibyte)
		if child == s.middle() {
			s.synced(child, 1)
		}
		restart(s.middle(), s.bottom(), 8*mebibyte)
		s.synced(s.bottom(), 1)
		got, err := remote.Image(s.ref(s.bottom(), "acme/app:1"), s.as(reader)...)
		must(t, err)
		must(t, validate.Image(got))
		s.resumed(s.top(), child, size)
		s.resumed(s.middle(), s.bottom(), size)
	})
}

// resumed: the child went on by a range after a cut at the device, and received nothing twice but what was on the way.
func (s *site) resumed(l, child *stratum, size int64) {
	s.t.Helper()
	ranges := 0
	for _, a := range s.log(l) {
		if a.User == child.name && strings.Contains(a.URI, "/blobs/") && a.Range != "" && a.Status == http.StatusPartialContent {
			ranges++
		}
	}
	st := child.registry.until("it answers", func(registry.Status) bool { return true })
	s.t.Logf("%s from %s: %d requests for the rest, %d bytes received for %d", child.name, l.name, ranges, st.Traffic.BytesReceived, size)
	if ranges == 0 || st.Traffic.BytesReceived > size+size/50 {
		s.t.Errorf("%s from %s: want a range, and little more than the layer", child.name, l.name)
	}
}

// TestProxyAway: with any proxy or registry above away the bottom serves what it has, says why, and is in step seconds
// after it is back, whatever nginx answered in the meantime.
func TestProxyAway(t *testing.T) {
	stop := func(at func(*site) *stratum) func(*site) {
		return func(s *site) { must(s.t, at(s).proxy.Stop()) }
	}
	start := func(at func(*site) *stratum) func(*site) {
		return func(s *site) { must(s.t, at(s).proxy.Start(s.ctx)) }
	}
	tests := []struct {
		name       string
		forwards   bool // the middle layer has no registry
		away, back func(*site)
		want       string
	}{
		{"the parent's proxy", false, stop((*site).middle), start((*site).middle), "the connection to 127.0.0.84"},
		{"the parent's registry", false, func(s *site) { s.middle().registry.stop() }, func(s *site) { s.middle().registry.start() }, "HTTP 502"},
		{"the proxy that the parent's forwards to", true, stop((*site).top), start((*site).top), "HTTP 502"},
		{"the registry behind two proxies", true, func(s *site) { s.top().registry.stop() }, func(s *site) { s.top().registry.start() }, "HTTP 502"},
		{
			"a registry that says nothing", true, func(s *site) { s.top().registry.signal(syscall.SIGSTOP) },
			func(s *site) { s.top().registry.signal(syscall.SIGCONT) }, "HTTP 504",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, true, !tt.forwards, true)
			if tt.want == "HTTP 504" {
				s.top().proxy.Silence = 2 * time.Second
			}
			must(t, cloud.Push(s.ctx, s.cloud.Addr, "acme/app:1", image(t, "app", 1000)))
			s.start()
			s.synced(s.bottom(), 1)
			tt.away(s)
			st := s.bottom().registry.until("it has noticed", func(st registry.Status) bool {
				return st.ConnectionState == registry.Offline && len(st.StatusDetails) == 1 && strings.Contains(st.StatusDetails[0].Description, tt.want)
			})
			if st.StatusDetails[0].Code != "ParentUnreachable" {
				t.Errorf("status %+v", st.StatusDetails)
			}
			if s.digest(s.bottom(), "acme/app:1") == "" {
				t.Error("what is here is not served")
			}
			tt.back(s)
			began := time.Now()
			s.until("the parent's side answers", func() bool {
				resp, _ := s.send(s.middle(), "layer3", "GET", "/v2/", http.NoBody, nil)
				return resp.StatusCode == http.StatusOK
			})
			want := s.changeAbove("acme/app:2")
			s.until("it is at the bottom", func() bool { return s.digest(s.bottom(), "acme/app:2") == want })
			if took := time.Since(began).Round(10 * time.Millisecond); took > 15*time.Second {
				t.Errorf("in step %v after it was back", took)
			} else {
				t.Logf("in step %v after it was back", took)
			}
		})
	}
}

// TestSilence: an operator's proxy that gives up on an answer sooner than a poll is held. Nothing is lost by it.
func TestSilence(t *testing.T) {
	s := newSite(t, true, false, true)
	s.middle().proxy.Silence = 3 * time.Second
	s.start()
	s.synced(s.bottom(), 0)
	s.until("a poll was given up", func() bool {
		log := s.log(s.middle())
		return len(log) > 0 && log[len(log)-1].Status == http.StatusGatewayTimeout
	})
	want := s.changeAbove("acme/app:1")
	s.until("it is at the bottom", func() bool { return s.digest(s.bottom(), "acme/app:1") == want })
	gaveUp := 0
	for _, a := range s.log(s.middle()) {
		if a.Status == http.StatusGatewayTimeout {
			gaveUp++
		}
	}
	st := s.bottom().registry.until("any", func(registry.Status) bool { return true })
	t.Logf("%d polls were given up; %s %+v", gaveUp, st.ConnectionState, st.StatusDetails)
}
