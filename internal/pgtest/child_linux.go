package pgtest

import "syscall"

// childOf makes the child end with us: the kernel sends it the signal when we are gone, however that came about.
func childOf(signal syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: signal}
}
