package replication

import "runtime/debug"

// largeMessage is the size from which memory is taken for one message alone, and given back at once: what a row takes is bounded
// by buffer.max_row, and what is garbage already must not stand beside it until the collector runs by itself.
const largeMessage = 1 << 20

// collect is called before memory for so many bytes is taken. A full collection takes less time than writing a large row to disk.
func collect(n int) {
	const worth = 4 << 20
	if n >= worth {
		debug.FreeOSMemory()
	}
}
