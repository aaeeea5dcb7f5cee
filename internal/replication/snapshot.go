package replication

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// snapshot is pg_snapshot, with transactions modulo 2^32 as the stream gives them.
type snapshot struct {
	xmin, xmax uint32
	running    []uint32 // from xmin on and below xmax
	// standby says that it was taken during recovery, where pg_current_snapshot leaves out what is running (it reads the
	// snapshot's xip only, and a standby has them in subxip: xid8funcs.c, procarray.c).
	standby bool
}

// parseSnapshot reads the text form, xmin:xmax:xip,xip,….
func parseSnapshot(text string) (snapshot, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return snapshot{}, fmt.Errorf("snapshot %q", text)
	}
	var xids []uint32
	for _, word := range append(parts[:2:2], strings.FieldsFunc(parts[2], func(r rune) bool { return r == ',' })...) {
		xid, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			return snapshot{}, fmt.Errorf("snapshot %q: %w", text, err)
		}
		xids = append(xids, uint32(xid))
	}
	return snapshot{xmin: xids[0], xmax: xids[1], running: xids[2:]}, nil
}

// sees says whether the snapshot sees what a committed transaction did. The transaction must not be 2^31 or more away.
func (s *snapshot) sees(xid uint32) bool {
	switch {
	case int32(xid-s.xmin) < 0:
		return true
	case int32(xid-s.xmax) >= 0, s.standby:
		return false
	}
	return !slices.Contains(s.running, xid)
}

func (s *snapshot) seesAll(xids []uint32) bool {
	for _, xid := range xids {
		if !s.sees(xid) {
			return false
		}
	}
	return true
}

// seenByLater says whether every snapshot taken after this one sees the committed transaction.
func (s *snapshot) seenByLater(xid uint32) bool { return int32(xid-s.xmin) < 0 }

// String is the form that parseSnapshot reads.
func (s *snapshot) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:%d:", s.xmin, s.xmax)
	for i, xid := range s.running {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(uint64(xid), 10))
	}
	return b.String()
}
