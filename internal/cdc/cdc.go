// Package cdc holds the words that every part of cdcsync speaks: positions, relations, changes and the block that stores them.
//
// It does no I/O and imports no sibling. A block is what travels: the capture writes blocks, the buffer keeps them as
// bytes, each sink reads them. A block is self-contained: it names its open transaction and repeats every relation that
// its rows need, so that reading can begin at any block.
package cdc

import (
	"bytes"
	"slices"
	"time"
)

// Op is what happened to a row.
type Op uint8

// The operations. Read is a row as a backfill found it.
const (
	OpInsert Op = iota + 1
	OpUpdate
	OpDelete
	OpTruncate
	OpRead
)

var opNames = [...]string{OpInsert: "insert", OpUpdate: "update", OpDelete: "delete", OpTruncate: "truncate", OpRead: "read"}

func (o Op) String() string {
	if int(o) < len(opNames) && opNames[o] != "" {
		return opNames[o]
	}
	return "unknown"
}

// ParseOp is the inverse of String; ok is false for a word that is no operation.
func ParseOp(s string) (op Op, ok bool) {
	for i, name := range opNames {
		if name != "" && name == s {
			return Op(i), true
		}
	}
	return 0, false
}

// Change is one row change of a committed transaction, or a row that a backfill read.
//
// Its byte slices alias the block that it was decoded from: whoever keeps one longer copies it.
type Change struct {
	Position Position
	Op       Op
	Relation *Relation

	// Old is the row before an update or delete: all of it when the table has REPLICA IDENTITY FULL, else, when OldIsKey,
	// the columns of the replica identity only and the rest Absent. It is nil when the server sent none (an update that
	// left the key as it was).
	Old      []Value
	OldIsKey bool
	// New is the row after an insert or update, or as read. It is nil for a delete and a truncate.
	New []Value

	XID        uint32
	CommitTime time.Time // when the transaction was committed, or the chunk was read

	// Targets names the sinks that a backfill is addressed to, when Op is OpRead; empty means all.
	Targets []string
	// Except names the sinks that have this change already, as part of a backfilled row; of an update that changes the key
	// it may be one Part only.
	Except     []string
	ExceptPart Part

	// Oversized is set when the row was too large to store: Old and New are nil, and Key is what could be kept.
	Oversized *Oversized
}

// Part is a part of an update that changes the key: such an update is a delete of the old and an insert of the new key.
type Part uint8

// The parts. Whole is every other change, too.
const (
	PartWhole Part = iota
	PartOld
	PartNew
)

// For says whether the change, or a part of it, is addressed to a sink.
func (c *Change) For(sink string) bool {
	if c.ExceptPart == PartWhole && slices.Contains(c.Except, sink) {
		return false
	}
	return len(c.Targets) == 0 || slices.Contains(c.Targets, sink)
}

// HasPart says which part of a change that is For the sink the sink has already; ok is false when it has none.
func (c *Change) HasPart(sink string) (have Part, ok bool) {
	if c.ExceptPart == PartWhole || !slices.Contains(c.Except, sink) {
		return PartWhole, false
	}
	return c.ExceptPart, true
}

// Oversized says what is known of a row that is larger than cdcsync carries.
type Oversized struct {
	Bytes int64  `json:"bytes"` // length of the replication message
	Key   string `json:"key"`   // the replica identity's columns as "column=value", as far as they were read
}

// Kind says what is known of one column's value.
type Kind uint8

// The kinds of Value. The zero Kind is Absent: nothing was received, which is not null.
const (
	Absent    Kind = iota // not part of the tuple: a column outside of a key-only old tuple
	Null                  // SQL null
	Unchanged             // a TOASTed value that the update did not touch and the server did not send
	Text                  // Data is the value in Postgres's text form
	Invalid               // Data is text in the database's encoding that has no form in UTF-8
)

// Value is one column of a row as it was received.
type Value struct {
	Kind Kind
	Data []byte // the text form; only for Text and Invalid
}

// Relation is a table as it was when the rows that follow it were written.
type Relation struct {
	OID      uint32
	Schema   string
	Name     string
	Identity byte // pg_class.relreplident: d(efault), n(othing), f(ull), i(ndex)
	Columns  []Column
	// Encoding is the database's, in which a block has the rows; empty for UTF-8. Names are always UTF-8.
	Encoding string
	// PrimaryKey lists the indexes in Columns of the primary key's columns, in key order. It is empty for a table without one.
	PrimaryKey []int
}

// String is the name that mappings use: schema.table.
func (r *Relation) String() string { return r.Schema + "." + r.Name }

// Column returns the index of the named column, or -1.
func (r *Relation) Column(name string) int {
	for i := range r.Columns {
		if r.Columns[i].Name == name {
			return i
		}
	}
	return -1
}

// Column of a relation.
type Column struct {
	Name     string
	Identity bool // part of the replica identity
	TypeMod  int32
	Type     *Type
}

// TypeKind says how a type is built.
type TypeKind uint8

// The kinds of types. A Base type is known by its OID when it is built in, else by its name (extensions).
const (
	TypeBase TypeKind = iota + 1
	TypeEnum
	TypeDomain
	TypeArray
	TypeComposite
	TypeRange
	TypeMultirange
	// TypeUnknown is a type of which it is not known what it was when the row was written: it was dropped, or altered, before the
	// change was read. The text of its values must not be interpreted, and not sent.
	TypeUnknown
)

// Type describes a Postgres type as far as rendering needs it. The capture resolves it from the catalogue, so that reading
// a block asks no database.
type Type struct {
	OID       uint32
	Name      string // pg_type.typname
	Kind      TypeKind
	Elem      *Type   // base of a domain, element of an array, subtype of a range or multirange
	Delimiter byte    // between the elements of an array; ',' but for box
	Fields    []Field // of a composite
}

// UnknownType is what is left of a type that is not known (any more).
func UnknownType(t *Type) *Type {
	return &Type{OID: t.OID, Name: t.Name, Kind: TypeUnknown, Delimiter: ','}
}

// Has reports whether the type, or one that it is built of, is of a kind.
func (t *Type) Has(kind TypeKind) bool {
	if t == nil {
		return false
	}
	return t.Kind == kind || t.Elem.Has(kind) || slices.ContainsFunc(t.Fields, func(f Field) bool { return f.Type.Has(kind) })
}

// Same reports whether two types are read alike.
func (t *Type) Same(other *Type) bool {
	if t == nil || other == nil {
		return t == other
	}
	return bytes.Equal(appendType(nil, t), appendType(nil, other))
}

// Field of a composite type.
type Field struct {
	Name string
	Type *Type
}
