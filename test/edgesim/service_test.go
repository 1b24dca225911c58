package edgesim_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/test/edgesim"
)

// serviceToken makes a SAS token of the service API from the connection string.
func serviceToken(t *testing.T, d *edgesim.Device, life time.Duration) string {
	t.Helper()
	fields := map[string]string{}
	for part := range strings.SplitSeq(d.ServiceConnectionString(), ";") {
		k, v, _ := strings.Cut(part, "=")
		fields[k] = v
	}
	key, err := base64.StdEncoding.DecodeString(fields["SharedAccessKey"])
	if err != nil {
		t.Fatal(err)
	}
	se := time.Now().Add(life).Unix()
	m := hmac.New(sha256.New, key)
	fmt.Fprintf(m, "%s\n%d", fields["HostName"], se)
	return fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d&skn=%s", fields["HostName"],
		url.QueryEscape(base64.StdEncoding.EncodeToString(m.Sum(nil))), se, fields["SharedAccessKeyName"])
}

func TestServiceAPI(t *testing.T) {
	d := device(t)
	sas := serviceToken(t, d, time.Hour)
	const v = "?api-version=2021-04-12"
	const twin = "/twins/edge/modules/mod"
	for _, tt := range []struct {
		name, method, path, body, sas, etag string
		status                              int
		want                                string
	}{
		{"no token", "GET", twin + v, "", "", "", 401, "401003"},
		{"expired", "GET", twin + v, "", serviceToken(t, d, -time.Hour), "", 401, "expired"},
		{"wrong key", "GET", twin + v, "", strings.Replace(sas, "sig=", "sig=AA", 1), "", 401, "401003"},
		{"wrong key name", "GET", twin + v, "", strings.Replace(sas, "skn=", "skn=x", 1), "", 401, "key name"},
		{"wrong host", "GET", twin + v, "", strings.Replace(sas, "sr=", "sr=x", 1), "", 401, "host"},
		{"a module's token", "GET", twin + v, "", token(t, d, "mod", time.Hour), "", 401, "key name"},
		{"no version", "GET", twin, "", sas, "", 400, "api-version"},
		{"get", "GET", twin + v, "", sas, "", 200, `"desired":{"$metadata"`},
		{"hub's name in the token", "GET", twin + v, "", sas, "", 200, `"moduleId":"mod"`},
		{"unknown module", "GET", "/twins/edge/modules/x" + v, "", sas, "", 404, "404010"},
		{"unknown device", "GET", "/twins/x/modules/mod" + v, "", sas, "", 404, "404001"},
		{"patch", "PATCH", twin + v, `{"tags":{"site":"a"},"properties":{"desired":{"n":2}}}`, sas, `"*"`, 200, `"tags":{"site":"a"}`},
		{"stale etag", "PATCH", twin + v, `{"properties":{"desired":{"n":9}}}`, sas, `"AAAAAAA1"`, 412, "412001"},
		{"current etag", "PATCH", twin + v, `{"properties":{"desired":{"n":3}}}`, sas, `"AAAAAAA3"`, 200, `"n":3`},
		{"bad name", "PATCH", twin + v, `{"properties":{"desired":{"a.b":3}}}`, sas, "", 400, "400004"},
		{"no JSON", "PATCH", twin + v, `x`, sas, "", 400, "400004"},
		{"nobody's", "PATCH", "/twins/edge/modules/x" + v, `{}`, sas, "", 404, "404010"},
		{"replace", "PUT", twin + v, `{"tags":{},"properties":{"desired":{"k":1}}}`, sas, "", 200, `"k":1}`},
		{"device twin", "GET", "/twins/edge" + v, "", sas, "", 200, `"iotEdge":true`},
		{"devices", "GET", "/devices" + v, "", sas, "", 200, `"deviceId":"edge"`},
		{"device", "GET", "/devices/edge" + v, "", sas, "", 200, `"connectionState":"Connected"`},
		{"modules", "GET", "/devices/edge/modules" + v, "", sas, "", 200, `"moduleId":"other"`},
		{"module", "GET", "/devices/edge/modules/mod" + v, "", sas, "", 200, `"connectionState":"Disconnected"`},
		{"no module", "GET", "/devices/edge/modules/x" + v, "", sas, "", 404, "404010"},
		{"method of the absent", "POST", twin + "/methods" + v, `{"methodName":"x"}`, sas, "", 404, "404103"},
		{"method of nobody", "POST", "/twins/edge/modules/x/methods" + v, `{"methodName":"x"}`, sas, "", 404, "404010"},
		{"method without name", "POST", twin + "/methods" + v, `{}`, sas, "", 400, "400004"},
		{"method of the device", "POST", "/twins/edge/methods" + v, `{"methodName":"x"}`, sas, "", 404, "404103"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, body := rest(t, d, tt.method, tt.path, tt.body, map[string]string{"Authorization": tt.sas, "If-Match": tt.etag})
			if code != tt.status || !strings.Contains(body, tt.want) {
				t.Errorf("%d %s", code, body)
			}
		})
	}
}

func TestServiceMethod(t *testing.T) {
	t.Parallel()
	d := device(t)
	c := mustConnect(t, d, login{})
	c.sub(t, methodsFilter)
	call := func() string {
		code, body := rest(t, d, http.MethodPost, "/twins/edge/modules/mod/methods?api-version=x",
			`{"methodName":"x","responseTimeoutInSeconds":5}`, map[string]string{"Authorization": serviceToken(t, d, time.Hour)})
		return fmt.Sprint(code, " ", body)
	}
	done := make(chan string, 1)
	go func() { done <- call() }()
	c.answer(t, "200", `{"a":1}`)
	if got := <-done; got != `200 {"payload":{"a":1},"status":200}` {
		t.Error(got)
	}
	d.SetCloud(false)
	if got := call(); !strings.Contains(got, "404103") {
		t.Errorf("offline: %s", got)
	}
	d.SetCloud(true)
	if got := call(); !strings.HasPrefix(got, "504 ") || !strings.Contains(got, "504101") {
		t.Errorf("no answer: %s", got)
	}
}
