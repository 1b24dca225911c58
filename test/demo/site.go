package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/test/edgesim"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

const (
	moduleName = "connected-registry"
	proxyName  = "IoTEdgeAPIProxy"
	floorToken = "line-a" // the client token of the floor, in each manifest
	dataVolume = "/var/acr/data"
	arch       = "amd64" // PLATFORM of the manifests: which tag a device would run
)

// site is what the deployment manifests say.
type site struct {
	layers [3]template // top first
}

// template is a manifest in which the variables are not replaced yet.
type template struct {
	name  string // of its registry, and of its sync token
	short string
	file  string
	doc   string

	clientPort int // of the device, bound to the module: for its own container engine
	proxyPort  int // of the device, bound to the API proxy: for the layer below and the floor
}

// readSite reads the templates and takes the ports from them.
func readSite(root string) (site, error) {
	s := site{layers: [3]template{
		{name: "layer5", short: "L5", file: "top-layer.template.json"},
		{name: "layer4", short: "L4", file: "middle-layer.template.json"},
		{name: "layer3", short: "L3", file: "bottom-layer.template.json"},
	}}
	for i := range s.layers {
		t := &s.layers[i]
		doc, err := os.ReadFile(filepath.Join(root, "deployment-manifests", t.file))
		if err != nil {
			return s, err
		}
		t.doc = string(doc)
		if err := t.takePorts(); err != nil {
			return s, fmt.Errorf("%s: %w", t.file, err)
		}
	}
	return s, nil
}

// ports are all that a device must have free, but for edgeHub's.
func (s site) ports() []int {
	all := []int{tlsPort}
	for _, t := range s.layers {
		all = append(all, t.clientPort, t.proxyPort)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

var variable = regexp.MustCompile(`\$\{([A-Za-z0-9_.-]+)\}`)

// render replaces the variables, as the IoT Edge tools do from .env; one without a value becomes empty.
func (t template) render(values map[string]string) []byte {
	return []byte(variable.ReplaceAllStringFunc(t.doc, func(s string) string {
		return values[variable.FindStringSubmatch(s)[1]]
	}))
}

// module finds a module in the rendered manifest.
func module(manifest []byte, name string) (edgesim.Module, []edgesim.Module, error) {
	m, err := edgesim.ReadManifest(manifest, func(string) (string, bool) { return "", false })
	if err != nil {
		return edgesim.Module{}, nil, err
	}
	i := slices.IndexFunc(m.Modules, func(m edgesim.Module) bool { return m.ID == name })
	if i < 0 {
		return edgesim.Module{}, nil, fmt.Errorf("there is no module %s", name)
	}
	return m.Modules[i], m.Modules, nil
}

// takePorts reads the ports that the manifest binds, and makes sure that it binds the data volume.
func (t *template) takePorts() error {
	manifest := t.render(nil)
	for _, b := range []struct {
		module, port string
		into         *int
	}{{moduleName, "8080/tcp", &t.clientPort}, {proxyName, "8000/tcp", &t.proxyPort}} {
		m, _, err := module(manifest, b.module)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(m.CreateOptions)
		if err != nil {
			return err
		}
		var c struct {
			HostConfig struct {
				Binds        []string
				PortBindings map[string][]struct{ HostPort string }
			}
		}
		if err := json.Unmarshal(raw, &c); err != nil {
			return err
		}
		bound := c.HostConfig.PortBindings[b.port]
		if len(bound) != 1 {
			return fmt.Errorf("%s does not bind %s once", b.module, b.port)
		}
		if *b.into, err = strconv.Atoi(bound[0].HostPort); err != nil {
			return err
		}
		volume := func(s string) bool { return strings.HasSuffix(s, ":"+dataVolume) }
		if b.module == moduleName && !slices.ContainsFunc(c.HostConfig.Binds, volume) {
			return fmt.Errorf("%s has no data volume at %s", moduleName, dataVolume)
		}
	}
	return nil
}

// device is one emulated IoT Edge device with its registry.
type device struct {
	*layer.Layer
	template
	host     string
	edge     *edgesim.Device
	operator *operator
	desired  map[string]any // where a file is in place of the twin
}

// secrets are the passwords of tokens, random as deployment-manifests/README.md says.
type secrets map[string]string

func (s secrets) of(token string) string {
	if s[token] == "" {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails
		s[token] = base64.StdEncoding.EncodeToString(key)
	}
	return s[token]
}

func (s secrets) sum(token string) string {
	sum := sha256.Sum256([]byte(s.of(token)))
	return hex.EncodeToString(sum[:])
}

// values are the variables of layer i, as an operator has them in .env.
func (d *demo) values(i int) map[string]string {
	t := d.site.layers[i]
	v := map[string]string{
		"CONTAINER_REGISTRY": d.cloud.Addr, "PARENT_ENDPOINT": d.links[0].Addr(), "PLATFORM": arch,
		"SYNC_TOKEN_NAME": t.name, "SYNC_TOKEN_PASSWORD": d.secrets.of(t.name),
		"LINE_A_PASSWORD_SHA256": d.secrets.sum(floorToken),
	}
	v["MODULES."+moduleName] = d.cloud.Addr + "/" + product + ":" + version + "-" + arch
	if i+1 < len(d.site.layers) {
		v["CHILD_SYNC_TOKEN_PASSWORD_SHA256"] = d.secrets.sum(d.site.layers[i+1].name)
	}
	return v
}

// startCloudLink makes what the top layer sees of the cloud: https, a password, and a link.
func (d *demo) startCloudLink() error {
	d.guarded = d.cloud.Guarded(d.site.layers[0].name, d.secrets.of(d.site.layers[0].name))
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.guarded.Certificate().Raw})
	if err := os.WriteFile(d.publicRoots(), root, 0o600); err != nil {
		return err
	}
	link, err := linkproxy.New(d.guarded.Listener.Addr().String())
	if err != nil {
		return err
	}
	d.links = append(d.links, link)
	return link.Set(cloudLink)
}

// publicRoots holds what signs the cloud's certificate, as the system's roots do on a device.
func (d *demo) publicRoots() string { return filepath.Join(d.dir, "public-roots.pem") }

// newDevice makes the device of layer i, with everything but a running registry.
func (d *demo) newDevice(i int) (*device, error) {
	t, host := d.site.layers[i], d.ground.hosts[i]
	manifest := t.render(d.values(i))
	ours, all, err := module(manifest, moduleName)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.file, err)
	}
	o := edgesim.Options{
		DeviceID: t.short, Address: host, Authority: d.authority, Modules: all, HTTPSPort: hubHTTPS, MQTTPort: hubMQTT,
		Timing: edgesim.Timing{ReportedPush: time.Second},
	}
	if i > 0 {
		o.ParentHostname = d.ground.hosts[i-1]
	}
	if !d.ground.twins() {
		o.HTTPSPort, o.MQTTPort = -1, -1 // nobody asks there
	}
	edge, err := edgesim.New(o)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", t.short, err)
	}
	v := &device{template: t, host: host, edge: edge, operator: newOperator(edge, t.short)}
	d.devices = append(d.devices, v) // close ends it from here on
	listenTLS := tlsPort
	if i == len(d.site.layers)-1 {
		listenTLS = t.proxyPort // no link below it
	} else {
		link, err := linkproxy.NewAt(v.at(t.proxyPort), v.at(tlsPort))
		if err != nil {
			return nil, err
		}
		d.links = append(d.links, link)
	}
	lo := layer.Options{
		Binary: hostBinary(d.binaries()), Dir: filepath.Join(d.dir, t.short), Name: t.short, Listen: v.at(t.clientPort),
		Module: true, Closed: true, Args: []string{"--listen-tls", v.at(listenTLS)}, Env: []string{"SSL_CERT_FILE=" + d.publicRoots()},
	}
	for name, value := range edge.Env(moduleName) {
		lo.Env = append(lo.Env, name+"="+value)
	}
	if !d.ground.twins() {
		lo.Args = append(lo.Args, "--config", filepath.Join(d.dir, t.short, "registry.json"))
	}
	if v.Layer, err = layer.New(lo); err != nil {
		return nil, err
	}
	if v.desired, err = object(ours.Desired); err != nil || d.ground.twins() {
		return v, err
	}
	return v, v.write()
}

// at is an address of the device.
func (v *device) at(port int) string { return net.JoinHostPort(v.host, strconv.Itoa(port)) }

// object makes JSON's types of any document.
func object(doc any) (map[string]any, error) {
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	var o map[string]any
	return o, json.Unmarshal(raw, &o)
}

// configured waits until the deployed configuration is in force, whole.
func (v *device) configured(ctx context.Context, source string) error {
	return v.Until(ctx, "the configuration of its "+source+" is in force", func(ctx context.Context) (bool, error) {
		s, err := v.Status(ctx)
		if err != nil {
			return false, nil // not yet: the socket comes after the listener
		}
		if len(s.Configuration.Errors) > 0 {
			return false, fmt.Errorf("%s: the configuration has errors: %w", v.short, s.Configuration.Errors[0])
		}
		return s.Configuration.Source == source, nil
	})
}

// close ends what was started, the bottom first.
func (d *demo) close() error {
	var err error
	for _, v := range slices.Backward(d.devices) {
		if v.Layer != nil {
			err = errors.Join(err, v.Layer.Close())
		}
		err = errors.Join(err, v.edge.Close())
		v.operator.close()
	}
	for _, l := range d.links {
		err = errors.Join(err, l.Close())
	}
	closeIdle(d.floor)
	if d.guarded != nil {
		d.guarded.CloseClientConnections()
		d.guarded.Close()
	}
	if d.cloud != nil {
		err = errors.Join(err, d.cloud.Close())
	}
	return err
}

func closeIdle(t *http.Transport) {
	if t != nil {
		t.CloseIdleConnections()
	}
}
