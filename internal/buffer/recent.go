package buffer

import (
	"sort"
	"time"
)

// recentBytes is how much of the newest blocks stays in memory, so that a sink that keeps up reads nothing back: about a
// quarter of a second of capture at full speed, all sinks together.
const recentBytes = 8 << 20

// recent holds the newest blocks, without a gap between them. It is guarded by Buffer.mu.
type recent struct {
	blocks []recentBlock
	bytes  int
}

type recentBlock struct {
	Block
	after uint64 // sequence of the whole block before
	left  int    // of a block that is larger than recentBytes: sinks that have not read it
}

// add takes the block that follows the last one. The newest stays whatever its size: to read it back would cost more memory.
func (r *recent) add(seq, after uint64, data []byte, at time.Time, sinks int) {
	r.blocks = append(r.blocks, recentBlock{Block{Seq: seq, Data: data, Stored: at}, after, sinks})
	r.bytes += len(data)
	drop := 0
	for r.bytes > recentBytes && drop < len(r.blocks)-1 {
		r.bytes -= len(r.blocks[drop].Data)
		r.blocks[drop] = recentBlock{} // the array lives on
		drop++
	}
	r.blocks = r.blocks[drop:]
}

// taken notes that one more sink has read a block. A large one goes when all have.
func (r *recent) taken(seq uint64) {
	last := len(r.blocks) - 1
	if last < 0 || r.blocks[last].Seq != seq || len(r.blocks[last].Data) <= recentBytes {
		return
	}
	if r.blocks[last].left--; r.blocks[last].left <= 0 {
		r.clear()
	}
}

func (r *recent) clear() { *r = recent{} }

// next returns the block that follows seq, if it and all between are here.
func (r *recent) next(seq uint64) (Block, bool) {
	if len(r.blocks) == 0 || seq < r.blocks[0].after {
		return Block{}, false
	}
	i := sort.Search(len(r.blocks), func(i int) bool { return r.blocks[i].Seq > seq })
	if i == len(r.blocks) {
		return Block{}, false
	}
	return r.blocks[i].Block, true
}
