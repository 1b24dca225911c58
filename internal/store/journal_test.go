package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// told lists all events that wait, in short.
func told(t rapid.TB, s *Store) (list []string) {
	t.Helper()
	page, err := s.Journal(context.Background(), registry.MaxPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range page.Events {
		list = append(list, fmt.Sprintf("%s %s:%s %s %d", e.Action, e.Repository, e.Tag, short(e.Target.Digest), e.Target.Size))
	}
	return list
}

func said(action, repo, tag string, image registrytest.Image) string {
	return fmt.Sprintf("%s %s:%s %s %d", action, repo, tag, short(image.Digest), image.Size)
}

// TestJournal: what clients, synchronisation and collection do is told, in order and with the digest; nothing is told
// before somebody wants to know or after nobody does any more.
func TestJournal(t *testing.T) {
	var now testTime
	s := openStore(t, t.TempDir(), now.options())
	one, two, three := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100), registrytest.NewImage(3, 100)
	index := registrytest.NewIndex(two, three)
	var want []string
	do := func(err error, events ...string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, events...)
		if got := told(t, s); !slices.Equal(got, want) {
			t.Fatalf("told\n%q\nwant\n%q", got, want)
		}
	}
	ctx := t.Context()
	do(registrytest.Push(ctx, s, testRepo, "before", one))
	do(s.SetJournal(ctx, true))
	do(registrytest.Push(ctx, s, testRepo, "before", one)) // is there already
	do(registrytest.Push(ctx, s, testRepo, "v1", one), said("push", testRepo, "v1", one))
	do(registrytest.Push(ctx, s, testRepo, "", two), said("push", testRepo, "", two))
	do(registrytest.Push(ctx, s, testRepo, "v1", two), said("push", testRepo, "v1", two))
	do(s.DeleteTag(ctx, testRepo, "v1"), said("delete", testRepo, "v1", two))
	do(s.DeleteManifest(ctx, testRepo, one.Digest), said("delete", testRepo, "before", one), said("delete", testRepo, "", one))
	for _, b := range slices.Concat(one.Blobs, two.Blobs, three.Blobs) {
		do(fetchBlob(b).do(ctx, s, newOracle()))
	}
	do(commitImage(otherRepo, "synced", index).do(ctx, s, newOracle()), said("push", otherRepo, "", two), said("push", otherRepo, "", three), said("push", otherRepo, "synced", index))
	do(commitImage(otherRepo, "synced", one).do(ctx, s, newOracle()), said("push", otherRepo, "synced", one))
	_, err := s.Untag(ctx, otherRepo, []string{"synced"})
	do(err, said("delete", otherRepo, "synced", one), said("delete", otherRepo, "", one))
	now.pass(2 * DefaultGrace)
	_, err = s.GC(ctx, GCOptions{})
	do(err, said("delete", otherRepo, "", index), said("delete", otherRepo, "", two), said("delete", otherRepo, "", three))
	for _, c := range []string{testRepo, otherRepo} {
		page, err := s.Changes(ctx, "", 100, func(repo string) bool { return repo == c })
		if err != nil || len(page.Entries) != 0 {
			t.Errorf("children are told of %+v, %v", page.Entries, err)
		}
	}
	want = nil
	do(s.SetJournal(ctx, false))
	do(registrytest.Push(ctx, s, testRepo, "silent", three))
}

// TestJournalOfOutbox: what expires, is refused or was moved at the parent as well is told in the transaction that decides
// it, with what waits and what the tag does not stand at any more; and it survives a restart.
func TestJournalOfOutbox(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	var now testTime
	s := climbing(t, dir, now.options())
	if err := s.SetJournal(ctx, true); err != nil {
		t.Fatal(err)
	}
	one, two, theirs := registrytest.NewImage(1, 100), registrytest.NewImage(2, 100), registrytest.NewImage(3, 100)
	for tag, image := range map[string]registrytest.Image{"a": one, "b": two} {
		if err := registrytest.Push(ctx, s, testRepo, tag, image); err != nil {
			t.Fatal(err)
		}
	}
	if page, err := s.Journal(ctx, 100); err != nil || s.JournalTold(ctx, page.Seqs[len(page.Seqs)-1]) != nil {
		t.Fatal(err)
	}
	now.pass(72 * time.Hour)
	if n, err := s.OutboxExpire(ctx, now.options().Clock.Now().Add(-48*time.Hour)); n != 2 || err != nil {
		t.Fatalf("%d expired, %v", n, err)
	}
	entries, err := s.OutboxEntries(ctx, 0, 100)
	if err != nil || len(entries) != 2 {
		t.Fatal(entries, err)
	}
	for range 2 { // the second time is no news
		e := entries[0]
		e.State, e.Error = registry.OutboxRefused, "locked"
		if err := s.OutboxNote(ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	e := entries[0]
	e.Base, e.Put = theirs.Digest, e.Digest
	for range 2 { // what is known already is not written again
		if ok, err := s.OutboxAttempt(ctx, e, true); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	e.Digest = theirs.Digest
	if ok, err := s.OutboxAttempt(ctx, e, true); ok || err != nil {
		t.Fatal("an entry that became another one is tried", err)
	}
	if err := s.OutboxLost(ctx, entries[1].Seq, theirs.Digest); err != nil {
		t.Fatal(err)
	}
	closeChecked(t, s)
	s = openStore(t, dir, now.options())
	page, err := s.Journal(ctx, 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range page.Events {
		got = append(got, fmt.Sprintf("%s %s %s %d %s %q %s %s %s", e.Action, e.Tag, short(e.Target.Digest), e.Outbox.Entry, e.Outbox.Action,
			e.Outbox.Error, e.Outbox.Conflict, short(e.Outbox.Parent), short(e.Outbox.Overwritten)))
	}
	line := func(action registry.EventAction, i int, rest string) string {
		e := entries[i]
		return fmt.Sprintf("%s %s %s %d push %s", action, e.Tag, short(e.Digest), e.Seq, rest)
	}
	want := []string{
		line("expired", 0, `""  - -`), line("expired", 1, `""  - -`), line("refused", 0, `"locked"  - -`),
		line("conflict", 0, fmt.Sprintf(`"locked" newestWins %s %[1]s`, short(theirs.Digest))),
		line("conflict", 1, fmt.Sprintf(`"" parentWins %s %s`, short(theirs.Digest), short(entries[1].Digest))),
	}
	if !slices.Equal(got, want) {
		t.Errorf("told\n%q\nwant\n%q", got, want)
	}
}

// TestJournalIsOneTransaction counts the commits of a push with a journal, an outbox and ten layers.
func TestJournalIsOneTransaction(t *testing.T) {
	s := climbing(t, t.TempDir(), Options{})
	if err := s.SetJournal(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	image := registrytest.NewImage(1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
	before := s.commits.Load()
	if err := registrytest.Push(t.Context(), s, testRepo, "v1", image); err != nil {
		t.Fatal(err)
	}
	if n := s.commits.Load() - before; n != 12 {
		t.Errorf("%d commits for config, ten layers and manifest, want 12", n)
	}
}

// TestJournalIsBounded fills the journal beyond its bound: the oldest go and are counted, until somebody was told.
func TestJournalIsBounded(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{FS: lazyFS{}})
	s.bolt().NoSync = true
	if err := s.SetJournal(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	const more = 250
	for n := 0; n < maxJournal+more; n += 50 {
		err := s.update(t.Context(), func(t *tx) error {
			r, err := t.makeRepo(testRepo)
			for i := n; err == nil && i < n+50; i++ {
				err = r.tell(false, fmt.Sprint("t", i), registrytest.NewBlob(1, 1).Digest, manifestRow{})
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	page, err := s.Journal(t.Context(), 10)
	if err != nil || page.Waiting != maxJournal || page.Dropped != more || len(page.Events) != 10 || page.Events[0].Tag != fmt.Sprint("t", more) {
		t.Fatalf("%d wait, %d dropped, %+v, %v", page.Waiting, page.Dropped, page.Events, err)
	}
	if err := s.JournalTold(t.Context(), page.Seqs[9]); err != nil {
		t.Fatal(err)
	}
	if page, err = s.Journal(t.Context(), 10); err != nil || page.Waiting != maxJournal-10 || page.Dropped != 0 {
		t.Errorf("then %d wait, %d dropped, %v", page.Waiting, page.Dropped, err)
	}
}

// TestJournalModel lets a client change a repository and a listener take events, with restarts, and compares with a list
// of what has to be told. An event has the same ID each time, and no other event has it.
func TestJournalModel(t *testing.T) {
	images := []registrytest.Image{registrytest.NewImage(1, 100), registrytest.NewImage(2, 100), registrytest.NewImage(3)}
	rapid.Check(t, func(rt *rapid.T) {
		ctx, dir := context.Background(), t.TempDir()
		open := func() *Store {
			s, err := Open(ctx, dir, Options{})
			if err != nil {
				rt.Fatal(err)
			}
			return s
		}
		s := open()
		defer func() { closeChecked(t, s) }()
		if err := s.SetJournal(ctx, true); err != nil {
			rt.Fatal(err)
		}
		tags, here := map[string]registrytest.Image{}, map[registry.Digest]bool{}
		var want []string
		ids := map[string]string{}
		rt.Repeat(map[string]func(*rapid.T){
			"push": func(rt *rapid.T) {
				tag, image := rapid.SampledFrom([]string{"", "a", "b"}).Draw(rt, "tag"), rapid.SampledFrom(images).Draw(rt, "image")
				if err := registrytest.Push(ctx, s, testRepo, tag, image); err != nil {
					rt.Fatal(err)
				}
				if tag == "" && !here[image.Digest] || tag != "" && tags[tag].Digest != image.Digest {
					want = append(want, said("push", testRepo, tag, image))
				}
				if here[image.Digest] = true; tag != "" {
					tags[tag] = image
				}
			},
			"untag": func(rt *rapid.T) {
				tag := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "tag")
				if err := s.DeleteTag(ctx, testRepo, tag); err == nil {
					want = append(want, said("delete", testRepo, tag, tags[tag]))
					delete(tags, tag)
				} else if !errors.Is(err, registry.ErrManifestUnknown) {
					rt.Fatal(err)
				}
			},
			"delete": func(rt *rapid.T) {
				image := rapid.SampledFrom(images).Draw(rt, "image")
				err := s.DeleteManifest(ctx, testRepo, image.Digest)
				if err != nil {
					return
				}
				for _, tag := range []string{"a", "b"} {
					if tags[tag].Digest == image.Digest {
						want = append(want, said("delete", testRepo, tag, image))
						delete(tags, tag)
					}
				}
				want = append(want, said("delete", testRepo, "", image))
				delete(here, image.Digest)
			},
			"listen": func(rt *rapid.T) {
				page, err := s.Journal(ctx, rapid.IntRange(1, 5).Draw(rt, "limit"))
				if err != nil || page.Waiting != len(want) {
					rt.Fatalf("%d wait, want %d: %v", page.Waiting, len(want), err)
				}
				for i, e := range page.Events {
					is := fmt.Sprint(page.Seqs[i], want[i])
					if known, ok := ids[e.ID]; ok && known != is {
						rt.Fatalf("%s is %s and %s", e.ID, known, is)
					}
					ids[e.ID] = is
				}
				if n := len(page.Seqs); n > 0 && rapid.Bool().Draw(rt, "arrived") {
					if err := s.JournalTold(ctx, page.Seqs[n-1]); err != nil {
						rt.Fatal(err)
					}
					want = want[n:]
				}
			},
			"restart": func(*rapid.T) {
				closeChecked(t, s)
				s = open()
			},
			"": func(rt *rapid.T) {
				if got := told(rt, s); !slices.Equal(got, want) {
					rt.Fatalf("told %q, want %q", got, want)
				}
			},
		})
	})
}
