package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// documentedSchema reads the tree in the comment of buckets.go: path -> true.
func documentedSchema(t *testing.T) map[string]bool {
	t.Helper()
	f, err := os.Open("buckets.go")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	paths := map[string]bool{}
	var stack []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line, ok := strings.CutPrefix(lines.Text(), "//\t")
		if !ok {
			continue
		}
		depth := (len(line) - len(strings.TrimLeft(line, " "))) / 2
		if depth > len(stack) { // the second line of a description
			continue
		}
		name, _, _ := strings.Cut(strings.TrimSpace(line), "  ")
		stack = append(stack[:depth], name)
		paths[strings.Join(stack, "")] = true
	}
	return paths
}

// observedSchema walks an index and names what it finds as the comment does.
func observedSchema(t *testing.T, s *Store) map[string]bool {
	t.Helper()
	paths := map[string]bool{}
	variable := map[string]string{
		"blobs/": "<digest>", "repos/": "<repo>/", "changes/": "<seq>", "documents/": "<name>", "journal/": "<seq>", "locks/": "<repo><0>[<kind><tag or digest>]",
		"repos/<repo>/manifests/": "<digest>", "repos/<repo>/tags/": "<tag>", "repos/<repo>/links/": "<digest>",
		"repos/<repo>/referrers/": "<subject digest><digest>",
		"outbox/entries/":         "<seq>", "outbox/tags/": "<repo><0><tag>", "outbox/digests/": "<repo><0><digest><seq>",
	}
	var walk func(prefix string, b *bbolt.Bucket)
	walk = func(prefix string, b *bbolt.Bucket) {
		_ = b.ForEach(func(k, v []byte) error {
			name, ok := variable[prefix]
			if !ok {
				name = string(k)
				if v == nil {
					name += "/"
				}
			}
			paths[prefix+name] = true
			if v == nil {
				walk(prefix+name, b.Bucket(k))
			}
			return nil
		})
	}
	err := s.bolt().View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			paths[string(name)+"/"] = true
			walk(string(name)+"/", b)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// TestSchema keeps the comment of buckets.go true.
func TestSchema(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	image := registrytest.NewImage(1, 100)
	if err := errors.Join(s.SetClimbing(t.Context(), true), s.SetJournal(t.Context(), true)); err != nil {
		t.Fatal(err)
	}
	for tag, i := range map[string]registrytest.Image{"latest": image, "": registrytest.NewReferrer(2, image.Descriptor, "application/vnd.example")} {
		if err := registrytest.Push(t.Context(), s, testRepo, tag, i); err != nil {
			t.Fatal(err)
		}
	}
	locked := true
	err := errors.Join(s.PutDocument(t.Context(), "config", []byte("{}")),
		s.SetAttributes(t.Context(), testRepo, registry.TagReference("latest"), registry.AttributeChange{NoWrite: &locked}),
		s.update(t.Context(), func(t *tx) error {
			return errors.Join(t.put(t.Bucket(bucketMeta), keyRecovering, []byte{1}), t.putNumber(keyJournalDropped, 1))
		}))
	if err != nil {
		t.Fatal(err)
	}
	want, got := documentedSchema(t), observedSchema(t, s)
	if !maps.Equal(want, got) {
		t.Errorf("documented and not in the index: %v\nin the index and not documented: %v", difference(want, got), difference(got, want))
	}
}

func difference(a, b map[string]bool) (list []string) {
	for k := range a {
		if !b[k] {
			list = append(list, k)
		}
	}
	slices.Sort(list)
	return list
}

// TestRows writes and reads rows, and feeds each reader everything shorter.
func TestRows(t *testing.T) {
	d := registrytest.NewBlob(1, 10).Digest
	d512 := registry.Digest("sha512:" + strings.Repeat("ab", 64))
	manifest := manifestRow{
		mediaType: registry.MediaTypeImageIndex, size: 1234, pushed: true, pinned: true, loose: 99, subject: d512,
		children: []target{{d, 1}, {d512, 2}}, blobs: []target{{d, 1 << 40}},
	}
	referrer := referrerRow{seq: 7, descriptor: registry.Descriptor{
		MediaType: "application/x", Size: 5, ArtifactType: "a/b",
		Annotations: map[string]string{"k": "v"},
	}}
	referrerBytes, err := referrer.encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		bytes  []byte
		decode func([]byte) ([]byte, error) // and encode again
	}{
		"blob":     {blobRow{size: 5, at: 6, fetched: true}.encode(), func(b []byte) ([]byte, error) { r, err := decodeBlob(b); return r.encode(), err }},
		"manifest": {manifest.encode(), func(b []byte) ([]byte, error) { r, err := decodeManifest(b); return r.encode(), err }},
		"manifest with its time": {
			func() []byte { m := manifest; m.created = 77; return m.encode() }(),
			func(b []byte) ([]byte, error) { r, err := decodeManifest(b); return r.encode(), err },
		},
		"tag made before": {tagRow{digest: d, pushed: true, at: 9, seq: 2, created: 4}.encode(), func(b []byte) ([]byte, error) { r, err := decodeTag(b); return r.encode(), err }},
		"lock":            {encodeLock(registry.Attributes{NoWrite: true, NoList: true}), func(b []byte) ([]byte, error) { a, err := decodeLock(b); return encodeLock(a), err }},
		"journal": {
			journalRow{action: registry.EventDelete, at: 1, repo: "a/b", tag: "t", digest: d512, mediaType: "x/y", size: 1 << 40}.encode(),
			func(b []byte) ([]byte, error) { r, err := decodeJournal(b); return r.encode(), err },
		},
		"journal of the outbox": {
			journalRow{
				action: registry.EventConflict, at: 1, repo: "a/b", tag: "t", digest: d512, mediaType: "x/y", size: 3,
				outbox: &registry.EventOutbox{
					Entry: 4, Action: registry.OutboxPush, Time: time.Unix(5, 0).UTC(), Principal: "line", Error: "DENIED",
					Conflict: registry.ParentWins, Parent: d, Overwritten: d512,
				},
			}.encode(),
			func(b []byte) ([]byte, error) { r, err := decodeJournal(b); return r.encode(), err },
		},
		"outbox after an attempt": {
			outboxRow{
				action: rowDelete, repo: "a/b", digest: d512, above: above{put: d}, tags: []baseTag{{"x", above{base: d, put: d512}}, {"y", above{}}},
			}.encode(),
			func(b []byte) ([]byte, error) { r, err := decodeOutbox(b); return r.encode(), err },
		},
		"outbox": {
			outboxRow{
				action: rowDelete, state: 2, repo: "a/b", tag: "t", digest: d512, above: above{base: d}, mediaType: registry.MediaTypeImageIndex, principal: "line",
				at: 1, requeued: 2, bytes: 1 << 40, attempts: 4, next: 5, failure: "DENIED", tags: []baseTag{{"x", above{base: d}}, {"y", above{}}},
			}.encode(),
			func(b []byte) ([]byte, error) { r, err := decodeOutbox(b); return r.encode(), err },
		},
		"tag": {tagRow{digest: d, pushed: true, at: 1, seq: 2}.encode(), func(b []byte) ([]byte, error) { r, err := decodeTag(b); return r.encode(), err }},
		"referrer": {referrerBytes, func(b []byte) ([]byte, error) {
			r, err := decodeReferrer(b)
			if err != nil {
				return nil, err
			}
			return r.encode()
		}},
		"change of a tag":      {changeRow{kind: changeGone, at: 3, repo: "a/b", tag: "t"}.encode(), reencodeChange},
		"change of a referrer": {changeRow{kind: changeReferrer, at: 3, repo: "a/b", subject: d, digest: d512}.encode(), reencodeChange},
		"referrer that went":   {changeRow{kind: changeUnrefer, at: 3, repo: "a/b", subject: d, digest: d512}.encode(), reencodeChange},
	} {
		if got, err := tt.decode(tt.bytes); err != nil || !slices.Equal(got, tt.bytes) {
			t.Errorf("%s: %x, %v, want %x", name, got, err, tt.bytes)
		}
		for i := range tt.bytes {
			if _, err := tt.decode(tt.bytes[:i]); !errors.Is(err, errDamaged) {
				t.Errorf("%s cut at %d: %v, want errDamaged", name, i, err)
			}
		}
		if _, err := tt.decode(append(slices.Clone(tt.bytes), 0)); !errors.Is(err, errDamaged) {
			t.Errorf("%s with a byte more: %v, want errDamaged", name, err)
		}
	}
}

func reencodeChange(b []byte) ([]byte, error) {
	r, err := decodeChange(b)
	if err != nil {
		return nil, err
	}
	return r.encode(), nil
}

// FuzzRows reads arbitrary bytes as every kind of row.
func FuzzRows(f *testing.F) {
	f.Add(manifestRow{mediaType: "x/y", children: []target{{registrytest.NewBlob(1, 1).Digest, 1}}}.encode())
	f.Add(binary.AppendUvarint([]byte{4, 0, 255}, 1<<60))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = decodeBlob(b)
		_, _ = decodeManifest(b)
		_, _ = decodeTag(b)
		_, _ = decodeReferrer(b)
		_, _ = decodeChange(b)
		_, _ = decodeLock(b)
		_, _ = decodeOutbox(b)
		_, _ = decodeJournal(b)
		_ = decodeCounts(b)
	})
}

// TestRowSizes bounds what a tag with a small image costs in the index.
func TestRowSizes(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	const tags = 100
	for i := range tags {
		image := registrytest.NewImage(uint64(i+1), 10)
		if err := registrytest.Push(t.Context(), s, testRepo, image.Digest.Encoded()[:12], image); err != nil {
			t.Fatal(err)
		}
	}
	var used int64
	err := s.bolt().View(func(tx *bbolt.Tx) error {
		used = tx.Size()
		for name, b := range map[string]*bbolt.Bucket{"blobs": tx.Bucket(bucketBlobs), "repos": tx.Bucket(bucketRepos), "changes": tx.Bucket(bucketChanges)} {
			st := b.Stats()
			t.Logf("%s: %d bytes in use of %d allocated", name, st.LeafInuse+st.BranchInuse, st.LeafAlloc+st.BranchAlloc)
		}
		return nil
	})
	t.Logf("%d bytes of index for a tag, config, layer and manifest of their own", used/tags)
	if err != nil || used/tags > 4096 {
		t.Errorf("%d bytes for a tag, %v", used/tags, err)
	}
}
