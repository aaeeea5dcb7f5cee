package delivery

import (
	"context"
	"sync"
)

// keys knows where the items of some keys are on the way: of mappings whose items wait for those of other mappings
// (parents), or may have to move to another lane with their parent. Other mappings need no such book.
type keys struct {
	mu      sync.Mutex
	pending map[uint64]pendingKey // by the item's hash
	freed   chan struct{}         // size 1: a key has no pending item any more since the dispatcher last looked
}

type pendingKey struct{ lane, items int }

func newKeys() *keys {
	return &keys{pending: make(map[uint64]pendingKey), freed: make(chan struct{}, 1)}
}

func (k *keys) add(hash uint64, lane int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pending[hash] = pendingKey{lane: lane, items: k.pending[hash].items + 1}
}

func (k *keys) done(hash uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.pending[hash]
	if p.items--; p.items > 0 {
		k.pending[hash] = p
		return
	}
	delete(k.pending, hash)
	select {
	case k.freed <- struct{}{}:
	default:
	}
}

// lane says in which lane items of the key are on the way; ok is false when none is.
func (k *keys) lane(hash uint64) (lane int, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, ok := k.pending[hash]
	return p.lane, ok
}

// wait returns when no item of the key is on the way.
func (k *keys) wait(ctx context.Context, hash uint64, stopped <-chan struct{}) error {
	for {
		if _, ok := k.lane(hash); !ok {
			return nil
		}
		select {
		case <-k.freed:
		case <-stopped:
			return errStopped
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
