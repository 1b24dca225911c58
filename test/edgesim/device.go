package edgesim

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Options describe a device. The zero value is a device "edge" without modules on 127.0.0.1.
type Options struct {
	DeviceID       string // "edge"
	Hub            string // host name of the IoT Hub; "edgesim.azure-devices.net"
	Address        string // the loopback address of this layer; "127.0.0.1"
	Hostname       string // IOTEDGE_GATEWAYHOSTNAME, what modules dial; Address
	ParentHostname string // IOTEDGE_PARENTHOSTNAME of a nested device; empty has no parent
	MQTTPort       int    // 8883; negative is a free port
	HTTPSPort      int    // 443, for WebSocket, methods and the service API; negative is a free port
	Dir            string // holds the sockets of the workload API; a new directory, which Close removes
	APIVersion     string // IOTEDGE_APIVERSION; empty leaves it out, as edgeAgent may
	Authority      *Authority
	Modules        []Module
	LeafLife       time.Duration // of certificates from the workload API; 30 days
	Timing         Timing
	Now            func() time.Time // the true time; the device's clock is Faults.Clock off; time.Now
	Logger         *slog.Logger     // nil discards
}

// Module is a module of the deployment.
type Module struct {
	ID            string
	Desired       any               // twin's desired properties: renders as a JSON object; nil is none
	Env           map[string]string // of the deployment
	Image         string            // as written in the manifest
	CreateOptions map[string]any    // as written in the manifest
	StartupOrder  int64             // as written in the manifest
}

// Device is one IoT Edge device with its edgeHub, workload API and cloud. All methods are safe for concurrent use.
type Device struct {
	opts       Options
	log        *slog.Logger
	authority  *Authority
	serviceKey []byte
	masterKey  []byte // of encrypt and decrypt
	ownDir     bool
	hole       *blackHole
	hub        *edgeHub

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	switching sync.Mutex // one change of the outside (sockets, certificates) at a time

	mu      sync.Mutex
	closed  bool
	changed chan struct{} // closed and replaced at each change of state
	faults  Faults
	online  bool
	edgeCA  *issuer
	certs   serverCerts
	modules map[string]*moduleState
	conns   map[string]*connection // by the broker's name of the connection
	calls   map[string]*call       // by $rid
	seq     int
}

// moduleState is all that a device and its cloud know of a module; Device.mu guards it.
type moduleState struct {
	Module
	key        []byte
	generation string
	workload   *workload

	cloud   cloudTwin
	cache   *cachedTwin
	pending map[string]any // reported properties on their way to the cloud
	pushing bool

	session  map[string]byte // subscriptions that survive: filter to QoS
	conn     *connection     // nil while absent
	waiting  []*call
	held     *patch // by Faults.ReorderPatches
	connects int
	messages []Message
	twinGets int
	patches  int
}

// New starts a device. The caller closes it.
func New(o Options) (*Device, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	d := &Device{
		opts: o, log: o.Logger, authority: o.Authority, hole: newBlackHole(),
		serviceKey: randomKey(), masterKey: randomKey(),
		changed: make(chan struct{}), online: true,
		modules: map[string]*moduleState{}, conns: map[string]*connection{}, calls: map[string]*call{},
	}
	d.ctx, d.stop = context.WithCancel(context.Background())
	if err := d.start(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (o *Options) complete() error {
	for _, f := range []struct {
		field *string
		value string
	}{{&o.DeviceID, "edge"}, {&o.Hub, "edgesim.azure-devices.net"}, {&o.Address, "127.0.0.1"}} {
		if *f.field == "" {
			*f.field = f.value
		}
	}
	if o.Hostname == "" {
		o.Hostname = o.Address
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.MQTTPort, o.HTTPSPort = port(o.MQTTPort, 8883), port(o.HTTPSPort, 443)
	o.Timing = o.Timing.withDefaults()
	if o.LeafLife == 0 {
		o.LeafLife = leafLife
	}
	if o.Authority == nil {
		a, err := NewAuthority()
		if err != nil {
			return err
		}
		o.Authority = a
	}
	return nil
}

func port(asked, standard int) int {
	switch {
	case asked == 0:
		return standard
	case asked < 0:
		return 0
	default:
		return asked
	}
}

func (d *Device) start() error {
	if d.opts.Dir == "" {
		dir, err := os.MkdirTemp("", "edgesim")
		if err != nil {
			return err
		}
		d.opts.Dir, d.ownDir = dir, true
	}
	if err := d.RotateEdgeCA(); err != nil {
		return err
	}
	hub, err := newEdgeHub(d)
	if err != nil {
		return err
	}
	d.hub = hub
	for _, m := range d.opts.Modules {
		if err := d.AddModule(m); err != nil {
			return err
		}
	}
	if err := d.hub.listen(); err != nil {
		return err
	}
	d.spawn(d.reauthenticate)
	return nil
}

// Close ends everything the device has started.
func (d *Device) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	d.mu.Unlock()
	d.stop()
	d.hole.set(false)
	d.switching.Lock()
	defer d.switching.Unlock()
	if d.hub != nil {
		d.hub.close()
	}
	for _, w := range d.workloads() {
		w.stop()
		_ = os.Remove(w.path)
	}
	d.wg.Wait()
	if d.ownDir {
		return os.RemoveAll(d.opts.Dir)
	}
	return nil
}

// AddModule deploys a module: identity, twin, workload socket. A module of that name that was there is replaced as by
// a new deployment that removed it in between: new key, new generation, a twin from its beginning.
func (d *Device) AddModule(m Module) error {
	desired := map[string]any{}
	if m.Desired != nil {
		o, err := toObject(m.Desired)
		if err != nil {
			return fmt.Errorf("desired properties of %s: %w", m.ID, err)
		}
		desired = mergePatch(nil, o)
	}
	if err := validateTwin(desired); err != nil {
		return fmt.Errorf("desired properties of %s: %w", m.ID, err)
	}
	if m.ID == "" || filepath.Base(m.ID) != m.ID {
		return fmt.Errorf("module name %q", m.ID)
	}
	_ = d.RemoveModule(m.ID)
	s := &moduleState{
		Module: m, key: randomKey(), generation: strconv.FormatInt(time.Now().UnixNano()/100, 10),
		cloud: cloudTwin{
			Twin: Twin{Desired: desired, DesiredVersion: 1, Reported: map[string]any{}, ReportedVersion: 1},
			tags: map[string]any{}, etag: 1,
		},
		session: map[string]byte{},
	}
	s.workload = newWorkload(d, m.ID, filepath.Join(d.opts.Dir, m.ID+".sock"))
	d.switching.Lock()
	defer d.switching.Unlock()
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return errors.New("the device is closed")
	}
	d.modules[m.ID] = s
	down := d.faults.WorkloadDown
	d.bumpLocked()
	d.mu.Unlock()
	if down {
		return nil
	}
	return s.workload.listen()
}

// RemoveModule deletes a module's identity, twin and socket and cuts its connections.
func (d *Device) RemoveModule(id string) error {
	d.switching.Lock()
	defer d.switching.Unlock()
	d.mu.Lock()
	s, ok := d.modules[id]
	if !ok {
		d.mu.Unlock()
		return fmt.Errorf("no module %s", id)
	}
	delete(d.modules, id)
	conn := s.conn
	d.bumpLocked()
	d.mu.Unlock()
	if conn != nil {
		conn.cut(errRemoved)
	}
	s.workload.stop()
	return os.Remove(s.workload.path)
}

// Env returns a module's environment as edgeAgent makes it: the deployment's variables and IOTEDGE_*.
func (d *Device) Env(module string) map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, ok := d.modules[module]
	if !ok {
		return nil
	}
	env := map[string]string{}
	maps.Copy(env, s.Env)
	maps.Copy(env, map[string]string{
		"IOTEDGE_WORKLOADURI":        "unix://" + s.workload.path,
		"IOTEDGE_AUTHSCHEME":         "sasToken",
		"IOTEDGE_MODULEGENERATIONID": s.generation,
		"IOTEDGE_IOTHUBHOSTNAME":     d.opts.Hub,
		"IOTEDGE_GATEWAYHOSTNAME":    d.opts.Hostname,
		"IOTEDGE_DEVICEID":           d.opts.DeviceID,
		"IOTEDGE_MODULEID":           module,
		"RuntimeLogLevel":            "Information",
	})
	if d.opts.ParentHostname != "" {
		env["IOTEDGE_PARENTHOSTNAME"] = d.opts.ParentHostname
	}
	if d.opts.APIVersion != "" {
		env["IOTEDGE_APIVERSION"] = d.opts.APIVersion
	}
	return env
}

// Modules returns the names of the modules.
func (d *Device) Modules() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.modules))
}

// MQTTAddr is the address of edgeHub's MQTT port.
func (d *Device) MQTTAddr() string { return d.hub.addr(portMQTT) }

// HTTPSAddr is the address of WebSocket, methods and the service API.
func (d *Device) HTTPSAddr() string { return d.hub.addr(portHTTPS) }

// Dir holds the sockets.
func (d *Device) Dir() string { return d.opts.Dir }

// TrustBundle is what the workload API answers, as PEM.
func (d *Device) TrustBundle() []byte { return d.authority.Bundle() }

const serviceKeyName = "iothubowner"

// ServiceConnectionString is for clients of the IoT Hub service API; they reach it on port 443 only.
func (d *Device) ServiceConnectionString() string {
	return "HostName=" + d.opts.Address + ";SharedAccessKeyName=" + serviceKeyName +
		";SharedAccessKey=" + base64.StdEncoding.EncodeToString(d.serviceKey)
}

// RotateEdgeCA gives the device a new Edge CA under the authority's root and edgeHub a new certificate. Connections
// are cut, since edgeHub restarts for it; a real device restarts all its modules, which here is the caller's part.
func (d *Device) RotateEdgeCA() error {
	ca, err := newIssuer("iotedged workload ca "+d.opts.DeviceID, d.now(), caLife, d.authority.current())
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.edgeCA = ca
	d.mu.Unlock()
	return d.RotateServerCertificate()
}

// RotateServerCertificate gives edgeHub a new certificate under the same CA and cuts its connections.
func (d *Device) RotateServerCertificate() error {
	d.mu.Lock()
	ca := d.edgeCA
	d.mu.Unlock()
	hosts := []string{d.opts.Hostname, "edgeHub"}
	if d.opts.Address != d.opts.Hostname {
		hosts = append(hosts, d.opts.Address)
	}
	certs, err := issueServer(ca, hosts, d.now())
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.certs = certs
	d.mu.Unlock()
	if d.hub != nil {
		d.hub.cutAll()
	}
	return nil
}

// certificate chooses what edgeHub presents.
func (d *Device) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch f := d.faults; {
	case f.WrongCert:
		return d.certs.unknown, nil
	case f.WrongHostCert:
		return d.certs.otherHost, nil
	case f.ExpiredCert:
		return d.certs.expired, nil
	default:
		return d.certs.good, nil
	}
}

// now is the device's clock.
func (d *Device) now() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.opts.Now().Add(d.faults.Clock)
}

// spawn runs f until it ends by itself or by the device's context; Close waits for it.
func (d *Device) spawn(f func(context.Context)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.spawnLocked(f)
}

func (d *Device) spawnLocked(f func(context.Context)) {
	if d.closed {
		return
	}
	d.wg.Go(func() { f(d.ctx) })
}

// pause waits; it is false when the device was closed first.
func pause(ctx context.Context, long time.Duration) bool {
	if long <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(long)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (d *Device) module(id string) (*moduleState, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, ok := d.modules[id]
	return s, ok
}

func (d *Device) workloads() []*workload {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]*workload, 0, len(d.modules))
	for _, s := range d.modules {
		all = append(all, s.workload)
	}
	return all
}

func (d *Device) bumpLocked() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// Wait returns when cond holds; cond is asked again after each change of the device's state and may call its methods.
func (d *Device) Wait(ctx context.Context, cond func() bool) error {
	for {
		d.mu.Lock()
		changed := d.changed
		d.mu.Unlock()
		if cond() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func randomKey() []byte {
	k := make([]byte, 32)
	_, _ = rand.Read(k) // never fails
	return k
}
