package delivery

import "time"

// Numbers of the batch size. See docs/delivery.md, "Lanes and batches".
const (
	timelyShare = 3  // an answer that takes more than this part of the time-out is late
	sizeSteps   = 32 // timely answers until a size of 1 is the largest again
	// patience is how long late answers are put up with after a smaller request was not answered sooner.
	patience = 10 * time.Minute
)

// sizer adapts the items of a request to what the vendor answers in time: halved on a late answer and on a time-out, then larger by a step
// with each timely one. Guarded by gate.mu.
type sizer struct {
	timeout time.Duration // of a request; 0 when it is not known
	most    int           // the limit, or the largest request so far where there is none
	now     int           // 0: the limit

	late     int           // the size before it was halved for a late answer
	took     time.Duration // by that answer
	patience time.Time     // until when late answers change nothing
}

// fits is how many items a request may have now; 0 leaves it to the limits.
func (s *sizer) fits() int { return s.now }

// answered records that a request of n items was answered after d.
func (s *sizer) answered(n int, d time.Duration) {
	s.most = max(s.most, n)
	if s.now > 0 && n > s.now {
		return // sent before the size was halved
	}
	if now := time.Now(); n > 1 && s.timeout > 0 && d > s.timeout/timelyShare && now.After(s.patience) {
		s.answeredLate(n, d, now)
		return
	}
	if s.now == 0 || n < s.now {
		return
	}
	s.late = 0
	if s.now += max(1, s.most/sizeSteps); s.now >= s.most {
		s.now = 0
	}
}

// answeredLate halves, unless the last halving shows that fewer items are not answered sooner.
func (s *sizer) answeredLate(n int, d time.Duration, now time.Time) {
	if s.late > 0 && n <= s.late/2 && d > s.took*3/4 {
		s.now, s.late, s.patience = 0, 0, now.Add(patience)
		return
	}
	s.late, s.took, s.now = n, d, n/2
}

// timedOut records that a request of n items was not answered in time.
func (s *sizer) timedOut(n int) {
	s.most = max(s.most, n)
	if n > 1 && (s.now == 0 || n <= s.now) {
		s.now, s.late = n/2, 0
	}
}
