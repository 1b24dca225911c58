package syncer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/store"
	"github.com/connected-registry/connected-registry/internal/syncer"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// many is the long run.
var many = os.Getenv("CHAOS") == "long"

// PushBlob takes what is pushed up to the parent.
func (p *parent) PushBlob(ctx context.Context, b registry.BlobPush) error {
	if err := p.ask("push " + b.Digest.String()); err != nil {
		return err
	}
	if _, err := p.Registry.ResolveBlob(ctx, b.Repository, b.Digest); err == nil {
		return nil
	}
	for _, from := range b.From {
		if _, err := p.Registry.MountBlob(ctx, b.Repository, from, b.Digest); err == nil {
			return nil
		}
	}
	r, err := b.Open(ctx)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	if p.spend != nil {
		if err := p.spend(int64(len(body))); err != nil {
			return err
		}
	}
	p.set(func(p *parent) { p.sent[b.Digest] += int64(len(body)) })
	return registrytest.PushBlob(ctx, p.Registry, b.Repository, registrytest.Blob{Descriptor: b.Descriptor, Bytes: body})
}

func (p *parent) PutManifest(ctx context.Context, repo string, ref registry.Reference, m registry.Manifest) (registry.Descriptor, error) {
	if err := p.ask("put " + repo + " " + ref.String()); err != nil {
		return registry.Descriptor{}, err
	}
	p.set(func(p *parent) { p.classes[ref.Tag] = transport.ClassOf(ctx) })
	if err := p.moves(ctx, ref.Tag); err != nil {
		return registry.Descriptor{}, err
	}
	if p.isLate(func(r registry.Registry) { _, _ = r.PutManifest(context.WithoutCancel(ctx), repo, ref, m) }) { // what it needs may be gone
		return registry.Descriptor{}, away
	}
	d, err := p.Registry.PutManifest(ctx, repo, ref, m)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.after != nil && err == nil {
		err = p.after("put " + repo + " " + ref.String())
	}
	return d, err
}

// moves keeps the precondition of a request that changes a tag, and lets somebody else be quicker.
func (p *parent) moves(ctx context.Context, tag string) error {
	var quicker func()
	p.set(func(p *parent) {
		if tag != "" {
			p.demands = append(p.demands, registry.PreconditionFrom(ctx))
			quicker = p.quicker
		}
	})
	if quicker == nil {
		return nil
	}
	quicker()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// isLate takes a request that is to be late.
func (p *parent) isLate(request func(r registry.Registry)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.late == 0 {
		return false
	}
	p.late--
	p.arrive = append(p.arrive, func() { request(p.Registry) })
	return true
}

// arrives has every request arrive that is late.
func (p *parent) arrives() {
	var list []func()
	p.set(func(p *parent) { list, p.arrive, p.late = p.arrive, nil, 0 })
	for _, f := range list {
		f()
	}
}

func (p *parent) DeleteManifest(ctx context.Context, repo string, d registry.Digest) error {
	if err := p.ask("delete " + repo + " " + d.String()); err != nil {
		return err
	}
	if p.isLate(func(r registry.Registry) { _ = r.DeleteManifest(context.Background(), repo, d) }) {
		return away
	}
	return p.Registry.DeleteManifest(ctx, repo, d)
}

func (p *parent) DeleteTag(ctx context.Context, repo, tag string) error {
	if err := p.ask("untag " + repo + " " + tag); err != nil {
		return err
	}
	if err := p.moves(ctx, tag); err != nil {
		return err
	}
	if p.isLate(func(r registry.Registry) { _ = r.DeleteTag(context.WithoutCancel(ctx), repo, tag) }) {
		return away
	}
	return p.Registry.DeleteTag(ctx, repo, tag)
}

// Refer has nothing to do: this parent keeps such lists itself.
func (p *parent) Refer(_ context.Context, repo string, m registry.Manifest) error {
	return p.ask("refer " + repo + " " + m.Digest.String())
}

// floor is a ReadWrite registry whose outbox climbs to a parent. Clients push to its store.
type floor struct {
	*syncer.Syncer
	t      *testing.T
	store  *store.Store
	down   bool
	cancel context.CancelFunc
	group  sync.WaitGroup
}

// newFloor starts one. down says whether it takes from the parent, too.
func newFloor(t *testing.T, set syncer.Settings, o syncer.Options, down bool) *floor {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	st, err := store.Open(ctx, t.TempDir(), store.Options{})
	if err == nil {
		err = st.SetClimbing(ctx, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	f := &floor{t: t, store: st, down: down}
	f.cancel = cancel
	f.run(ctx, set, o)
	t.Cleanup(func() {
		f.stop()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// run has a new process carry what the store holds.
func (f *floor) run(ctx context.Context, set syncer.Settings, o syncer.Options) {
	o.InstanceID, o.Outbox, o.Holders = f.store.InstanceID(), f.store, f.store.BlobHolders
	s := syncer.New(ctx, f.store, o)
	s.Update(set)
	f.Syncer = s
	f.group.Go(func() { s.Climb(ctx) })
	if f.down {
		f.group.Go(func() { s.Run(ctx) })
	}
}

// start is run after stop.
func (f *floor) start(set syncer.Settings, o syncer.Options) {
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	f.run(ctx, set, o)
}

// stop ends the process that carries.
func (f *floor) stop() {
	f.cancel()
	f.group.Wait()
	f.Wait()
}

func climbing(t *testing.T, p *parent, scope ...string) syncer.Settings {
	set := settings(t, p, scope...)
	set.Mode, set.MessageTTL = registry.ReadWrite, 48*time.Hour
	return set
}

func (f *floor) push(tag string, img registrytest.Image) {
	f.t.Helper()
	if err := registrytest.Push(f.t.Context(), f.store, "app", tag, img); err != nil {
		f.t.Fatal(err)
	}
}

// until waits for a condition.
func (f *floor) until(what string, cond func() bool) {
	f.t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("waited in vain until %s; the outbox is %+v", what, f.entries())
		}
	}
}

func (f *floor) entries() []registry.OutboxEntry {
	f.t.Helper()
	list, err := f.store.OutboxEntries(context.Background(), 0, registry.MaxPage)
	if err != nil {
		f.t.Fatal(err)
	}
	return list
}

func (f *floor) empty() {
	f.t.Helper()
	f.until("the outbox is empty", func() bool { return len(f.entries()) == 0 })
}

// retry tries everything now.
func (f *floor) retry() {
	f.t.Helper()
	if _, err := f.OutboxRetry(f.t.Context(), func(registry.OutboxEntry) bool { return true }); err != nil {
		f.t.Fatal(err)
	}
}

// stands is where a tag points; empty for nowhere.
func stands(t *testing.T, r registry.Reader, tag string) registry.Digest {
	t.Helper()
	d, err := r.ResolveManifest(t.Context(), "app", registry.TagReference(tag))
	if err != nil && !errors.Is(err, registry.ErrManifestUnknown) && !errors.Is(err, registry.ErrNameUnknown) {
		t.Fatal(err)
	}
	return d.Digest
}

func TestClimb(t *testing.T) {
	p := newParent()
	p.away = away
	f := newFloor(t, climbing(t, p), syncer.Options{ConfirmAfter: -1}, false)
	a, b := registrytest.NewImage(1, 100, 200), registrytest.NewImage(2, 300)
	all := registrytest.NewIndex(a, b)
	signature := registrytest.NewReferrer(3, a.Descriptor, "application/vnd.example.signature")
	later := registrytest.NewImage(4, 50)
	early := registrytest.NewReferrer(5, later.Descriptor, "application/vnd.example.signature") // pushed before what it is about
	f.push("", early)
	f.push("later", later)
	f.push("all", all)
	f.push("a", a)
	f.push("", signature)
	f.push("move", a)
	f.push("move", b)
	p.set(func(p *parent) { p.away = nil })
	f.retry()
	f.empty()
	for tag, want := range map[string]registry.Digest{"all": all.Digest, "a": a.Digest, "move": b.Digest} {
		if got := stands(t, p.Registry, tag); got != want {
			t.Errorf("%s is %s at the parent, want %s", tag, got, want)
		}
	}
	for _, subject := range []registrytest.Image{a, later} {
		if list, err := p.Registry.Referrers(t.Context(), "app", subject.Digest, ""); err != nil || len(list) != 1 {
			t.Errorf("referrers of %s at the parent: %v, %v", subject.Digest, list, err)
		}
	}
	for what, n := range p.calls {
		if n > 1 && len(what) > 3 && what[:3] == "put" {
			t.Errorf("%s: %d times", what, n)
		}
	}
	for _, img := range []registrytest.Image{a, b, signature} {
		for _, blob := range img.Blobs {
			if sent := p.bytes(blob.Digest); sent != blob.Size {
				t.Errorf("%s of %d bytes: %d were sent", blob.Digest, blob.Size, sent)
			}
		}
	}
}

// TestConflict has a tag move at the parent while a push waits here.
func TestConflict(t *testing.T) {
	base, ours, theirs := registrytest.NewImage(1, 10), registrytest.NewImage(2, 20), registrytest.NewImage(3, 30)
	for _, c := range []registry.Conflict{registry.NewestWins, registry.ParentWins} {
		t.Run(string(c), func(t *testing.T) {
			p := newParent()
			push(t, p, "app", "v", base)
			set := climbing(t, p, "app")
			set.Conflict = c
			f := newFloor(t, set, syncer.Options{ConfirmAfter: -1}, true)
			f.until("it is synced", func() bool { return stands(t, f.store, "v") == base.Digest })
			p.set(func(p *parent) { p.away = away })
			f.push("v", ours)
			push(t, p, "app", "v", theirs)
			p.set(func(p *parent) { p.away = nil })
			if err := f.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.empty()
			want, lost := ours, theirs
			if c == registry.ParentWins {
				want, lost = theirs, ours
			}
			f.until("both sides are equal", func() bool {
				return stands(t, f.store, "v") == want.Digest && stands(t, p.Registry, "v") == want.Digest
			})
			if _, err := p.Registry.ResolveManifest(t.Context(), "app", registry.DigestReference(lost.Digest)); err != nil {
				t.Errorf("what lost is gone at the parent: %v", err)
			}
			var s registry.Status
			f.Describe(&s)
			if len(s.Outbox.Conflicts) != 1 || s.Outbox.Conflicts[0].Theirs != theirs.Digest || s.Outbox.Conflicts[0].ParentWins != (c == registry.ParentWins) {
				t.Errorf("conflicts %+v", s.Outbox.Conflicts)
			}
		})
	}
}

func TestDeletesClimb(t *testing.T) {
	p := newParent()
	a, b := registrytest.NewImage(1, 10), registrytest.NewImage(2, 20)
	push(t, p, "app", "a", a)
	push(t, p, "app", "b", b)
	f := newFloor(t, climbing(t, p, "app"), syncer.Options{ConfirmAfter: -1}, true)
	f.until("it is synced", func() bool { return stands(t, f.store, "a") != "" && stands(t, f.store, "b") != "" })
	if err := errors.Join(f.store.DeleteTag(t.Context(), "app", "a"), f.store.DeleteManifest(t.Context(), "app", b.Digest)); err != nil {
		t.Fatal(err)
	}
	f.empty()
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range []registry.Reader{p.Registry, f.store} {
		if stands(t, r, "a") != "" || stands(t, r, "b") != "" {
			t.Error("a tag is still there")
		}
	}
	if _, err := p.Registry.ResolveManifest(t.Context(), "app", registry.DigestReference(a.Digest)); err != nil {
		t.Errorf("the untagged manifest: %v", err)
	}
	if _, err := p.Registry.ResolveManifest(t.Context(), "app", registry.DigestReference(b.Digest)); err == nil {
		t.Error("the deleted manifest is there")
	}
}

// TestRefused lets the parent refuse one tag: the others climb, the entry says why, and is sent again or given up.
func TestRefused(t *testing.T) {
	p := newParent()
	locked := registry.ErrLocked.WithMessage("locked by the plant")
	p.broken = map[string]error{"put app fixed": locked}
	f := newFloor(t, climbing(t, p), syncer.Options{ConfirmAfter: -1}, false)
	f.push("fixed", registrytest.NewImage(1, 10))
	f.push("free", registrytest.NewImage(2, 20))
	refused := func() bool {
		list := f.entries()
		return len(list) == 1 && list[0].State == registry.OutboxRefused && list[0].Error == locked.Message
	}
	f.until("one is refused", refused)
	if stands(t, p.Registry, "free") == "" {
		t.Error("the other tag was kept back")
	}
	var s registry.Status
	f.Describe(&s)
	if s.Outbox.Refused != 1 || len(s.StatusDetails) != 1 || s.StatusDetails[0].Code != "OutboxRefused" {
		t.Errorf("status %+v %+v", s.Outbox, s.StatusDetails)
	}
	n := p.count("put app fixed")
	if got, err := f.OutboxRetry(t.Context(), func(registry.OutboxEntry) bool { return true }); got != 1 || err != nil {
		t.Fatal(got, err)
	}
	f.until("it is refused again", func() bool { return p.count("put app fixed") == n+1 && refused() })
	if e, err := f.OutboxDrop(t.Context(), f.entries()[0].Seq); err != nil || e.Tag != "fixed" {
		t.Fatal(e, err)
	}
	f.empty()
	if _, err := f.OutboxDrop(t.Context(), 99); !errors.Is(err, registry.ErrNameUnknown) {
		t.Errorf("dropping nothing: %v", err)
	}
}

// TestThirtyDaysAway queues many small pushes, has the parent away for a month, and counts what it costs when it is back.
func TestThirtyDaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 100
		if many {
			n = 10_000
		}
		p := newParent()
		p.away = away
		set := climbing(t, p)
		set.MessageTTL, set.Schedule = 90*24*time.Hour, every(t, "0 * * * *")
		f := newFloor(t, set, syncer.Options{ConfirmAfter: -1}, false)
		for i := range n {
			f.push(fmt.Sprint("v", i), registrytest.NewImage(uint64(i+1), 50))
		}
		time.Sleep(30 * 24 * time.Hour)
		synctest.Wait()
		tried := p.count("probe")
		p.set(func(p *parent) { p.away, p.calls = nil, map[string]int{} })
		back := time.Now()
		for f.outbox().Pending > 0 {
			if time.Sleep(time.Second); time.Since(back) > 24*time.Hour {
				t.Fatalf("after a day: %+v", f.outbox())
			}
		}
		t.Logf("%d pushes: %d questions in 30 days, all at the parent %v after it was back", n, tried, time.Since(back))
		if tried > 30*24*4*2 {
			t.Errorf("%d questions in 30 days", tried)
		}
		for i := range n {
			if stands(t, p.Registry, fmt.Sprint("v", i)) == "" {
				t.Fatalf("v%d is not there", i)
			}
			if got := p.calls[fmt.Sprintf("put app v%d", i)]; got != 1 {
				t.Errorf("v%d was put %d times", i, got)
			}
		}
	})
}

func (f *floor) outbox() registry.OutboxStatus {
	f.t.Helper()
	s, err := f.store.OutboxStatus(context.Background())
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// TestExpires has a change wait for longer than messageTtl: it is kept and told, and climbs when it is sent again.
func TestExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParent()
		p.away = away
		f := newFloor(t, climbing(t, p), syncer.Options{ConfirmAfter: -1}, false)
		img := registrytest.NewImage(1, 10)
		f.push("v", img)
		time.Sleep(49 * time.Hour)
		synctest.Wait()
		var s registry.Status
		f.Describe(&s)
		if s.Outbox.Expired != 1 || s.Outbox.Pending != 0 || len(s.StatusDetails) == 0 || s.StatusDetails[len(s.StatusDetails)-1].Code != "OutboxExpired" {
			t.Errorf("status %+v %+v", s.Outbox, s.StatusDetails)
		}
		p.set(func(p *parent) { p.away = nil })
		time.Sleep(time.Hour)
		synctest.Wait()
		if stands(t, p.Registry, "v") != "" {
			t.Error("an expired change was sent without being asked for")
		}
		if n, err := f.OutboxRetry(t.Context(), func(e registry.OutboxEntry) bool { return e.State == registry.OutboxExpired }); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if stands(t, p.Registry, "v") != img.Digest || len(f.entries()) != 0 {
			t.Errorf("after outbox retry: %+v", f.entries())
		}
	})
}
