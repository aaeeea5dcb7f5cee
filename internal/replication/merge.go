package replication

import (
	"maps"

	"github.com/cespare/xxhash/v2"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// merge joins the chunks that one backfill reads with the stream, so that a sink never sees a row go back and never misses
// a change. It is a state machine without I/O, owned by the goroutine that reads the stream.
//
// The rule has four clauses. S is the snapshot that a chunk was read in, L the end of the WAL after S was taken.
//
//  1. A chunk row whose key was changed by a transaction that the stream has delivered but S does not see is older than
//     what was delivered: it is not admitted, and its key is read again (commits are decoded before they are visible).
//  2. Until the stream has passed L, a change of an admitted key by a transaction that S sees is part of the row that was
//     sent: the sinks of the backfill do not get it again.
//  3. The next chunk is admitted when the stream has passed L, so that one chunk at a time needs clause 2. It may have been
//     read before, but chunks are admitted in the order of their snapshots.
//  4. Keys are tracked from before the first chunk, which waits until every transaction that was open when tracking began
//     has ended: what was delivered before is then visible to every snapshot.
type merge struct {
	// changed has, by hash of the key, the last transaction that the stream delivered a change of it from, unless every later
	// snapshot sees that transaction. Two keys with one hash cost a needless second reading, nothing else.
	changed map[uint64]uint32
	// wide has the transactions whose keys are too many to remember: a chunk that does not see one of them is read again as a whole.
	wide map[uint32]struct{}
	// chunk is what was admitted last, until the stream has passed its L.
	chunk *admittedChunk
}

// maxTrackedKeys bounds the memory for keys at about 5 MB.
const maxTrackedKeys = 1 << 17

type admittedChunk struct {
	snapshot snapshot
	lsn      cdc.LSN
	keys     []string
	index    map[string]struct{} // of keys; made when it is first asked, which most chunks never are
}

func (c *admittedChunk) has(key []byte) bool {
	if c.index == nil {
		c.index = make(map[string]struct{}, len(c.keys))
		for _, k := range c.keys {
			c.index[k] = struct{}{}
		}
	}
	_, ok := c.index[string(key)]
	return ok
}

// streamed takes note of a change that the stream delivers, and says whether the row that a chunk sent includes it already.
func (m *merge) streamed(xid uint32, key []byte) (included bool) {
	if m.chunk != nil && m.chunk.snapshot.sees(xid) && m.chunk.has(key) {
		return true
	}
	if _, wide := m.wide[xid]; wide {
		return false
	}
	if len(m.changed) >= maxTrackedKeys {
		m.widen(xid)
		return false
	}
	if m.changed == nil {
		m.changed = make(map[uint64]uint32)
	}
	m.changed[xxhash.Sum64(key)] = xid
	return false
}

// widen forgets keys to bound memory, or since that of a change is not known: every transaction they are from stands for all
// keys instead.
func (m *merge) widen(xid uint32) {
	if m.wide == nil {
		m.wide = make(map[uint32]struct{})
	}
	for _, x := range m.changed {
		m.wide[x] = struct{}{}
	}
	clear(m.changed)
	m.wide[xid] = struct{}{}
}

// admit decides about a chunk's rows, given their keys in order. again lists the indexes of those that must be read again; all others are
// admitted and must be appended to the log before anything else is. It may not be called before passed has reported true for the chunk before.
func (m *merge) admit(s snapshot, lsn cdc.LSN, keys []string) (again []int) {
	hidden := m.blind(s)
	m.chunk = &admittedChunk{snapshot: s, lsn: lsn, keys: make([]string, 0, len(keys))}
	for i, key := range keys {
		xid, changed := m.changed[xxhash.Sum64String(key)]
		if hidden || changed && !s.sees(xid) {
			again = append(again, i)
			continue
		}
		m.chunk.keys = append(m.chunk.keys, key)
	}
	// What ended before the oldest transaction that S does not see is seen by every later snapshot.
	maps.DeleteFunc(m.changed, func(_ uint64, xid uint32) bool { return s.seenByLater(xid) })
	maps.DeleteFunc(m.wide, func(xid uint32, _ struct{}) bool { return s.seenByLater(xid) })
	return again
}

// blind says that s may be older than what was delivered of any key.
func (m *merge) blind(s snapshot) bool {
	for xid := range m.wide {
		if !s.sees(xid) {
			return true
		}
	}
	return false
}

// passed says that the stream has delivered every transaction with a commit before received, and reports whether the next chunk may be admitted.
func (m *merge) passed(received cdc.LSN) bool {
	if m.chunk != nil && received >= m.chunk.lsn {
		m.chunk = nil
	}
	return m.chunk == nil
}
