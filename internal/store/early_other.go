//go:build !linux || (!amd64 && !arm64)

package store

import "io"

// startWriteback does nothing; the kernel begins when it wants to.
func startWriteback(File, int64, int64) {}

// readAhead does nothing here: the system call has two numbers for an offset.
func readAhead(io.ReaderAt, int64) {}
