// Package syncer keeps here what is configured of the parent: it plans (a pure function of what the parent has and
// what is here), fetches what is missing, and makes a tag visible only after all under it is here and verified.
// Clients that ask for what is not here yet are served by the same transfers while the bytes arrive.
//
// What is here is never asked of the parent, in any state of the parent.
package syncer

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/schedule"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// Layer is what only a parent can be asked.
type Layer interface {
	// Probe finds out what kind of registry the parent is; LayerInfo is empty unless it is one of ours.
	Probe(ctx context.Context) (registry.ParentStatus, registry.LayerInfo, error)
	// Changes asks what changed; UNSUPPORTED unless it is one of ours.
	Changes(ctx context.Context, req registry.ChangesRequest) (registry.Changes, error)
	// RecentTags lists the tags that were updated at since or later, and how many tags and manifests there are;
	// UNSUPPORTED unless it is Azure Container Registry.
	RecentTags(ctx context.Context, repo string, since time.Time) (tags []registry.TagInfo, about registry.RepositoryInfo, err error)
	// Traffic counts what went over the link.
	Traffic() registry.Traffic
}

// Parent is the registry above.
type Parent interface {
	registry.Reader
	registry.Lister
	Layer
}

// Store is where content is kept.
type Store interface {
	registry.Reader
	registry.Lister
	registry.Replica
	registry.Documents
	// PartialSize is how many bytes of unfinished content are here.
	PartialSize(d registry.Digest) int64
	// Unrefer removes manifests that refer to another one and were deleted at the parent, unless they were pushed here.
	Unrefer(ctx context.Context, repo string, referrers []registry.Digest) (removed int, err error)
}

// Link is the gate that bytes to and from the parent pass.
type Link interface {
	// Spent returns why no content may be fetched now, registry.ErrBudget; nil when it may.
	Spent() error
	// Budgets returns what is left of each byte budget.
	Budgets() []registry.BudgetStatus
	// Speed returns the measured speed and the limit in force, in bytes per second; 0 is not known, and none.
	Speed() (measured, limit int64)
}

// Settings is what configuration changes while the syncer runs.
type Settings struct {
	Parent      Parent // nil: there is none, or its configuration is not usable
	ParentName  string // for messages and to tell one parent from another
	Mode        registry.Mode
	Scope       registry.Scope
	First       registry.Scope // what of the scope comes first: the images that a layer below starts from
	Schedule    schedule.Plan
	Parallel    int               // transfers at once in the background, at least 1
	PullThrough bool              // fetch what a client asks for at once
	MessageTTL  time.Duration     // after this long in the outbox an entry is expired; 0 never
	Conflict    registry.Conflict // who keeps a tag that moved at the parent as well; empty is NewestWins
}

// Options are the parts that a Syncer may be given; the zero value works.
type Options struct {
	Name       string // connected registry name of this registry
	InstanceID string // of this registry, to find loops
	Clock      clock.Clock
	Logger     *slog.Logger
	Rand       func() float64 // 0 <= x < 1, for jitter
	// Patience is how long a transfer goes on trying without getting a byte before it gives up for this time; 0 is 20 s.
	// What it has stays on disk for the next time.
	Patience time.Duration
	// Link is asked for budgets and speed; nil: there are no budgets, and the speed is not known.
	Link Link
	// Gate decides, between "all content is here" and "the tags move", whether they may. Nil lets all pass.
	Gate func(ctx context.Context, image registry.Image) error
	// Outbox is what Climb carries to the parent; nil carries nothing.
	Outbox registry.Outbox
	// Holders lists repositories here that have a blob, at most limit; nil knows none.
	Holders func(ctx context.Context, d registry.Digest, limit int) ([]string, error)
	// ConfirmAfter is when a parent of a kind that may answer before its disk has what it answers for is asked once more;
	// 0 is a minute, less than 0 is never.
	ConfirmAfter time.Duration
	// LateAfter is for how long a request of which no answer came may yet arrive at the parent; 0 is half an hour, which is
	// the most, less than 0 is not at all.
	LateAfter time.Duration
}

// Syncer keeps a store in step with a parent.
type Syncer struct {
	base  context.Context // bounds the transfers that outlive a request
	store Store
	o     Options
	fetch *fetcher
	pulls *pulls
	tags  *tags
	up    *climber
	tasks sync.WaitGroup // goroutines that outlive a request

	intent    intent
	mu        sync.Mutex
	rechecked tagName // the last tag of those that are asked for in turns
	settings  Settings
	changed   chan struct{} // closed when settings change
	triggers  []chan error  // who waits for the next iteration
	wake      chan struct{} // closed when a trigger is added
	relist    bool          // the next iteration asks for all that the parent has
	state     state
	kept      keptManifests
	retries   map[string]retry              // tags and referrers that failed by themselves
	recent    map[string]recent             // by repository
	subjects  map[subject]followed          // whose referrers were asked for
	unhealed  map[registry.Digest]time.Time // lost content that the parent did not have, and when it was asked
}

// state is what Status shows; the run loop and the pull-through write it.
type state struct {
	parent      registry.ParentStatus
	info        registry.LayerInfo
	probed      time.Time // last successful Probe
	lastContact time.Time
	lastFailure time.Time
	since       since
	failure     error // of the last contact; nil when it was good
	refused     error // the two layers do not fit together
	sync        registry.SyncStatus
	history     []registry.SyncIteration // newest first
	kept        time.Time                // when the history was made durable last
	repos       map[string]registry.RepositoryState
	lacks       map[subject][]registry.Descriptor // blobs that were not here when an image was measured
	failed      error                             // of the last iteration; nil when it was good
}

// since is when each kind of trouble began; trying again in vain begins nothing.
type since struct {
	failure, refused, failed time.Time
}

// New returns a Syncer that does nothing until Update and Run. ctx bounds transfers that outlive the request that
// started them.
func New(ctx context.Context, store Store, o Options) *Syncer {
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.LateAfter = min(o.LateAfter, lateAfter); o.LateAfter == 0 {
		o.LateAfter = lateAfter
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Link == nil {
		o.Link = transport.NewLink(transport.LinkOptions{})
	}
	if o.Patience <= 0 {
		o.Patience = patience
	}
	s := &Syncer{base: ctx, store: store, o: o, changed: make(chan struct{}), wake: make(chan struct{})}
	s.state.repos, s.state.lacks = map[string]registry.RepositoryState{}, map[subject][]registry.Descriptor{}
	s.recent = map[string]recent{}
	s.retries = map[string]retry{}
	s.subjects = map[subject]followed{}
	s.unhealed = map[registry.Digest]time.Time{}
	s.fetch = newFetcher(s)
	s.pulls = newPulls(s)
	s.up = newClimber(s)
	s.tags = newTags(s.up, s.up.resync)
	return s
}

// same reports whether nothing changed that an iteration under way would have to know.
func (a Settings) same(b Settings) bool {
	return a.Parent == b.Parent && a.ParentName == b.ParentName && a.Mode == b.Mode &&
		slices.Equal(a.Scope, b.Scope) && slices.Equal(a.First, b.First) &&
		a.Schedule.Window == b.Schedule.Window && a.Schedule.Schedule.String() == b.Schedule.Schedule.String() &&
		a.Parallel == b.Parallel && a.PullThrough == b.PullThrough && a.MessageTTL == b.MessageTTL && a.Conflict == b.Conflict
}

// Update puts settings in force at once: an iteration under way begins again with them, and loses no byte by it.
func (s *Syncer) Update(set Settings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if set.Parallel < 1 {
		set.Parallel = 1
	}
	if set.same(s.settings) {
		return
	}
	if set.Parent != s.settings.Parent {
		s.state.parent, s.state.info, s.state.probed = registry.ParentStatus{}, registry.LayerInfo{}, time.Time{}
		s.state.failure, s.state.refused, s.state.failed = nil, nil, nil
		clear(s.retries)
		clear(s.subjects)
		clear(s.recent)
	}
	if set.Mode != s.settings.Mode {
		s.state.probed, s.state.refused = time.Time{}, nil // the two have to meet again
	}
	s.settings = set
	s.fetch.resize(set.Parallel)
	close(s.changed)
	s.changed = make(chan struct{})
}

// Wait returns when nothing that New's context bounds runs any more; call it after that context has ended.
func (s *Syncer) Wait() { s.tasks.Wait() }

// snapshot returns the settings and a channel that is closed when they change.
func (s *Syncer) snapshot() (Settings, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settings, s.changed
}

// Sync starts an iteration now and returns when one that began after the call has ended. What waits in the outbox begins
// to climb, too. An iteration that a kill or a reboot ends goes on when the process runs again.
func (s *Syncer) Sync(ctx context.Context) error {
	done := make(chan error, 1)
	s.intent.mu.Lock()
	s.keepIntent(ctx)
	s.mu.Lock()
	s.triggers = append(s.triggers, done)
	close(s.wake)
	s.wake = make(chan struct{})
	s.mu.Unlock()
	s.intent.mu.Unlock()
	s.up.nudge()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Relist makes the next iteration ask a parent of our own kind for all of its tags, and not only for what changed: what
// was passed over, because it was locked here, may follow the parent again.
func (s *Syncer) Relist() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.relist = true
	close(s.wake)
	s.wake = make(chan struct{})
}

// takeTriggers returns who waits for the iteration that begins now, and the channel to wait on for the next.
func (s *Syncer) takeTriggers() []chan error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.triggers
	s.triggers = nil
	return t
}

// putBack returns who waits for an iteration to the queue: theirs was interrupted.
func (s *Syncer) putBack(t []chan error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.triggers = append(t, s.triggers...)
}

func (s *Syncer) triggered() (pending bool, wake <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.triggers) > 0, s.wake
}

// contact records the result of talking to the parent. Only "away" counts as no contact: a parent that says no is there.
func (s *Syncer) contact(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Clock.Now()
	if errors.Is(err, registry.ErrBudget) {
		return // nobody was asked
	}
	if errors.Is(err, registry.ErrUnavailable) {
		if s.state.failure == nil {
			s.state.since.failure = now
		}
		s.state.failure, s.state.lastFailure = err, now
		return
	}
	if err == nil || isAnswer(err) {
		s.state.failure, s.state.lastContact = nil, now
	}
}

// isAnswer reports whether the error is one that the parent gave, as against one that kept us from asking it.
func isAnswer(err error) bool {
	var e *registry.Error
	return errors.As(err, &e) && e.Code != registry.CodeInternal && e.Code != registry.CodeDiskError
}
