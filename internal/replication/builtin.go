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
}{
	{16, 1000, "bool", cdc.TypeBase, 0, ','},
	{17, 1001, "bytea", cdc.TypeBase, 0, ','},
	{18, 1002, "char", cdc.TypeBase, 0, ','},
	{19, 1003, "name", cdc.TypeBase, 0, ','},
	{20, 1016, "int8", cdc.TypeBase, 0, ','},
	{21, 1005, "int2", cdc.TypeBase, 0, ','},
	{22, 1006, "int2vector", cdc.TypeBase, 0, ','},
	{23, 1007, "int4", cdc.TypeBase, 0, ','},
	{24, 1008, "regproc", cdc.TypeBase, 0, ','},
	{25, 1009, "text", cdc.TypeBase, 0, ','},
	{26, 1028, "oid", cdc.TypeBase, 0, ','},
	{27, 1010, "tid", cdc.TypeBase, 0, ','},
	{28, 1011, "xid", cdc.TypeBase, 0, ','},
	{29, 1012, "cid", cdc.TypeBase, 0, ','},
	{30, 1013, "oidvector", cdc.TypeBase, 0, ','},
	{114, 199, "json", cdc.TypeBase, 0, ','},
	{142, 143, "xml", cdc.TypeBase, 0, ','},
	{600, 1017, "point", cdc.TypeBase, 0, ','},
	{601, 1018, "lseg", cdc.TypeBase, 0, ','},
	{602, 1019, "path", cdc.TypeBase, 0, ','},
	{603, 1020, "box", cdc.TypeBase, 0, ';'},
	{604, 1027, "polygon", cdc.TypeBase, 0, ','},
	{628, 629, "line", cdc.TypeBase, 0, ','},
	{650, 651, "cidr", cdc.TypeBase, 0, ','},
	{700, 1021, "float4", cdc.TypeBase, 0, ','},
	{701, 1022, "float8", cdc.TypeBase, 0, ','},
	{718, 719, "circle", cdc.TypeBase, 0, ','},
	{774, 775, "macaddr8", cdc.TypeBase, 0, ','},
	{790, 791, "money", cdc.TypeBase, 0, ','},
	{829, 1040, "macaddr", cdc.TypeBase, 0, ','},
	{869, 1041, "inet", cdc.TypeBase, 0, ','},
	{1033, 1034, "aclitem", cdc.TypeBase, 0, ','},
	{1042, 1014, "bpchar", cdc.TypeBase, 0, ','},
	{1043, 1015, "varchar", cdc.TypeBase, 0, ','},
	{1082, 1182, "date", cdc.TypeBase, 0, ','},
	{1083, 1183, "time", cdc.TypeBase, 0, ','},
	{1114, 1115, "timestamp", cdc.TypeBase, 0, ','},
	{1184, 1185, "timestamptz", cdc.TypeBase, 0, ','},
	{1186, 1187, "interval", cdc.TypeBase, 0, ','},
	{1266, 1270, "timetz", cdc.TypeBase, 0, ','},
	{1560, 1561, "bit", cdc.TypeBase, 0, ','},
	{1562, 1563, "varbit", cdc.TypeBase, 0, ','},
	{1700, 1231, "numeric", cdc.TypeBase, 0, ','},
	{1790, 2201, "refcursor", cdc.TypeBase, 0, ','},
	{2202, 2207, "regprocedure", cdc.TypeBase, 0, ','},
	{2203, 2208, "regoper", cdc.TypeBase, 0, ','},
	{2204, 2209, "regoperator", cdc.TypeBase, 0, ','},
	{2205, 2210, "regclass", cdc.TypeBase, 0, ','},
	{2206, 2211, "regtype", cdc.TypeBase, 0, ','},
	{2950, 2951, "uuid", cdc.TypeBase, 0, ','},
	{2970, 2949, "txid_snapshot", cdc.TypeBase, 0, ','},
	{3220, 3221, "pg_lsn", cdc.TypeBase, 0, ','},
	{3614, 3643, "tsvector", cdc.TypeBase, 0, ','},
	{3615, 3645, "tsquery", cdc.TypeBase, 0, ','},
	{3642, 3644, "gtsvector", cdc.TypeBase, 0, ','},
	{3734, 3735, "regconfig", cdc.TypeBase, 0, ','},
	{3769, 3770, "regdictionary", cdc.TypeBase, 0, ','},
	{3802, 3807, "jsonb", cdc.TypeBase, 0, ','},
	{3904, 3905, "int4range", cdc.TypeRange, 23, ','},
	{3906, 3907, "numrange", cdc.TypeRange, 1700, ','},
	{3908, 3909, "tsrange", cdc.TypeRange, 1114, ','},
	{3910, 3911, "tstzrange", cdc.TypeRange, 1184, ','},
	{3912, 3913, "daterange", cdc.TypeRange, 1082, ','},
	{3926, 3927, "int8range", cdc.TypeRange, 20, ','},
	{4072, 4073, "jsonpath", cdc.TypeBase, 0, ','},
	{4089, 4090, "regnamespace", cdc.TypeBase, 0, ','},
	{4096, 4097, "regrole", cdc.TypeBase, 0, ','},
	{4191, 4192, "regcollation", cdc.TypeBase, 0, ','},
	{4451, 6150, "int4multirange", cdc.TypeMultirange, 23, ','},
	{4532, 6151, "nummultirange", cdc.TypeMultirange, 1700, ','},
	{4533, 6152, "tsmultirange", cdc.TypeMultirange, 1114, ','},
	{4534, 6153, "tstzmultirange", cdc.TypeMultirange, 1184, ','},
	{4535, 6155, "datemultirange", cdc.TypeMultirange, 1082, ','},
	{4536, 6157, "int8multirange", cdc.TypeMultirange, 20, ','},
	{5038, 5039, "pg_snapshot", cdc.TypeBase, 0, ','},
	{5069, 271, "xid8", cdc.TypeBase, 0, ','},
}

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
