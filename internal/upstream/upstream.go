// Package upstream is the parent as a registry: another connected registry, Azure Container Registry, or any OCI
// registry; which of them is found out by asking. regclient speaks the protocol and authenticates; blobs come through a
// ranged reader of our own, because regclient stops at the third cut of one blob, and go up through sessions of our own,
// because regclient's end with the process. Nothing that the parent says of content is believed: manifests are hashed
// here, blobs by whoever stores them.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/regclient/regclient/config"
	"github.com/regclient/regclient/scheme/reg"
	"github.com/regclient/regclient/types/ref"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// Options say which registry is the parent and who asks.
type Options struct {
	Endpoint string // host[:port]
	Protocol string // "https", also when empty, or "http"
	Username string // empty asks without a credential
	Password registry.Secret
	Identity Identity // of Microsoft Entra ID, in place of user name and password; for an Azure Container Registry

	// Alternates are further endpoints of the same registry, host[:port], such as its replicas in other regions. They
	// are asked in this order while the first does not answer, and are given the credential: only whoever may name the
	// parent's host for the credential may name them.
	Alternates []string
	// SourceClient tells Azure which software asks (header X-Meta-Source-Client); empty tells nothing.
	SourceClient string

	// What this registry tells a parent of its own kind.
	Name       string
	InstanceID string
	Mode       registry.Mode

	Transport transport.ClientOptions // Origin is set here; Realms holds token servers on other hosts
	Clock     clock.Clock             // nil: the machine's
	Logger    *slog.Logger
}

// Parent is the registry above. It is safe for concurrent use.
type Parent struct {
	o      Options
	log    *slog.Logger
	clock  clock.Clock
	origin string // scheme://host:port
	host   string // host[:port] as configured
	client *transport.Client
	wire   *wire
	points *endpoints
	entra  *entra // nil without an identity
	http   *http.Client

	mu        sync.Mutex
	reg       *reg.Reg
	refresh   registry.Secret // the refresh token of reg
	renewed   time.Time
	kind      registry.ParentKind
	lister    bool // it keeps lists of referrers itself
	rangeless sync.Once

	lists     map[string]wholeList        // of more than one page, whose next page may be asked for
	relisting chan struct{}               // holds one while a list of referrers is changed
	removed   map[removed]registry.Digest // the subjects of what was deleted

	relay   atomic.Pointer[string] // version of the tokens that the parent has for this registry; nil: it said nothing of that
	settled atomic.Pointer[string] // the one that is done with, as the parent is told

	chunkMu                     sync.Mutex
	chunkWant, chunkMost, chunk int64 // bytes: as configured, as far as nobody refused it, of the next one
}

var (
	_ registry.Reader  = (*Parent)(nil)
	_ registry.Lister  = (*Parent)(nil)
	_ registry.Deleter = (*Parent)(nil)
)

// New returns the parent without asking it anything.
//
// Errors: an Endpoint or one of Alternates that is not host[:port], a Protocol that is neither https nor http, a bad
// realm, an Identity that lacks something or is to be used without TLS.
func New(o Options) (*Parent, error) {
	if o.Protocol == "" {
		o.Protocol = "https"
	}
	if o.Protocol != "https" && o.Protocol != "http" {
		return nil, fmt.Errorf("protocol %q: want https or http", o.Protocol)
	}
	host, err := parseHost(o.Protocol, o.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("parent endpoint %w", err)
	}
	origin := o.Protocol + "://" + host
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	hosts := []string{host}
	for _, a := range o.Alternates {
		other, err := parseHost(o.Protocol, a)
		if err != nil {
			return nil, fmt.Errorf("alternate endpoint of the parent %w", err)
		}
		hosts = append(hosts, other)
		o.Transport.Realms = append(slices.Clip(o.Transport.Realms), o.Protocol+"://"+other)
	}
	o.Transport.Origin = origin
	if o.Transport.Logger == nil {
		o.Transport.Logger = o.Logger
	}
	if o.Transport.UserAgent == "" {
		o.Transport.UserAgent = "connected-registry"
	}
	client, err := transport.NewClient(o.Transport)
	if err != nil {
		return nil, err
	}
	p := &Parent{o: o, log: o.Logger, clock: o.Clock, origin: origin, host: host, client: client}
	p.points = &endpoints{next: client, clock: o.Clock, log: o.Logger, scheme: o.Protocol, hosts: hosts}
	p.wire = &wire{
		next: p.points, clock: o.Clock, host: host, scheme: o.Protocol, user: o.Username, password: o.Password,
		sourceClient: o.SourceClient, refused: map[string]time.Time{},
	}
	p.http = &http.Client{Transport: p.wire, CheckRedirect: client.CheckRedirect}
	p.lists, p.relisting = map[string]wholeList{}, make(chan struct{}, 1)
	if o.Identity.Kind != "" {
		if p.entra, err = p.newEntra(); err != nil {
			return nil, err
		}
	}
	p.reg = p.newReg("")
	p.SetChunk(0)
	return p, nil
}

// parseHost returns host[:port] in lower case.
func parseHost(protocol, endpoint string) (string, error) {
	host := strings.ToLower(endpoint)
	u, err := url.Parse(protocol + "://" + host)
	if err != nil || u.Host != host || u.Hostname() == "" || u.User != nil {
		return "", fmt.Errorf("%q: want host[:port]", endpoint)
	}
	return host, nil
}

// newReg returns a regclient without any state; refresh is a refresh token of the parent, where an identity has one. Its
// own retries, throttle and log are off: the transport retries, the
// caller decides how much runs at once, and its log would repeat what the errors say.
func (p *Parent) newReg(refresh registry.Secret) *reg.Reg {
	host := &config.Host{
		Name: p.host, Hostname: p.host, TLS: config.TLSEnabled,
		User: p.o.Username, Pass: p.o.Password.Reveal(), Token: refresh.Reveal(),
		RepoAuth: true, // or the scopes of all repositories would pile up in each token request
		APIOpts:  map[string]string{},
	}
	if p.o.Protocol == "http" {
		host.TLS = config.TLSDisabled
	}
	return reg.New(
		reg.WithConfigHosts([]*config.Host{host}),
		reg.WithHTTPClient(p.http),
		reg.WithRetryLimit(1),
		reg.WithDelay(time.Millisecond, time.Millisecond),
		reg.WithManifestMax(registry.MaxManifestSize, registry.MaxManifestSize),
		reg.WithUserAgent(p.o.Transport.UserAgent),
		reg.WithSlog(slog.New(slog.DiscardHandler)),
	)
}

// Traffic counts what went over the link, retries and token requests included.
func (p *Parent) Traffic() registry.Traffic { return p.client.Traffic() }

// Close drops idle connections; transfers under way end with their contexts.
func (p *Parent) Close() { p.client.Close() }

// ref names a place at the parent for regclient. It is built and not parsed, so that no name is taken for a Docker Hub
// short form.
func (p *Parent) ref(repo string, r registry.Reference) ref.Ref {
	return ref.Ref{Scheme: "reg", Registry: p.host, Repository: repo, Tag: r.Tag, Digest: string(r.Digest)}
}

// renewEvery bounds how often tokens are dropped because the parent refuses them: a parent that refuses everything is
// not asked for a new token with each request.
const renewEvery = time.Minute

// run makes one call through regclient. A token that the parent no longer takes, because it was restarted or a clock
// jumped, is dropped once and the call repeated: regclient would use it until it expires by the local clock.
//
// Errors: see explain; what a 404 means is notFound.
func (p *Parent) run(ctx context.Context, c *call, notFound *registry.Error, do func(context.Context, *reg.Reg) error) error {
	r, err := p.signedIn(ctx)
	if err != nil {
		return err
	}
	c.begin(p.wire)
	if err = do(withCall(ctx, c), r); err == nil {
		return nil
	}
	for range 2 { // an access token, and then the refresh token that it was made of
		if c.status != http.StatusUnauthorized || !(c.bearer || p.entra != nil) || !p.renew(ctx, c, r) {
			break
		}
		if r, err = p.signedIn(ctx); err != nil {
			return err
		}
		c.begin(p.wire)
		if err = do(withCall(ctx, c), r); err == nil {
			return nil
		}
	}
	return p.explain(ctx, c, err, notFound)
}

// signedIn returns the regclient to ask with. With an identity it has a refresh token that is good.
//
// Errors: UNAUTHORIZED and UNAVAILABLE of the identity, the context's.
func (p *Parent) signedIn(ctx context.Context) (*reg.Reg, error) {
	if p.entra == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.reg, nil
	}
	refresh, err := p.entra.refreshToken(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if refresh != p.refresh {
		p.reg, p.refresh = p.newReg(refresh), refresh
	}
	return p.reg, nil
}

// renew replaces old, unless that happened less than a minute ago, and reports whether there is a new one. A refresh
// token that the parent's token server refuses is dropped with it.
func (p *Parent) renew(ctx context.Context, c *call, old *reg.Reg) bool {
	p.mu.Lock()
	refresh := p.refresh
	p.mu.Unlock()
	dropped := p.entra != nil && errors.Is(p.wire.tokenTrouble(c.tokens), registry.ErrUnauthorized) && p.entra.forget(ctx, refresh)
	if dropped {
		p.wire.forgive()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reg != old {
		return true
	}
	if !dropped && !p.renewed.IsZero() && p.clock.Now().Sub(p.renewed).Abs() < renewEvery {
		return false
	}
	p.reg, p.renewed = p.newReg(refresh), p.clock.Now()
	return true
}

// Endpoint returns the host[:port] that is asked now: the parent's own, or one of its alternates.
func (p *Parent) Endpoint() string { return p.points.inUse() }

// who names the credential for a person.
func (p *Parent) who() string {
	if p.entra != nil {
		return p.o.Identity.Who()
	}
	return p.o.Username
}
