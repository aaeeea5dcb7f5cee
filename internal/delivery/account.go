package delivery

import (
	"sync"
	"time"
)

// Account is what the sinks of one vendor's account share beside their rate: when the vendor wants to be left alone, and that it throttles.
// It is safe for concurrent use.
type Account struct {
	mu    sync.Mutex
	until time.Time // Retry-After, whoever was told
	gates []*gate
}

// join makes a gate hear what the others are told.
func (a *Account) join(g *gate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gates = append(a.gates, g)
}

// free is when the vendor may be asked again.
func (a *Account) free() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.until
}

// leave leaves the vendor alone for a while.
func (a *Account) leave(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.until = later(a.until, time.Now().Add(d))
}

// throttled is told by one sink's gate that the vendor throttles.
func (a *Account) throttled(by *gate, took time.Duration) {
	for _, g := range a.members() {
		if g != by {
			g.throttled(took)
		}
	}
}

// resume asks the vendor again at once.
func (a *Account) resume() {
	a.mu.Lock()
	a.until = time.Time{}
	a.mu.Unlock()
	for _, g := range a.members() {
		g.look()
	}
}

// members are called without mu, since they take locks of their own.
func (a *Account) members() []*gate {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]*gate(nil), a.gates...)
}
