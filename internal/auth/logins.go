package auth

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// signInAgain is after how long a token that signs in from the same place is told of again.
	signInAgain = time.Hour
	// maxSeen bounds the tokens and places that are remembered for that.
	maxSeen = 4096
	// Refusals are told of one by one up to a burst, then one a second with the number of those between: who guesses
	// passwords must not push everything else out of the audit log.
	refusalBurst = 60
	refusalEvery = time.Second
	// setBack is from how far on a time before the last one is that of another clock.
	setBack = time.Minute
)

// visit is a token and where it signed in from.
type visit struct{ name, from string }

// logins decides what is told of logins.
type logins struct {
	mu     sync.RWMutex
	seen   map[visit]time.Time
	used   time.Duration // of the burst; each refusal uses refusalEvery of it, and time gives it back
	at     time.Time     // when used was right
	hidden uint64        // refusals since the last one that was told
}

// first reports whether a sign-in is to be told of.
func (l *logins) first(v visit, now time.Time) bool {
	l.mu.RLock()
	told, ok := l.seen[v]
	l.mu.RUnlock()
	if ok && now.Sub(told).Abs() < signInAgain {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil || len(l.seen) >= maxSeen {
		l.seen = map[visit]time.Time{}
	}
	l.seen[v] = now
	return true
}

// refusal reports whether a refusal is to be told of, and how many before it were not.
func (l *logins) refusal(now time.Time) (hidden uint64, tell bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch passed := now.Sub(l.at); {
	case passed >= 0:
		l.used, l.at = max(0, l.used-passed), now
	case passed < -setBack: // the clock was set back; what is less is two requests that overtook each other
		l.used, l.at = 0, now
	}
	if l.used > (refusalBurst-1)*refusalEvery {
		l.hidden++
		return 0, false
	}
	l.used += refusalEvery
	hidden, l.hidden = l.hidden, 0
	return hidden, true
}

// signedIn tells of a password that was right.
func (a *Authenticator) signedIn(r *http.Request, name string) {
	a.count(registry.AuditSuccess)
	from := registry.RequestOrigin(r)
	if !a.logins.first(visit{name, from}, a.clock.Now()) {
		return
	}
	a.audit.Audit(r.Context(), registry.AuditRecord{
		Category: registry.AuditLogin, Operation: "signIn", Principal: name, From: from, Result: registry.AuditSuccess,
	})
}

// refused tells of credentials that are not accepted, and returns what the client is told: err, or awaited where that is
// not nil. why is for those who read the log, never for the client.
func (a *Authenticator) refused(r *http.Request, name, why string, err, awaited *registry.Error) *registry.Error {
	result := registry.AuditDenied
	if awaited != nil {
		result, err, why = registry.AuditFailed, awaited, awaited.Message
	}
	a.count(result)
	hidden, tell := a.logins.refusal(a.clock.Now())
	if !tell {
		return err
	}
	name, from := clip(name), registry.RequestOrigin(r)
	a.logger.Info("authentication failed", "token", name, "from", from, "reason", why, "before", hidden)
	a.audit.Audit(r.Context(), registry.AuditRecord{
		Category: registry.AuditLogin, Operation: "signIn", Principal: name, From: from,
		Result: result, Code: err.Code, Detail: why, Count: hidden,
	})
	return err
}

// operations are the changes that are told of when a permission for them lacks.
var operations = map[registry.Action]string{
	registry.ContentWrite: "push", registry.ContentDelete: "delete", registry.MetadataWrite: "change",
}

// denied tells of an operation that the scope map does not permit.
func (a *Authenticator) denied(ctx context.Context, repo string, action registry.Action, err *registry.Error) {
	operation, change := operations[action]
	if !change {
		a.logger.Debug("denied", "token", registry.PrincipalFrom(ctx).Name, "repository", repo, "action", string(action))
		return
	}
	hidden, tell := a.logins.refusal(a.clock.Now())
	if !tell {
		return
	}
	a.logger.Info("denied", "token", registry.PrincipalFrom(ctx).Name, "repository", repo, "action", string(action), "before", hidden)
	a.audit.Audit(ctx, registry.AuditRecord{
		Category: registry.AuditContent, Operation: operation, Repository: repo, Result: registry.AuditDenied, Code: err.Code,
		Detail: "the scope map has no " + string(action), Count: hidden,
	})
}

func (a *Authenticator) count(result string) {
	if a.counter != nil {
		a.counter(result)
	}
}

// clip bounds a name that a client made up.
func clip(s string) string {
	const limit = 64
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}
