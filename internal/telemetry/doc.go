// Package telemetry is what the registry tells of itself to those who watch over it: the audit log, which says who did
// what and survives a power cut, and the metrics.
package telemetry
