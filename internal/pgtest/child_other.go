//go:build unix && !linux

package pgtest

import "syscall"

// childOf has no way to tie the child's life to ours here; Postgres ends by itself, within a minute, when its folder is removed.
func childOf(syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
