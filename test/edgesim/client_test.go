package edgesim_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"go.uber.org/goleak"

	"github.com/connected-registry/connected-registry/test/edgesim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 10 * time.Second // for what must happen
	silence  = 300 * time.Millisecond
)

// device starts a device with the module "mod" and "other" on free ports.
func device(t *testing.T, change ...func(*edgesim.Options)) *edgesim.Device {
	t.Helper()
	o := edgesim.Options{
		MQTTPort: -1, HTTPSPort: -1, Timing: edgesim.Scaled(60), // 3 s become 50 ms, 2 min 2 s, 20 s 333 ms
		Modules: []edgesim.Module{
			{ID: "mod", Desired: map[string]any{"mode": "ReadOnly", "n": 1}, Env: map[string]string{"A": "b"}},
			{ID: "other"},
		},
	}
	for _, c := range change {
		c(&o)
	}
	d, err := edgesim.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// workload calls the workload API of a module.
func workload(t *testing.T, d *edgesim.Device, module string) *http.Client {
	t.Helper()
	path := strings.TrimPrefix(d.Env(module)["IOTEDGE_WORKLOADURI"], "unix://")
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

const apiVersion = "?api-version=2020-07-07"

func post(t *testing.T, c *http.Client, path, contentType string, body any) (int, map[string]any) {
	t.Helper()
	doc, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://workload"+path, bytes.NewReader(doc))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return do(t, c, req)
}

func do(t *testing.T, c *http.Client, req *http.Request) (int, map[string]any) {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	doc, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if len(doc) > 0 {
		if err := json.Unmarshal(doc, &out); err != nil {
			t.Fatalf("%s: %v", doc, err)
		}
	}
	return resp.StatusCode, out
}

func get(t *testing.T, c *http.Client, path string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://workload"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, c, req)
}

// token makes a SAS token for a module, signed by the workload API.
func token(t *testing.T, d *edgesim.Device, module string, life time.Duration) string {
	t.Helper()
	env := d.Env(module)
	c := workload(t, d, module)
	resource := url.QueryEscape(env["IOTEDGE_IOTHUBHOSTNAME"] + "/devices/" + env["IOTEDGE_DEVICEID"] + "/modules/" + module)
	expiry := fmt.Sprint(time.Now().Add(life).Unix())
	data := base64.StdEncoding.EncodeToString([]byte(resource + "\n" + expiry))
	status, out := post(t, c, "/modules/"+module+"/genid/"+env["IOTEDGE_MODULEGENERATIONID"]+"/sign"+apiVersion,
		"application/json", map[string]string{"keyId": "primary", "algo": "HMACSHA256", "data": data})
	if status != http.StatusOK {
		t.Fatalf("sign: %d %v", status, out)
	}
	return "SharedAccessSignature sr=" + resource + "&sig=" + url.QueryEscape(out["digest"].(string)) + "&se=" + expiry
}

func roots(t *testing.T, d *edgesim.Device) *x509.CertPool {
	t.Helper()
	status, out := get(t, workload(t, d, "mod"), "/trust-bundle"+apiVersion)
	pool := x509.NewCertPool()
	if status != http.StatusOK || !pool.AppendCertsFromPEM([]byte(out["certificate"].(string))) {
		t.Fatalf("trust bundle: %d %v", status, out)
	}
	return pool
}

// client is a module's MQTT client with what it received.
type client struct {
	paho.Client
	mu  sync.Mutex
	got []received
	ch  chan struct{}
}

type received struct {
	topic, payload string
	qos            byte
	dup            bool
}

type login struct {
	module, username, id, password string
	persistent                     bool
	webSocket                      bool
	retry                          bool
}

func (l login) connect(t *testing.T, d *edgesim.Device) (*client, error) {
	t.Helper()
	if l.module == "" {
		l.module = "mod"
	}
	env := d.Env(l.module)
	o := paho.NewClientOptions()
	if l.webSocket {
		o.AddBroker("wss://" + d.HTTPSAddr() + "/$iothub/websocket")
	} else {
		o.AddBroker("tls://" + d.MQTTAddr())
	}
	o.SetTLSConfig(&tls.Config{RootCAs: roots(t, d), ServerName: env["IOTEDGE_GATEWAYHOSTNAME"], MinVersion: tls.VersionTLS12})
	if l.id == "" {
		l.id = env["IOTEDGE_DEVICEID"] + "/" + l.module
	}
	if l.username == "" {
		l.username = env["IOTEDGE_IOTHUBHOSTNAME"] + "/" + env["IOTEDGE_DEVICEID"] + "/" + l.module +
			"/?api-version=2021-04-12&DeviceClientType=test%2F1"
	}
	if l.password == "" {
		l.password = token(t, d, l.module, time.Hour)
	}
	o.SetClientID(l.id).SetUsername(l.username).SetPassword(l.password).SetCleanSession(!l.persistent)
	o.SetProtocolVersion(4).SetAutoReconnect(l.retry).SetConnectTimeout(patience).SetOrderMatters(true).SetMaxReconnectInterval(50 * time.Millisecond)
	c := &client{ch: make(chan struct{}, 1)}
	o.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) {
		c.mu.Lock()
		c.got = append(c.got, received{m.Topic(), string(m.Payload()), m.Qos(), m.Duplicate()})
		c.mu.Unlock()
		select {
		case c.ch <- struct{}{}:
		default:
		}
	})
	c.Client = paho.NewClient(o)
	tok := c.Connect()
	if !tok.WaitTimeout(patience) {
		t.Fatal("no CONNACK")
	}
	t.Cleanup(func() { c.Disconnect(0) })
	return c, tok.Error()
}

func mustConnect(t *testing.T, d *edgesim.Device, l login) *client {
	t.Helper()
	c, err := l.connect(t, d)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *client) sub(t *testing.T, filters ...string) {
	t.Helper()
	for _, f := range filters {
		tok := c.Subscribe(f, 1, nil)
		if !tok.WaitTimeout(patience) || tok.Error() != nil {
			t.Fatalf("subscribe %s: %v", f, tok.Error())
		}
	}
}

// granted subscribes and reports what the SUBACK says.
func (c *client) granted(t *testing.T, filter string) bool {
	t.Helper()
	tok, ok := c.Subscribe(filter, 1, nil).(*paho.SubscribeToken)
	if !ok || !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatalf("subscribe %s", filter)
	}
	return tok.Result()[filter] < 0x80
}

func (c *client) pub(t *testing.T, topic, payload string) {
	t.Helper()
	tok := c.Publish(topic, 1, false, payload)
	if !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatalf("publish %s: %v", topic, tok.Error())
	}
}

// next waits for a message whose topic begins with prefix and takes it out.
func (c *client) next(t *testing.T, prefix string) received {
	t.Helper()
	m, ok := c.within(prefix, patience)
	if !ok {
		t.Fatalf("no message to %s", prefix)
	}
	return m
}

func (c *client) within(prefix string, long time.Duration) (received, bool) {
	end := time.NewTimer(long)
	defer end.Stop()
	for {
		c.mu.Lock()
		for i, m := range c.got {
			if strings.HasPrefix(m.topic, prefix) {
				c.got = append(c.got[:i:i], c.got[i+1:]...)
				c.mu.Unlock()
				return m, true
			}
		}
		c.mu.Unlock()
		select {
		case <-c.ch:
		case <-end.C:
			return received{}, false
		}
	}
}

// nothing asserts that no such message comes for a while.
func (c *client) nothing(t *testing.T, prefix string) {
	t.Helper()
	if m, ok := c.within(prefix, silence); ok {
		t.Fatalf("unexpected %+v", m)
	}
}

const (
	resFilter     = "$iothub/twin/res/#"
	patchFilter   = "$iothub/twin/PATCH/properties/desired/#"
	methodsFilter = "$iothub/methods/POST/#"
	reportedTopic = "$iothub/twin/PATCH/properties/reported/?$rid="
)

func (c *client) twin(t *testing.T) string {
	t.Helper()
	c.pub(t, "$iothub/twin/GET/?$rid=g", "")
	m := c.next(t, "$iothub/twin/res/")
	if m.topic != "$iothub/twin/res/200/?$rid=g" {
		t.Fatalf("twin answered %s", m.topic)
	}
	return m.payload
}

func wait(t *testing.T, d *edgesim.Device, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := d.Wait(ctx, cond); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// gone waits until the client's connection has ended.
func (c *client) gone(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); c.IsConnectionOpen(); {
		if time.Now().After(end) {
			t.Fatal("still connected")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func portOf(t *testing.T, addr string) int {
	t.Helper()
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(p, &n); err != nil {
		t.Fatal(err)
	}
	return n
}
