//go:build race

package store

// slower is how many times longer the race detector may make things take.
const slower = 10
