//go:build !omitsteps

package store

// The steps of the commit protocol that a build with the tag omitsteps can leave out, so that a test of durability can
// show that it sees each of them. Here they are constants, and the branches on them are gone after compilation.
const (
	omitFileSync  = false // no fsync of a file before it gets its name
	omitDirSync   = false // no fsync of the directory of a new name
	omitOrder     = false // the row first, then the file
	omitIndexSync = false // the log and bbolt without their sync
	omitContent   = false // small content is not in the log
	omitFlush     = false // the files of small content are not synced before their log goes
	omitPackSync  = false // no fsync of a snapshot
	omitSwitch    = false // no fsync of the directory when a log takes the place of another
	omitSizeCheck = false // a row is believed without a look at its file
)

// redoLimit is how long a log may be, in bytes, until a snapshot makes it short again.
func redoLimit(long, index int64) int64 {
	if long > 0 {
		return long
	}
	return max(redoLong, index/4)
}
