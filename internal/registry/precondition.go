package registry

import (
	"context"
	"strings"
)

// Precondition is which digest a tag has to have for a request to change it: the values of If-Match and If-None-Match
// (RFC 9110, 13.1), each a list of digests in quotes or "*"; empty for none.
type Precondition struct{ Match, NoneMatch string }

// StandsAt is the precondition that a tag has one digest; an empty one that there is no such tag.
func StandsAt(d Digest) Precondition {
	if d == "" {
		return Precondition{NoneMatch: "*"}
	}
	return Precondition{Match: `"` + d.String() + `"`}
}

// Check returns PRECONDITION unless it holds for a tag that has a digest; an empty one for none.
func (p Precondition) Check(at Digest) error {
	if p.Match != "" && !lists(p.Match, at, "") {
		return ErrPrecondition.WithMessage("the tag does not stand at what If-Match asks for; ask for it, and decide again")
	}
	if p.NoneMatch != "" && lists(p.NoneMatch, at, "W/") {
		return ErrPrecondition.WithMessage("the tag stands at what If-None-Match excludes; ask for it, and decide again")
	}
	return nil
}

// lists reports whether a list has the entity tag of a digest. A weak one counts where the comparison is weak.
func lists(list string, d Digest, weak string) bool {
	if d == "" {
		return false
	}
	for tag := range strings.SplitSeq(list, ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, weak) == `"`+d.String()+`"` {
			return true
		}
	}
	return false
}

type preconditionKey struct{}

// WithPrecondition returns a context for Writer.PutManifest under a tag and for Deleter.DeleteTag that change the tag only
// where p holds in the step that does. A tag that has the digest already that it is put to is no change. Everything else
// takes no notice of it.
func WithPrecondition(ctx context.Context, p Precondition) context.Context {
	return context.WithValue(ctx, preconditionKey{}, p)
}

// PreconditionFrom returns the precondition of ctx; the zero value always holds.
func PreconditionFrom(ctx context.Context) Precondition {
	p, _ := ctx.Value(preconditionKey{}).(Precondition)
	return p
}
