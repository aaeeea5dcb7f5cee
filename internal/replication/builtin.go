package replication

import "github.com/cdcsync/cdcsync/internal/cdc"

// builtin lists pg_type's entries that every server from 14 on has, so that common tables need no query. A type that is not
// here is asked for.
var builtin = []struct {
	oid, array uint32
	name       string
	kind       cdc.TypeKind
	subtype    uint32 // of a range
	delimiter  byte
}{}

var builtinTypes = indexBuiltin()

func indexBuiltin() map[uint32]*cdc.Type {
	types := make(map[uint32]*cdc.Type, 2*len(builtin))
	for _, b := range builtin { // by OID, so that a range comes after its subtype
		t := &cdc.Type{OID: b.oid, Name: b.name, Kind: b.kind, Elem: types[b.subtype], Delimiter: ','}
		types[b.oid] = t
		types[b.array] = &cdc.Type{OID: b.array, Name: "_" + b.name, Kind: cdc.TypeArray, Elem: t, Delimiter: b.delimiter}
	}
	return types
}
