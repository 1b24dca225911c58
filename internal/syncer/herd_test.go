package syncer_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

// emptyStore is a store in which there is nothing but documents, light enough for a fleet.
type emptyStore struct {
	registry.Registry
	mu   sync.Mutex
	docs map[string][]byte
}

func newEmptyStore() *emptyStore {
	return &emptyStore{Registry: registrytest.NewMemory(), docs: map[string][]byte{}}
}

func (*emptyStore) StatContent(context.Context, registry.Digest) (int64, bool) { return 0, false }
func (*emptyStore) PartialSize(registry.Digest) int64                          { return 0 }
func (*emptyStore) OpenContent(context.Context, registry.Digest) (registry.BlobReader, error) {
	return nil, registry.ErrBlobUnknown
}

func (*emptyStore) Partial(context.Context, registry.Digest, int64) (registry.Partial, error) {
	return nil, registry.ErrDisk
}

func (*emptyStore) CommitImage(context.Context, registry.Image) ([]string, error) { return nil, nil }

func (*emptyStore) TagStates(context.Context, string) ([]registry.LocalTag, error) {
	return nil, nil
}

func (*emptyStore) Untag(context.Context, string, []string) (int, error) { return 0, nil }

func (*emptyStore) Unrefer(context.Context, string, []registry.Digest) (int, error) { return 0, nil }

func (*emptyStore) Missing(context.Context, string, registry.Digest, func(registry.Descriptor) bool) ([]registry.Descriptor, error) {
	return nil, nil
}
func (*emptyStore) Damaged(context.Context) ([]registry.Damage, error) { return nil, nil }

func (s *emptyStore) Document(_ context.Context, name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.docs[name], nil
}

func (s *emptyStore) PutDocument(_ context.Context, name string, body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.docs[name] = body
	return nil
}

// door counts when a fleet comes to its parent.
type door struct {
	*parent
	mu    sync.Mutex
	times []time.Time
	shut  error
}

func (d *door) Probe(ctx context.Context) (registry.ParentStatus, registry.LayerInfo, error) {
	d.mu.Lock()
	d.times = append(d.times, time.Now())
	shut := d.shut
	d.mu.Unlock()
	if shut != nil {
		return registry.ParentStatus{}, registry.LayerInfo{}, shut
	}
	return d.parent.Probe(ctx)
}

func (d *door) Tags(ctx context.Context, repo, after string, limit int) ([]string, error) {
	d.mu.Lock()
	d.times = append(d.times, time.Now())
	d.mu.Unlock()
	return nil, nil
}

// peak returns the visits in the fullest of equal parts of a time, and the mean.
func (d *door) peak(from time.Time, part time.Duration, parts int) (peak int, mean float64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	count := make([]int, parts)
	for _, at := range d.times {
		if i := int(at.Sub(from) / part); at.After(from) && i < parts {
			count[i]++
			mean += 1 / float64(parts)
		}
	}
	return slices.Max(count), mean
}

// TestHerd cuts 500 registries off from one parent at the same moment and lets it come back: neither while it is away,
// nor when it is back, nor by their common schedule do they come at once.
func TestHerd(t *testing.T) {
	for name, tc := range map[string]struct {
		cron string
		shut error
		part time.Duration // six of them are looked at
	}{
		"continuous":              {"* * * * *", away, 10 * time.Second},
		"scheduled":               {"*/15 * * * *", away, 150 * time.Second},
		"told to wait for a year": {"*/15 * * * *", registry.ErrUnavailable.WithMessage("429").WithRetryAfter(15 * time.Minute), 150 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &door{parent: newParent(), shut: tc.shut}
				ctx, cancel := context.WithCancel(t.Context())
				var fleet sync.WaitGroup
				for i := range 500 {
					s := syncer.New(ctx, newEmptyStore(), syncer.Options{InstanceID: fmt.Sprintf("device-%d", i), Clock: clock.System()})
					set := settings(t, nil, "app")
					set.Parent, set.Schedule = d, every(t, tc.cron)
					s.Update(set)
					fleet.Go(func() { s.Run(ctx) })
				}
				look := func(when string) {
					from := time.Now()
					time.Sleep(6 * tc.part)
					peak, mean := d.peak(from, tc.part, 6)
					t.Logf("%s: peak %d, mean %.0f in %v", when, peak, mean, tc.part)
					if mean < 1 || float64(peak) > 2*mean {
						t.Errorf("%s: %d visits in %v, the mean is %.0f", when, peak, tc.part, mean)
					}
				}
				time.Sleep(90 * time.Minute)
				look("away")
				d.mu.Lock()
				d.shut = nil
				d.mu.Unlock()
				look("back")
				if tc.cron == "* * * * *" {
					time.Sleep(time.Minute)
					look("by the schedule")
				} else {
					time.Sleep(time.Until(time.Now().Truncate(15 * time.Minute).Add(15 * time.Minute)))
					from := time.Now()
					time.Sleep(time.Minute)
					peak, mean := d.peak(from, 10*time.Second, 6)
					t.Logf("by the schedule: peak %d, mean %.0f in 10 s", peak, mean)
					if mean < 80 || float64(peak) > 2*mean {
						t.Errorf("by the schedule: %d visits in 10 s, the mean is %.0f", peak, mean)
					}
				}
				cancel()
				fleet.Wait()
			})
		})
	}
}
