package registry

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"
)

// AuditCategory groups what the audit log tells of.
type AuditCategory string

// The categories.
const (
	AuditContent        AuditCategory = "content"        // pushes, deletes, locks
	AuditLogin          AuditCategory = "login"          // who signed in, and who could not
	AuditConfiguration  AuditCategory = "configuration"  // documents put in force
	AuditAdministration AuditCategory = "administration" // what the operator asked for
	AuditHierarchy      AuditCategory = "hierarchy"      // children activated and freed
	AuditLog            AuditCategory = "audit"          // the log itself
)

// Results of what was done.
const (
	AuditSuccess = "success"
	AuditDenied  = "denied" // a permission, a mode or a lock forbids it
	AuditFailed  = "failed" // it was allowed and did not work
)

// AuditRecord is one line of the audit log: who did what to which content, from where, and how it ended. No field ever
// holds a secret.
type AuditRecord struct {
	Seq       uint64        `json:"seq"`  // given by the log, without gaps; what is missing was lost
	Time      time.Time     `json:"time"` // given by the log
	Category  AuditCategory `json:"category"`
	Operation string        `json:"operation"`
	Principal string        `json:"principal,omitempty"` // token; empty is anonymous. Taken from the context when empty
	From      string        `json:"from,omitempty"`      // address of the caller. Taken from the context when empty

	Repository string `json:"repository,omitempty"`
	Tag        string `json:"tag,omitempty"`
	Digest     Digest `json:"digest,omitempty"`

	Result string `json:"result"`           // AuditSuccess, AuditDenied, AuditFailed
	Code   Code   `json:"code,omitempty"`   // of the error that the caller got
	Detail string `json:"detail,omitempty"` // what else a person wants to know
	Count  uint64 `json:"count,omitempty"`  // more of the same that were not written one by one
}

// Auditor keeps a record of who did what. Audit returns at once, whatever state the disk is in.
type Auditor interface {
	Audit(ctx context.Context, r AuditRecord)
}

// NoAudit keeps nothing.
type NoAudit struct{}

// Audit does nothing.
func (NoAudit) Audit(context.Context, AuditRecord) {}

// End returns the record with the result that err stands for: nil is success.
func (r AuditRecord) End(err error) AuditRecord {
	if err == nil {
		r.Result = AuditSuccess
		return r
	}
	e := AsError(err)
	r.Result, r.Code = AuditFailed, e.Code
	if s := e.HTTPStatus(); s == http.StatusUnauthorized || s == http.StatusForbidden || errors.Is(e, ErrLocked) {
		r.Result = AuditDenied
	}
	return r
}

type originKey struct{}

// WithOrigin returns a context of a request that came from an address.
func WithOrigin(ctx context.Context, from string) context.Context {
	return context.WithValue(ctx, originKey{}, from)
}

// OriginFrom returns where the request of ctx came from; empty when nobody said.
func OriginFrom(ctx context.Context) string {
	from, _ := ctx.Value(originKey{}).(string)
	return from
}

// maxForwarded bounds what is kept of a header that anybody can send, in bytes.
const maxForwarded = 100

// RequestOrigin returns where a request came from: the address of the connection, without its port, and behind it what
// a proxy says in X-Forwarded-For, which is a claim and no more.
func RequestOrigin(r *http.Request) string {
	from := r.RemoteAddr
	if host, _, err := net.SplitHostPort(from); err == nil {
		from = host
	}
	claim := r.Header.Get("X-Forwarded-For")
	if claim == "" {
		return from
	}
	if len(claim) > maxForwarded {
		claim = claim[:maxForwarded]
	}
	return from + " for " + strings.ToValidUTF8(claim, "?")
}
