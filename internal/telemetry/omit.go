//go:build !omitsteps

package telemetry

// What a build with the tag omitsteps can leave out, so that a test of durability can show that it sees it.
const (
	omitSync    = false // no fsync of the audit log
	omitDirSync = false // no fsync of its directory
)
