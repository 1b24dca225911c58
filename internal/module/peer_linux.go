package module

import (
	"fmt"
	"net"
	"syscall"
)

// peer says whose process is on the other end of a connection to a socket of this machine; empty when nobody knows.
func peer(c net.Conn) (who string) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ""
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ""
	}
	_ = raw.Control(func(fd uintptr) { // without an answer nobody knows
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			who = fmt.Sprintf(", uid %d, pid %d", cred.Uid, cred.Pid)
		}
	})
	return who
}
