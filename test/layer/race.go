//go:build race

package layer

// Race says that the race detector is on: figures of memory and time say nothing then.
const Race = true
