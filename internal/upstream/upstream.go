// Package upstream is the parent as a registry: another connected registry, Azure Container Registry, or any OCI
// registry; which of them is found out by asking. regclient speaks the protocol and authenticates; blobs come through a
// ranged reader of our own, because regclient stops at the third cut of one blob, and go up through sessions of our own,
// because regclient's end with the process. Nothing that the parent says of content is believed: manifests are hashed
// here, blobs by whoever stores them.
package upstream

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
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
	http   *http.Client

	mu        sync.Mutex
	reg       *reg.Reg
	renewed   time.Time
	kind      registry.ParentKind
	rangeless sync.Once

	lists map[string]wholeList   // of more than one page, whose next page may be asked for
	relay atomic.Pointer[string] // version of the tokens that the parent has for this registry; nil: it said nothing of that

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
// Errors: an Endpoint that is not host[:port], a Protocol that is neither https nor http, a bad realm.
func New(o Options) (*Parent, error) {
	if o.Protocol == "" {
		o.Protocol = "https"
	}
	if o.Protocol != "https" && o.Protocol != "http" {
		return nil, fmt.Errorf("protocol %q: want https or http", o.Protocol)
	}
	host := strings.ToLower(o.Endpoint)
	u, err := url.Parse(o.Protocol + "://" + host)
	if err != nil || u.Host != host || u.Hostname() == "" || u.User != nil {
		return nil, fmt.Errorf("parent endpoint %q: want host[:port]", o.Endpoint)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	o.Transport.Origin = u.String()
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
	p := &Parent{o: o, log: o.Logger, clock: o.Clock, origin: u.String(), host: host, client: client}
	p.wire = &wire{next: client, clock: o.Clock, host: host, scheme: o.Protocol, user: o.Username, password: o.Password, refused: map[string]time.Time{}}
	p.http = &http.Client{Transport: p.wire, CheckRedirect: client.CheckRedirect}
	p.lists = map[string]wholeList{}
	p.reg = p.newReg()
	p.SetChunk(0)
	return p, nil
}

// newReg returns a regclient without any state. Its own retries, throttle and log are off: the transport retries, the
// caller decides how much runs at once, and its log would repeat what the errors say.
func (p *Parent) newReg() *reg.Reg {
	host := &config.Host{
		Name: p.host, Hostname: p.host, TLS: config.TLSEnabled,
		User: p.o.Username, Pass: p.o.Password.Reveal(),
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
	p.mu.Lock()
	r := p.reg
	p.mu.Unlock()
	c.begin(p.wire)
	err := do(withCall(ctx, c), r)
	if err == nil {
		return nil
	}
	if c.status == http.StatusUnauthorized && c.bearer && p.renew(r) {
		c.begin(p.wire)
		p.mu.Lock()
		r = p.reg
		p.mu.Unlock()
		if err = do(withCall(ctx, c), r); err == nil {
			return nil
		}
	}
	return p.explain(ctx, c, err, notFound)
}

// renew replaces old, unless that happened less than a minute ago, and reports whether there is a new one.
func (p *Parent) renew(old *reg.Reg) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reg != old {
		return true
	}
	if !p.renewed.IsZero() && p.clock.Now().Sub(p.renewed).Abs() < renewEvery {
		return false
	}
	p.reg, p.renewed = p.newReg(), p.clock.Now()
	return true
}
