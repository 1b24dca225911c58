package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/regclient/regclient/types/errs"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// away is the error of a parent that is there and cannot answer now.
func away(host string, status int, h http.Header) *registry.Error {
	return registry.ErrUnavailable.WithMessage("%s answers HTTP %d %s", host, status, http.StatusText(status)).
		WithRetryAfter(transport.RetryAfter(h))
}

// isAway reports whether a status says "not now", as against no.
func isAway(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusRequestTimeout:
		return true
	case http.StatusNotImplemented:
		return false
	}
	return status >= 500
}

// explain turns a failed call into a *registry.Error: UNAVAILABLE for a parent that is away, overloaded or silent;
// notFound for 404; UNAUTHORIZED and DENIED with the host; DIGEST_INVALID for content that is not what it is said to
// be. A caller that gave up gets its context's error.
func (p *Parent) explain(ctx context.Context, c *call, err error, notFound *registry.Error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return context.Cause(ctx)
	}
	var known *registry.Error
	if errors.As(err, &known) {
		return known
	}
	if c.status == http.StatusUnauthorized {
		if trouble := p.wire.tokenTrouble(c.tokens); errors.As(trouble, &known) {
			return known
		}
	}
	if errors.Is(err, errs.ErrHTTPRedirectRefused) {
		return registry.ErrDenied.WithMessage("%s sends the request to an address that is local or not https", p.host).Wrap(err)
	}
	if c.status >= 400 {
		return p.refusal(c, notFound)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return registry.ErrUnavailable.WithMessage("no answer from %s in time", p.host).Wrap(err)
	case errors.Is(err, errs.ErrDigestMismatch):
		return registry.ErrDigestInvalid.WithMessage("%s sent content that does not have its digest", p.host).Wrap(err)
	case c.status/100 == 3:
		return registry.ErrDenied.WithMessage("%s redirects to where it is not followed", p.host).Wrap(err)
	case c.status == 0:
		return registry.ErrUnavailable.WithMessage("no answer from %s", p.host).Wrap(err)
	}
	return registry.ErrUnavailable.WithMessage("the answer of %s cannot be read", p.host).Wrap(err)
}

// refusal is the error for an answer of 400 or more.
func (p *Parent) refusal(c *call, notFound *registry.Error) *registry.Error {
	cause := fmt.Errorf("HTTP %d%s", c.status, reason(c.body))
	said := parseError(c.body)
	switch s := c.status; {
	case s == http.StatusUnauthorized && p.who() == "":
		return registry.ErrUnauthorized.WithMessage("%s asks for a credential and none is configured", p.host).Wrap(cause)
	case s == http.StatusUnauthorized && p.wire.madeToken(c.tokens):
		return registry.ErrUnauthorized.WithMessage("%s does not let %q do this: its token server makes a token, and %s does not take it for this%s",
			p.host, p.who(), p.host, reason(c.body)).Wrap(errors.Join(cause, registry.ErrNotGranted))
	case s == http.StatusUnauthorized:
		return registry.ErrUnauthorized.WithMessage("%s refuses the credential of %q", p.host, p.who()).Wrap(cause)
	case s == http.StatusForbidden:
		return registry.ErrDenied.WithMessage("%s denies %q this operation", p.host, p.who()).Wrap(cause)
	case s == http.StatusNotFound && said.Code == registry.CodeNameUnknown && notFound.Code != registry.CodeUnsupported:
		return registry.ErrNameUnknown.WithMessage("the repository is not known to %s", p.host).Wrap(cause)
	case s == http.StatusNotFound && notFound.Code != registry.CodeUnsupported:
		return notFound.WithMessage("%s at %s", notFound.Message, p.host).Wrap(cause)
	case s == http.StatusNotFound:
		return notFound.Wrap(cause)
	case s == http.StatusConflict:
		return registry.ErrConflict.WithMessage("%s: HTTP 409%s", p.host, reason(c.body)).Wrap(cause)
	case s == http.StatusRequestedRangeNotSatisfiable:
		return registry.ErrRangeInvalid.WithMessage("%s does not have the range", p.host).Wrap(cause)
	case s == http.StatusMethodNotAllowed || s == http.StatusNotImplemented:
		return registry.ErrUnsupported.WithMessage("%s does not support this", p.host).Wrap(cause)
	case isAway(s):
		return away(p.host, s, c.header).Wrap(cause)
	}
	return registry.ErrUnsupported.WithMessage("%s answers HTTP %d%s", p.host, c.status, reason(c.body)).Wrap(cause)
}
