package store

import (
	"encoding/binary"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// The index. Buckets end in a slash; <x> stands for many keys; a digest as a key or value is one byte of algorithm and
// the raw hash; numbers are uvarints, but <seq> as a key is 8 bytes, big-endian. TestSchema walks a filled index and
// compares it with this tree.
//
//	meta/
//	  schemaVersion                     number, see migrate.go
//	  instanceId                        32 hex digits, made with the index
//	  changeSeq                         number of the last change
//	  changeFloor                       a cursor below it cannot be answered: tombstones were dropped
//	  counts                            repositories, tags, manifests, blobs, bytes of blobs
//	  recovering                        present while files wait for their rows
//	  journal                           present while somebody wants to be told what comes and goes
//	  journalDropped                    events that were dropped for want of room
//	  climbing                          present while changes of clients are queued for the parent
//	  seal                              seq of the transaction and the sum of all rows, see sum.go
//	blobs/
//	  <digest>                          size, time of commit, flags; manifests included
//	repos/
//	  <repo>/
//	    manifests/
//	      <digest>                      flags, media type, size, loose since, created, subject, children, config and layers
//	    tags/
//	      <tag>                         flags, digest, time of the last move, seq, created
//	    links/
//	      <digest>                      time since when the blob belongs to the repository
//	    referrers/
//	      <subject digest><digest>      seq, media type, size, artifact type, annotations
//	changes/
//	  <seq>                             kind, time, repository, then tag or subject and digest; one for each living tag and
//	                                    referrer, and for tags that went
//	journal/                            absent until somebody wants to be told; the numbers have no gaps
//	  <seq>                             came or went, time, repository, tag, digest, media type, size
//	outbox/                             absent until something is queued
//	  entries/
//	    <seq>                           action, state, repository, tag, digest, base, who, when, attempts; see outboxrow.go
//	  tags/
//	    <repo><0><tag>                  seq of the row that decides about the tag
//	  digests/
//	    <repo><0><digest><seq>          action of a row about the manifest
//	locks/
//	  <repo><0>[<kind><tag or digest>]  what is switched off for the repository, a tag (kind t) or a manifest (m)
//	documents/
//	  <name>                            the document
var (
	bucketMeta      = []byte("meta")
	bucketBlobs     = []byte("blobs")
	bucketRepos     = []byte("repos")
	bucketChanges   = []byte("changes")
	bucketLocks     = []byte("locks") // absent in indexes of before it was there, until something is locked
	bucketDocuments = []byte("documents")
	bucketJournal   = []byte("journal") // absent until somebody wants to be told
	bucketOutbox    = []byte("outbox")  // absent until something is queued
	bucketEntries   = []byte("entries") // of it; so are tags and digests
	bucketDigests   = []byte("digests")

	keySchemaVersion = []byte("schemaVersion")
	keyInstanceID    = []byte("instanceId")
	keyChangeSeq     = []byte("changeSeq")
	keyChangeFloor   = []byte("changeFloor")
	keyCounts        = []byte("counts")
	keyRecovering    = []byte("recovering")
	keyJournal       = []byte("journal")
	keyClimbing      = []byte("climbing")

	keyJournalDropped = []byte("journalDropped")
	keySeal           = []byte("seal")

	bucketManifests = []byte("manifests")
	bucketTags      = []byte("tags")
	bucketLinks     = []byte("links")
	bucketReferrers = []byte("referrers")
)

// repoTx is one repository within a transaction.
type repoTx struct {
	t                                 *tx
	name                              string
	manifests, tags, links, referrers *bbolt.Bucket
}

// repo opens a repository. Errors: NAME_UNKNOWN.
func (t *tx) repo(name string) (*repoTx, error) {
	b := t.bucket(t.Bucket(bucketRepos), []byte(name))
	if b == nil {
		return nil, registry.ErrNameUnknown.WithDetail(map[string]string{"name": name})
	}
	r := &repoTx{
		t: t, name: name, manifests: t.bucket(b, bucketManifests), tags: t.bucket(b, bucketTags),
		links: t.bucket(b, bucketLinks), referrers: t.bucket(b, bucketReferrers),
	}
	if r.manifests == nil || r.tags == nil || r.links == nil || r.referrers == nil {
		return nil, errDamaged
	}
	return r, nil
}

// makeRepo opens a repository and creates it when it is new.
func (t *tx) makeRepo(name string) (*repoTx, error) {
	if t.Bucket(bucketRepos).Bucket([]byte(name)) == nil {
		b, err := t.makeBucket(t.Bucket(bucketRepos), []byte(name))
		if err != nil {
			return nil, err
		}
		for _, sub := range [][]byte{bucketManifests, bucketTags, bucketLinks, bucketReferrers} {
			if _, err := t.makeBucket(b, sub); err != nil {
				return nil, err
			}
		}
		t.counts.repositories++
	}
	return t.repo(name)
}

// manifest reads a manifest row. Errors: MANIFEST_UNKNOWN, also for a row that cannot be read.
func (r *repoTx) manifest(d registry.Digest) (manifestRow, error) {
	if v := r.manifests.Get(digestKey(d)); v != nil {
		row, err := decodeManifest(v)
		if err == nil {
			return row, nil
		}
		r.t.s.log.Error("index row is damaged", "repository", r.name, "manifest", d.String())
		r.t.s.suspect()
	}
	return manifestRow{}, registry.ErrManifestUnknown.WithDetail(map[string]string{"digest": d.String()})
}

// tag reads where a tag points. Errors: MANIFEST_UNKNOWN.
func (r *repoTx) tag(tag string) (tagRow, error) {
	if v := r.tags.Get([]byte(tag)); v != nil {
		row, err := decodeTag(v)
		if err == nil {
			return row, nil
		}
		r.t.s.log.Error("index row is damaged", "repository", r.name, "tag", tag)
		r.t.s.suspect()
	}
	return tagRow{}, registry.ErrManifestUnknown.WithDetail(map[string]string{"tag": tag})
}

// resolve reads the manifest row that a reference names.
func (r *repoTx) resolve(ref registry.Reference) (registry.Digest, manifestRow, error) {
	d := ref.Digest
	if d == "" {
		row, err := r.tag(ref.Tag)
		if err != nil {
			return "", manifestRow{}, err
		}
		d = row.digest
	}
	row, err := r.manifest(d)
	if err != nil && ref.Digest == "" { // both are written and removed together
		r.t.s.suspect()
	}
	return d, row, err
}

// blob reads a blob row.
func (t *tx) blob(d registry.Digest) (blobRow, bool) {
	v := t.Bucket(bucketBlobs).Get(digestKey(d))
	if v == nil {
		return blobRow{}, false
	}
	row, err := decodeBlob(v)
	return row, err == nil
}

// leaseRenewal is how old the time of a blob or link may be before it is written anew, in seconds: content that is pushed
// again is fresh again, but not each push costs a write.
const leaseRenewal = 3600

// putBlob makes content known. Content that is known already keeps its time unless the row brings a much later one.
func (t *tx) putBlob(d registry.Digest, row blobRow) error {
	t.s.touch(d)
	old, had := t.blob(d)
	if !had {
		t.counts.blobs++
	} else if row.at-old.at < leaseRenewal {
		row.at = old.at
	}
	t.counts.bytes += row.size - old.size
	return t.put(t.Bucket(bucketBlobs), digestKey(d), row.encode())
}

// holdBlob is putBlob for content that something in this transaction refers to: its time does not matter.
func (t *tx) holdBlob(d registry.Digest, size int64) error {
	row := blobRow{size: size, at: t.now}
	if old, had := t.blob(d); had {
		row.at = old.at
	}
	return t.putBlob(d, row)
}

// link makes a blob one of the repository, and takes it out of the time that it waited for one. A link that no manifest
// needs yet is fresh again with renew.
func (r *repoTx) link(d registry.Digest, renew bool) error {
	r.t.s.touch(d)
	key := digestKey(d)
	if row, ok := r.t.blob(d); ok && (row.fetched || row.recovered) {
		row.fetched, row.recovered = false, false
		if err := r.t.put(r.t.Bucket(bucketBlobs), key, row.encode()); err != nil {
			return err
		}
	}
	if v := r.links.Get(key); v != nil {
		old := reader{b: v}
		if at := old.int(); !renew || r.t.now-at < leaseRenewal {
			return nil
		}
	}
	return r.t.put(r.links, key, putInt(nil, r.t.now))
}

// number reads a number of the meta bucket; what is absent or damaged is 0.
func (t *tx) number(key []byte) uint64 {
	v, n := binary.Uvarint(t.Bucket(bucketMeta).Get(key))
	if n <= 0 {
		return 0
	}
	return v
}

func (t *tx) putNumber(key []byte, v uint64) error {
	return t.put(t.Bucket(bucketMeta), key, binary.AppendUvarint(nil, v))
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }
