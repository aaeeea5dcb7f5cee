// Package mapping turns row changes into the items that vendors take, as YAML templates say.
//
// Parse reads a mapping and finds every mistake that needs no table; Compile joins it with a table's columns and gives a
// Plan; the Plan routes changes and renders items straight from a tuple's text into JSON. It does no I/O. Values have the
// forms of docs/types.md, templates those of docs/mapping.md.
package mapping

import (
	"errors"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/shape"
)

// Source is one mapping as it stands in the YAML. Nodes may be the zero Node where the mapping has none.
type Source struct {
	File  string // as problems name it
	Path  string // mappings[2]
	Index int    // in the order of the configuration
	Name  string // the mapping's name; part of the IDs of its items
	Table Table
	Sink  string
	On    []cdc.Op // nil: the sink type's default

	When, Key, Item yaml.Node
	Coalesce        Coalesce // 0: the sink type's default
	Leave           Leave    // 0: the sink type's default
	Lookups         []Lookup
	Refresh         *Refresh
	Parents         []Parent
}

// Table names a table.
type Table struct{ Schema, Name string }

func (t Table) String() string { return t.Schema + "." + t.Name }

// ParseTable reads a table's name as the configuration has it, in quotes where that is needed, and as Table.String prints it.
func ParseTable(s string) Table {
	if schema, name, ok := cdc.ParseTable(s); ok {
		return Table{schema, name}
	}
	if schema, name, ok := strings.Cut(s, "."); ok {
		return Table{schema, name}
	}
	return Table{"public", s}
}

// Lookup is SQL on the source whose result is part of the item.
type Lookup struct {
	Name string
	Key  yaml.Node // a column or an expression
	SQL  string    // $1 is the array of keys, the first column of the result the key
	Many bool      // a list of objects; otherwise one object, or null when there is no row
}

// Refresh makes a change send the record of another table again, as it then is.
type Refresh struct {
	Table Table     // the root table, which has a mapping of its own to the same sink
	Key   string    // its key column
	By    yaml.Node // the root's key, from the changed row
}

// Parent names a record that must be delivered before this one.
type Parent struct {
	Mapping string    // the name or table of a mapping to the same sink
	Key     yaml.Node // the parent's key, from this row
}

// Coalesce says what may be left out when a key changes several times within a batch.
type Coalesce uint8

// The policies.
const (
	CoalesceNone   Coalesce = iota + 1 // every change is sent
	CoalesceLatest                     // only the last state of a key
)

// Leave says what becomes at the vendor of a row that an update takes out of the filter.
type Leave uint8

// The policies.
const (
	LeaveDelete Leave = iota + 1 // the record is deleted, or withdrawn
	LeaveKeep                    // the record stays as it was last sent
)

// Deletes says what a deleted row becomes.
type Deletes uint8

// The policies.
const (
	DeleteAsItem   Deletes = iota + 1 // the old row's item, with the operation delete
	DeleteWithdraw                    // the old row's item, in which every flag of its map is false
)

// Spec is what a mapping must know of its sink's type.
type Spec struct {
	Item     shape.Item
	On       []cdc.Op // operations sent when the mapping does not say
	Deletes  Deletes
	Coalesce Coalesce
	Leave    Leave
	// FullRows is set when a delete must carry the whole row, so that the table needs REPLICA IDENTITY FULL.
	FullRows bool
}

// RejectError is why a change cannot be sent. It holds no value of the row.
type RejectError struct {
	Mapping  string // the mapping's name
	Path     string // item.data.fullName; empty when it is about the whole change
	Column   string // empty when no single column is the cause
	Reason   string
	Solution string // what an operator can do; may be empty

	More []*RejectError // what is wrong with the row besides
}

func (e *RejectError) Error() string {
	var b strings.Builder
	b.WriteString("mapping " + e.Mapping + ": ")
	e.tell(&b)
	for _, other := range e.More {
		b.WriteString("; and ")
		other.tell(&b)
	}
	var told []string
	for _, fault := range append([]*RejectError{e}, e.More...) {
		if fault.Solution != "" && !slices.Contains(told, fault.Solution) {
			told = append(told, fault.Solution)
			b.WriteString("; " + fault.Solution)
		}
	}
	return b.String()
}

// tell appends where and why.
func (e *RejectError) tell(b *strings.Builder) {
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	if e.Column != "" {
		b.WriteString("column " + e.Column + " ")
	}
	b.WriteString(e.Reason)
}

// ErrNothing is Append's answer when there is nothing to send: a map of approvals that is null or empty.
var ErrNothing = errors.New("the item tells nothing")

// Rows is what a lookup found for one key. Columns leaves out the key, which is the first column of the result.
type Rows struct {
	Columns []cdc.Field // the names are the fields of the objects
	Rows    [][]cdc.Value
}

// Env is what rendering needs beside the row.
type Env struct {
	// Lookups has the result of each lookup for the part's keys, in the order of Template.Lookups.
	Lookups []Rows
	// Largest is how many bytes an item may have, 0 for any. A larger one is refused, as far as it can be told, before it takes the memory.
	Largest int
}

// Part is one item that a change gives, or the reason why it gives none.
type Part struct {
	// Op is the operation to send: insert, update, delete or read; truncate only beside Reject.
	Op cdc.Op
	// Old is set when the item is the row before the change.
	Old bool
	// Suffix makes the ID of the item unique: /read, /old or /new, or empty.
	Suffix string
	// Key is the record's: changes with equal keys are of one record, which coalesces, and marks older letters. It begins with its
	// scope, a table or the vendor's own (IsVendorKey), so that keys of different mappings to one sink can be compared. It aliases
	// the Route.
	Key []byte
	// Orders are further keys, in the same form, with whose items this one stays in order.
	Orders [][]byte
	// Parents are keys, in the same form, of the records that must be delivered before this one. A null reference has none.
	Parents [][]byte
	// Lookups are the keys to look up, in the order of Template.Lookups; nil where the key is null and nothing is to be found.
	Lookups [][]byte
	// Refresh is the key of the root record that a refresh mapping sends again: the text of its key column.
	Refresh []byte
	// Reject is set when this part cannot be sent. It goes to the dead letters.
	Reject *RejectError

	keep []string // of a withdrawal by an update: what is in the new map, too
}

// Route is what becomes of one change. It may be used again for the next, which overwrites it.
type Route struct {
	// Parts are the items to render, in order. None means that the change is filtered, by on or by when.
	Parts []Part
	// Left is set when the row has left the filter and the record stays at the vendor.
	Left bool

	buf  []byte
	keys [][]byte
}
