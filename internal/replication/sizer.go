package replication

import "time"

const (
	// firstChunk is the size of the first chunk in rows.
	firstChunk = 500
	// readTime is how long reading a chunk may take: its snapshot lives as long. Live changes do not wait for it.
	readTime = 200 * time.Millisecond
	// deliveryTime is how long its delivery may take: live changes wait behind a chunk, or two.
	deliveryTime = 60 * time.Millisecond
)

// sizer says how many rows the next chunk has: as many as are read in readTime, and delivered in deliveryTime.
type sizer struct {
	readable    int // also within the bytes that a chunk may have
	deliverable int // 0 while nothing is known of it
}

func (s *sizer) next() int {
	if s.deliverable == 0 {
		return s.readable
	}
	return min(s.readable, s.deliverable)
}

// read learns from a chunk that was read; fill is its share of the bytes that a chunk may have.
func (s *sizer) read(size int, took time.Duration, fill float64) {
	factor := share(readTime, took)
	if fill > 0 {
		const reserve = 0.9 // rows differ
		factor = min(factor, reserve/fill)
	}
	s.readable = scaled(size, factor)
}

// delivered learns from a chunk that was settled. round is how many rows the sink that took longest sends at a time: with fewer
// its lanes would wait for one another, and no row would be there sooner.
func (s *sizer) delivered(size int, took time.Duration, round int) {
	s.deliverable = max(scaled(size, share(deliveryTime, took)), round)
}

func share(goal, took time.Duration) float64 {
	return float64(goal) / float64(max(took, time.Millisecond))
}

// scaled changes a size by at most so much that one measurement, which may be odd, does not spoil it.
func scaled(size int, factor float64) int {
	return max(1, int(float64(size)*min(2, max(0.25, factor))))
}
