package powercut

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// healPatience is how long what is queued may take to the parent once the link is back.
const healPatience = time.Minute

// outbox lists what waits for the parent.
func (r *rig) outbox(ctx context.Context) (list []registry.OutboxEntry, err error) {
	for after := uint64(0); ; {
		var page module.OutboxPage
		ask := map[string]any{"after": after, "limit": registry.MaxPage}
		if err := module.Control(ctx, r.layer.DataDir(), http.MethodPost, "/methods/outboxList", ask, &page); err != nil {
			return nil, err
		}
		list = append(list, page.Entries...)
		if after = page.After; after == 0 {
			return list, nil
		}
	}
}

// climbed holds what clients know against the parent: each tag and manifest that was pushed or removed here stands there
// as it does here, or is queued. A queued delete of a manifest takes the tags along that point at it there.
func (r *rig) climbed(ctx context.Context, queue []registry.OutboxEntry) error {
	queued, going := map[string]bool{}, map[string]bool{}
	for _, e := range queue {
		if e.Action == registry.OutboxDelete {
			going[tagPath(e.Repository, e.Digest.String())] = true
		}
		queued[tagPath(e.Repository, e.Digest.String())] = true
		if e.Tag != "" {
			queued[tagPath(e.Repository, e.Tag)] = true
		}
	}
	want := map[string]string{}
	o := r.oracle
	o.mu.Lock()
	for path, f := range o.facts {
		if strings.HasPrefix(path, "/v2/local/") && strings.Contains(path, "/manifests/") {
			want[path] = f.acked
		}
	}
	o.mu.Unlock()
	c := newClient(r.cloud.Addr)
	defer c.close()
	paths := make([]string, 0, len(want))
	for path := range want {
		paths = append(paths, path)
	}
	return each(paths, func(path string) error {
		a, err := c.do(ctx, http.MethodGet, path, "", nil)
		if err != nil {
			return fmt.Errorf("at the parent: %s: %w", path, err)
		}
		found := ""
		if a.status == http.StatusOK {
			found = string(digestOf(a.body))
		}
		if found == want[path] || queued[path] || want[path] == "" && going[path[:strings.LastIndex(path, "/")+1]+found] {
			return nil
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.lost = append(o.lost, fmt.Sprintf("at the parent %s: %q, want %q, and it is not queued", path, found, want[path]))
		return nil
	})
}

// heal lets everything that is queued reach the parent, and holds both sides against each other.
func (r *rig) heal(ctx context.Context) error {
	if err := r.link.Set(linkproxy.Plan{}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, healPatience)
	defer cancel()
	for {
		// Outside of any schedule, and at once where a failed attempt has an entry wait.
		all := module.OutboxRetry{All: true}
		if err := module.Control(ctx, r.layer.DataDir(), http.MethodPost, "/methods/outboxRetry", all, &struct{}{}); err != nil {
			return err
		}
		for range 20 {
			queue, err := r.outbox(ctx)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(queue, func(e registry.OutboxEntry) bool { return e.State != registry.OutboxDelivered }) {
				return r.climbed(ctx, nil)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%d changes did not reach the parent, the first is %+v", len(queue), queue[0])
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}
