// Package apiproxy is IoT Edge's API proxy module as the layers of a chain meet it: a real nginx with a configuration of
// our own that behaves as the stock one does where a registry is concerned, on a loopback address for each device, with
// certificates as IoT Edge makes them.
//
// What of the stock proxy is here: TLS 1.2 only; requests for a certificate that nobody has to have; with a registry
// /v2 and /acr go to it over plain http, with X-Forwarded-Host and -Proto and bodies of any size; without one everything
// that begins with /v goes to the same port of the parent, whose certificate must name the proxy's own module, with
// bodies of 1 MiB at most; whole bodies are buffered on each hop; a path with twins/ in it and a request with the header
// x-ms-version lead elsewhere; anything else is 404. The tests, which need nginx, have the build tag interop.
package apiproxy
