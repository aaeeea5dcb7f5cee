package cdc

import "encoding/binary"

// AppendRelation appends a relation's encoded form, which begins with its OID.
func AppendRelation(dst []byte, rel *Relation) []byte {
	dst = binary.BigEndian.AppendUint32(dst, rel.OID)
	dst = appendString(dst, rel.Schema)
	dst = appendString(dst, rel.Name)
	dst = append(dst, rel.Identity)
	dst = binary.AppendUvarint(dst, uint64(len(rel.Columns)))
	for i := range rel.Columns {
		c := &rel.Columns[i]
		dst = appendString(dst, c.Name)
		var identity byte
		if c.Identity {
			identity = 1
		}
		dst = append(dst, identity)
		dst = binary.BigEndian.AppendUint32(dst, uint32(c.TypeMod))
		dst = appendType(dst, c.Type)
	}
	dst = binary.AppendUvarint(dst, uint64(len(rel.PrimaryKey)))
	for _, i := range rel.PrimaryKey {
		dst = binary.AppendUvarint(dst, uint64(i))
	}
	if rel.Encoding != "" { // nothing stands here for UTF-8, as in blocks of versions that knew no other
		dst = appendString(dst, rel.Encoding)
	}
	return dst
}

func appendType(dst []byte, t *Type) []byte {
	dst = append(dst, byte(t.Kind), t.Delimiter)
	dst = binary.BigEndian.AppendUint32(dst, t.OID)
	dst = appendString(dst, t.Name)
	if t.Elem == nil {
		dst = append(dst, 0)
	} else {
		dst = appendType(append(dst, 1), t.Elem)
	}
	dst = binary.AppendUvarint(dst, uint64(len(t.Fields)))
	for _, f := range t.Fields {
		dst = appendType(appendString(dst, f.Name), f.Type)
	}
	return dst
}

// maxTypeDepth bounds how deep types nest (a domain over an array of a composite …); Postgres allows no recursion.
const maxTypeDepth = 32

// DecodeRelation is the inverse of AppendRelation.
func DecodeRelation(encoded []byte) (*Relation, error) {
	r := reader{buf: encoded}
	rel := &Relation{OID: r.uint32(), Schema: r.string(), Name: r.string(), Identity: r.byte()}
	for range r.length() {
		c := Column{Name: r.string(), Identity: r.byte() != 0, TypeMod: int32(r.uint32())}
		c.Type = r.typ(0)
		if r.err != nil {
			return nil, r.err
		}
		rel.Columns = append(rel.Columns, c)
	}
	for range r.length() {
		i := int(r.ordinal())
		if i >= len(rel.Columns) {
			r.fail("primary key column %d of %d", i, len(rel.Columns))
		}
		rel.PrimaryKey = append(rel.PrimaryKey, i)
	}
	if r.err == nil && len(r.buf) > 0 {
		if rel.Encoding = r.string(); CharsetByName(rel.Encoding) == nil {
			r.fail("unknown encoding %q", rel.Encoding)
		}
	}
	if r.err == nil && len(r.buf) > 0 {
		r.fail("%d bytes after the relation", len(r.buf))
	}
	if r.err != nil {
		return nil, r.err
	}
	return rel, nil
}

func (r *reader) typ(depth int) *Type {
	if depth > maxTypeDepth {
		r.fail("type nested deeper than %d", maxTypeDepth)
		return nil
	}
	t := &Type{Kind: TypeKind(r.byte()), Delimiter: r.byte(), OID: r.uint32(), Name: r.string()}
	if r.err == nil && (t.Kind < TypeBase || t.Kind > TypeUnknown) {
		r.fail("type kind %d", t.Kind)
	}
	if r.byte() != 0 {
		t.Elem = r.typ(depth + 1)
	}
	for range r.length() {
		f := Field{Name: r.string(), Type: r.typ(depth + 1)}
		if r.err != nil {
			return nil
		}
		t.Fields = append(t.Fields, f)
	}
	return t
}
