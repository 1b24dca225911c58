package registry

import "context"

type warningKey struct{}

// WithWarnings returns a context that takes what Warn says to warn. That is called while the answer is made, by the
// goroutine that makes it.
func WithWarnings(ctx context.Context, warn func(text string)) context.Context {
	return context.WithValue(ctx, warningKey{}, warn)
}

// Warn tells whom ctx is for what the answer lacks, if there is anybody to tell. It is one line for a person, and names
// nothing that a client may not know. On the wire it is Warning: 299 - "text" (OCI distribution spec, "Warnings").
func Warn(ctx context.Context, text string) {
	if warn, ok := ctx.Value(warningKey{}).(func(string)); ok && text != "" {
		warn(text)
	}
}
