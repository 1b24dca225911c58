package registry

import "context"

// BlobPush is one blob on its way up to a parent.
type BlobPush struct {
	Repository string
	Descriptor          // digest and size are read
	From       []string // repositories that the parent may have it in already, likeliest first; may be empty
	// Session is where an earlier push of the blob to this parent stands, as Note was told; empty begins a new one.
	Session string
	// Note is called with a session that a later push can go on with, when one begins and now and then while it advances,
	// and with an empty one when it has ended. May be nil.
	Note func(session string)
	// Open opens the content. It is called for each chunk, whose body the transport may hold longer than its answer takes.
	Open func(ctx context.Context) (BlobReader, error)
	// Moved is called with the number of bytes that the parent has. May be nil.
	Moved func(n int64)
}

type localKey struct{}

// WithLocal returns a context for questions about what a registry has itself: it asks nobody else to answer them. On the
// wire it is Cache-Control: only-if-cached (RFC 9111, 5.2.1.7), which any other registry ignores.
func WithLocal(ctx context.Context) context.Context { return context.WithValue(ctx, localKey{}, true) }

// IsLocal reports whether ctx is of WithLocal.
func IsLocal(ctx context.Context) bool { b, _ := ctx.Value(localKey{}).(bool); return b }

// Conflict says who keeps a tag that moved at the parent as well as here.
type Conflict string

// The ways to decide.
const (
	NewestWins Conflict = "newestWins" // what climbs overwrites; what it overwrote stays under its digest
	ParentWins Conflict = "parentWins" // the parent's tag stays; what climbs goes there under its digest alone
)
