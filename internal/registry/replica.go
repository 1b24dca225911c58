package registry

import (
	"context"
	"io"
)

// Partial is content on its way here from a link. The bytes that it has on disk are the only state of progress:
// they survive a cut, a kill, a reboot and a change of parent, because a digest is the same everywhere.
type Partial interface {
	// Size is how many bytes are here; a transfer continues at this offset.
	Size() int64
	// Write appends. Not for concurrent use with itself or Commit.
	io.Writer
	// ReadAt reads what is here already, at once with Write.
	io.ReaderAt
	// Commit hashes, verifies and makes the content durable (file, directory, index row). The Partial is closed after
	// it, with any result. Errors: SIZE_INVALID and DIGEST_INVALID (the bytes are discarded), DiskError (they are kept).
	Commit(ctx context.Context) error
	// Close keeps the bytes for the next run.
	Close() error
	// Discard drops them.
	Discard() error
}

// Image is a manifest with all that belongs to it, complete here, ready to become visible in one step.
type Image struct {
	Repository string
	Manifests  []Manifest // children before parents; the last is the root. Descriptor.Digest and MediaType are set
	Tags       []string   // tags that move to the root
	Loose      bool       // without a tag it is not kept for ever: collection takes it when nothing needs it
}

// Root is the manifest that the tags point at.
func (i Image) Root() Manifest { return i.Manifests[len(i.Manifests)-1] }

// Replica is what synchronisation changes in a store, beside what clients change through Registry. A tag has an
// origin: it came from the parent, or it was pushed here. What was pushed here is acknowledged content, and
// synchronisation neither moves nor removes it.
type Replica interface {
	// StatContent returns the size of content that is committed here, for whatever repository.
	StatContent(ctx context.Context, d Digest) (size int64, ok bool)
	// OpenContent reads committed content by digest alone; the caller has made sure that it may be read.
	// Errors: BLOB_UNKNOWN.
	OpenContent(ctx context.Context, d Digest) (BlobReader, error)
	// Partial opens the bytes of unfinished content, creating it when it is new; size is what it will have, 0 when
	// unknown. One at a time for a digest. Errors: CONFLICT when it is open already, DiskError.
	Partial(ctx context.Context, d Digest, size int64) (Partial, error)
	// CommitImage stores the manifests, links their blobs to the repository and moves the tags, in one transaction,
	// and returns the tags that stay where they are because they were pushed here with another digest. All blobs of
	// the manifests must be here; children of an index that are not among Manifests may be absent.
	// Errors: MANIFEST_BLOB_UNKNOWN, DiskError.
	CommitImage(ctx context.Context, image Image) (kept []string, err error)
	// TagStates lists all tags of a repository; none for an unknown one.
	TagStates(ctx context.Context, repo string) ([]LocalTag, error)
	// Untag removes tags that came from the parent, and those of their manifests that nothing needs any more.
	Untag(ctx context.Context, repo string, tags []string) (removed int, err error)
	// Missing returns the descriptors below the manifest that are not here; none means that it is complete. For an index
	// only children for which want is true count; a nil want takes all.
	Missing(ctx context.Context, repo string, d Digest, want func(Descriptor) bool) ([]Descriptor, error)
	// Damaged lists content that was here and was found missing or with other bytes since the start, as far as something
	// needs it: what brings the same bytes as a Partial heals it. None costs nothing.
	Damaged(ctx context.Context) ([]Damage, error)
}

// Damage is content that a repository needs and the volume lost.
type Damage struct {
	Repository string // one of those that need it
	Descriptor
	Manifest bool // it is a manifest, else a blob
}

// Documents keeps a few small documents in the index: last good configuration, cursors.
type Documents interface {
	// Document returns nil when there is none of that name.
	Document(ctx context.Context, name string) ([]byte, error)
	// PutDocument stores one, durably. Storing what is there already costs no write.
	PutDocument(ctx context.Context, name string, body []byte) error
}

// LocalTag is a tag as it is here. One without a digest went here, and the parent does not know it yet.
type LocalTag struct {
	Tag    string
	Digest Digest
	Pushed bool // pushed here, not taken from the parent
	Locked bool // stays where it is, whatever the parent says
}
