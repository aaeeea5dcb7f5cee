package replication

import (
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// confirmWithin bounds how long something that may be confirmed waits.
const confirmWithin = time.Second

// clock says when a status update is due. It is owned by the reader.
type clock struct {
	interval time.Duration // between status updates when nothing is new
	timeout  time.Duration // a server that is silent for longer is taken for gone

	next      time.Time // when to look again
	armed     time.Time // the read deadline that is set
	last      time.Time // when something was received
	update    time.Time // when the last status update was sent
	received  cdc.LSN
	confirmed cdc.LSN
}

// newClock takes the server's wal_sender_timeout, 0 for none, and what the slot is confirmed up to.
func newClock(senderTimeout time.Duration, confirmed cdc.LSN) clock {
	const (
		unlimited = 60 * time.Second // Postgres's default, where the server has none
		longest   = 10 * time.Second // wal_receiver_status_interval's default
	)
	if senderTimeout <= 0 {
		senderTimeout = unlimited
	}
	now := time.Now()
	c := clock{interval: min(longest, senderTimeout/3), timeout: max(senderTimeout, longest), last: now, update: now, confirmed: confirmed}
	c.next = now // the first update tells the server early that somebody is there
	return c
}

func (c *clock) due(now time.Time) bool { return !now.Before(c.next) }

func (c *clock) heard(now time.Time) { c.last = now }

// deaf says that nothing was received because nothing was read.
func (c *clock) deaf(now time.Time) { c.last = now }

func (c *clock) silentFor(now time.Time) time.Duration { return now.Sub(c.last) }

// hurry brings the next look forward: there is something that will have to be confirmed.
func (c *clock) hurry(now time.Time) {
	if soon := now.Add(confirmWithin); c.next.After(soon) {
		c.next = soon
	}
}

// owes says whether the server must hear from us although nothing is new.
func (c *clock) owes(now time.Time) bool { return now.Sub(c.update) >= c.interval }

// wait puts the next look off, although nothing was sent.
func (c *clock) wait(now time.Time) { c.next = now.Add(min(confirmWithin, c.interval)) }

// sent leaves a look that is to come where it is as long as it has something to confirm: a server that shuts down asks again
// as soon as it is answered, and goes down once all is confirmed.
func (c *clock) sent(now time.Time, lsn cdc.LSN) {
	c.update, c.confirmed = now, lsn
	if c.received > lsn && !c.due(now) {
		return
	}
	c.next = now.Add(c.interval)
}
