package replication

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// oversizedKey reads the key's columns from the first tuple of a row's message, after its relation, and passes over the others.
func oversizedKey(p *piecewise, rel *cdc.Relation, charset *cdc.Charset) (string, error) {
	const longestKey = 1 << 10
	head, err := p.take(1 + 2)
	if err != nil {
		return "", err
	}
	if n := int(binary.BigEndian.Uint16(head[1:])); n != len(rel.Columns) {
		return "", fmt.Errorf("tuple of %d columns, its relation has %d", n, len(rel.Columns))
	}
	wanted := make(map[int]bool)
	for _, i := range KeyColumns(rel) {
		wanted[i] = true
	}
	var key strings.Builder
	for i := 0; i < len(rel.Columns) && len(wanted) > 0; i++ {
		n, err := valueLength(p)
		if err != nil {
			return "", err
		}
		if !wanted[i] || n < 0 || key.Len()+n > longestKey {
			if err := p.discard(max(n, 0)); err != nil {
				return "", err
			}
			continue
		}
		value, err := p.take(n)
		if err != nil {
			return "", err
		}
		if key.Len() > 0 {
			key.WriteString(", ")
		}
		key.WriteString(rel.Columns[i].Name + "=" + charset.Show(value))
		delete(wanted, i)
	}
	return key.String(), nil
}

// valueLength reads the head of a column; it is negative where no value follows.
func valueLength(p *piecewise) (int, error) {
	mark, err := p.take(1)
	if err != nil {
		return 0, err
	}
	switch mark[0] {
	case 'n', 'u':
		return -1, nil
	case 't':
		length, err := p.take(4)
		if err != nil {
			return 0, err
		}
		return int(binary.BigEndian.Uint32(length)), nil
	}
	return 0, fmt.Errorf("column mark %q", mark[0])
}

// KeyColumns lists the indexes of the columns by which a row is found again: those of the primary key, else of the index that is
// the replica identity. It is empty for a table that has neither.
func KeyColumns(rel *cdc.Relation) []int {
	if len(rel.PrimaryKey) > 0 {
		return rel.PrimaryKey
	}
	if rel.Identity != 'i' && rel.Identity != 'd' {
		return nil
	}
	var key []int
	for i := range rel.Columns {
		if rel.Columns[i].Identity {
			key = append(key, i)
		}
	}
	return key
}
