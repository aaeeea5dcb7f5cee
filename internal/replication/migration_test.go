package replication

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// migrations change a table of the name while nothing is captured: first come rows in the old shape, then the change, then rows
// in the new one.
var migrations = []struct{ name, create, before, change, after, want string }{
	{
		"drop_column", "(id int primary key, a text, b int)", "values (1, 'x', 2)",
		"alter table %s drop b", "values (2, 'y')",
		`insert new(id="1" a="x" b="2") insert new(id="2" a="y")`,
	},
	{
		"drop_first_column", "(z text, id int primary key, a text)", "values ('z', 1, 'x')",
		"alter table %s drop z", "values (2, 'y')",
		`insert new(z="z" id="1" a="x") insert new(id="2" a="y")`,
	},
	{
		"rename_column", "(id int primary key, a text)", "values (1, 'x')",
		"alter table %s rename a to b", "values (2, 'y')",
		`insert new(id="1" a="x") insert new(id="2" b="y")`,
	},
	{
		"rename_key", "(id int primary key, a text)", "values (1, 'x')",
		"alter table %s rename id to key", "values (2, 'y')",
		`insert new(id="1" a="x") insert new(key="2" a="y")`,
	},
	{
		"add_with_default", "(id int primary key, a text)", "values (1, 'x')",
		"alter table %s add c int not null default 7", "values (2, 'y')",
		`insert new(id="1" a="x") insert new(id="2" a="y" c="7")`,
	},
	{
		"text_to_int", "(id int primary key, a text)", "values (1, '5')",
		"alter table %s alter a type int using a::int", "values (2, 6)",
		`insert new(id="1" a="5") insert new(id="2" a="6")`,
	},
	{
		"int_to_text", "(id int primary key, a int)", "values (1, 5)",
		"alter table %s alter a type text", "values (2, 'six')",
		`insert new(id="1" a="5") insert new(id="2" a="six")`,
	},
	{
		"middle_int_to_bigint", "(id int primary key, b int, a text)", "values (1, 5, 'x')",
		"alter table %s alter b type bigint", "values (2, 6000000000, 'y')",
		`insert new(id="1" b="5" a="x") insert new(id="2" b="6000000000" a="y")`,
	},
	{
		"type_twice", "(id int primary key, a int, b text)", "values (1, 5, 'x')",
		"alter table %[1]s alter a type bigint; insert into %[1]s values (2, 6, 'y'); alter table %[1]s alter a type text", "values (3, 'z', 'z')",
		`insert new(id="1" a="5" b="x") insert new(id="2" a="6" b="y") insert new(id="3" a="z" b="z")`,
	},
	{
		"swap_names", "(id int primary key, a text, b text)", "values (1, 'a', 'b')",
		"alter table %[1]s rename a to c; alter table %[1]s rename b to a; alter table %[1]s rename c to b", "values (2, 'b', 'a')",
		`insert new(id="1" a="a" b="b") insert new(id="2" b="b" a="a")`,
	},
	{
		"drop_and_add", "(id int primary key, a int, b text)", "values (1, 5, 'x')",
		"alter table %[1]s drop a; alter table %[1]s add a text", "values (2, 'y', 'z')",
		`insert new(id="1" a="5" b="x") insert new(id="2" b="y" a="z")`,
	},
	{
		"set_not_null", "(id int primary key, a text)", "values (1, null)",
		"update %[1]s set a = 'y'; alter table %[1]s alter a set not null", "values (2, 'z')",
		`insert new(id="1" a=null) update new(id="1" a="y") insert new(id="2" a="z")`,
	},
	{
		"enum_value", "(id int primary key, m mood)", "values (1, 'sad')",
		"alter type mood add value 'glad' before 'sad'", "values (2, 'glad')",
		`insert new(id="1" m="sad") insert new(id="2" m="glad")`,
	},
	{
		"set_unused", "(id int primary key, a text, b text)", "values (1, 'x', 'y')",
		"alter table %[1]s drop a; alter table %[1]s drop b; alter table %[1]s add b int default 3", "values (2)",
		`insert new(id="1" a="x" b="y") insert new(id="2" b="3")`,
	},
	{
		"toasted", "(id int primary key, a text, b int)", "values (1, 'x', 2)",
		"alter table %[1]s alter a set storage external; update %[1]s set a = repeat('0123456789', 4); alter table %[1]s drop b", "values (2, 'y')",
		`insert new(id="1" a="x" b="2") update new(id="1" a="0123456789012345678901234567890123456789" b="2") insert new(id="2" a="y")`,
	},
	{
		"replica_identity", "(id int primary key, a text)", "values (1, 'x')",
		"alter table %[1]s replica identity full; alter table %[1]s rename a to b; update %[1]s set b = 'y'", "values (2, 'z')",
		`insert new(id="1" a="x") update old(id="1" b="x") new(id="1" b="y") insert new(id="2" b="z")`,
	},
}

// WAL that was written before a migration is decoded as the tables were, however many reconnects lie between.
func TestLiveMigrationsAcrossAReconnect(t *testing.T) {
	schema := []string{"create type mood as enum ('sad', 'ok')"}
	var tables []string
	for _, m := range migrations {
		schema = append(schema, "create table "+m.name+m.create)
		tables = append(tables, m.name)
	}
	l := newLive(t, strings.Join(schema, ";"), tables...)
	l.during(func(*Stream) {})
	for _, m := range migrations {
		l.exec("insert into " + m.name + " " + m.before)
		change := m.change
		if strings.Contains(change, "%") {
			change = fmt.Sprintf(change, m.name)
		}
		for statement := range strings.SplitSeq(change, ";") { // each a transaction, as a migration's steps may be
			l.exec(statement)
		}
		l.exec("insert into " + m.name + " " + m.after)
	}
	l.during(func(*Stream) {
		l.exec("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1 and active_pid is not null", l.cfg.Slot)
	})
	got := make(map[string]string)
	for line := range strings.SplitSeq(describe(l.log.changes(t)), "\n") {
		parts := regexp.MustCompile(`^tx\d+#\d+ (\w+) public\.(\w+) (.*)$`).FindStringSubmatch(line)
		if parts == nil {
			continue
		}
		got[parts[2]] = strings.TrimSpace(got[parts[2]] + " " + parts[1] + " " + parts[3])
	}
	for _, m := range migrations {
		if diff := cmp.Diff(m.want, got[m.name]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", m.name, diff)
		}
	}
}

// Keys keep their columns in rows that are older than a migration.
func TestLiveKeysAcrossAMigration(t *testing.T) {
	for _, test := range []struct {
		name, create, change string
		want                 []string // the key's columns in the row that is older
	}{
		{"renamed", "(id int primary key, a text)", "rename id to key", []string{"id"}},
		{"swapped", "(id int primary key, n int not null)", "rename id to x; rename n to id; rename x to n", []string{"id"}},
		{"two", "(b int, a int, v text, primary key (a, b))", "rename v to w", []string{"a", "b"}},
		{"another", "(id int primary key, n int not null)", "drop constraint t_pkey; add primary key (n)", []string{"id"}},
		{"wider", "(id int primary key, n int not null)", "drop constraint t_pkey; add primary key (n, id)", []string{"id"}},
		{"full", "(id int primary key, a text)", "drop a", []string{"id"}},
		{"full renamed", "(id int primary key, a text)", "rename id to key", []string{"id"}},
		{"full swapped", "(id int primary key, n int not null)", "rename id to x; rename n to id; rename x to n", []string{"id"}},
		{"full and renamed behind", "(a text, id int primary key, b text)", "drop b; rename a to c", []string{"id"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := newLive(t, "create table t "+test.create, "t")
			if strings.HasPrefix(test.name, "full") {
				l.exec("alter table t replica identity full")
			}
			l.during(func(*Stream) {})
			columns := strings.Count(test.create, ",") - strings.Count(test.create, "(a, b)")*2 + 1
			l.exec("insert into t values (" + strings.Repeat("1, ", columns-1) + "2)")
			for change := range strings.SplitSeq(test.change, "; ") {
				l.exec("alter table t " + change)
			}
			l.during(func(*Stream) {})
			changes := l.log.changes(t)
			if len(changes) != 1 {
				t.Fatalf("changes:\n%s", describe(changes))
			}
			if diff := cmp.Diff(test.want, keyNames(changes[0].Relation)); diff != "" {
				t.Errorf("key (-want +got):\n%s", diff)
			}
		})
	}
}

func keyNames(rel *cdc.Relation) []string {
	var names []string
	for _, i := range KeyColumns(rel) {
		names = append(names, rel.Columns[i].Name)
	}
	return names
}

// The walsender's connection is for streaming alone: a query on it would fill the relation cache that decoding then uses.
func TestLiveWalsenderTakesNoSQL(t *testing.T) {
	l := newLive(t, "create table a (id int primary key)", "a")
	tap := newTap(t, l.url)
	l.cfg.URL = tap.url + "&target_session_attrs=read-write"
	l.during(func(*Stream) {
		l.exec("insert into a values (1)")
		l.log.wait(l.ctx, t, "the change", func() bool { return l.log.rows == 1 })
		l.exec("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1 and active_pid is not null", l.cfg.Slot)
	})
	commands := tap.commands()
	if len(commands) < 4 {
		t.Errorf("two connections have sent %q", commands)
	}
	allowed := []string{"IDENTIFY_SYSTEM", "START_REPLICATION", "TIMELINE_HISTORY"}
	for _, command := range commands {
		if word, _, _ := strings.Cut(command, " "); !slices.Contains(allowed, word) {
			t.Errorf("the walsender was sent %q", command)
		}
	}
}

func TestWireOffersNoQuery(t *testing.T) {
	if _, ok := any(&wire{}).(querier); ok {
		t.Error("a wire can be asked by SQL")
	}
	for field := range reflect.TypeFor[wire]().Fields() {
		if field.Type.Implements(reflect.TypeFor[querier]()) {
			t.Errorf("field %s of a wire can be asked by SQL", field.Name)
		}
	}
}

// tap is a proxy before a server that writes down what is sent to its walsenders.
type tap struct {
	url string

	mu   sync.Mutex
	sent []string
}

func newTap(t *testing.T, to string) *tap {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	server := u.Host
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u.Host = listener.Addr().String()
	x := &tap{url: u.String()}
	p := pool.New()
	p.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			p.Go(func() { x.carry(client, server) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.Wait()
	})
	return x
}

func (x *tap) carry(client net.Conn, to string) {
	defer client.Close()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	p := pool.New()
	p.Go(func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	})
	x.listen(io.TeeReader(client, server))
	_ = server.Close()
	p.Wait()
}

// listen reads the client's messages: the first has no type.
func (x *tap) listen(r io.Reader) {
	startup, err := readMessage(r)
	walsender := strings.Contains(string(startup), "replication\x00database\x00")
	for kind := make([]byte, 1); err == nil; {
		if _, err = io.ReadFull(r, kind); err != nil {
			return
		}
		var body []byte
		if body, err = readMessage(r); err == nil && walsender && kind[0] != 'd' && kind[0] != 'X' && kind[0] != 'p' {
			x.mu.Lock()
			x.sent = append(x.sent, strings.TrimRight(string(body), "\x00"))
			x.mu.Unlock()
		}
	}
}

func readMessage(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(length[:])-4)
	_, err := io.ReadFull(r, body)
	return body, err
}

func (x *tap) commands() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.sent)
}
