//go:build omitsteps

package store

import (
	"os"
	"slices"
	"strings"
)

// omitted are the steps that CONNECTED_REGISTRY_OMIT names, with commas between them. No release has this tag.
var omitted = strings.Split(os.Getenv("CONNECTED_REGISTRY_OMIT"), ",")

var (
	omitFileSync  = slices.Contains(omitted, "file-sync")
	omitDirSync   = slices.Contains(omitted, "dir-sync")
	omitOrder     = slices.Contains(omitted, "order")
	omitIndexSync = slices.Contains(omitted, "index-sync")
	omitContent   = slices.Contains(omitted, "content")
	omitFlush     = slices.Contains(omitted, "flush")
	omitPackSync  = slices.Contains(omitted, "snapshot-sync")
	omitSwitch    = slices.Contains(omitted, "switch")
	omitSizeCheck = slices.Contains(omitted, "size-check")
)

// redoLimit is short here, so that each cut has logs that were switched a moment before.
func redoLimit(int64, int64) int64 { return 32 << 10 }
