package twin_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/twin"
)

// edgeVariables are what edgeAgent sets, without those that it may leave out.
var edgeVariables = map[string]string{
	"IOTEDGE_WORKLOADURI": "unix:///var/run/iotedge/workload.sock", "IOTEDGE_AUTHSCHEME": "sasToken", "IOTEDGE_MODULEGENERATIONID": "637",
	"IOTEDGE_IOTHUBHOSTNAME": "plant.azure-devices.net", "IOTEDGE_GATEWAYHOSTNAME": "edge-l4", "IOTEDGE_DEVICEID": "l4", "IOTEDGE_MODULEID": "connected-registry",
}

func lookupIn(m map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		s, ok := m[name]
		return s, ok
	}
}

// Gap 20: the library's parser demands HOSTNAME and IOTEDGE_APIVERSION and does not know IOTEDGE_PARENTHOSTNAME.
func TestGap20Environment(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change map[string]string
		wrong  string // path of the error
	}{
		{name: "what edgeAgent sets"},
		{name: "a layer below", change: map[string]string{"IOTEDGE_PARENTHOSTNAME": "edge-l5"}},
		{name: "WebSocket", change: map[string]string{"UpstreamProtocol": "AmqpWs"}},
		{name: "http", change: map[string]string{"IOTEDGE_WORKLOADURI": "http://127.0.0.1:15580"}},
		{name: "no scheme of authentication", change: map[string]string{"IOTEDGE_AUTHSCHEME": ""}},
		{name: "another", change: map[string]string{"IOTEDGE_AUTHSCHEME": "x509"}, wrong: "IOTEDGE_AUTHSCHEME"},
		{name: "no device", change: map[string]string{"IOTEDGE_DEVICEID": " "}, wrong: "IOTEDGE_DEVICEID"},
		{name: "no generation", change: map[string]string{"IOTEDGE_MODULEGENERATIONID": ""}, wrong: "IOTEDGE_MODULEGENERATIONID"},
		{name: "no gateway", change: map[string]string{"IOTEDGE_GATEWAYHOSTNAME": ""}, wrong: "IOTEDGE_GATEWAYHOSTNAME"},
		{name: "a gateway that is a URL", change: map[string]string{"IOTEDGE_GATEWAYHOSTNAME": "https://edge"}, wrong: "IOTEDGE_GATEWAYHOSTNAME"},
		{name: "a socket without a path", change: map[string]string{"IOTEDGE_WORKLOADURI": "unix://"}, wrong: "IOTEDGE_WORKLOADURI"},
		{name: "another transport", change: map[string]string{"IOTEDGE_WORKLOADURI": "fd://iotedge"}, wrong: "IOTEDGE_WORKLOADURI"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env := maps.Clone(edgeVariables)
			maps.Copy(env, tt.change)
			e, errs := twin.EdgeEnvironment(lookupIn(env))
			if tt.wrong != "" {
				if len(errs) != 1 || errs[0].Path != tt.wrong || e.Present() {
					t.Fatalf("%+v, errors %v, want one of %s and no module", e, errs, tt.wrong)
				}
				return
			}
			want := twin.Edge{
				WorkloadURI: env["IOTEDGE_WORKLOADURI"], IoTHubHostname: "plant.azure-devices.net", GatewayHostname: "edge-l4", ParentHostname: tt.change["IOTEDGE_PARENTHOSTNAME"],
				DeviceID: "l4", ModuleID: "connected-registry", Generation: "637", WebSocket: strings.HasSuffix(tt.change["UpstreamProtocol"], "Ws"),
			}
			if len(errs) > 0 || e != want || !e.Present() {
				t.Fatalf("%+v, errors %v, want %+v", e, errs, want)
			}
		})
	}
	e, errs := twin.EdgeEnvironment(lookupIn(map[string]string{"IOTEDGE_DEVICEID": "l4"}))
	if e.Present() || len(errs) > 0 {
		t.Errorf("outside IoT Edge: %+v, %v", e, errs)
	}
}
