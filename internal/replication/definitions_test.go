package replication

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// typed is what the log holds of a column: each value with the names of its fields, by which delivery reads it.
func (l *live) typed(column string) (values []string) {
	for _, c := range l.log.changes(l.t) {
		i := c.Relation.Column(column)
		row := c.New
		if row == nil {
			row = c.Old
		}
		if i < 0 {
			values = append(values, fmt.Sprintf("%s of %s: no column", c.Op, c.Relation))
			continue
		}
		values = append(values, fmt.Sprintf("%s %s %s", c.Op, row[i].Data, described(c.Relation.Columns[i].Type)))
	}
	return values
}

func described(t *cdc.Type) string {
	switch t.Kind {
	case cdc.TypeUnknown:
		return "unknown:" + t.Name
	case cdc.TypeArray, cdc.TypeDomain:
		return t.Name + ":" + described(t.Elem)
	case cdc.TypeComposite:
		fields := make([]string, len(t.Fields))
		for i, f := range t.Fields {
			fields[i] = f.Name
			if f.Type.Kind != cdc.TypeBase {
				fields[i] += ":" + described(f.Type)
			}
		}
		return "(" + strings.Join(fields, ",") + ")"
	default:
		return t.Name
	}
}

const addrTable = `
	create type addr as (street text, city text);
	create table t (id int primary key, a addr, v int); alter table t replica identity full`

// settle waits until the log has n changes: so far the stream has come.
func (l *live) settle(n int) {
	l.t.Helper()
	l.log.wait(l.ctx, l.t, fmt.Sprintf("%d changes", n), func() bool { return l.log.rows >= n })
}

// A type that is altered while the stream runs: no value ever gets the names of another version. Rows between the last look at
// one version and the first at the next may be of either, and are not read; those before and behind are.
func TestCompositeTypeAlteredInMidStream(t *testing.T) {
	for name, test := range map[string]struct{ alter, then, want string }{
		"drop and add": {`alter type addr drop attribute street, add attribute zip text`, `('Rio','22')`, "(city,zip)"},
		"rename":       {`alter type addr rename attribute street to road`, `('Rua B','Rio')`, "(road,city)"},
		"swap": {`begin; alter type addr rename attribute street to x; alter type addr rename attribute city to street;
			alter type addr rename attribute x to city; commit`, `('Rio','Rua B')`, "(city,street)"},
		"add":  {`alter type addr add attribute zip text`, `('Rua B','Rio','22')`, "(street,city,zip)"},
		"drop": {`alter type addr drop attribute street`, `('Rio')`, "(city)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLive(t, addrTable, "t")
			l.during(func(*Stream) {
				l.exec(`insert into t values (1, ('Rua A','Rio'))`)
				l.settle(1)
				l.exec(test.alter)
				l.exec(`insert into t values (2, row` + test.then + `)`)
				l.settle(2)
				l.exec(`insert into t values (3, row` + test.then + `)`)
				l.settle(3)
			})
			got := l.typed("a")
			if got[0] != `insert ("Rua A",Rio) (street,city)` {
				t.Errorf("before: %s", got[0])
			}
			if !strings.HasSuffix(got[1], " unknown:addr") && !strings.HasSuffix(got[1], " "+test.want) {
				t.Errorf("while the type is altered: %s", got[1])
			}
			if !strings.HasSuffix(got[2], " "+test.want) {
				t.Errorf("afterwards: %s, want %s", got[2], test.want)
			}
		})
	}
}

// What was written before the type was altered and is read afterwards has no names that are known.
func TestCompositeTypeAlteredBehindTheStream(t *testing.T) {
	l := newLive(t, addrTable+`; create table plain (id int primary key)`, "t", "plain")
	l.during(func(*Stream) { l.exec(`insert into t values (1, ('Rua A','Rio'))`) })
	l.exec(`insert into t values (2, ('Rua A','Rio')), (3, null)`)
	l.exec(`alter type addr drop attribute street, add attribute zip text`)
	l.exec(`insert into t values (4, ('Rio','22'))`)
	l.during(func(*Stream) { l.exec(`insert into t values (5, ('Rio','22'))`) })
	want := []string{
		`insert ("Rua A",Rio) (street,city)`, `insert ("Rua A",Rio) unknown:addr`, `insert  unknown:addr`,
		`insert (Rio,22) unknown:addr`, `insert (Rio,22) (city,zip)`,
	}
	if diff := cmp.Diff(want, l.typed("a")); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

// A restart forgets nothing: what was altered long before is known for what came while the daemon was down.
func TestCompositeTypeIsRememberedOverARestart(t *testing.T) {
	l := newLive(t, addrTable+`; alter type addr rename attribute street to road`, "t")
	l.during(func(*Stream) { l.exec(`insert into t values (1, ('Rua A','Rio'))`) })
	l.exec(`insert into t values (2, ('Rua A','Rio'))`)
	l.during(func(*Stream) { l.exec(`insert into t values (3, ('Rua A','Rio'))`) })
	for i, got := range l.typed("a") {
		if got != `insert ("Rua A",Rio) (road,city)` {
			t.Errorf("row %d: %s", i+1, got)
		}
	}
}

// A transaction that was there before the type was altered, and one that alters it, may have rows of two versions.
func TestCompositeTypeAlteredWithinATransaction(t *testing.T) {
	l := newLive(t, addrTable, "t")
	l.during(func(*Stream) {
		l.exec(`begin; insert into t values (1, ('Rua A','Rio')); alter type addr rename attribute street to road; insert into t values (2, ('Rua B','Rio')); commit`)
		l.exec(`begin; create type late as (a int, b int); create table t2 (id int primary key, l late); commit`)
		l.settle(2)
		l.exec(`insert into t values (3, ('Rua C','Rio'))`)
	})
	want := []string{`insert ("Rua A",Rio) unknown:addr`, `insert ("Rua B",Rio) unknown:addr`, `insert ("Rua C",Rio) (road,city)`}
	if diff := cmp.Diff(want, l.typed("a")); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

// A type that comes with its column is known at once: nobody has altered it since it was made.
func TestCompositeTypeOfANewColumn(t *testing.T) {
	l := newLive(t, addrTable, "t")
	l.during(func(*Stream) {
		l.exec(`begin; create type geo as (x int, y int); alter table t add g geo; insert into t values (1, null, 0, (1,2)); commit`)
	})
	if diff := cmp.Diff([]string{`insert (1,2) (x,y)`}, l.typed("g")); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

// Types within arrays, domains, other composites and tables' row types are altered as well.
func TestCompositeTypeWithinOthers(t *testing.T) {
	for name, test := range map[string]struct{ typ, value, alter, before, after string }{
		"array":      {"addr[]", `array[row('a','b')::addr]`, `alter type addr rename attribute street to road`, "_addr:(street,city)", "_addr:(road,city)"},
		"domain":     {"home", `row('a','b')::addr::home`, `alter type addr rename attribute street to road`, "home:(street,city)", "home:(road,city)"},
		"nested":     {"person", `row(1, row('a','b')::addr)::person`, `alter type addr rename attribute street to road`, "(id,home:(street,city))", "(id,home:(road,city))"},
		"row type":   {"other", `row('a','b')::other`, `alter table other rename x to z`, "(x,y)", "(z,y)"},
		"enum stays": {"mood", `'sad'::mood`, `alter type mood rename value 'sad' to 'blue'`, "mood", "mood"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLive(t, `create type addr as (street text, city text); create domain home as addr; create type person as (id int, home addr);
				create table other (x text, y text); create type mood as enum ('sad', 'happy'); create table t (id int primary key, a `+test.typ+`)`, "t")
			l.during(func(*Stream) {
				l.exec(`insert into t values (1, ` + test.value + `)`)
				l.settle(1)
				l.exec(test.alter)
				value := strings.ReplaceAll(test.value, "'sad'", "'blue'")
				l.exec(`insert into t values (2, ` + value + `)`)
				l.settle(2)
				l.exec(`insert into t values (3, ` + value + `)`)
			})
			got := l.typed("a")
			if !strings.HasSuffix(got[0], " "+test.before) || !strings.HasSuffix(got[2], " "+test.after) {
				t.Errorf("%q, want %s and then %s", got, test.before, test.after)
			}
			if !strings.Contains(got[1], " unknown:") && !strings.HasSuffix(got[1], " "+test.after) {
				t.Errorf("between: %s", got[1])
			}
		})
	}
}

// A type that is gone when the stream is read leaves text that nobody can interpret.
func TestTypeDroppedBehindTheStream(t *testing.T) {
	l := newLive(t, `
		create type addr as (street text, city text); create type mood as enum ('sad'); create domain money2 as numeric;
		create table t (id int primary key, a addr, arr addr[], m mood, d money2, span int4range, n int)`, "t")
	l.during(func(*Stream) {})
	l.exec(`insert into t values (1, ('x','y'), array[row('x','y')::addr], 'sad', 1.5, '[1,2)', 7)`)
	l.exec(`drop type addr cascade; drop type mood cascade; drop domain money2 cascade`)
	l.exec(`insert into t values (2)`)
	l.during(func(*Stream) {})
	for column, want := range map[string]string{
		"a": "unknown:addr", "arr": "unknown:_addr", "m": "unknown:mood", "d": "unknown:numeric", "span": "int4range", "n": "int4",
	} {
		if got := l.typed(column)[0]; !strings.HasSuffix(got, " "+want) {
			t.Errorf("%s: %s, want %s", column, got, want)
		}
	}
}
