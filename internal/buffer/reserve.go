package buffer

import (
	"fmt"
	"os"
	"path/filepath"
)

// A disk that others have filled leaves no room for a cursor, and without written cursors nothing can be trimmed. So a file
// holds some room, which is given up when the disk is full and taken again when there is room enough.
const (
	reserveName  = "reserve"
	reserveBytes = 16 << 20 // trimming may rewrite one file of the store, of 8 MiB at most
)

// keepReserve takes the room when the disk has it.
func (b *Buffer) keepReserve() {
	path := filepath.Join(b.cfg.Dir, reserveName)
	if st, err := os.Stat(path); err == nil && st.Size() >= reserveBytes {
		return
	}
	if free, err := b.freeSpace(); err != nil || free < diskReserve+2*reserveBytes || b.health.has(writeFault) {
		return
	}
	if err := os.WriteFile(path, make([]byte, reserveBytes), 0o600); err != nil {
		b.logger.Debug("no room is reserved on the buffer's disk", "err", err)
		_ = os.Remove(path) // it holds nothing
	}
}

// releaseReserve gives the room up when the disk is full.
func (b *Buffer) releaseReserve() {
	const little = 4 << 20
	if free, err := b.freeSpace(); err != nil || free > little {
		return
	}
	if err := os.Remove(filepath.Join(b.cfg.Dir, reserveName)); err == nil {
		b.logger.Warn("room that was reserved is given up, so that cursors can be written and blocks trimmed", "bytes", reserveBytes)
	}
}

// diskFull says why appending waits for the disk.
func (b *Buffer) diskFull(free uint64) string {
	const mib = 1 << 20
	return fmt.Sprintf("the disk of %s has %d MiB free, and %d MiB are kept free for cursors and dead letters", b.cfg.Dir, free/mib, diskReserve/mib)
}
