package registry

import (
	"context"
	"io"
)

// MaxManifestSize bounds a manifest in bytes: what is larger is neither accepted nor fetched (the OCI distribution
// spec asks for at least 4 MiB).
const MaxManifestSize = 4 << 20

// MaxPage bounds the entries of one page of a list.
const MaxPage = 1000

// Manifest is a manifest as it was pushed: its bytes are never changed, its media type is served for ever.
// Its Descriptor's digest is the hash of Bytes, computed and not believed.
type Manifest struct {
	Descriptor
	Bytes []byte
}

// BlobReader reads one blob. Seek is cheap before the first Read: a reader over a link opens its connection at the
// offset that it was sent to. The context it was opened with bounds its life. A reader that reached Size bytes and
// returned io.EOF gave the content of the digest or is followed by an error: never silently other bytes.
type BlobReader interface {
	io.ReadSeekCloser
	// Descriptor returns digest and size; the size is known from the first successful Read or Seek to the end on.
	Descriptor() Descriptor
}

// Reader reads content of repositories.
type Reader interface {
	// GetManifest returns a manifest by tag or digest. Errors: NAME_UNKNOWN, MANIFEST_UNKNOWN.
	GetManifest(ctx context.Context, repo string, ref Reference) (Manifest, error)
	// ResolveManifest is GetManifest without the bytes.
	ResolveManifest(ctx context.Context, repo string, ref Reference) (Descriptor, error)
	// GetBlob opens a blob that belongs to the repository. Errors: NAME_UNKNOWN, BLOB_UNKNOWN.
	GetBlob(ctx context.Context, repo string, d Digest) (BlobReader, error)
	// ResolveBlob is GetBlob without the content.
	ResolveBlob(ctx context.Context, repo string, d Digest) (Descriptor, error)
}

// Lister lists what there is, in lexical order, from the entry after "after" on, at most limit entries (1 to
// MaxPage). A page of exactly limit entries may have a successor; a shorter one is the last.
type Lister interface {
	Repositories(ctx context.Context, after string, limit int) ([]string, error)
	// Tags lists the tags of a repository. Errors: NAME_UNKNOWN.
	Tags(ctx context.Context, repo, after string, limit int) ([]string, error)
	// Referrers returns descriptors, with artifact type and annotations, of the manifests whose subject is d, in
	// order of digest. An unknown subject has none. An empty artifactType takes all.
	Referrers(ctx context.Context, repo string, d Digest, artifactType string) ([]Descriptor, error)
}

// Upload is one upload session. It is used by one caller at a time.
type Upload interface {
	// ID is unguessable and valid for the repository and principal that started the session.
	ID() string
	// Size is the number of bytes received; an upload is resumed from here.
	Size() int64
	// Write appends. What Write has returned for is still there after the process was killed.
	io.Writer
	// Close ends this use of the session and keeps it for a later ResumeUpload.
	io.Closer
	// Commit makes the content a blob of the repository, durably, and ends the session; on an error the session is
	// gone for DIGEST_INVALID and stays for what may pass. Errors: DIGEST_INVALID, DiskError.
	Commit(ctx context.Context, d Digest) (Descriptor, error)
	// Cancel ends the session and frees its space.
	Cancel(ctx context.Context) error
}

// Writer adds content. What a method has returned success for survives a power cut.
type Writer interface {
	StartUpload(ctx context.Context, repo string) (Upload, error)
	// ResumeUpload opens a session again. Errors: BLOB_UPLOAD_UNKNOWN, also for another repository's or principal's
	// session; BLOB_UPLOAD_INVALID while another request uses it.
	ResumeUpload(ctx context.Context, repo, id string) (Upload, error)
	// MountBlob makes a blob of another repository one of this. Errors: BLOB_UNKNOWN.
	MountBlob(ctx context.Context, repo, from string, d Digest) (Descriptor, error)
	// PutManifest stores a manifest and, where ref is a tag, moves the tag, in one step. Where ref is a digest it must
	// be the digest of the bytes. m.MediaType and m.Bytes are read; the rest of m is computed.
	// Errors: MANIFEST_INVALID, MANIFEST_BLOB_UNKNOWN, DIGEST_INVALID, DiskError, PRECONDITION (see WithPrecondition).
	PutManifest(ctx context.Context, repo string, ref Reference, m Manifest) (Descriptor, error)
}

// Deleter removes content from a repository. Blobs that nothing refers to any more are freed by garbage collection.
type Deleter interface {
	// DeleteManifest removes a manifest by digest and every tag that points at it. Errors: MANIFEST_UNKNOWN.
	DeleteManifest(ctx context.Context, repo string, d Digest) error
	// DeleteTag removes a tag; its manifest stays. Errors: MANIFEST_UNKNOWN, PRECONDITION (see WithPrecondition).
	DeleteTag(ctx context.Context, repo, tag string) error
	// DeleteBlob takes a blob out of the repository. Errors: BLOB_UNKNOWN.
	DeleteBlob(ctx context.Context, repo string, d Digest) error
}

// Registry is all of it.
type Registry interface {
	Reader
	Lister
	Writer
	Deleter
}

// Principal is who a request acts for; the zero value is an anonymous client.
type Principal struct {
	Name string // token name, lower case; empty for anonymous
}

type principalKey struct{}

// WithPrincipal returns a context that acts for p.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// PrincipalFrom returns who ctx acts for.
func PrincipalFrom(ctx context.Context) Principal {
	p, _ := ctx.Value(principalKey{}).(Principal)
	return p
}
