//go:build !omitsteps

package store

// The steps of the commit protocol that a build with the tag omitsteps can leave out, so that a test of durability can
// show that it sees each of them. Here they are constants, and the branches on them are gone after compilation.
const (
	omitFileSync  = false // no fsync of a file before it gets its name
	omitDirSync   = false // no fsync of the directory of a new name
	omitOrder     = false // the row first, then the file
	omitIndexSync = false // bbolt without its sync
	omitSizeCheck = false // a row is believed without a look at its file
)
