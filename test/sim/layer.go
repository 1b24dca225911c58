package sim

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/store"
	"github.com/connected-registry/connected-registry/internal/twin"
)

// readiness is how long a registry may take to start and to stop, in simulated time.
const readiness = time.Minute

// layer is one registry: the product as cmd starts it, on a network, a volume and a clock of the simulation.
type layer struct {
	name, parent string
	net          *network
	volume       *volume
	seed         uint64
	log          *slog.Logger

	mode       registry.Mode
	scope      string
	cron       string
	round      time.Duration // between two iterations at most, while nothing is wrong
	pull       bool
	parentWins bool
	down       int // steps until it is started again
	starts     uint64
	skew       time.Duration // of the wall clock
	skewMu     sync.Mutex
	source     *source
	mu         sync.Mutex
	store      *store.Store
	running    *process // nil when it does not run

	sound map[registry.Digest]bool // read and hashed, since the start
}

// process is one life of a registry.
type process struct {
	cancel context.CancelFunc
	ready  chan struct{}
	done   chan error
}

// Now is the layer's wall clock.
func (l *layer) Now() time.Time {
	l.skewMu.Lock()
	defer l.skewMu.Unlock()
	return time.Now().UTC().Add(l.skew)
}

func (l *layer) jump(by time.Duration) {
	l.skewMu.Lock()
	defer l.skewMu.Unlock()
	l.skew += by
}

// source gives a registry its configuration.
type source struct {
	mu      sync.Mutex
	doc     []byte
	changed chan struct{}
}

func (*source) Name() string { return "file" }

// set replaces the document.
func (s *source) set(doc []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doc = doc
	close(s.changed)
	s.changed = make(chan struct{})
}

// Watch implements twin.Source.
func (s *source) Watch(ctx context.Context) <-chan twin.Document {
	out := make(chan twin.Document)
	go func() {
		defer close(out)
		for {
			s.mu.Lock()
			doc, changed := s.doc, s.changed
			s.mu.Unlock()
			select {
			case out <- twin.Document{Raw: doc}:
			case <-ctx.Done():
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// configure puts the layer's settings into its document.
func (l *layer) configure() {
	doc := map[string]any{
		"schemaVersion": "1.0", "mode": l.mode,
		"repositories": map[string]string{"all": l.scope},
		"transfer":     map[string]any{"parallel": 1 + l.seed%4},
		"serve":        map[string]any{"pullThrough": l.pull},
		"scopeMaps": map[string]string{"all": "repositories/*/content/read repositories/*/content/write repositories/*/content/delete " +
			"repositories/*/metadata/read repositories/*/metadata/write" + gateways()},
		"clientTokens":      map[string]any{"floor": map[string]string{"scopeMap": "all", "password1": digestOf([]byte("open sesame")).String()}},
		"garbageCollection": map[string]any{"enabled": true, "schedule": "0 */6 * * *"},
	}
	if l.parent != "" {
		sync := map[string]any{"schedule": l.cron, "messageTtl": "P90D"}
		if l.parentWins {
			sync["conflict"] = registry.ParentWins
		}
		if l.cron != "* * * * *" {
			sync["syncWindow"] = "PT1H"
		}
		doc["parent"] = map[string]any{"gatewayEndpoint": l.parent + ":5000", "protocol": "http", "syncProperties": sync}
	}
	body, err := json.Marshal(doc)
	if err != nil {
		panic(fmt.Sprintf("the configuration of a test: %v", err))
	}
	l.source.set(body)
}

// gateways are the permissions of all layers on each other's.
func gateways() (lines string) {
	for i := range layers {
		for _, a := range []registry.Action{registry.ConfigRead, registry.ConfigWrite, registry.MessageRead, registry.MessageWrite} {
			lines += fmt.Sprintf(" gateway/layer%d/%s", top-i, a)
		}
	}
	return lines
}

// start runs the registry and waits until it answers from its store; false when that takes longer than readiness, as it
// does on a full disk.
func (l *layer) start() bool {
	l.starts++
	l.sound = map[registry.Digest]bool{}
	chance := rand.New(rand.NewPCG(l.seed, l.starts))
	var key [32]byte
	key[0], key[1], key[2] = byte(l.seed), byte(l.seed>>8), byte(l.starts)
	ids := rand.NewChaCha8(key)
	var chanceMu, idsMu sync.Mutex
	p := &process{ready: make(chan struct{}), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	o := module.Options{
		DataDir: l.volume.dir, Listen: l.name, Name: l.name, Version: "sim", Source: l.source,
		AnonymousPull: true, AllowInsecureParent: true, Logger: l.log,
		Clock: clock.Func(l.Now),
		Rand: func() float64 {
			chanceMu.Lock()
			defer chanceMu.Unlock()
			return chance.Float64()
		},
		Lookup:        l.lookup,
		ListenNet:     func(_ context.Context, _, addr string) (net.Listener, error) { return l.net.listen(addr) },
		ListenControl: func(context.Context) (net.Listener, error) { return l.net.listen(l.name + "-control") },
		Dial:          l.net.dialer(l.name),
		OpenStore: func(ctx context.Context, dir string, o store.Options) (*store.Store, error) {
			o.FS, o.Rand = l.volume, lockedReader{&idsMu, ids}
			s, err := store.Open(ctx, dir, o)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.store = s
			return s, err
		},
		Ready: func(string) { close(p.ready) },
	}
	go func() { p.done <- module.Run(ctx, o) }()
	l.running = p
	return p.wait(p.ready)
}

// lookup is the environment: the layer's credential for its parent.
func (l *layer) lookup(name string) (string, bool) {
	if name != twin.EnvConnectionString || l.parent == "" {
		return "", false
	}
	return "ConnectedRegistryName=" + l.name + ";SyncTokenName=floor;SyncTokenPassword=open sesame;ParentGatewayEndpoint=" + l.parent +
		":5000;ParentEndpointProtocol=http", true
}

// wait waits for a sign of the process, or until there is something wrong with it.
func (p *process) wait(sign <-chan struct{}) bool {
	timer := time.NewTimer(readiness)
	defer timer.Stop()
	select {
	case <-sign:
		return true
	case <-timer.C:
		return false
	}
}

type lockedReader struct {
	mu *sync.Mutex
	r  *rand.ChaCha8
}

func (r lockedReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.r.Read(p)
}

// end stops the registry, as SIGTERM does or, after a crash, to get rid of what is left of it.
func (l *layer) end() error {
	p := l.running
	if p == nil {
		return nil
	}
	l.running = nil
	l.mu.Lock()
	l.store = nil
	l.mu.Unlock()
	p.cancel()
	timer := time.NewTimer(readiness)
	defer timer.Stop()
	select {
	case err := <-p.done:
		return err
	case <-timer.C:
		return fmt.Errorf("%s does not end within %v: %w", l.name, readiness, errHang)
	}
}

// isReady reports whether it answers from its store.
func (l *layer) isReady() bool {
	if l.running == nil {
		return false
	}
	select {
	case <-l.running.ready:
		return !l.volume.ended()
	default:
		return false
	}
}

// content is the registry's store.
func (l *layer) content() *store.Store {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.store
}
