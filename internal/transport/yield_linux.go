package transport

import "syscall"

// schedYield lets another thread of the machine have the processor, if one waits for it. It is a call that may block, so
// that the runtime gives the processor's goroutines to another thread meanwhile.
func schedYield() { _, _, _ = syscall.Syscall(syscall.SYS_SCHED_YIELD, 0, 0, 0) }
