// Package store keeps a registry's content in one data directory: an index in bbolt, content in files named by their
// digest. It implements registry.Registry for clients and registry.Replica for synchronisation.
//
//	snapshot-1, -2        the index as it was at some time of this day, and before that, packed (pack.go)
//	redo-1, -2            what each transaction since then did to it
//	meta.db               the index; its flock is the lock of the directory (buckets.go has the schema)
//	blobs/sha256/ab/<hex> content, immutable, manifests included
//	blobs/sha512/ab/<hex>
//	partial/<alg>-<hex>   content on its way from a parent; the size of the file is the offset of the transfer
//	uploads/<id>          content on its way from a client, beside <id>.json (repository, principal, start)
//	quarantine/<alg>-<hex> files that were found with other bytes than their name says, until a collection
//	reserve               blocks that are given back when the volume is full, so that the index can still delete
//
// What is acknowledged survives a power cut, because content becomes visible in one order without exceptions: fsync the
// file, rename it, fsync its directory, write one transaction to the log and sync that (redo.go), commit it to the index,
// return. Small content has no syncs of its own: its bytes are in the log with its row, and in their file before the log
// goes (kept.go). The index is not synced while a snapshot and the log stand for all of it (cover.go). A failed fsync is
// final for its file. Unfinished content has no rows: an upload or a partial costs no index commit per request or chunk,
// so that a pushed image costs one commit for each blob and manifest.
//
// An orderly end leaves an index without gaps, two snapshots of it and empty logs (leave.go).
//
// A row is not believed before the file has the row's size: content that is missing or short counts as absent, and is
// fetched or pushed again. The first time that a process gives content out it is hashed, and a scrub hashes everything
// now and then; what has other bytes is set aside and counts as absent.
//
// The index has a sum over all of its rows (sum.go), which is checked at each start, before each snapshot, each hour and
// when a row looks wrong. After a power cut or a kill an index that is not what its log ends with is made again from the
// last snapshot and the log, and that is all. A damaged index is set aside, at a start or while the process runs: the last
// snapshot takes its place with what the log adds to it, so that no tag, lock or queued change that was acknowledged is
// lost, and content without rows is found again by hash, in the background; until that is done nothing is collected. Only
// when both snapshots or their logs are damaged as well do names come from the parent alone.
package store
