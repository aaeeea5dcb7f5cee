package replication

import (
	"sync"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// State is what the stream is doing.
type State string

// The states.
const (
	StateConnecting     State = "connecting"
	StateWaitingForSlot State = "waiting_for_slot" // another process holds the slot
	StateStreaming      State = "streaming"
	StateBufferFull     State = "buffer_full" // the log takes nothing, so nothing is read
	StateStopped        State = "stopped"
)

// Status is what is known of the stream at one moment. Times are zero and LSNs 0 for what has not happened yet.
type Status struct {
	State      State     `json:"state"`
	Reason     string    `json:"reason,omitempty"` // why it is not streaming
	Since      time.Time `json:"since"`            // when the state began
	Slot       string    `json:"slot"`
	Received   cdc.LSN   `json:"received"`
	Stored     cdc.LSN   `json:"stored"`
	Confirmed  cdc.LSN   `json:"confirmed"`
	ServerEnd  cdc.LSN   `json:"server_end"` // the latest the stream has seen; Slot knows better
	LastCommit time.Time `json:"last_commit"`
	// LastStored is the commit time of the newest transaction in the log.
	LastStored      time.Time `json:"last_stored"`
	LastReceive     time.Time `json:"last_receive"`
	Reconnects      int       `json:"reconnects"`
	OpenTransaction int64     `json:"open_transaction_bytes"` // received of the transaction that has not been committed here
}

// Status is safe for concurrent use.
func (s *Stream) Status() Status { return s.status.now() }

// board is where the stream's goroutines write down what they do.
type board struct {
	mu       sync.Mutex
	status   Status
	streamed bool
}

func newBoard(slot string) *board {
	return &board{status: Status{State: StateConnecting, Since: time.Now(), Slot: slot}}
}

func (b *board) now() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

func (b *board) change(state State, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(state, reason)
}

func (b *board) set(state State, reason string) {
	if b.status.State != state {
		b.status.State, b.status.Since = state, time.Now()
	}
	b.status.Reason = reason
}

func (b *board) stopped(reason string) { b.change(StateStopped, reason) }
func (b *board) waiting(reason string) { b.change(StateWaitingForSlot, reason) }
func (b *board) delayed(reason string) { b.change(StateConnecting, reason) }
func (b *board) bufferFull()           { b.change(StateBufferFull, "the buffer is full") }
func (b *board) bufferTaken()          { b.change(StateStreaming, "") }

// connecting keeps the reason of the last failure, until there is a stream.
func (b *board) connecting() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status.State != StateWaitingForSlot {
		b.set(StateConnecting, b.status.Reason)
	}
}

func (b *board) reconnecting(reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(StateConnecting, reason)
	b.status.Reconnects++
	b.status.OpenTransaction = 0
}

func (b *board) streaming(start cdc.LSN) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(StateStreaming, "")
	b.streamed = true
	b.status.Received, b.status.Stored = max(b.status.Received, start), max(b.status.Stored, start)
	b.status.LastReceive = time.Now()
}

func (b *board) everStreamed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.streamed
}

func (b *board) received(t *tally, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := &b.status
	st.Received, st.ServerEnd = max(st.Received, t.received), max(st.ServerEnd, t.serverEnd)
	st.LastReceive, st.OpenTransaction = at, t.openBytes
	if t.lastCommit.After(st.LastCommit) {
		st.LastCommit = t.lastCommit
	}
}

func (b *board) stored(end cdc.LSN, lastCommit time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Stored = max(b.status.Stored, end)
	if lastCommit.After(b.status.LastStored) {
		b.status.LastStored = lastCommit
	}
}

func (b *board) storedLSN() cdc.LSN { return b.now().Stored }

func (b *board) confirmed(lsn cdc.LSN) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Confirmed = lsn
}
