package replication

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A table is read in chunks by a key of any type and collation: each row once, and those that have to be read again are found.
func TestLiveBackfillByKeyOfAnyType(t *testing.T) {
	const rows = 250
	keys := []struct{ name, declared, value string }{ // value of the row with number i
		{"int2", "int2", "i - 100"},
		{"int8", "int8", "i * 10000000000"},
		{"numeric", "numeric", "case i when 1 then 'NaN' when 2 then '1e40' else (i / 7.0)::text end::numeric"},
		{"numeric_scale", "numeric(12, 3)", "i / 7.0"},
		{"float4", "float4", "i / 7.0"},
		{"float8", "float8", "case i when 1 then 'NaN' when 2 then '-infinity' else i / 7.0 end"},
		{"text", "text", `case i when 1 then '' when 2 then '%s \ "{,}'' ' when 3 then 'NULL' else chr(192 + i) || 'x' end`},
		{"text_c", `text collate "C"`, "chr(192 + i % 20) || i"},
		{"text_icu", `text collate "und-x-icu"`, "case i % 2 when 0 then 'Ä' else 'a' end || i"},
		{"text_any_case", "text collate any_case", "case i % 2 when 0 then 'K' else 'k' end || i"},
		{"citext", "citext", "case i % 2 when 0 then 'K' else 'k' end || i"},
		{"varchar", "varchar(4)", "'k' || i"},
		{"char", "char(6)", "'k' || i"},
		{"name", "name", "'k' || i"},
		{"bytea", "bytea", "decode(lpad(to_hex(i), 4, '0'), 'hex')"},
		{"date", "date", "case i when 1 then 'infinity' when 2 then '0044-03-15 BC' else date '2024-01-01' + i end"},
		{"timestamp", "timestamp", "timestamp '2024-01-01' + i * interval '1.000001 s'"},
		{"timestamptz", "timestamptz(3)", "timestamptz '2024-01-01' + i * interval '1.001 s'"},
		{"time", "time", "time '00:00' + i * interval '1.000001 s'"},
		{"timetz", "timetz", "timetz '00:00+02' + i * interval '1 s'"},
		{"interval", "interval", "i * interval '1 mon -3 days 1.5 s'"},
		{"uuid", "uuid", "md5(i::text)::uuid"},
		{"inet", "inet", "'10.0.0.0/8'::inet + i"},
		{"cidr", "cidr", "set_masklen('10.0.0.0'::inet + i * 256, 24)::cidr"},
		{"macaddr", "macaddr", "('08:00:2b:01:02:' || lpad(to_hex(i), 2, '0'))::macaddr"},
		{"bit", "bit(10)", "i::bit(10)"},
		{"varbit", "varbit", "i::bit(10) || repeat('1', i % 3)::varbit"},
		{"enum", "kind", "case i when 1 then 'zebra' when 2 then 'a, b' else 'k' || i end::kind"},
		{"domain", "code", "'k' || i"},
		{"range", "int4range", "int4range(i, i + 2)"},
		{"array", "text[]", `array['a', 'b,"c\', i::text]`},
		{"composite", "pair", "row(i, 'b, c')::pair"},
		{"jsonb", "jsonb", "jsonb_build_object('n', i, 's', 'b\"c')"},
		{"money", "money", "i::money"},
		{"oid", "oid", "i::oid"},
		{"lsn", "pg_lsn", "('0/' || to_hex(i))::pg_lsn"},
	}
	labels := make([]string, 0, rows+2)
	for i := range rows {
		labels = append(labels, fmt.Sprintf("'k%d'", rows-i))
	}
	var tables []string
	for _, k := range keys {
		tables = append(tables, "by_"+k.name)
	}
	l := newLive(t, fmt.Sprintf(`
		create extension if not exists citext;
		create collation any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		create type kind as enum ('zebra', %s, 'a, b');
		create domain code as varchar(5) check (value <> '');
		create type pair as (a int, b text)`, strings.Join(labels, ", ")), tables...)
	for i, k := range keys {
		l.exec(fmt.Sprintf(`create table %s (n int not null, k %s primary key)`, tables[i], k.declared))
		l.exec(fmt.Sprintf(`alter table %s replica identity full`, tables[i]))
		typ, _, _ := strings.Cut(k.declared, " collate ")
		l.exec(fmt.Sprintf(`insert into %s select i, (%s)::%s from generate_series(1, %d) i`, tables[i], k.value, typ, rows))
	}
	b := l.backfills(&memStore{})
	b.fixed = 60
	l.during(func(*Stream) {
		for _, table := range l.cfg.Tables {
			if f := l.filled(b, l.start(b, BackfillSpec{Table: table, Sinks: []string{"crm"}})); f.State != BackfillDone {
				t.Errorf("%s: %+v", table, f)
			}
		}
	})
	read := map[string][]string{}
	last := map[string]string{} // of some keys
	for _, c := range l.log.changes(t) {
		read[c.Relation.Name] = append(read[c.Relation.Name], string(c.New[0].Data))
		last[c.Relation.Name] = string(c.New[1].Data)
	}
	for _, table := range tables {
		numbers := slices.Clone(read[table])
		slices.Sort(numbers)
		if distinct := len(slices.Compact(numbers)); distinct != rows || len(read[table]) != rows {
			t.Errorf("%s: %d rows were read, %d of them once, want %d", table, len(read[table]), distinct, rows)
			continue
		}
		l.findsAgain(table, last[table])
	}
}

// findsAgain reads a row by its key, as a chunk does that the stream has overtaken.
func (l *live) findsAgain(table, key string) {
	l.t.Helper()
	r := &chunkReader{url: l.url, publication: l.cfg.Publication, table: Table{Schema: "public", Name: table}, maxRow: int(DefaultMaxRow)}
	defer r.close(l.ctx)
	var c chunk
	if err := r.read(l.ctx, &place{Again: [][]byte{appendKey(nil, []byte(key))}, End: true}, 10, &c); err != nil {
		l.t.Errorf("%s: %v", table, err)
		return
	}
	if len(c.rows) != 1 || string(splitKey(c.key(0))[0]) != key {
		l.t.Errorf("%s: reading %q again gives %d rows", table, key, len(c.rows))
	}
}
