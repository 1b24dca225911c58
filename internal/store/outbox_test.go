package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// climbing opens a store whose outbox grows.
func climbing(t *testing.T, dir string, o Options) *Store {
	t.Helper()
	s := openStore(t, dir, o)
	if err := s.SetClimbing(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	return s
}

// queued lists the outbox in short.
func queued(t rapid.TB, s *Store) (list []string) {
	t.Helper()
	entries, err := s.OutboxEntries(context.Background(), 0, registry.MaxPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, fmt.Sprintf("%d %s %s %s %s", e.Seq, e.Action, e.Tag, short(e.Digest), e.State))
	}
	return list
}

func short(d registry.Digest) string {
	if d == "" {
		return "-"
	}
	return d.Encoded()[:6]
}

// deliver does at the parent what an entry says. The parent is a registry that checks what a manifest refers to, so
// that content which comes after it fails.
func deliver(ctx context.Context, s *Store, parent registry.Registry, e registry.OutboxEntry) error {
	absent := func(err error) error {
		if errors.Is(err, registry.ErrManifestUnknown) || errors.Is(err, registry.ErrNameUnknown) {
			return nil
		}
		return err
	}
	switch e.Action {
	case registry.OutboxUntag:
		return absent(parent.DeleteTag(ctx, e.Repository, e.Tag))
	case registry.OutboxDelete:
		return absent(parent.DeleteManifest(ctx, e.Repository, e.Digest))
	}
	m, err := s.GetManifest(ctx, e.Repository, registry.DigestReference(e.Digest))
	if err != nil {
		return err
	}
	refs, err := registry.ParseManifest(m.MediaType, m.Bytes)
	if err != nil {
		return err
	}
	for _, b := range refs.Blobs {
		r, err := s.OpenContent(ctx, b.Digest)
		if err != nil {
			return err
		}
		body := make([]byte, b.Size)
		_, err = r.Read(body)
		if err := errors.Join(err, r.Close(), registrytest.PushBlob(ctx, parent, e.Repository, registrytest.Blob{Descriptor: b, Bytes: body})); err != nil {
			return err
		}
	}
	ref := registry.TagReference(e.Tag)
	if e.Tag == "" {
		ref = registry.DigestReference(e.Digest)
	}
	_, err = parent.PutManifest(ctx, e.Repository, ref, m)
	return err
}

// checkOutbox looks at what must be true of the outbox at any time.
func checkOutbox(t rapid.TB, s *Store) {
	t.Helper()
	err := s.bolt().View(func(btx *bbolt.Tx) error {
		tx := s.newTx(btx)
		q, err := tx.outbox(false)
		if q == nil || err != nil {
			return err
		}
		var counts outboxCounts
		tags, digests := map[string]int{}, 0
		err = q.entries.ForEach(func(k, v []byte) error {
			row, err := decodeOutbox(v)
			if err != nil {
				t.Errorf("row: %v", err)
				return nil
			}
			counts.add(row, 1)
			if row.tag != "" {
				tags[row.repo+":"+row.tag]++
			}
			for _, tag := range row.tags {
				tags[row.repo+":"+tag.tag]++
			}
			if row.action == rowUntag {
				return nil
			}
			digests++
			if row.action == rowDelete {
				if n := len(q.ofDigest(row.repo, row.digest, rowDelete)); n != 1 {
					t.Errorf("%d deletes of %s", n, row.digest)
				}
				return nil
			}
			r, err := tx.repo(row.repo)
			if err != nil {
				t.Errorf("a push is queued for %s: %v", row.repo, err)
				return nil
			}
			if m, err := r.manifest(row.digest); err != nil || !m.pushed {
				t.Errorf("a push of %s is queued and the manifest is %+v, %v", row.digest, m, err)
			}
			return nil
		})
		for tag, n := range tags {
			if n != 1 {
				t.Errorf("%d rows about %s", n, tag)
			}
		}
		if a, b := q.tags.Stats().KeyN, q.digests.Stats().KeyN; a != len(tags) || b != digests {
			t.Errorf("%d and %d keys, want %d tags and %d digests", a, b, len(tags), digests)
		}
		if s.outboxed.counts != counts {
			t.Errorf("counters %+v, rows %+v", s.outboxed.counts, counts)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestOutboxSeeds switches climbing on in a store that was pushed to before: tags, manifests without one and referrers
// are queued, content first, and once.
func TestOutboxSeeds(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	ctx := t.Context()
	a, b, c := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100), registrytest.NewImage(3, 100)
	index := registrytest.NewIndex(a, b)
	sig := registrytest.NewReferrer(4, index.Descriptor, "application/vnd.example")
	for tag, image := range map[string]registrytest.Image{"multi": index, "": sig, "one": a} {
		if err := registrytest.Push(ctx, s, testRepo, tag, image); err != nil {
			t.Fatal(err)
		}
	}
	if err := synced(ctx, s, testRepo, "theirs", c); err != nil {
		t.Fatal(err)
	}
	if list := queued(t, s); len(list) > 0 {
		t.Fatalf("queued while nothing climbs: %v", list)
	}
	for range 2 {
		if err := s.SetClimbing(ctx, true); err != nil {
			t.Fatal(err)
		}
	}
	at := map[string]int{}
	list, err := s.OutboxEntries(ctx, 0, 100)
	for i, e := range list {
		at[e.Tag+"@"+e.Digest.String()] = i
	}
	if err != nil || len(list) != 4 || len(at) != 4 || at["one@"+a.Digest.String()] > at["multi@"+index.Digest.String()] ||
		at["@"+b.Digest.String()] > at["multi@"+index.Digest.String()] || at["multi@"+index.Digest.String()] > at["@"+sig.Digest.String()] {
		t.Fatalf("%v, %v", queued(t, s), err)
	}
	parent := registrytest.NewMemory()
	for _, e := range list {
		if err := errors.Join(deliver(ctx, s, parent, e), s.OutboxDone(ctx, e.Seq)); err != nil {
			t.Fatalf("%+v: %v", e, err)
		}
	}
	closeChecked(t, s)
	s = climbing(t, dir, Options{})
	if list := queued(t, s); len(list) > 0 {
		t.Errorf("queued again: %v", list)
	}
	states, err := s.TagStates(ctx, testRepo)
	for _, tag := range states {
		if err != nil || tag.Pushed {
			t.Errorf("%+v counts as pushed here, %v", tag, err)
		}
	}
}

// TestOutboxOfOlderRelease: a release that knows no outbox moved a tag and removed a manifest meanwhile.
func TestOutboxOfOlderRelease(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s := climbing(t, dir, Options{})
	a, b, c := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100), registrytest.NewImage(3, 100)
	for tag, image := range map[string]registrytest.Image{"moves": a, "goes": b} {
		if err := registrytest.Push(ctx, s, testRepo, tag, image); err != nil {
			t.Fatal(err)
		}
	}
	err := s.update(ctx, func(t *tx) error { // its bucket is what it does not know
		r, err := t.repo(testRepo)
		if err != nil {
			return err
		}
		row, err := r.manifest(b.Digest)
		return errors.Join(err, r.removeTag("goes"), r.removeManifest(b.Digest, row))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetClimbing(ctx, false); err != nil {
		t.Fatal(err)
	}
	for _, blob := range c.Blobs {
		if err := registrytest.PushBlob(ctx, s, testRepo, blob); err != nil {
			t.Fatal(err)
		}
	}
	err = s.putManifestBytes(ctx, c.Manifest, func(t *tx) error {
		r, err := t.makeRepo(testRepo)
		if err != nil {
			return err
		}
		refs, err := registry.ParseManifest(c.MediaType, c.Bytes)
		row := newManifestRow(c.Descriptor, refs)
		row.pushed = true
		return errors.Join(err, r.putManifest(c.Descriptor, row, refs, true), r.moveTag("moves", c.Digest, true))
	})
	if err == nil {
		err = s.SetClimbing(ctx, true)
	}
	list := queued(t, s)
	if err != nil || len(list) != 2 || !strings.HasSuffix(list[0], fmt.Sprintf("push  %s waiting", short(a.Digest))) ||
		!strings.HasSuffix(list[1], fmt.Sprintf("push moves %s waiting", short(c.Digest))) {
		t.Errorf("%q, %v", list, err)
	}
	checkOutbox(t, s)
}

// TestOutboxBase: the base is where the tag stood at the parent, however often it moved here since.
func TestOutboxBase(t *testing.T) {
	s, ctx := climbing(t, t.TempDir(), Options{}), t.Context()
	a, b, c := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100), registrytest.NewImage(3, 100)
	last := func() registry.OutboxEntry {
		t.Helper()
		list, err := s.OutboxEntries(ctx, 0, 100)
		if err != nil || len(list) == 0 {
			t.Fatal(err)
		}
		return list[len(list)-1]
	}
	want := func(err error, action registry.OutboxAction, base registry.Digest) {
		t.Helper()
		if e := last(); err != nil || e.Action != action || e.Base != base || e.Principal != "line" || e.Repository != testRepo {
			t.Errorf("%+v, %v, want %s with the base %s", e, err, action, base)
		}
	}
	if err := synced(ctx, s, testRepo, "v1", a); err != nil {
		t.Fatal(err)
	}
	ctx = registry.WithPrincipal(ctx, registry.Principal{Name: "line"})
	want(registrytest.Push(ctx, s, testRepo, "v1", b), registry.OutboxPush, a.Digest)
	want(registrytest.Push(ctx, s, testRepo, "v1", c), registry.OutboxPush, a.Digest)
	want(s.DeleteTag(ctx, testRepo, "v1"), registry.OutboxUntag, a.Digest)
	want(registrytest.Push(ctx, s, testRepo, "v1", b), registry.OutboxPush, a.Digest)
	want(s.DeleteManifest(ctx, testRepo, b.Digest), registry.OutboxDelete, "")
	want(registrytest.Push(ctx, s, testRepo, "v1", c), registry.OutboxPush, a.Digest)
	e := last()
	e.State = registry.OutboxDelivered
	want(s.OutboxNote(ctx, e), registry.OutboxPush, a.Digest)
	want(registrytest.Push(ctx, s, testRepo, "v1", b), registry.OutboxPush, a.Digest)
	if e := last(); e.Put != c.Digest {
		t.Errorf("a push that is delivered is not taken for what may stand at the parent: %+v", e)
	}
	want(registrytest.Push(ctx, s, testRepo, "new", b), registry.OutboxPush, "")
}

// TestOutboxOfSynced: what synchronisation sees at the parent settles an entry that is tried no more. One that is tried is
// for whoever tries it: a parent that answers before its disk has it is asked again.
func TestOutboxOfSynced(t *testing.T) {
	for state, left := range map[registry.OutboxState]int{
		registry.OutboxWaiting: 1, registry.OutboxDelivered: 1, registry.OutboxRefused: 0, registry.OutboxExpired: 0,
	} {
		s, ctx := climbing(t, t.TempDir(), Options{}), t.Context()
		a := registrytest.NewImage(1, 100)
		if err := registrytest.Push(ctx, s, testRepo, "v1", a); err != nil {
			t.Fatal(err)
		}
		list, err := s.OutboxEntries(ctx, 0, 100)
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		list[0].State = state
		if err := s.OutboxNote(ctx, list[0]); err != nil {
			t.Fatal(err)
		}
		if err := synced(ctx, s, testRepo, "v1", a); err != nil {
			t.Fatal(err)
		}
		tags, err := s.TagStates(ctx, testRepo)
		if list, _ := s.OutboxEntries(ctx, 0, 100); err != nil || len(list) != left || len(tags) != 1 || tags[0].Pushed != (left > 0) {
			t.Errorf("%s: the outbox is %+v, the tags are %+v, %v", state, list, tags, err)
		}
	}
}

// TestOutboxKeepsContent: synchronisation, eviction and collection leave alone what is queued in any state, with its
// blobs and children. What the parent did not take goes after the grace, not before.
func TestOutboxKeepsContent(t *testing.T) {
	var now testTime
	s, ctx := climbing(t, t.TempDir(), now.options()), t.Context()
	a, b, theirs := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100), registrytest.NewImage(3, 100)
	index := registrytest.NewIndex(a, b)
	if err := registrytest.Push(ctx, s, testRepo, "v1", index); err != nil {
		t.Fatal(err)
	}
	all := slices.Concat(a.Blobs, b.Blobs)
	sweep := func() {
		t.Helper()
		if err := synced(ctx, s, testRepo, "v1", theirs); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Untag(ctx, testRepo, []string{"v1"}); err != nil {
			t.Fatal(err)
		}
		now.pass(100 * 24 * time.Hour)
		s.evict(ctx)
		collect(t, s, GCOptions{Grace: -1})
		checkOutbox(t, s)
	}
	entries, err := s.OutboxEntries(ctx, 0, 100)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", queued(t, s), err)
	}
	for _, state := range outboxStates {
		for _, e := range entries {
			e.State = state
			if err := s.OutboxNote(ctx, e); err != nil {
				t.Fatal(err)
			}
		}
		sweep()
		wantContent(t, s, true, all...)
		if d, err := s.ResolveManifest(ctx, testRepo, registry.TagReference("v1")); err != nil || d.Digest != index.Digest {
			t.Fatalf("%s: the tag is at %s, %v", state, d.Digest, err)
		}
	}
	for _, e := range entries {
		if err := s.OutboxLost(ctx, e.Seq, ""); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.Untag(ctx, testRepo, []string{"v1"}); n != 1 || err != nil {
		t.Errorf("the tag does not follow the parent: %d, %v", n, err)
	}
	now.pass(DefaultGrace / 2)
	collect(t, s, GCOptions{})
	wantContent(t, s, true, all...)
	if _, err := s.GetManifest(ctx, testRepo, registry.DigestReference(index.Digest)); err != nil {
		t.Errorf("within the grace: %v", err)
	}
	now.pass(2 * DefaultGrace)
	collect(t, s, GCOptions{})
	wantContent(t, s, false, all...)
}

// TestOutboxOfTenThousand: as many small pushes after weeks at sea. The status reads counters, expiry is in batches and
// by the clock of the device only as far as that can be believed, and the queue survives a restart and drains.
func TestOutboxOfTenThousand(t *testing.T) {
	n := 10_000
	if slower > 1 {
		n = 1_000 // the detector makes minutes of it; make test-chaos-short has them all
	}
	var now testTime
	o := now.options()
	o.FS = lazyFS{}
	dir, ctx := t.TempDir(), t.Context()
	s := climbing(t, dir, o)
	s.bolt().NoSync = true
	image := registrytest.NewImage(1, 100)
	if err := registrytest.Push(ctx, s, testRepo, "t0", image); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < n; i++ {
		if _, err := s.PutManifest(ctx, testRepo, registry.TagReference(fmt.Sprint("t", i)), image.Manifest); err != nil {
			t.Fatal(err)
		}
	}
	status := func(pending, expired int) {
		t.Helper()
		got, err := s.OutboxStatus(ctx)
		if err != nil || got.Pending != pending || got.Expired != expired || got.Oldest.IsZero() {
			t.Fatalf("%+v, %v, want %d waiting and %d expired", got, err, pending, expired)
		}
		if want := image.Size + image.Blobs[0].Size + image.Blobs[1].Size; got.Bytes != want {
			t.Errorf("%d bytes for one image, want %d", got.Bytes, want)
		}
	}
	status(n, 0)
	if allocs := testing.AllocsPerRun(10, func() { _, _ = s.OutboxStatus(ctx) }); allocs > 100 {
		t.Errorf("a status makes %v allocations", allocs)
	}
	now.wall.Add(int64(30 * 24 * time.Hour)) // the clock is set: nobody waited for a month
	ttl := 48 * time.Hour
	if expired, err := s.OutboxExpire(ctx, o.Clock.Now().Add(-ttl)); expired != 0 || err != nil {
		t.Errorf("%d expired in a process that just began, %v", expired, err)
	}
	now.up.Add(int64(30 * 24 * time.Hour))
	before := s.commits.Load()
	if expired, err := s.OutboxExpire(ctx, o.Clock.Now().Add(-ttl)); expired != n || err != nil || s.commits.Load()-before != int64(n)/outboxBatch {
		t.Errorf("%d expired in %d commits, %v", expired, s.commits.Load()-before, err)
	}
	status(0, n)
	closeChecked(t, s)
	s = climbing(t, dir, o)
	s.bolt().NoSync = true
	status(0, n)
	for after := uint64(0); ; {
		list, err := s.OutboxEntries(ctx, after, registry.MaxPage)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		for _, e := range list {
			if after = e.Seq; e.State != registry.OutboxExpired {
				t.Fatalf("%+v", e)
			}
			if err := s.OutboxDone(ctx, e.Seq); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, err := s.OutboxStatus(ctx); err != nil || !reflect.DeepEqual(got, registry.OutboxStatus{}) {
		t.Errorf("at the end %+v, %v", got, err)
	}
}

// TestOutboxSurvivesTheIndex: a damaged index is replaced by its snapshot, with the queue of that time.
func TestOutboxSurvivesTheIndex(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s := climbing(t, dir, Options{})
	if err := registrytest.Push(ctx, s, testRepo, "v1", registrytest.NewImage(1, 100)); err != nil {
		t.Fatal(err)
	}
	want := queued(t, s)
	if err := errors.Join(s.Snapshot(ctx), s.Close(), os.WriteFile(indexPath(dir), []byte("no index"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s = climbing(t, dir, Options{})
	recovered(t, s)
	if got := queued(t, s); !slices.Equal(got, want) {
		t.Errorf("queued %q, want %q", got, want)
	}
	checkOutbox(t, s)
}

// TestOutboxWakes: who waits is told of a new entry and of one that waits again, and of nothing else.
func TestOutboxWakes(t *testing.T) {
	s, ctx := climbing(t, t.TempDir(), Options{}), t.Context()
	woken := func(what string, want bool, do func() error) {
		t.Helper()
		changed := s.OutboxChanged()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		got := false
		select {
		case <-changed:
			got = true
		default:
		}
		if got != want {
			t.Errorf("%s: woken %v, want %v", what, got, want)
		}
	}
	image := registrytest.NewImage(1, 100)
	note := func(state registry.OutboxState) func() error {
		return func() error {
			list, err := s.OutboxEntries(ctx, 0, 1)
			if err == nil {
				list[0].State, list[0].Attempts, list[0].Error = state, 3, strings.Repeat("é", 400)
				err = s.OutboxNote(ctx, list[0])
			}
			return err
		}
	}
	woken("a push", true, func() error { return registrytest.Push(ctx, s, testRepo, "v1", image) })
	woken("the same push", false, func() error { return registrytest.Push(ctx, s, testRepo, "v1", image) })
	woken("an attempt", false, note(registry.OutboxWaiting))
	woken("a refusal", false, note(registry.OutboxRefused))
	if st, err := s.OutboxStatus(ctx); err != nil || st.Refused != 1 || len(st.Error) != maxFailure {
		t.Errorf("%+v, %v", st, err)
	}
	woken("a refused push, pushed again", true, func() error { return registrytest.Push(ctx, s, testRepo, "v1", image) })
	woken("expired", false, note(registry.OutboxExpired))
	woken("requeued", true, note(registry.OutboxWaiting))
	list, err := s.OutboxEntries(ctx, 0, 1)
	if err != nil || list[0].Requeued.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
	woken("done", false, func() error { return s.OutboxDone(ctx, list[0].Seq) })
	woken("done again", false, func() error { return s.OutboxDone(ctx, list[0].Seq) })
}

// TestOutboxKeepsDeletes: what was deleted here does not come back from the parent before the parent knows, under
// whatever tag; and a manifest that is pushed again stays deleted under the tags that it had.
func TestOutboxKeepsDeletes(t *testing.T) {
	s, ctx := climbing(t, t.TempDir(), Options{}), t.Context()
	image := registrytest.NewImage(1, 100)
	for _, tag := range []string{"v1", "v2"} {
		if err := synced(ctx, s, testRepo, tag, image); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.DeleteTag(ctx, testRepo, "v2"), s.DeleteManifest(ctx, testRepo, image.Digest)); err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"v1", "v2", "v3"} {
		if err := synced(ctx, s, testRepo, tag, image); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ResolveManifest(ctx, testRepo, registry.TagReference(tag)); !errors.Is(err, registry.ErrManifestUnknown) {
			t.Errorf("%s is back: %v", tag, err)
		}
	}
	states, err := s.TagStates(ctx, testRepo)
	if want := []registry.LocalTag{{Tag: "v1", Pushed: true}, {Tag: "v2", Pushed: true}}; err != nil || !slices.Equal(states, want) {
		t.Errorf("%+v, %v, want %+v", states, err, want)
	}
	if err := registrytest.Push(ctx, s, testRepo, "v4", image); err != nil {
		t.Fatal(err)
	}
	d := short(image.Digest)
	want := []string{"1 untag v2 " + d + " waiting", "3 untag v1 " + d + " waiting", "4 push v4 " + d + " waiting"}
	if got := queued(t, s); !slices.Equal(got, want) {
		t.Errorf("queued %q, want %q", got, want)
	}
}
