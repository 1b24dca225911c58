package edgesim_test

import (
	"context"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/test/edgesim"
)

func TestConnectFaults(t *testing.T) {
	d := device(t)
	d.SetFaults(func(f *edgesim.Faults) { f.Refuse = 3 })
	if _, err := (login{}).connect(t, d); err == nil || !strings.Contains(err.Error(), "server Unavailable") {
		t.Errorf("refused: %v", err)
	}
	d.SetFaults(func(f *edgesim.Faults) { f.Refuse, f.DropConnects = 0, 1 })
	if _, err := (login{}).connect(t, d); err == nil {
		t.Error("dropped connection has connected")
	}
	if d.Faults().DropConnects != 0 {
		t.Error("not counted")
	}
	d.SetFaults(func(f *edgesim.Faults) { f.ConnackDelay = 300 * time.Millisecond })
	start := time.Now()
	mustConnect(t, d, login{})
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("CONNACK after %s", took)
	}
	if n := d.Status("mod").Connects; n != 3 {
		t.Errorf("counted %d", n)
	}
}

func TestBlackHole(t *testing.T) {
	d := device(t)
	c := mustConnect(t, d, login{})
	c.sub(t, resFilter)
	d.SetFaults(func(f *edgesim.Faults) { f.BlackHole = true })
	tok := c.Publish("$iothub/twin/GET/?$rid=g", 1, false, "")
	if tok.WaitTimeout(silence) {
		t.Fatal("acknowledged")
	}
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots(t, d), MinVersion: tls.VersionTLS12}}
	ctx, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	if conn, err := dialer.DialContext(ctx, "tcp", d.MQTTAddr()); err == nil {
		_ = conn.Close()
		t.Error("a handshake passed")
	}
	if !c.IsConnectionOpen() {
		t.Fatal("cut")
	}
	d.SetFaults(func(f *edgesim.Faults) { f.BlackHole = false })
	c.next(t, "$iothub/twin/res/200/")
	d.SetFaults(func(f *edgesim.Faults) { f.BlackHole = true }) // Close must not hang on it
}

func TestHubDown(t *testing.T) {
	d := device(t)
	c := mustConnect(t, d, login{persistent: true, retry: true})
	c.sub(t, patchFilter)
	d.SetFaults(func(f *edgesim.Faults) { f.HubDown = true })
	wait(t, d, "cut", func() bool { return !d.Connected("mod") })
	for _, addr := range []string{d.MQTTAddr(), d.HTTPSAddr()} {
		var dialer tls.Dialer
		if _, err := dialer.DialContext(t.Context(), "tcp", addr); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", addr, err)
		}
	}
	d.SetFaults(func(f *edgesim.Faults) { f.HubDown = false })
	wait(t, d, "return", func() bool { return d.Connected("mod") })
	update(t, d, `{"n":2}`)
	c.next(t, "$iothub/twin/PATCH")
}

// handshake tries TLS with the roots.
func handshake(t *testing.T, d *edgesim.Device) error {
	t.Helper()
	for _, addr := range []string{d.MQTTAddr(), d.HTTPSAddr()} {
		dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots(t, d), MinVersion: tls.VersionTLS12}}
		conn, err := dialer.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			return err
		}
		_ = conn.Close()
	}
	return nil
}

func TestCertificates(t *testing.T) {
	authority, err := edgesim.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	d := device(t, func(o *edgesim.Options) { o.Authority = authority })
	for name, tt := range map[string]struct {
		faults edgesim.Faults
		want   string
	}{
		"expired": {edgesim.Faults{ExpiredCert: true}, "expired"},
		"unknown": {edgesim.Faults{WrongCert: true}, "unknown authority"},
		"host":    {edgesim.Faults{WrongHostCert: true}, "doesn't contain any IP SANs"},
		"bundle":  {edgesim.Faults{WrongBundle: true}, "unknown authority"},
	} {
		d.SetFaults(func(f *edgesim.Faults) { *f = tt.faults })
		if err := handshake(t, d); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d.SetFaults(func(f *edgesim.Faults) { *f = edgesim.Faults{} })
	if err := handshake(t, d); err != nil {
		t.Fatal(err)
	}

	before := string(d.TrustBundle())
	old := roots(t, d)
	c := mustConnect(t, d, login{})
	if err := d.RotateServerCertificate(); err != nil {
		t.Fatal(err)
	}
	c.gone(t)
	if err := authority.Rotate(true); err != nil {
		t.Fatal(err)
	}
	if err := d.RotateEdgeCA(); err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, d); err != nil || !strings.HasSuffix(string(d.TrustBundle()), before) {
		t.Errorf("after a rotation: %v", err)
	}
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: old, MinVersion: tls.VersionTLS12}}
	if _, err := dialer.DialContext(t.Context(), "tcp", d.MQTTAddr()); err == nil {
		t.Error("the old bundle still serves")
	}
	if err := authority.Rotate(false); err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(d.TrustBundle()), "BEGIN") != 1 {
		t.Error("old roots are kept")
	}
}

// TestLayers runs two layers under one root on addresses of their own.
func TestLayers(t *testing.T) {
	authority, err := edgesim.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	top := device(t, func(o *edgesim.Options) { o.Authority, o.DeviceID, o.Address = authority, "l4", "127.0.0.2" })
	low := device(t, func(o *edgesim.Options) {
		o.Authority, o.DeviceID, o.Address, o.ParentHostname, o.APIVersion = authority, "l3", "127.0.0.3", "127.0.0.2", "2022-08-03"
	})
	for _, d := range []*edgesim.Device{top, low} {
		mustConnect(t, d, login{})
	}
	env := low.Env("mod")
	if env["IOTEDGE_PARENTHOSTNAME"] != "127.0.0.2" || env["IOTEDGE_GATEWAYHOSTNAME"] != "127.0.0.3" ||
		env["IOTEDGE_DEVICEID"] != "l3" || env["A"] != "b" || env["IOTEDGE_APIVERSION"] != "2022-08-03" {
		t.Errorf("environment %v", env)
	}
	if _, ok := top.Env("mod")["IOTEDGE_PARENTHOSTNAME"]; ok {
		t.Error("the top layer has a parent")
	}
	if string(top.TrustBundle()) != string(low.TrustBundle()) {
		t.Error("two bundles")
	}
}

func TestClosed(t *testing.T) {
	d, err := edgesim.New(edgesim.Options{MQTTPort: -1, HTTPSPort: -1})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	d.SetFaults(func(f *edgesim.Faults) { f.HubDown = true })
	d.SetFaults(func(f *edgesim.Faults) { f.HubDown = false })
	if d.AddModule(edgesim.Module{ID: "x"}) == nil {
		t.Error("a closed device takes modules")
	}
}

func TestPortInUse(t *testing.T) {
	d := device(t)
	_, err := edgesim.New(edgesim.Options{MQTTPort: -1, HTTPSPort: portOf(t, d.HTTPSAddr()), Modules: []edgesim.Module{{ID: "x"}}})
	if err == nil {
		t.Error("two devices on one port")
	}
}
