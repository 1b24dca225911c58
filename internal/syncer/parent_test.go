package syncer_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/schedule"
	"github.com/connected-registry/connected-registry/internal/store"
	"github.com/connected-registry/connected-registry/internal/syncer"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// parent is a registry above that counts and misbehaves as told.
type parent struct {
	registry.Registry
	mu       sync.Mutex
	kind     registry.ParentKind
	info     registry.LayerInfo
	away     error                                              // every question's answer while set
	read     func(d registry.Digest, off int64, p []byte) error // called before each read of a blob; an error cuts
	broken   map[string]error                                   // answers to single questions
	changes  func() (registry.Changes, error)                   // nil: UNSUPPORTED
	since    string                                             // the cursor of the last question for changes
	after    func(what string) error                            // called after a manifest was put, mu held: an error is the answer
	late     int                                                // so many manifests that are put arrive only when the parent is told so
	arrive   []func()                                           // has such a manifest arrive
	spend    func(n int64) error                                // called for what is pushed; an error is the answer
	demands  []registry.Precondition                            // of requests that change tags
	quicker  func()                                             // called before each of these is carried out
	refused  error                                              // the answer to it then, if any
	classes  map[string]transport.Class                         // of manifests that were put, by tag
	corrupt  map[registry.Digest]bool
	calls    map[string]int
	sent     map[registry.Digest]int64
	requests int64

	noCatalog bool
	manifests int                                                                                     // that an Azure Container Registry counts
	unlisted  map[registry.Digest]bool                                                                // referrers that are there and in no list
	slow      map[registry.Digest]time.Duration                                                       // before an answer for the referrers of a subject
	recent    func(repo string, since time.Time) ([]registry.TagInfo, registry.RepositoryInfo, error) // nil: UNSUPPORTED
}

func (p *parent) Repositories(ctx context.Context, after string, limit int) ([]string, error) {
	if p.noCatalog {
		return nil, registry.ErrUnsupported
	}
	return p.Registry.Repositories(ctx, after, limit)
}

func newParent() *parent {
	return &parent{
		Registry: registrytest.NewMemory(), kind: registry.KindOCI,
		classes: map[string]transport.Class{},
		calls:   map[string]int{}, sent: map[registry.Digest]int64{}, corrupt: map[registry.Digest]bool{},
	}
}

func (p *parent) ask(what string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls[what]++
	p.requests++
	if err := p.broken[what]; err != nil {
		return err
	}
	return p.away
}

func (p *parent) set(f func(p *parent)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

func (p *parent) count(what string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[what]
}

func (p *parent) bytes(d registry.Digest) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent[d]
}

func (p *parent) Probe(context.Context) (registry.ParentStatus, registry.LayerInfo, error) {
	err := p.ask("probe")
	p.mu.Lock()
	defer p.mu.Unlock()
	return registry.ParentStatus{Kind: p.kind, Mode: p.info.Mode, InstanceID: p.info.InstanceID}, p.info, err
}

func (p *parent) Changes(_ context.Context, req registry.ChangesRequest) (registry.Changes, error) {
	p.set(func(p *parent) { p.since = req.Since })
	if err := p.ask("changes"); err != nil || p.changes == nil {
		return registry.Changes{}, errors.Join(registry.ErrUnsupported, err)
	}
	return p.changes()
}

// RecentTags answers for an Azure Container Registry.
func (p *parent) RecentTags(ctx context.Context, repo string, since time.Time) ([]registry.TagInfo, registry.RepositoryInfo, error) {
	if err := p.ask("recent " + repo); err != nil || p.recent == nil {
		return nil, registry.RepositoryInfo{}, errors.Join(registry.ErrUnsupported, err)
	}
	return p.recent(repo, since)
}

func (p *parent) Traffic() registry.Traffic {
	p.mu.Lock()
	defer p.mu.Unlock()
	return registry.Traffic{Requests: p.requests}
}

func (p *parent) GetManifest(ctx context.Context, repo string, ref registry.Reference) (registry.Manifest, error) {
	if err := p.ask("manifest " + repo + " " + ref.String()); err != nil {
		return registry.Manifest{}, err
	}
	return p.Registry.GetManifest(ctx, repo, ref)
}

func (p *parent) ResolveManifest(ctx context.Context, repo string, ref registry.Reference) (registry.Descriptor, error) {
	if err := p.ask("head " + repo + " " + ref.String()); err != nil {
		return registry.Descriptor{}, err
	}
	return p.Registry.ResolveManifest(ctx, repo, ref)
}

func (p *parent) Tags(ctx context.Context, repo, after string, limit int) ([]string, error) {
	if err := p.ask("tags " + repo); err != nil {
		return nil, err
	}
	return p.Registry.Tags(ctx, repo, after, limit)
}

func (p *parent) Referrers(ctx context.Context, repo string, d registry.Digest, artifactType string) ([]registry.Descriptor, error) {
	if err := p.ask("referrers " + repo); err != nil {
		return nil, err
	}
	list, err := p.Registry.Referrers(ctx, repo, d, artifactType)
	p.mu.Lock()
	slow := p.slow[d]
	p.mu.Unlock()
	if slow > 0 {
		time.Sleep(slow)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(list, func(r registry.Descriptor) bool { return p.unlisted[r.Digest] }), err
}

func (p *parent) GetBlob(ctx context.Context, repo string, d registry.Digest) (registry.BlobReader, error) {
	if err := p.ask("blob " + d.String()); err != nil {
		return nil, err
	}
	r, err := p.Registry.GetBlob(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	return &link{BlobReader: r, p: p, ctx: ctx, d: d}, nil
}

// link is a blob over a link that can be cut.
type link struct {
	registry.BlobReader
	p   *parent
	ctx context.Context
	d   registry.Digest
	off int64
}

func (l *link) Seek(off int64, whence int) (int64, error) {
	n, err := l.BlobReader.Seek(off, whence)
	l.off = n
	return n, err
}

func (l *link) Read(b []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	l.p.mu.Lock()
	read, away, corrupt := l.p.read, l.p.away, l.p.corrupt[l.d]
	l.p.mu.Unlock()
	if away != nil {
		return 0, away
	}
	if read != nil {
		if err := read(l.d, l.off, b); err != nil {
			return 0, err
		}
	}
	n, err := l.BlobReader.Read(b)
	if corrupt && n > 0 {
		b[0] ^= 1
	}
	l.off += int64(n)
	l.p.set(func(p *parent) { p.sent[l.d] += int64(n) })
	return n, err
}

// away is how a parent that cannot be reached looks.
var away = registry.ErrUnavailable.WithMessage("connection refused")

// every is a schedule for tests: an iteration is due only when asked for, or each minute with "* * * * *".
func every(t *testing.T, cron string) schedule.Plan {
	t.Helper()
	s, err := schedule.Parse(cron)
	if err != nil {
		t.Fatal(err)
	}
	return schedule.Plan{Schedule: s, Window: time.Hour}
}

// replica is a registry under test: a real store in a folder of the test, and a syncer that runs.
type replica struct {
	*syncer.Syncer
	store  *store.Store
	served registry.Registry // what clients see
}

func settings(t *testing.T, p *parent, scope ...string) syncer.Settings {
	set := syncer.Settings{ParentName: "parent", Mode: registry.ReadOnly, Schedule: every(t, "* * * * *"), Parallel: 3, PullThrough: true}
	if p != nil {
		set.Parent = p
	}
	for _, s := range scope {
		set.Scope = append(set.Scope, registry.RepositoryRule{Repository: s})
	}
	return set
}

// newReplica starts one on dir; it stops with the test or by the function that is returned.
func newReplica(t *testing.T, dir string, set syncer.Settings, o syncer.Options) (*replica, func()) {
	t.Helper()
	return start(t, dir, set, o, (*syncer.Syncer).Run)
}

// newServing starts one that runs no iterations: only clients make it fetch.
func newServing(t *testing.T, set syncer.Settings) *replica {
	t.Helper()
	r, _ := start(t, t.TempDir(), set, syncer.Options{}, func(*syncer.Syncer, context.Context) {})
	return r
}

func start(t *testing.T, dir string, set syncer.Settings, o syncer.Options, run func(*syncer.Syncer, context.Context)) (*replica, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	st, err := store.Open(ctx, dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o.InstanceID = st.InstanceID()
	s := syncer.New(ctx, st, o)
	s.Update(set)
	done := make(chan struct{})
	go func() { defer close(done); run(s, ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		<-done
		s.Wait()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return &replica{Syncer: s, store: st, served: s.PullThrough(st)}, stop
}

// readAll reads a blob as a client does.
func readAll(ctx context.Context, r registry.Reader, repo string, d registry.Digest) ([]byte, error) {
	b, err := r.GetBlob(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(b)
	return body, errors.Join(err, b.Close())
}

func push(t *testing.T, p *parent, repo, tag string, img registrytest.Image) {
	t.Helper()
	if err := registrytest.Push(t.Context(), p.Registry, repo, tag, img); err != nil {
		t.Fatal(err)
	}
}
