package replication

import "time"

// A stream becomes busy when flowProof has come within flowWindow (8 MiB/s), so that transactions below flowProof are never held
// up, and stays busy while flowKeeps does (2 MiB/s): a walsender that shares a processor pauses.
const (
	flowWindow = 32 * time.Millisecond
	flowProof  = 256 << 10
	flowKeeps  = 64 << 10
)

// flow tells a busy stream, whose reader is better woken seldom, from a quiet one, whose reader is woken at once.
type flow struct {
	busy         bool
	since        time.Time // when the window began
	seen, before int       // bytes in this window, and in the one before
}

// add counts what a read has brought.
func (f *flow) add(n int, now time.Time) {
	if age := now.Sub(f.since); age > flowWindow {
		f.before = f.seen
		if age > 2*flowWindow {
			f.before = 0
		}
		f.since, f.seen = now, 0
	}
	f.seen += n
	if f.busy {
		f.busy = f.seen+f.before >= flowKeeps
	} else {
		f.busy = f.seen >= flowProof
	}
}
