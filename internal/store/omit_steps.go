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
	omitSizeCheck = slices.Contains(omitted, "size-check")
)
