// Package module wires the house: it is the one place that sees every package. It starts the listener before anything
// else can fail, opens the data volume, puts the configuration in force section by section, runs the syncer, and
// drains in time when it is told to stop. Trouble with the parent, the configuration, the clock or the disk is a state
// that it shows, never a reason to exit.
package module

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/gateway"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/store"
	"github.com/connected-registry/connected-registry/internal/syncer"
	"github.com/connected-registry/connected-registry/internal/telemetry"
	"github.com/connected-registry/connected-registry/internal/transport"
	"github.com/connected-registry/connected-registry/internal/twin"
)

const (
	// drainTime is how long requests under way may take after the signal to stop; edgeAgent kills after 10 s.
	drainTime = 6 * time.Second
	// reopenFloor and reopenCap bound the pause between two attempts to open the data volume.
	reopenFloor = 500 * time.Millisecond
	reopenCap   = 15 * time.Second
)

// Options are what the process was started with.
type Options struct {
	DataDir    string // data volume; empty takes ACR_REGISTRY_DATA_VOLUME or its default
	ConfigFile string // configuration document; empty: only what was in force last, else defaults
	TokensFile string // client tokens and scope maps beside those of the document; empty takes ACR_REGISTRY_TOKENS_FILE
	Listen     string // service listener, host:port
	Management string // health listener, host:port; empty for none
	ListenTLS  string // service listener with TLS, host:port; empty for none
	Name       string // connected registry name; the connection string's is stronger

	AnonymousPull       bool // clients without a token may pull
	AllowInsecureParent bool // the configuration may name a parent with protocol http

	// BearerChallenge asks clients for a token of the token endpoint first, in place of Basic: for SDKs that know nothing
	// else, and for engines that push where AnonymousPull is set. It cannot be right through several API proxies, since the endpoint's URL must be absolute.
	BearerChallenge bool

	ParentCA string // PEM file of roots for the parent's certificate, beside the system's
	Roots    func() // called before the system's roots are used, to add to them; nil for nothing

	Version  string
	Built    time.Time // floor of the clock
	Lookup   func(name string) (string, bool)
	Logger   *slog.Logger
	SetLevel func(logLevel string) // puts logging.logLevel in force

	// Busy is called with true when content begins to come from the parent, and with false two seconds after the last of it.
	Busy func(bool)

	// Ready is called with the address of the service listener once requests are answered from the store.
	Ready func(addr string)
	// Rest is called when the start is over, and after the whole index was read: to give memory back.
	Rest func()
	// Clock and Rand (0 <= x < 1, for jitter) are the time and the chance; nil is the machine's.
	Clock clock.Clock
	Rand  func() float64
	// OpenStore opens the data volume; nil is store.Open. It may add a file system to the options.
	OpenStore func(ctx context.Context, dir string, o store.Options) (*store.Store, error)
	// Source brings the configuration in place of ConfigFile and of the module twin.
	Source twin.Source
	// ListenControl makes the operator's listener; nil is a socket in the data volume.
	ListenControl func(ctx context.Context) (net.Listener, error)
	// ListenNet and Dial are the network; nil is the machine's.
	ListenNet func(ctx context.Context, network, addr string) (net.Listener, error)
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	// DialEdgeHub is how edgeHub is reached; nil is the machine's network.
	DialEdgeHub func(ctx context.Context, network, addr string) (net.Conn, error)
	// Timeouts and Patience bound how long the parent is waited for; zero takes the defaults of transport and syncer.
	Timeouts transport.Timeouts
	Patience time.Duration
	// ConfirmAfter is as in syncer.Options.
	ConfirmAfter time.Duration
}

// Module is one running registry.
type Module struct {
	o       Options
	env     twin.Environment
	envErrs []registry.FieldError
	edge    twin.Edge      // zero outside IoT Edge
	work    *twin.Workload // nil outside IoT Edge
	certs   *certificates  // nil without a TLS listener
	log     *slog.Logger
	clock   *clock.Floored
	dataDir string
	name    string

	handler atomic.Pointer[http.Handler] // nil until the data volume is open
	closing chan struct{}                // closed when the drain begins
	opened  chan struct{}                // closed when the data volume is open
	store   *store.Store                 // valid after opened
	link    *transport.Link              // valid after opened
	syncer  *syncer.Syncer               // valid after opened
	hub     *twin.EdgeHub                // valid after opened; nil without a module twin
	auth    *auth.Authenticator
	audit   *telemetry.AuditLog
	metrics *telemetry.Metrics
	uptime  func() time.Duration

	children *gateway.Children // valid after opened
	mode     atomic.Value      // registry.Mode

	reporter *twin.Reporter // with hub

	mu        sync.Mutex
	config    registry.Config
	parent    *above
	parentKey string
	source    registry.ConfigStatus
	acks      map[string]twin.Ack

	deactivated bool // by the operator: the parent is not used
	comesBack   bool // the operator activated it, and the parent does not know yet
	refused     bool // the parent does not take this instance
	tokens      tokens
	details     map[string]registry.StatusDetail // by what is wrong
	gcChanged   chan struct{}
	tellChanged chan struct{} // the patterns of events may be others
}

// Run runs the module until ctx ends, then drains. It returns an error only for what a restart with the same
// arguments cannot help: an address that cannot be listened on, arguments that contradict each other.
func Run(ctx context.Context, o Options) error {
	m := newModule(o)
	listen := o.ListenNet
	if listen == nil {
		listen = (&net.ListenConfig{}).Listen
	}
	var open []listener
	for _, l := range []listener{
		{name: "service", addr: o.Listen, handler: http.HandlerFunc(m.serve)},
		{name: "TLS", addr: o.ListenTLS, handler: http.HandlerFunc(m.serve), tls: true},
		{name: "management", addr: o.Management, handler: m.management()},
	} {
		if l.addr == "" {
			continue
		}
		var err error
		if l.Listener, err = listen(ctx, "tcp", l.addr); err != nil {
			for _, other := range open {
				err = errors.Join(err, other.Close())
			}
			return fmt.Errorf("%s listener: %w", l.name, err)
		}
		open = append(open, l)
	}
	if len(open) == 0 {
		return errors.New("there is no address to listen on")
	}
	return m.run(ctx, open)
}

// listener is one address that the module listens on.
type listener struct {
	net.Listener
	name    string
	addr    string
	handler http.Handler
	tls     bool
}

func newModule(o Options) *Module {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Lookup == nil {
		o.Lookup = func(string) (string, bool) { return "", false }
	}
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	if o.OpenStore == nil {
		o.OpenStore = store.Open
	}
	m := &Module{
		o: o, log: o.Logger, clock: clock.NewFloored(o.Clock, o.Built),
		closing: make(chan struct{}), opened: make(chan struct{}), gcChanged: make(chan struct{}, 1), tellChanged: make(chan struct{}, 1),
		details: map[string]registry.StatusDetail{}, config: twin.Defaults(),
	}
	if o.ListenControl == nil {
		m.o.ListenControl = m.listenControl
	}
	m.env, m.envErrs = twin.FromEnvironment(o.Lookup)
	m.dataDir = o.DataDir
	if m.dataDir == "" {
		m.dataDir = m.env.DataVolume
	}
	m.name = m.env.Connection.ConnectedRegistryName
	if m.name == "" {
		m.name = o.Name
	}
	var edgeErrs []registry.FieldError
	m.edge, edgeErrs = twin.EdgeEnvironment(o.Lookup)
	m.envErrs = append(m.envErrs, edgeErrs...)
	if m.edge.Present() {
		var err error
		if m.work, err = twin.NewWorkload(m.edge, twin.WorkloadOptions{Log: m.log}); err != nil {
			m.envErrs = append(m.envErrs, registry.FieldError{Path: "IOTEDGE_WORKLOADURI", Message: err.Error()})
		}
	}
	for _, e := range m.envErrs {
		m.log.Error("environment", "variable", e.Path, "error", e.Message)
	}
	if o.ListenTLS != "" {
		m.certs = &certificates{dir: m.env.CertificateVolume, name: m.certificateName(), now: m.clock.Now}
		if m.work != nil { // a nil *Workload in the interface would not be nil
			m.certs.make = m.work
		}
	}
	m.tokens.changed = make(chan struct{})
	if m.o.TokensFile == "" {
		m.o.TokensFile, _ = o.Lookup(twin.EnvTokensFile)
	}
	m.mode.Store(m.config.Mode)
	m.uptime = clock.Stopwatch()
	m.audit = telemetry.NewAuditLog(telemetry.AuditOptions{Now: m.clock.Now, Logger: m.log})
	m.metrics = telemetry.NewMetrics(telemetry.MetricsOptions{
		Status: func() registry.Status { return m.scrapeStatus(context.Background()) }, Audit: m.audit, Logger: m.log,
	})
	m.auth = auth.New(auth.Options{
		Clock: m.clock, Audit: m.audit, Logins: m.metrics.Login, Logger: m.log,
		AnonymousPull: o.AnonymousPull, BearerChallenge: o.BearerChallenge,
	})
	return m
}

// run serves on the listeners. The order matters: clients get an answer from the first moment, and the listeners are
// the last to go.
func (m *Module) run(ctx context.Context, open []listener) error {
	// What works on the data volume goes on until the last request is answered.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var background sync.WaitGroup
	var closing sync.Once
	var servers []*http.Server
	failed := make(chan error, len(open))
	for _, l := range open {
		server := transport.NewServer(l.handler, transport.ServerOptions{Logger: m.log})
		server.RegisterOnShutdown(func() { closing.Do(func() { close(m.closing) }) })
		servers = append(servers, server)
		var config *tls.Config
		if l.tls {
			config = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: m.certs.get}
			background.Go(func() { m.certs.run(work, m.certificateState) })
		}
		go func() { failed <- transport.Serve(work, server, l, config) }()
	}
	background.Go(func() { m.live(work, open[0].Addr().String()) })
	for _, l := range open {
		m.log.Info("listening", "listener", l.name, "address", l.Addr().String(), "dataVolume", m.dataDir, "version", m.o.Version)
	}

	var err error
	select {
	case <-ctx.Done():
		m.log.Info("stopping: requests under way are finished", "within", drainTime)
	case err = <-failed:
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	for _, server := range servers {
		if server.Shutdown(drain) != nil {
			_ = server.Close() // the time is over: what is left is cut, and clients resume
		}
	}
	stop()
	background.Wait()
	return err
}

// live opens the data volume, however long that takes, and runs what works on it until ctx ends.
func (m *Module) live(ctx context.Context, addr string) {
	if err := m.open(ctx); err != nil {
		return // ctx ended first
	}
	defer func() {
		if err := m.store.Close(); err != nil {
			m.log.Error("closing the data volume", "error", err)
		}
	}()
	m.link = m.newLink(ctx)
	m.syncer = syncer.New(ctx, m.store, syncer.Options{
		Name: m.name, InstanceID: m.store.InstanceID(), Clock: m.clock, Logger: m.log, Rand: m.o.Rand, Patience: m.o.Patience, Link: m.link,
		Outbox: m.store, Holders: m.store.BlobHolders, ConfirmAfter: m.o.ConfirmAfter,
	})
	m.loadActivation(ctx)
	m.loadTokens(ctx)
	m.children = gateway.NewChildren(ctx, m.store, gateway.ChildrenOptions{Name: m.name, Clock: m.clock, Logger: m.log, Audit: m.audit})
	record := m.lastRecord(ctx)
	m.restore(record)
	m.awaitTokens(ctx, record)
	m.startAudit(ctx, m.config.Logging.AuditLogStatus == enabled)
	m.hub = m.newEdgeHub(record)
	handler := m.routes(ctx)
	m.handler.Store(&handler)
	close(m.opened)
	if m.o.Ready != nil {
		m.o.Ready(addr)
	}
	var group sync.WaitGroup
	group.Go(func() { m.audit.Run(ctx, filepath.Join(m.dataDir, auditDir)) })
	group.Go(func() { m.syncer.Run(ctx) })
	group.Go(func() { m.syncer.Climb(ctx) })
	group.Go(func() { m.collect(ctx) })
	group.Go(func() { m.maintain(ctx) })
	group.Go(func() { m.watch(ctx) })
	group.Go(func() { m.watchTokens(ctx) })
	group.Go(func() { m.tellParent(ctx) })
	group.Go(func() { m.control(ctx) })
	group.Go(func() { m.report(ctx) })
	group.Go(func() { m.tell(ctx) })
	group.Wait()
	m.syncer.Wait()
	if p := m.takeParent(); p != nil {
		p.Close()
	}
	m.link.Close()
}

// open tries until the data volume is open; the reason for each failure is shown to clients and in the status.
func (m *Module) open(ctx context.Context) error {
	for pause := reopenFloor; ; pause = min(2*pause, reopenCap) {
		s, err := m.o.OpenStore(ctx, m.dataDir, store.Options{Clock: m.clock, Logger: m.log})
		if err == nil {
			m.store = s
			m.clear("storage")
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m.wrong("storage", registry.StatusDetail{Type: "Storage", Code: string(registry.AsError(err).Code), Description: describe(err)})
		m.log.Error("the data volume cannot be opened; trying again", "dataVolume", m.dataDir, "in", pause, "error", err)
		if err := clock.Wait(ctx, pause); err != nil {
			return err
		}
	}
}

// describe is an error as a person reads it in the status.
func describe(err error) string {
	var e *registry.Error
	if errors.As(err, &e) && e.Code != registry.CodeInternal {
		return e.Message
	}
	return err.Error()
}

// wrong notes that something is wrong, under a name by which it is cleared.
func (m *Module) wrong(what string, d registry.StatusDetail) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d.Timestamp = m.clock.Now()
	if old, ok := m.details[what]; ok && old.Code == d.Code && old.Description == d.Description {
		d.Timestamp = old.Timestamp // since when
	}
	m.details[what] = d
}

func (m *Module) clear(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.details, what)
}
