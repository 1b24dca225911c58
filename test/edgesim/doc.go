// Package edgesim emulates what a module meets on an Azure IoT Edge device: edgeHub (MQTT 3.1.1 over TLS and over
// WebSocket, methods between modules over HTTPS), the workload API on a unix socket per module, the certificates, and
// behind them the part of the IoT Hub service API with which an operator changes twins and invokes methods.
//
// One Device is one layer on one loopback address, since clients fix the ports 8883 and 443. Each Device has its own
// cloud: what passes through a parent's edgeHub on real nested devices is not emulated, and the link to the cloud is
// a switch, SetCloud.
//
// The behaviour follows the public sources of edgeHub and of the IoT Edge daemon, including what is inconvenient: the
// answer without $version, the patch that is never repeated, the eleventh connection that is closed in silence.
// Microsoft's own npm packages validate it (build tag interop). Faults are switched while it runs, by SetFaults.
package edgesim
