package chaos

import (
	"fmt"
	"testing"

	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// TestThousandCuts cuts each connection after so few bytes that an image takes a thousand of them, in the long run; by
// FIN and by RST, and where the cut falls in classes of bytes: within the first read, around it, and beyond.
func TestThousandCuts(t *testing.T) {
	cuts, classes := 60, []int64{48 << 10}
	if long {
		cuts, classes = 1000, []int64{17 << 10, 32<<10 - 1, 32 << 10, 32<<10 + 1, 48 << 10, 64<<10 - 1, 64 << 10, 64<<10 + 1, 100_003}
	}
	for name, by := range map[string]linkproxy.CutBy{"FIN": linkproxy.FIN, "RST": linkproxy.RST} {
		for _, after := range classes {
			t.Run(fmt.Sprint(name, " after ", after), func(t *testing.T) {
				s := newSite(t, 1)
				size := int(after) * cuts * 9 / 10 // headers are a part of each connection's bytes
				img := s.push(repo+":1", size, "big")
				s.must(s.links[0].Set(linkproxy.Plan{CutAfter: after, CutBy: by}))
				s.must(s.layers[0].Start(s.ctx))
				s.wait(s.layers[0], 1)
				got := s.links[0].Counters().Cuts
				t.Logf("%d KiB: %d cuts, %d bytes extra a cut", size>>10, got, s.extra(0)/int64(max(1, got)))
				if got < cuts*8/10 {
					t.Errorf("%d cuts, want about %d: the test is not what it says", got, cuts)
				}
				if s.extra(0) > int64(got)*lostPerCut+overhead {
					t.Errorf("%d bytes extra for %d cuts", s.extra(0), got)
				}
				s.must(s.links[0].Set(linkproxy.Plan{}))
				s.same(s.layers[0], repo+":1", img)
			})
		}
	}
}
