package registry

import (
	"regexp"
	"sync"
)

// Pattern returns a regular expression that is compiled when it is used first: compiled with their packages, those of a
// registry took an eighth of the processor time of its start. It panics at its first use when expr is none.
func Pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}
