// Package auth answers who a request is from and what it may do: client tokens and scope maps, as ACR's connected
// registry has them.
//
// A token is a name with up to two machine-made passwords, of which only the SHA-256 is known here, and a scope map.
// The challenge is Basic: a Bearer realm must be an absolute URL, and no URL is right on every hop of a chain of API
// proxies. Bearer tokens are issued and accepted all the same. They are signed here and say what they are for, never what
// is permitted: that is looked up in the scope map at each use, so that what is taken away is gone at once. Who has no
// credentials is anonymous, and may do only what a local option grants.
package auth

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// Realm is what the Basic challenge names. It tells a person what asks for a password, and has no other use.
const Realm = "connected registry"

// Options of an Authenticator. The zero value admits nobody without a token.
type Options struct {
	// AnonymousPull admits requests without credentials that read; nothing admits one that pushes or deletes. It is for a
	// local flag only: nothing that comes from the twin may lower security. With it the answer to GET /v2/ is no
	// challenge, so that Docker, Podman and skopeo never send credentials, unless BearerChallenge is set too.
	AnonymousPull bool
	// BearerChallenge answers 401 with the address of the token endpoint, for clients that know no Basic. It is a local
	// flag too: the address has to be right for every client.
	BearerChallenge bool
	TokenLife       time.Duration // of access tokens, 5 to 75 minutes; 0 is 30 minutes
	Clock           clock.Clock   // for the expiry of passwords and tokens; nil is the machine's
	Logger          *slog.Logger  // nil discards
	// Audit keeps who signed in, who could not, and what was not permitted; nil keeps nothing.
	Audit registry.Auditor
	// Logins is called for each request with credentials, with one of registry's results; nil for nobody.
	Logins func(result string)
}

// Authenticator holds the tokens that are in force. It is safe for concurrent use.
type Authenticator struct {
	clock     clock.Clock
	logger    *slog.Logger
	audit     registry.Auditor
	counter   func(result string)
	logins    logins
	anonymous Identity

	bearerChallenge bool
	admits          bool // anonymous requests
	life            time.Duration
	keys            keys
	verified        verified
	tokens          atomic.Pointer[map[string]token]
	awaited         atomic.Pointer[registry.Error] // nil when all tokens are here
}

// New returns an Authenticator without tokens.
func New(o Options) *Authenticator {
	a := &Authenticator{
		clock: o.Clock, logger: o.Logger, audit: o.Audit, counter: o.Logins,
		admits: o.AnonymousPull, bearerChallenge: o.BearerChallenge,
	}
	a.life = min(max(o.TokenLife, minLife), maxLife)
	if o.TokenLife == 0 {
		a.life = defaultLife
	}
	if a.clock == nil {
		a.clock = clock.System()
	}
	if a.logger == nil {
		a.logger = slog.New(slog.DiscardHandler)
	}
	if a.audit == nil {
		a.audit = registry.NoAudit{}
	}
	var granted []registry.Permission
	if o.AnonymousPull {
		for _, action := range registry.ActionsOf(registry.ReadOnly) {
			granted = append(granted, registry.Permission{Resource: registry.ResourceRepositories, Name: "*", Action: action})
		}
	}
	a.anonymous.permit = newPermit(granted)
	a.tokens.Store(&map[string]token{})
	return a
}

// Update puts other tokens in force, all at once: a request meets the old set or the new one. Names are taken in
// lower case. A line of a scope map that is not a permission, and a scope map that does not exist, grant nothing.
func (a *Authenticator) Update(tokens map[string]registry.ClientToken, maps map[string]registry.ScopeMap) {
	a.UpdateAll(registry.TokenSet{ClientTokens: tokens, ScopeMaps: maps})
}

// UpdateAll is Update for tokens of several sources. Of two tokens with one name that of the earlier source counts,
// disabled or not: what is configured here is stronger than what comes from above.
func (a *Authenticator) UpdateAll(sources ...registry.TokenSet) {
	set := map[string]token{}
	for _, source := range sources {
		permits := make(map[string]*permit, len(source.ScopeMaps))
		for name, lines := range source.ScopeMaps {
			permits[name] = a.compile(name, lines)
		}
		for name, t := range source.ClientTokens {
			name = strings.ToLower(name)
			if _, ok := set[name]; !ok {
				set[name] = newToken(t, permits[t.ScopeMap])
			}
		}
	}
	a.tokens.Store(&set)
}

// awaitAgain is when a client is to come back whose credentials cannot be judged.
const awaitAgain = 5 * time.Second

// Await says that client tokens are still to come, and why they are not here; "" says that they are in force. Until then
// credentials that are not known are answered with UNAVAILABLE: nobody can say that they are wrong, and a client that is
// told so gives up, or asks a person for others.
func (a *Authenticator) Await(why string) {
	var err *registry.Error
	if why != "" {
		err = registry.ErrUnavailable.WithMessage("credentials cannot be checked yet: %s", why).WithRetryAfter(awaitAgain)
	}
	a.awaited.Store(err)
}

func (a *Authenticator) compile(name string, lines registry.ScopeMap) *permit {
	permissions := make([]registry.Permission, 0, len(lines))
	for _, line := range lines {
		p, err := registry.ParsePermission(line)
		if err != nil {
			a.logger.Warn("a line of a scope map grants nothing", "scopeMap", name, "error", err)
			continue
		}
		permissions = append(permissions, p)
	}
	return newPermit(permissions)
}

// Identity is who a request is from and what that one may do. The zero value is anonymous and may do nothing.
type Identity struct {
	principal  registry.Principal
	permit     *permit
	credential string  // fingerprint of the password
	bearer     bool    // came with an access token: only what access is for
	access     []entry // what the access token is for
}

// Principal returns the name; that of an anonymous client is empty.
func (i Identity) Principal() registry.Principal { return i.principal }

// Anonymous reports whether there were no credentials.
func (i Identity) Anonymous() bool { return i.principal == registry.Principal{} }

// Can reports whether any line of the scope map permits the action on the repository: lines add up.
func (i Identity) Can(repo string, action registry.Action) bool {
	return i.allowed(registry.ResourceRepositories, repo, action)
}

// CanGateway reports whether the action is permitted on the gateway of the named connected registry.
func (i Identity) CanGateway(name string, action registry.Action) bool {
	return i.allowed(registry.ResourceGateway, strings.ToLower(name), action)
}

// Gateways lists the connected registries, in order, on whose gateway the action is permitted.
func (i Identity) Gateways(action registry.Action) []string {
	names := i.permit.gateways(action)
	if i.bearer {
		names = slices.DeleteFunc(names, func(name string) bool { return !covers(i.access, registry.ResourceGateway, name, action) })
	}
	return names
}

func (i Identity) allowed(resource, name string, action registry.Action) bool {
	return i.permits(resource, name, action) && (!i.bearer || covers(i.access, resource, name, action))
}

// permits reports whether the scope map does, whatever an access token is for.
func (i Identity) permits(resource, name string, action registry.Action) bool {
	return i.permit.allows(resource, name, action)
}

// CanList reports whether the repository is shown to the identity in lists of repositories (ACR connected registry:
// both content/read and metadata/read). An access token is for that when it is for the list, or for the repository.
func (i Identity) CanList(repo string) bool {
	for _, action := range []registry.Action{registry.ContentRead, registry.MetadataRead} {
		if !i.permits(registry.ResourceRepositories, repo, action) {
			return false
		}
	}
	return !i.bearer || coversCatalog(i.access) || covers(i.access, registry.ResourceRepositories, repo, registry.ContentRead)
}

type identityKey struct{}

// FromContext returns the identity that Enter put into the context, or one that may do nothing.
func FromContext(ctx context.Context) Identity {
	i, _ := ctx.Value(identityKey{}).(Identity)
	return i
}

// Enter authenticates a request and returns its context with the identity and the registry.Principal in it.
//
// Errors: UNAUTHORIZED, UNAVAILABLE while tokens are awaited.
func (a *Authenticator) Enter(r *http.Request) (context.Context, error) {
	i, err := a.Authenticate(r)
	if err != nil {
		return nil, err
	}
	ctx := registry.WithPrincipal(context.WithValue(r.Context(), identityKey{}, i), i.principal)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		ctx = registry.WithOrigin(ctx, registry.RequestOrigin(r)) // for the audit log, which tells of changes
	}
	return ctx, nil
}

// Check returns nil when whom ctx acts for may do the action on the repository. registry.CatalogList needs no permission,
// because the list is filtered, but an access token that is for it.
//
// Errors: DENIED for a token, UNAUTHORIZED for an anonymous client, who may have credentials still, and for an access
// token that is not for this, where its holder may get one that is.
func (a *Authenticator) Check(ctx context.Context, repo string, action registry.Action) error {
	i := FromContext(ctx)
	list := action == registry.CatalogList
	permitted := list || i.permits(registry.ResourceRepositories, repo, action)
	switch {
	case list && (!i.bearer || coversCatalog(i.access)) || !list && i.Can(repo, action):
		return nil
	case i.Anonymous() && !permitted, i.bearer && permitted:
		kind := typeRepository
		if list {
			kind, repo = typeRegistry, "catalog"
		}
		err := registry.ErrUnauthorized.WithDetail([]map[string]string{{"Type": kind, "Name": repo, "Action": string(action)}})
		a.denied(ctx, repo, action, err)
		return err
	}
	a.denied(ctx, repo, action, errScopes)
	return errScopes
}

// MayList is CanList of whom ctx acts for, as filter.Scoped wants it.
func (a *Authenticator) MayList(ctx context.Context, repo string) bool {
	return FromContext(ctx).CanList(repo)
}

// Caller authenticates a request between layers and returns what it may do.
//
// Errors: UNAUTHORIZED, UNAVAILABLE while tokens are awaited.
func (a *Authenticator) Caller(r *http.Request) (registry.LayerCaller, error) {
	i, err := a.Authenticate(r)
	if err != nil {
		return registry.LayerCaller{}, err
	}
	return registry.LayerCaller{Token: i.principal.Name, MayRead: i.CanList, MayGateway: i.CanGateway, Gateways: i.Gateways}, nil
}

// errScopes has the text of ACR for a token whose scope map does not permit the operation.
var errScopes = registry.ErrDenied.WithMessage("Insufficient scopes to perform the operation")
