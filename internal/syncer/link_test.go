package syncer_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// meteredLink is a link whose budget of an hour a test counts.
type meteredLink struct {
	mu    sync.Mutex
	left  int64
	until time.Time
}

func (l *meteredLink) use(n int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !time.Now().Before(l.until) {
		l.left, l.until = 1<<20, l.until.Add(time.Hour)
	}
	if l.left < n {
		l.left = 0
		return registry.ErrUnavailable.WithMessage("the byte budget of this hour is used up").WithRetryAfter(time.Minute).Wrap(registry.ErrBudget)
	}
	l.left -= n
	return nil
}

func (l *meteredLink) Spent() error {
	l.mu.Lock()
	spent := l.left == 0
	l.mu.Unlock()
	if spent {
		return l.use(1)
	}
	return nil
}

func (l *meteredLink) Budgets() []registry.BudgetStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !time.Now().Before(l.until) {
		l.left, l.until = 1<<20, l.until.Add(time.Hour)
	}
	return []registry.BudgetStatus{{Period: "hour", Limit: 1 << 20, Used: 1<<20 - l.left, Left: l.left, Until: l.until}}
}

func (l *meteredLink) Speed() (measured, limit int64) { return 0, 0 }

// TestBudgetEndsAnIteration brings an image of more than two budgets: it takes three hours and not one byte twice, the
// parent is not taken for away, and what clients ask for says why it is not here.
func TestBudgetEndsAnIteration(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		img := registrytest.NewImage(1, 9<<18)
		push(t, p, "app", "v1", img)
		link := &meteredLink{until: time.Now().Add(time.Hour), left: 1 << 20}
		p.read = func(_ registry.Digest, _ int64, b []byte) error { return link.use(int64(len(b))) }
		r, stop := newReplica(t, dir, settings(t, p, "app"), syncer.Options{Link: link, Clock: clock.System()})
		time.Sleep(30 * time.Minute)
		var st registry.Status
		r.Describe(&st)
		if st.Sync.SyncState != registry.SyncTimedOut || st.ConnectionState != registry.Online || len(st.StatusDetails) != 0 || st.Sync.NextSyncTime.Sub(link.until).Abs() > time.Second {
			t.Errorf("with the budget used up: %s %+v %+v", st.ConnectionState, st.Sync, st.StatusDetails)
		}
		if len(st.Budgets) != 1 || st.Budgets[0].Left != 0 {
			t.Errorf("budgets: %+v", st.Budgets)
		}
		before := p.count("manifest app v1")
		_, err := r.served.GetManifest(t.Context(), "app", registry.TagReference("v1"))
		if !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), "budget") || registry.AsError(err).RetryAfter < time.Minute || p.count("manifest app v1") != before {
			t.Errorf("a miss: %v, Retry-After %v", err, registry.AsError(err).RetryAfter)
		}
		if n := p.count("probe") + p.count("tags app"); n > 4 {
			t.Errorf("%d questions in half an hour without a budget", n)
		}
		time.Sleep(2 * time.Hour)
		mustHave(t, r.store, "app", "v1", img)
		if n := p.bytes(img.Blobs[1].Digest); n != 9<<18 {
			t.Errorf("%d bytes crossed the link for a layer of %d", n, 9<<18)
		}
		stop()
	})
}
