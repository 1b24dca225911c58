package main

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// noCore keeps the memory of the process, in which credentials are, out of core files and away from other processes of
// the same user.
func noCore() {
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}) // lowering a limit needs no right
	const setDumpable = 4                                         // PR_SET_DUMPABLE of prctl(2)
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, setDumpable, 0, 0)
}

// blankEnviron overwrites the values of the credentials in the memory that the kernel shows as /proc/<pid>/environ.
// Where that cannot be done, such as without /proc, they stay there as they came.
func blankEnviron() {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return
	}
	// The name of the program, in brackets, may hold blanks; env_start and env_end are the fields 50 and 51 (proc(5)).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 49 {
		return
	}
	from, err1 := strconv.ParseInt(fields[47], 10, 64)
	to, err2 := strconv.ParseInt(fields[48], 10, 64)
	if err1 != nil || err2 != nil || from <= 0 || to <= from || to-from > 8<<20 {
		return
	}
	mem, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer func() { _ = mem.Close() }() // nothing of it is buffered
	block := make([]byte, to-from)
	if _, err := mem.ReadAt(block, from); err != nil {
		return
	}
	at := from
	for entry := range bytes.SplitSeq(block, []byte{0}) {
		for _, name := range secretVariables {
			if value, ok := bytes.CutPrefix(entry, []byte(name+"=")); ok {
				_, _ = mem.WriteAt(bytes.Repeat([]byte("*"), len(value)), at+int64(len(name))+1)
			}
		}
		at += int64(len(entry)) + 1
	}
	clear(block)
}
