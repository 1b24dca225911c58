//go:build !linux

package transport

import "runtime"

// schedYield lets another goroutine go first; the system's own call is Linux's.
func schedYield() { runtime.Gosched() }
