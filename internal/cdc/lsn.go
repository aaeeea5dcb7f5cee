package cdc

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a byte position in the write-ahead log of one Postgres cluster.
type LSN uint64

// ParseLSN reads the form that Postgres prints: two hexadecimal numbers around a slash, such as 16/B374D848.
func ParseLSN(s string) (LSN, error) {
	high, low, ok := strings.Cut(s, "/")
	h, errHigh := strconv.ParseUint(high, 16, 32)
	l, errLow := strconv.ParseUint(low, 16, 32)
	if !ok || errHigh != nil || errLow != nil {
		return 0, fmt.Errorf("LSN %q: want two hexadecimal numbers around a slash, such as 16/B374D848", s)
	}
	return LSN(h<<32 | l), nil
}

func (l LSN) String() string {
	return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l))
}

// MarshalText makes an LSN read in JSON as it reads in psql.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (l *LSN) UnmarshalText(text []byte) (err error) {
	*l, err = ParseLSN(string(text))
	return err
}

// Position identifies one change for ever: the commit LSN of its transaction and its ordinal in it, from 1 on.
//
// A row's own LSN would not do: COPY gives many rows the same one, and those of a long transaction lie before those of
// short ones that were committed, and so delivered, earlier.
type Position struct {
	Commit  LSN
	Ordinal uint32
}

// String gives the form that logs, dead letters and idempotency keys use: 16/B374D848#3.
func (p Position) String() string {
	return p.Commit.String() + "#" + strconv.FormatUint(uint64(p.Ordinal), 10)
}

// ParsePosition reads what String gives.
func ParsePosition(s string) (Position, error) {
	commit, ordinal, ok := strings.Cut(s, "#")
	lsn, err := ParseLSN(commit)
	if err != nil {
		return Position{}, err
	}
	n, err := strconv.ParseUint(ordinal, 10, 32)
	if !ok || err != nil {
		return Position{}, fmt.Errorf("position %q: want LSN#ordinal, such as 16/B374D848#3", s)
	}
	return Position{Commit: lsn, Ordinal: uint32(n)}, nil
}

// MarshalText is String.
func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePosition.
func (p *Position) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePosition(string(text))
	return err
}

// Compare orders positions as the slot delivers them: by commit, then by ordinal.
func (p Position) Compare(q Position) int {
	switch {
	case p.Commit != q.Commit:
		if p.Commit < q.Commit {
			return -1
		}
		return 1
	case p.Ordinal != q.Ordinal:
		if p.Ordinal < q.Ordinal {
			return -1
		}
		return 1
	}
	return 0
}
