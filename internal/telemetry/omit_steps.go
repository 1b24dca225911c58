//go:build omitsteps

package telemetry

import (
	"os"
	"slices"
	"strings"
)

// omitted are the steps that CONNECTED_REGISTRY_OMIT names, with commas between them. No release has this tag.
var omitted = strings.Split(os.Getenv("CONNECTED_REGISTRY_OMIT"), ",")

var (
	omitSync    = slices.Contains(omitted, "audit-sync")
	omitDirSync = slices.Contains(omitted, "audit-dir-sync")
)
