package twin

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Names of the environment variables that edgeAgent sets in every module.
const (
	EnvWorkloadURI      = "IOTEDGE_WORKLOADURI"
	EnvIoTHubHostname   = "IOTEDGE_IOTHUBHOSTNAME"
	EnvGatewayHostname  = "IOTEDGE_GATEWAYHOSTNAME"
	EnvParentHostname   = "IOTEDGE_PARENTHOSTNAME" // only on a device that has a parent
	EnvDeviceID         = "IOTEDGE_DEVICEID"
	EnvModuleID         = "IOTEDGE_MODULEID"
	EnvModuleGeneration = "IOTEDGE_MODULEGENERATIONID"
	EnvAuthScheme       = "IOTEDGE_AUTHSCHEME"
	EnvUpstreamProtocol = "UpstreamProtocol" // Amqp, AmqpWs, Mqtt, MqttWs; what this site's network lets through
)

// Edge is who this module is to IoT Edge. The zero value is a process that no IoT Edge started.
type Edge struct {
	WorkloadURI     string // unix:///path or http://host:port
	IoTHubHostname  string
	GatewayHostname string // this device's name; edgeHub listens there
	ParentHostname  string // empty on the top layer
	DeviceID        string
	ModuleID        string
	Generation      string // changes when the module's identity is made anew
	WebSocket       bool   // the site prefers WebSocket on port 443
}

// Present reports whether IoT Edge started this process.
func (e Edge) Present() bool { return e.WorkloadURI != "" }

// EdgeEnvironment reads the variables of IoT Edge; lookup is os.LookupEnv. Without IOTEDGE_WORKLOADURI the result is
// zero, since then this is no module. A module that lacks one of the variables that it cannot do without gets errors
// whose path is the variable's name, and a zero result: the registry serves without its twin then.
func EdgeEnvironment(lookup func(string) (string, bool)) (Edge, []registry.FieldError) {
	p := &problems{}
	get := func(name string) string {
		s, _ := lookup(name)
		return strings.TrimSpace(s)
	}
	required := func(name string) string {
		s := get(name)
		if s == "" {
			p.add(name, "is not set although %s is: want what edgeAgent sets", EnvWorkloadURI)
		}
		return s
	}
	if get(EnvWorkloadURI) == "" {
		return Edge{}, nil
	}
	e := Edge{
		WorkloadURI:     get(EnvWorkloadURI),
		IoTHubHostname:  required(EnvIoTHubHostname),
		GatewayHostname: required(EnvGatewayHostname),
		ParentHostname:  get(EnvParentHostname),
		DeviceID:        required(EnvDeviceID),
		ModuleID:        required(EnvModuleID),
		Generation:      required(EnvModuleGeneration),
		WebSocket:       strings.HasSuffix(strings.ToLower(get(EnvUpstreamProtocol)), "ws"),
	}
	if _, err := parseWorkloadURI(e.WorkloadURI); err != nil {
		p.add(EnvWorkloadURI, "%s", err)
	}
	if s := get(EnvAuthScheme); s != "" && !strings.EqualFold(s, "sasToken") {
		p.add(EnvAuthScheme, "%q: want sasToken", clip(s))
	}
	for _, host := range []struct{ name, value string }{{EnvGatewayHostname, e.GatewayHostname}, {EnvParentHostname, e.ParentHostname}} {
		if host.value == "" {
			continue
		}
		if _, err := parseAddress(host.value); err != nil {
			p.add(host.name, "%s", err)
		}
	}
	if p.count > 0 {
		return Edge{}, p.errors()
	}
	return e, nil
}

// workloadAddress is where the workload API listens.
type workloadAddress struct {
	socket string // path of a unix socket, or
	base   string // http://host:port
}

// parseWorkloadURI reads unix:///path or http://host:port.
func parseWorkloadURI(s string) (workloadAddress, error) {
	u, err := url.Parse(s)
	switch {
	case err == nil && u.Scheme == "unix" && u.Host == "" && u.Path != "":
		return workloadAddress{socket: u.Path}, nil
	case err == nil && u.Scheme == "http" && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "":
		return workloadAddress{base: strings.TrimSuffix(u.String(), "/")}, nil
	}
	return workloadAddress{}, fmt.Errorf("%q: want unix:///path or http://host:port", clip(s))
}
