package edgesim_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/test/edgesim"
)

// answers a method request by a topic's status and a payload.
func (c *client) answer(t *testing.T, status, payload string) received {
	t.Helper()
	m := c.next(t, "$iothub/methods/POST/")
	_, rid, _ := strings.Cut(m.topic, "?$rid=")
	c.pub(t, "$iothub/methods/res/"+status+"/?$rid="+rid, payload)
	return m
}

// invocation is a method call under way.
type invocation struct {
	result edgesim.MethodResponse
	err    error
	took   time.Duration
}

func invoke(t *testing.T, d *edgesim.Device, m edgesim.Method) <-chan invocation {
	t.Helper()
	out := make(chan invocation, 1)
	start := time.Now()
	go func() {
		r, err := d.InvokeMethod(t.Context(), "mod", m)
		out <- invocation{r, err, time.Since(start)}
	}()
	return out
}

func TestMethods(t *testing.T) {
	d := device(t)
	c := mustConnect(t, d, login{})
	c.sub(t, methodsFilter)

	got := invoke(t, d, edgesim.Method{Name: "get status", Payload: raw(`{"a":1}`)})
	if m := c.answer(t, "207", `{"b":2}`); !strings.HasPrefix(m.topic, "$iothub/methods/POST/get%20status/?$rid=") || m.payload != `{"a":1}` {
		t.Errorf("request %+v", m)
	}
	if r := <-got; r.err != nil || r.result.Status != 207 || string(r.result.Payload) != `{"b":2}` {
		t.Errorf("%+v", r)
	}

	got = invoke(t, d, edgesim.Method{Name: "x"})
	if m := c.answer(t, "fine", `{"b":2}`); m.payload != "null" {
		t.Errorf("request %+v", m)
	}
	if r := <-got; r.err != nil || r.result.Status != 400000 || len(r.result.Payload) != 0 {
		t.Errorf("bad status: %+v", r)
	}

	got = invoke(t, d, edgesim.Method{Name: "x", ResponseTimeout: 100 * time.Millisecond})
	if r := <-got; status(r.err) != http.StatusGatewayTimeout || r.took < 100*time.Millisecond {
		t.Errorf("no answer: %+v", r)
	}
	c.next(t, "$iothub/methods/POST/")

	d.SetFaults(func(f *edgesim.Faults) { f.LoseMethods = 1 })
	got = invoke(t, d, edgesim.Method{Name: "x", ResponseTimeout: 100 * time.Millisecond})
	if r := <-got; status(r.err) != http.StatusGatewayTimeout {
		t.Errorf("lost request: %+v", r)
	}
	c.nothing(t, "$iothub/methods/POST/")
	c.pub(t, "$iothub/methods/res/200/?$rid=nobody", "") // ignored
}

func status(err error) int {
	e := new(edgesim.MethodError)
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

func TestMethodsOfAbsentModules(t *testing.T) {
	const hold = 300 * time.Millisecond
	d := device(t, func(o *edgesim.Options) { o.Timing.MethodHold = hold })
	if r := <-invoke(t, d, edgesim.Method{Name: "x"}); status(r.err) != http.StatusNotFound || r.took > patience/2 {
		t.Errorf("absent: %+v", r)
	}
	c := mustConnect(t, d, login{})
	if r := <-invoke(t, d, edgesim.Method{Name: "x", ConnectTimeout: 50 * time.Millisecond}); status(r.err) != http.StatusNotFound {
		t.Errorf("without subscription: %+v", r)
	}
	queued := invoke(t, d, edgesim.Method{Name: "queued", ConnectTimeout: patience})
	for d.Waiting("mod") == 0 {
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	c.sub(t, methodsFilter)
	if m := c.answer(t, "200", "1"); !strings.Contains(m.topic, "queued") || time.Since(start) < hold {
		t.Errorf("%s after %s", m.topic, time.Since(start))
	}
	if r := <-queued; r.err != nil || r.result.Status != 200 {
		t.Errorf("queued: %+v", r)
	}
	if _, err := d.InvokeMethod(t.Context(), "nobody", edgesim.Method{Name: "x"}); status(err) != http.StatusNotFound {
		t.Error(err)
	}
}

// rest sends a request to the HTTPS port.
func rest(t *testing.T, d *edgesim.Device, method, path, body string, header map[string]string) (int, string) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots(t, d), MinVersion: tls.VersionTLS12}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+d.HTTPSAddr()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := (&http.Client{Transport: tr, Timeout: patience}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	doc, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(doc)
}

func TestMethodsBetweenModules(t *testing.T) {
	d := device(t)
	c := mustConnect(t, d, login{})
	c.sub(t, methodsFilter)
	sas := token(t, d, "other", time.Hour)
	const path = "/twins/edge/modules/mod/methods?api-version=2018-06-30"
	for _, tt := range []struct {
		name, path, actor, sas, body string
		status                       int
		want                         string
	}{
		{"no actor", path, "", sas, `{}`, 400, "x-ms-edge-moduleId"},
		{"half an actor", path, "edge", sas, `{}`, 400, "x-ms-edge-moduleId"},
		{"another device", path, "x/other", sas, `{}`, 401, "same device"},
		{"another's token", path, "edge/mod", sas, `{}`, 401, "Unable to authenticate"},
		{"no token", path, "edge/other", "", `{}`, 401, "Unable to authenticate"},
		{"no name", path, "edge/other", sas, `{}`, 400, "method name"},
		{"no JSON", path, "edge/other", sas, `{`, 400, ""},
		{"short response", path, "edge/other", sas, `{"methodName":"x","responseTimeoutInSeconds":4}`, 400, "5 to 300"},
		{"long connect", path, "edge/other", sas, `{"methodName":"x","connectTimeoutInSeconds":301}`, 400, "0 to 300"},
		{"absent module", "/twins/edge/modules/other/methods?api-version=x", "edge/other", sas, `{"methodName":"x"}`, 404, "not found"},
		{"other device's module", "/twins/x/modules/mod/methods?api-version=x", "edge/other", sas, `{"methodName":"x"}`, 404, "not found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, body := rest(t, d, http.MethodPost, tt.path, tt.body, map[string]string{"x-ms-edge-moduleId": tt.actor, "Authorization": tt.sas})
			if code != tt.status || !strings.Contains(body, tt.want) {
				t.Errorf("%d %s", code, body)
			}
		})
	}
	done := make(chan string, 1)
	go func() {
		_, body := rest(t, d, http.MethodPost, path, `{"methodName":"x","payload":[1]}`, map[string]string{"x-ms-edge-moduleId": "edge/other", "Authorization": sas})
		done <- body
	}()
	c.answer(t, "200", "no json")
	if body := <-done; body != `{"payload":null,"status":200}` {
		t.Error(body)
	}
}
