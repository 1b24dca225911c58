package edgesim_test

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/test/edgesim"
)

// signed makes a token for any resource and expiry with the key of "mod".
func signed(t *testing.T, d *edgesim.Device, resource string, expiry int64) string {
	t.Helper()
	sr, se := url.QueryEscape(resource), strconv.FormatInt(expiry, 10)
	status, out := post(t, workload(t, d, "mod"), "/modules/mod/genid/1/sign"+apiVersion, "",
		map[string]string{"data": base64.StdEncoding.EncodeToString([]byte(sr + "\n" + se))})
	if status != http.StatusOK {
		t.Fatalf("sign: %d", status)
	}
	return "SharedAccessSignature sr=" + sr + "&sig=" + url.QueryEscape(out["digest"].(string)) + "&se=" + se
}

func TestLogin(t *testing.T) {
	d := device(t, func(o *edgesim.Options) { o.Hostname = "localhost" })
	hub, later := "edgesim.azure-devices.net", time.Now().Add(time.Hour).Unix()
	good := signed(t, d, hub+"/devices/edge/modules/mod", later)
	tests := []struct {
		name  string
		login login
		want  string // part of the error; empty is admitted
	}{
		{"good", login{password: good}, ""},
		{"for the gateway", login{password: signed(t, d, "localhost/devices/edge/modules/mod", later)}, ""},
		{"without question mark", login{password: good, username: hub + "/edge/mod/api-version=2018-06-30"}, ""},
		{"any host, any version", login{password: good, username: "x/edge/mod/?api-version=y"}, ""},
		{"no api-version", login{password: good, username: hub + "/edge/mod/?DeviceClientType=x"}, "not Authorized"},
		{"no module", login{password: good, username: hub + "/edge/?api-version=x"}, "not Authorized"},
		{"client id of another", login{password: good, id: "edge/other"}, "not Authorized"},
		{"client id without device", login{password: good, id: "mod"}, "not Authorized"},
		{"another device", login{password: good, id: "x/mod", username: hub + "/x/mod/?api-version=x"}, "not Authorized"},
		{"unknown module", login{password: good, id: "edge/x", username: hub + "/edge/x/?api-version=x"}, "not Authorized"},
		{"token of another module", login{password: token(t, d, "other", time.Hour)}, "not Authorized"},
		{"token for another host", login{password: signed(t, d, "evil/devices/edge/modules/mod", later)}, "not Authorized"},
		{"token for the device", login{password: signed(t, d, hub+"/devices/edge", later)}, "not Authorized"},
		{"expired", login{password: signed(t, d, hub+"/devices/edge/modules/mod", time.Now().Unix()-1)}, "not Authorized"},
		{"longer expiry than signed", login{password: strings.Replace(good, "&se=", "&se=9", 1)}, "not Authorized"},
		{"no token", login{password: "secret"}, "not Authorized"},
		{"no signature", login{password: "SharedAccessSignature sr=x&se=1"}, "not Authorized"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.login.connect(t, d)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestClockDecidesOverTokens(t *testing.T) {
	d := device(t)
	d.SetFaults(func(f *edgesim.Faults) { f.Clock = 2 * time.Hour })
	if _, err := (login{}).connect(t, d); err == nil {
		t.Error("a token of one hour was admitted two hours later")
	}
	d.SetFaults(func(f *edgesim.Faults) { f.Clock = -20 * 365 * 24 * time.Hour })
	mustConnect(t, d, login{})
}

func TestExpiredTokenIsDropped(t *testing.T) {
	d := device(t, func(o *edgesim.Options) { o.Timing.Reauthenticate = 30 * time.Millisecond })
	c := mustConnect(t, d, login{})
	time.Sleep(100 * time.Millisecond)
	if !c.IsConnectionOpen() {
		t.Fatal("dropped with a valid token")
	}
	d.SetFaults(func(f *edgesim.Faults) { f.Clock = 2 * time.Hour })
	c.gone(t)
}

func TestSessions(t *testing.T) {
	d := device(t)
	c := mustConnect(t, d, login{persistent: true})
	c.sub(t, resFilter, patchFilter)
	update(t, d, `{"n":2}`)
	if m := c.next(t, patchFilter[:10]); m.topic != "$iothub/twin/PATCH/properties/desired/?$version=2" || m.payload != `{"$version":2,"n":2}` || m.qos != 1 {
		t.Errorf("patch %+v", m)
	}
	d.Kick("mod")
	c.gone(t)
	wait(t, d, "absence", func() bool { return !d.Connected("mod") })
	update(t, d, `{"n":3,"lost":true}`)

	c = mustConnect(t, d, login{persistent: true})
	if got := d.Status("mod").Subscriptions; !slices.Equal(got, []string{patchFilter, resFilter}) {
		t.Errorf("subscriptions after a return: %v", got)
	}
	c.nothing(t, "$iothub/twin/PATCH")
	update(t, d, `{"n":4}`)
	c.next(t, "$iothub/twin/PATCH") // nothing is stored, so edgeHub passes the patch on

	c = mustConnect(t, d, login{}) // clean
	if got := d.Status("mod").Subscriptions; len(got) != 0 {
		t.Errorf("subscriptions after a clean session: %v", got)
	}
	update(t, d, `{"n":5}`)
	c.nothing(t, "$iothub/twin/PATCH")
	c.sub(t, patchFilter)
	update(t, d, `{"n":6}`)
	c.next(t, "$iothub/twin/PATCH")
	if tok := c.Unsubscribe(patchFilter); !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	update(t, d, `{"n":7}`)
	c.nothing(t, "$iothub/twin/PATCH")
}

func update(t *testing.T, d *edgesim.Device, patch string) {
	t.Helper()
	if _, err := d.UpdateDesired("mod", raw(patch)); err != nil {
		t.Fatal(err)
	}
}

func TestOneConnectionPerIdentity(t *testing.T) {
	d := device(t)
	first := mustConnect(t, d, login{})
	second := mustConnect(t, d, login{})
	first.gone(t)
	second.sub(t, resFilter)
	second.twin(t)
	if s := d.Status("mod"); !s.Connected || s.Connects != 2 || s.Product != "test/1" || s.Over != "tls" {
		t.Errorf("status %+v", s)
	}
	third := mustConnect(t, d, login{module: "other"})
	third.sub(t, patchFilter)
	update(t, d, `{"n":2}`)
	third.nothing(t, "") // another module's twin
}

func TestTelemetry(t *testing.T) {
	d := device(t)
	c := mustConnect(t, d, login{webSocket: true})
	c.pub(t, "devices/edge/modules/mod/messages/events/%24.on=registryEvents&a%20b=c%2Fd&%24.ct=application%2Fjson/", "x")
	c.pub(t, "devices/edge/modules/mod/messages/events/", "y")
	got := d.Messages("mod")
	if len(got) != 2 || got[0].Output != "registryEvents" || got[0].Properties["a b"] != "c/d" || string(got[0].Payload) != "x" ||
		got[0].Properties["$.ct"] != "application/json" || got[1].Output != "" || string(got[1].Payload) != "y" {
		t.Errorf("messages %+v", got)
	}
	if d.Status("mod").Over != "wss" {
		t.Error("not over WebSocket")
	}
}

func TestDropped(t *testing.T) {
	d := device(t)
	big := strings.Repeat("x", 262144)
	events := "devices/edge/modules/mod/messages/events/"
	for _, tt := range []struct {
		name, topic, payload string
		qos                  byte
		stays                bool
	}{
		{"largest message", events, big[:262144-len(events)-4], 1, true},
		{"larger message", events, big[:262144-len(events)-3], 1, false},
		{"wildcard", events + "a=+", "", 1, false},
		{"other device", "devices/x/modules/mod/messages/events/", "", 1, false},
		{"other module", "devices/edge/modules/other/messages/events/", "", 1, false},
		{"unknown topic", "a/b", "", 1, false},
		{"QoS 2", events, "", 2, false},
		{"twin without request id", "$iothub/twin/GET/", "", 1, false},
		{"bad escape", events + "a=%zz", "", 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := mustConnect(t, d, login{})
			tok := c.Publish(tt.topic, tt.qos, false, tt.payload)
			if tt.stays {
				if !tok.WaitTimeout(patience) || tok.Error() != nil || !c.IsConnectionOpen() {
					t.Errorf("dropped: %v", tok.Error())
				}
				return
			}
			c.gone(t)
		})
	}
}

func TestHostileSubscriptions(t *testing.T) {
	d := device(t)
	c := mustConnect(t, d, login{})
	for _, f := range []string{"$SYS/#", "$SYS/broker/version"} {
		if c.granted(t, f) {
			t.Errorf("%s was granted", f)
		}
	}
	d.SetFaults(func(f *edgesim.Faults) { f.RefuseSubscribe = true })
	if c.granted(t, patchFilter) {
		t.Error("subscription was granted")
	}
	update(t, d, `{"n":2}`)
	c.nothing(t, "$iothub")
}

func TestRemovedModule(t *testing.T) {
	d := device(t)
	c := mustConnect(t, d, login{})
	before := d.Env("mod")
	if err := d.AddModule(edgesim.Module{ID: "mod"}); err != nil {
		t.Fatal(err)
	}
	c.gone(t)
	if after := d.Env("mod"); after["IOTEDGE_MODULEGENERATIONID"] == before["IOTEDGE_MODULEGENERATIONID"] {
		t.Error("same generation")
	}
	if v := d.Twin("mod").DesiredVersion; v != 1 {
		t.Errorf("version %d", v)
	}
	if err := d.RemoveModule("mod"); err != nil {
		t.Fatal(err)
	}
	if d.RemoveModule("mod") == nil || d.Env("mod") != nil || d.Kick("mod") || len(d.Modules()) != 1 {
		t.Error("still there")
	}
	for _, m := range []edgesim.Module{{}, {ID: "a/b"}, {ID: "x", Desired: 1}, {ID: "x", Desired: map[string]any{"a.b": 1}}} {
		if d.AddModule(m) == nil {
			t.Errorf("%+v was deployed", m)
		}
	}
}
