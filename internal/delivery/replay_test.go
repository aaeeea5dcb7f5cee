package delivery

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/sandbox"
	"github.com/cdcsync/cdcsync/internal/secret"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

var (
	replays    = flag.Int("replays", 3, "how many random histories each replay test goes through")
	replaySeed = flag.Uint64("replay-seed", 0, "of the first history; 0 takes one from the clock")
)

// record is a row as the histories have it: text by column, nil for null.
type record map[string]*string

// history is a random sequence of changes of tables with REPLICA IDENTITY FULL, each as it would be received.
type history struct {
	rng    *rand.Rand
	tables []*historyTable
	writer cdc.Writer
	commit cdc.LSN
	next   int
	blocks [][]byte
}

type historyTable struct {
	relation *cdc.Relation
	rows     []record
	unique   []string // columns of a unique index: no two rows have the same values, unless one is null
	fresh    func(rng *rand.Rand, n int) record
	mutate   func(rng *rand.Rand, r record)
	changed  func(old, now record) // the model
}

// fullTable reads columns as "name type"; the first is the primary key.
func fullTable(oid uint32, name string, columns ...string) *cdc.Relation {
	rel := &cdc.Relation{OID: oid, Schema: "public", Name: name, Identity: 'f', PrimaryKey: []int{0}}
	for _, c := range columns {
		name, typ, _ := strings.Cut(c, " ")
		t := &cdc.Type{Name: typ, Kind: cdc.TypeBase}
		if elem, ok := strings.CutSuffix(typ, "[]"); ok {
			t = &cdc.Type{Name: "_" + elem, Kind: cdc.TypeArray, Delimiter: ',', Elem: &cdc.Type{Name: elem, Kind: cdc.TypeBase}}
		}
		rel.Columns = append(rel.Columns, cdc.Column{Name: name, Identity: true, TypeMod: -1, Type: t})
	}
	return rel
}

func (t *historyTable) tuple(r record) []cdc.Value {
	tuple := make([]cdc.Value, len(t.relation.Columns))
	for i := range tuple {
		tuple[i] = cdc.Value{Kind: cdc.Null}
		if v := r[t.relation.Columns[i].Name]; v != nil {
			tuple[i] = cdc.Value{Kind: cdc.Text, Data: []byte(*v)}
		}
	}
	return tuple
}

// free reports whether a row may have these values beside the others.
func (t *historyTable) free(r record, except int) bool {
	if len(t.unique) == 0 {
		return true
	}
	key := func(r record) (values []string, null bool) {
		for _, c := range t.unique {
			if r[c] == nil {
				return nil, true
			}
			values = append(values, *r[c])
		}
		return values, false
	}
	mine, null := key(r)
	return null || !slices.ContainsFunc(t.rows, func(other record) bool {
		if except >= 0 && fmt.Sprint(*other[t.relation.Columns[0].Name]) == fmt.Sprint(*t.rows[except][t.relation.Columns[0].Name]) {
			return false
		}
		values, null := key(other)
		return !null && slices.Equal(mine, values)
	})
}

// step makes one change, and tells the model.
func (h *history) step() {
	t := h.tables[h.rng.IntN(len(h.tables))]
	oid := t.relation.OID
	h.writer.Relation(oid, cdc.AppendRelation(nil, t.relation))
	kind := h.rng.IntN(10)
	i := 0
	if len(t.rows) > 0 {
		i = h.rng.IntN(len(t.rows))
	}
	switch {
	case len(t.rows) == 0 || kind < 3 && len(t.rows) < 12:
		h.next++
		r := t.fresh(h.rng, h.next)
		if !t.free(r, -1) {
			return
		}
		h.writer.Row(message(cdc.OpInsert, oid, t.tuple(r)...))
		t.rows = append(t.rows, r)
		t.changed(nil, r)
	case kind < 5:
		old := t.rows[i]
		h.writer.Row(message(cdc.OpDelete, oid, t.tuple(old)...))
		t.rows = slices.Delete(t.rows, i, i+1)
		t.changed(old, nil)
	default:
		old := t.rows[i]
		now := maps.Clone(old)
		for range 1 + h.rng.IntN(2) {
			t.mutate(h.rng, now)
		}
		if !t.free(now, i) {
			return
		}
		frame := cdc.AppendTuple(append(binary.BigEndian.AppendUint32([]byte{'U'}, oid), 'O'), t.tuple(old))
		h.writer.Row(cdc.AppendTuple(append(frame, 'N'), t.tuple(now)))
		t.rows[i] = now
		t.changed(old, now)
	}
}

// run makes blocks of several transactions.
func (h *history) run(blocks int) [][]byte {
	at := time.Date(2025, 9, 20, 18, 41, 31, 0, time.UTC)
	for range blocks {
		for range 1 + h.rng.IntN(4) {
			h.commit += 10
			h.writer.Begin(uint32(h.commit), h.commit, at, 0)
			for range 1 + h.rng.IntN(6) {
				h.step()
			}
			h.writer.Commit(h.commit + 1)
		}
		h.blocks = append(h.blocks, h.writer.Seal(nil, nil))
	}
	return h.blocks
}

// specOf is what cmd hands mapping of a type of sink.
func specOf(typ string) mapping.Spec {
	of, _ := sinks.SpecOf(typ)
	spec := mapping.Spec{Item: of.Item, On: of.On, Deletes: mapping.DeleteAsItem, Coalesce: mapping.CoalesceNone, Leave: mapping.LeaveKeep, FullRows: of.FullRows}
	if of.Deletes {
		spec.Leave = mapping.LeaveDelete
	}
	if of.Withdraw {
		spec.Deletes = mapping.DeleteWithdraw
	}
	if of.Latest {
		spec.Coalesce = mapping.CoalesceLatest
	}
	return spec
}

// realTemplates parses mappings for a type of sink.
func realTemplates(tb testing.TB, typ, text string) (all []*mapping.Template) {
	tb.Helper()
	var list []struct {
		Name, Table, Coalesce, Leave string
		On                           []string
		When, Key, Item              yaml.Node
		Parents                      []struct {
			Mapping string
			Key     yaml.Node
		}
		Lookups []struct {
			Name, SQL string
			Key       yaml.Node
			Many      bool
		}
	}
	if err := yaml.Unmarshal([]byte(text), &list); err != nil {
		tb.Fatal(err)
	}
	for i, m := range list {
		src := mapping.Source{
			File: "test.yaml", Path: fmt.Sprintf("mappings[%d]", i), Index: i, Name: m.Name, Table: mapping.ParseTable(m.Table), Sink: "vendor",
			When: m.When, Key: m.Key, Item: m.Item,
		}
		src.Coalesce = map[string]mapping.Coalesce{"latest": mapping.CoalesceLatest, "none": mapping.CoalesceNone}[m.Coalesce]
		src.Leave = map[string]mapping.Leave{"delete": mapping.LeaveDelete, "keep": mapping.LeaveKeep}[m.Leave]
		for _, word := range m.On {
			op, _ := cdc.ParseOp(word)
			src.On = append(src.On, op)
		}
		for _, p := range m.Parents {
			src.Parents = append(src.Parents, mapping.Parent{Mapping: p.Mapping, Key: p.Key})
		}
		for _, l := range m.Lookups {
			src.Lookups = append(src.Lookups, mapping.Lookup{Name: l.Name, SQL: l.SQL, Key: l.Key, Many: l.Many})
		}
		template, problems := mapping.Parse(src, specOf(typ))
		if err := problems.Err(); err != nil {
			tb.Fatal(err)
		}
		all = append(all, template)
	}
	if err := mapping.Link(all).Err(); err != nil {
		tb.Fatal(err)
	}
	return all
}

// replay delivers a history to the sandbox and returns it, with the letters that were made.
func replay(t *testing.T, typ, mappings string, rng *rand.Rand, tables ...*historyTable) (*sandbox.Server, *store) {
	t.Helper()
	vendors := sandbox.New(sandbox.Config{QueueDelay: time.Nanosecond, StopChurnLooseColumns: true})
	server := httptest.NewServer(vendors.Handler())
	t.Cleanup(server.Close)
	tokens := sinks.NewTokens("test", nil, nil)
	t.Cleanup(tokens.Close)
	auth := sinks.Auth{URL: server.URL + "/api/token", ClientID: "sandbox-client", ClientSecret: secret.New("sandbox-secret")}
	if typ == sinks.TypeFanatics {
		auth.URL, auth.Scope = server.URL+"/api/oauth2/token", "tier_points:override"
	}
	sink, err := sinks.New(sinks.Config{
		Name: "vendor", Type: typ, URL: server.URL, APIKey: secret.New("sandbox-key"), Auth: auth, SystemID: 42, Confirm: sinks.ConfirmAccepted, Concurrency: 4,
	}, sinks.Deps{Tokens: tokens})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sink.Close)

	h := &history{rng: rng, tables: tables}
	blocks := h.run(8 + rng.IntN(8))
	s := newStore(blocks...)
	cfg := Config{Sink: "vendor", Type: typ, Concurrency: 1 + rng.IntN(4), Batch: Batch{Items: 1 + rng.IntN(20)}}
	stop := running(t, New(cfg, Deps{
		Blocks: s.cursor(), Letters: s, Pauses: s, Tracks: s, Sink: sink, Mappings: realTemplates(t, typ, mappings), Logger: slog.New(slog.DiscardHandler),
	}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for s.settledUpTo() < uint64(len(blocks)) {
		select {
		case <-ctx.Done():
			t.Fatalf("settled %d of %d blocks", s.settledUpTo(), len(blocks))
		case <-time.After(time.Millisecond):
		}
	}
	stop()
	for _, l := range s.letters {
		t.Errorf("letter %s: %s", l.ItemID, l.Reason)
	}
	return vendors, s
}

// histories runs a test for several seeds, which it names.
func histories(t *testing.T, run func(t *testing.T, rng *rand.Rand)) {
	t.Helper()
	first := *replaySeed
	if first == 0 {
		first = uint64(time.Now().UnixNano() % 1_000_000)
	}
	for i := range uint64(*replays) {
		t.Run(fmt.Sprintf("seed=%d", first+i), func(t *testing.T) {
			t.Parallel()
			run(t, rand.New(rand.NewPCG(first+i, 1)))
		})
	}
}

//go:fix inline

func pick(rng *rand.Rand, values ...string) *string { return new(values[rng.IntN(len(values))]) }

// same reports whether a model and the vendor agree.
func same[T any](t *testing.T, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the vendor holds (-want +got):\n%s", diff)
	}
}

// TestReplayStopChurn compares rows by brandId, tableName and id with what the vendor holds after a random history.
func TestReplayStopChurn(t *testing.T) {
	const stamps = `createdAt: =commit_time(), updatedAt: =commit_time()`
	for name, test := range map[string]struct {
		mappings string
		keep     bool
		within   func(r record) bool
		identity func(r record) string
	}{
		"spread": {mappings: `[{name: m, table: t, item: {brandId: 1, tableName: user, ` + stamps + `, data: {"*": {except: [brand, kind]}}}}]`},
		"latest": {mappings: `[{name: m, table: t, coalesce: latest, item: {brandId: 1, tableName: user, ` + stamps + `, data: {"*": {except: [brand, kind]}}}}]`},
		"brand": {
			mappings: `[{name: m, table: t, coalesce: latest, item: {brandId: $brand, tableName: =lower(kind), ` + stamps + `, data: {id: =string(id), name: $name, grp: $grp, status: $status}}}]`,
			identity: func(r record) string { return *r["brand"] + "/" + strings.ToLower(*r["kind"]) + "/" + *r["id"] },
		},
		"expression": {
			mappings: `[{name: m, table: t, coalesce: latest, item: {brandId: $brand, tableName: user, ` + stamps + `, data: {id: '="u" + string(id)', name: $name, grp: $grp, status: $status}}}]`,
			identity: func(r record) string { return *r["brand"] + "/user/u" + *r["id"] },
		},
		"key": {
			mappings: `[{name: m, table: t, coalesce: latest, key: $grp, item: {brandId: $brand, tableName: user, ` + stamps + `, data: {"*": {except: [brand, kind]}}}}]`,
			identity: func(r record) string { return *r["brand"] + "/user/" + *r["id"] },
		},
		"filter": {
			mappings: `[{name: m, table: t, coalesce: latest, when: status != "test", item: {brandId: $brand, tableName: user, ` + stamps + `, data: {"*": {except: [brand, kind]}}}}]`,
			within:   func(r record) bool { return *r["status"] != "test" },
			identity: func(r record) string { return *r["brand"] + "/user/" + *r["id"] },
		},
		"keep": {
			mappings: `[{name: m, table: t, leave: keep, when: status != "test", item: {brandId: $brand, tableName: user, ` + stamps + `, data: {"*": {except: [brand, kind]}}}}]`,
			within:   func(r record) bool { return *r["status"] != "test" }, keep: true,
			identity: func(r record) string { return *r["brand"] + "/user/" + *r["id"] },
		},
		"two mappings": {
			mappings: `
- {name: a, table: t, coalesce: latest, when: status == "a", item: {brandId: 1, tableName: user, ` + stamps + `, data: {"*": {except: [brand, kind]}}}}
- {name: b, table: t, when: status != "a", item: {brandId: 1, tableName: user, ` + stamps + `, data: {"*": {except: [brand, kind]}}}}`,
		},
		"parents": {
			mappings: `
- {name: a, table: t, key: $grp, item: {brandId: $brand, tableName: user, ` + stamps + `, data: {"*": {except: [brand, kind]}}}}
- {name: b, table: t, parents: [{mapping: a, key: $grp}], item: {brandId: $brand, tableName: copy, ` + stamps + `, data: {id: $id}}}`,
			identity: func(r record) string { return *r["brand"] + "/user/" + *r["id"] },
		},
	} {
		t.Run(name, func(t *testing.T) {
			histories(t, func(t *testing.T, rng *rand.Rand) {
				t.Helper()
				if test.within == nil {
					test.within = func(record) bool { return true }
				}
				identity := test.identity
				if identity == nil {
					identity = func(r record) string { return "1/user/" + *r["id"] }
				}
				want := map[string]string{}
				table := &historyTable{
					relation: fullTable(1, "t", "seq int8", "id int8", "brand int4", "kind text", "grp int4", "status text", "name text"),
					unique:   []string{"id"},
					fresh: func(rng *rand.Rand, n int) record {
						return record{
							"seq": new(strconv.Itoa(n)), "id": pick(rng, "1", "2", "3", "4", "5", "6", "7", "8"), "brand": pick(rng, "1", "2"), "kind": pick(rng, "User", "Order"),
							"grp": pick(rng, "1", "2"), "status": pick(rng, "a", "b", "test"), "name": new(strconv.Itoa(rng.IntN(1000))),
						}
					},
					mutate: func(rng *rand.Rand, r record) {
						switch rng.IntN(6) {
						case 0:
							r["id"] = pick(rng, "1", "2", "3", "4", "5", "6", "7", "8")
						case 1:
							r["brand"] = pick(rng, "1", "2")
						case 2:
							r["kind"] = pick(rng, "User", "Order", "USER")
						case 3:
							r["grp"] = pick(rng, "1", "2")
						case 4:
							r["status"] = pick(rng, "a", "b", "test")
						case 5:
							r["name"] = new(strconv.Itoa(rng.IntN(1000)))
						}
					},
					changed: func(old, now record) {
						is := now != nil && test.within(now)
						if old != nil && test.within(old) && (is || !test.keep || now == nil) {
							delete(want, identity(old))
						}
						if is {
							want[identity(now)] = *now["name"] + *now["grp"] + *now["status"]
						}
					},
				}
				vendors, _ := replay(t, sinks.TypeStopChurn, test.mappings, rng, table)
				got := map[string]string{}
				for _, row := range vendors.Rows("") {
					if row.Table == "copy" {
						continue
					}
					var data struct {
						Name, Status string
						Grp          json.Number
					}
					if err := json.Unmarshal(row.Data, &data); err != nil {
						t.Fatal(err)
					}
					got[row.Brand+"/"+row.Table+"/"+row.ID] = data.Name + data.Grp.String() + data.Status
				}
				same(t, want, got)
			})
		})
	}
}

// TestReplayFanatics compares approvals by account and tier.
func TestReplayFanatics(t *testing.T) {
	tier := func(i int) string { return fmt.Sprintf("%08d-1234-1234-dddd-eeeeeeeeeeee", i) }
	account := func(i int) string { return fmt.Sprintf("%08d-bbbb-cccc-dddd-eeeeeeeeeeee", i) }
	accounts := []string{account(1), account(2), account(3), account(4)}
	byTier := func(r record) map[string]bool { return map[string]bool{*r["tier"]: *r["flag"] == "t"} }
	byMap := func(r record) map[string]bool {
		var m map[string]bool
		if r["m"] != nil {
			_ = json.Unmarshal([]byte(*r["m"]), &m)
		}
		return m
	}
	for name, test := range map[string]struct {
		item, more string
		unique     []string
		within     func(r record) bool
		flags      func(r record) map[string]bool
	}{
		"row per tier": {item: `{"=tier": $flag}`, unique: []string{"fan", "tier"}, flags: byTier},
		"column":       {item: `$m`, unique: []string{"fan"}, flags: byMap},
		"expression":   {item: `=m`, unique: []string{"fan"}, flags: byMap},
		"keyed":        {item: `=m`, more: `key: $seq, `, unique: []string{"fan"}, flags: byMap},
		"none":         {item: `=m`, more: `coalesce: none, `, unique: []string{"fan"}, flags: byMap},
		"filter": {
			item: `=m`, more: `when: flag, `, unique: []string{"fan"}, flags: byMap,
			within: func(r record) bool { return *r["flag"] == "t" },
		},
		"hstore": {item: `=h`, unique: []string{"fan"}, flags: func(r record) map[string]bool {
			m := map[string]bool{}
			for pair := range strings.SplitSeq(*r["h"], ", ") {
				if k, v, ok := strings.Cut(pair, "=>"); ok {
					m[strings.Trim(k, `"`)] = v == `"t"`
				}
			}
			return m
		}},
		"list": {item: `'=object(list, #, true)'`, unique: []string{"fan"}, flags: func(r record) map[string]bool {
			m := map[string]bool{}
			for _, v := range strings.FieldsFunc(*r["list"], func(c rune) bool { return strings.ContainsRune("{,}", c) }) {
				m[v] = true
			}
			return m
		}},
		"written out": {
			item: `'={"` + tier(1) + `": flag, "` + tier(2) + `": true}'`, unique: []string{"fan"},
			flags: func(r record) map[string]bool { return map[string]bool{tier(1): *r["flag"] == "t", tier(2): true} },
		},
		"fixed": {
			item: `{` + tier(1) + `: $flag, ` + tier(2) + `: $note}`, unique: []string{"fan"},
			flags: func(r record) map[string]bool {
				return map[string]bool{tier(1): *r["flag"] == "t", tier(2): *r["note"] == "yes"}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			histories(t, func(t *testing.T, rng *rand.Rand) {
				t.Helper()
				want := map[string]bool{} // by account and tier, those approved
				within := func(r record) bool { return r != nil && (test.within == nil || test.within(r)) }
				tiersOf := func(rng *rand.Rand) (chosen []int) {
					for i := 1; i <= 4; i++ {
						if rng.IntN(2) == 0 {
							chosen = append(chosen, i)
						}
					}
					return chosen
				}
				set := func(rng *rand.Rand, r record, column string) {
					var parts []string
					switch column {
					case "fan":
						r["fan"] = pick(rng, accounts...)
					case "tier":
						r["tier"] = new(tier(1 + rng.IntN(4)))
					case "flag":
						r["flag"] = pick(rng, "t", "f")
					case "note":
						r["note"] = pick(rng, "yes", "no")
					case "m":
						for _, i := range tiersOf(rng) {
							parts = append(parts, fmt.Sprintf("%q: %t", tier(i), rng.IntN(3) > 0))
						}
						if r["m"] = new("{" + strings.Join(parts, ", ") + "}"); rng.IntN(8) == 0 {
							r["m"] = nil
						}
					case "h":
						for _, i := range tiersOf(rng) {
							parts = append(parts, fmt.Sprintf(`"%s"=>%q`, tier(i), *pick(rng, "t", "f")))
						}
						r["h"] = new(strings.Join(parts, ", "))
					case "list":
						for _, i := range tiersOf(rng) {
							parts = append(parts, tier(i))
						}
						r["list"] = new("{" + strings.Join(parts, ",") + "}")
					}
				}
				columns := []string{"fan", "tier", "flag", "note", "m", "h", "list"}
				table := &historyTable{
					relation: fullTable(1, "t", "seq int8", "fan uuid", "tier uuid", "flag bool", "note text", "m jsonb", "h hstore", "list uuid[]"),
					unique:   test.unique,
					fresh: func(rng *rand.Rand, n int) record {
						r := record{"seq": new(strconv.Itoa(n))}
						for _, c := range columns {
							set(rng, r, c)
						}
						return r
					},
					mutate: func(rng *rand.Rand, r record) { set(rng, r, columns[rng.IntN(len(columns))]) },
					changed: func(old, now record) {
						if within(old) {
							for id := range test.flags(old) {
								delete(want, *old["fan"]+"/"+id)
							}
						}
						if within(now) {
							for id, flag := range test.flags(now) {
								if delete(want, *now["fan"]+"/"+id); flag {
									want[*now["fan"]+"/"+id] = true
								}
							}
						}
					},
				}
				mappings := `[{name: m, table: t, ` + test.more + `item: {account_tenant_fanid: $fan, invite_approval_map: ` + test.item + `}}]`
				vendors, _ := replay(t, sinks.TypeFanatics, mappings, rng, table)
				got := map[string]bool{}
				for account, flags := range vendors.Approvals() {
					for id, flag := range flags {
						if flag {
							got[account+"/"+id] = true
						}
					}
				}
				same(t, want, got)
			})
		})
	}
}

// fanTable is a table of fans, each with an identifier that no other row has.
func fanTable(oid uint32, name string, changed func(old, now record)) *historyTable {
	return &historyTable{
		relation: fullTable(oid, name, "id int8", "cpf text", "email text", "status text", "name text"),
		unique:   []string{"cpf"},
		fresh: func(rng *rand.Rand, n int) record {
			return record{
				"id": new(strconv.Itoa(n)), "cpf": new(fmt.Sprintf("%011d", 1+rng.IntN(8))), "email": new(fmt.Sprintf("%s%d@b.c", name, n)),
				"status": pick(rng, "a", "test"), "name": new(fmt.Sprintf("%011d", rng.IntN(1000))),
			}
		},
		mutate: func(rng *rand.Rand, r record) {
			switch rng.IntN(4) {
			case 0:
				r["cpf"] = new(fmt.Sprintf("%011d", 1+rng.IntN(8)))
			case 1:
				r["status"] = pick(rng, "a", "test")
			default:
				r["name"] = new(fmt.Sprintf("%011d", rng.IntN(1000)))
			}
		},
		changed: changed,
	}
}

// TestReplayFanbaseBatch compares fans by CPF: two tables tell of the same ones, and the last to do so counts.
func TestReplayFanbaseBatch(t *testing.T) {
	const data = `data: {identity: 0, name1: $name, birthday: 1, birthMonth: 1, birthYear: 1990}`
	const written = `numbers: [{numberType: 1, number: $cpf}, {numberType: 4, number: $email}]`
	const computed = `numbers: '=filter([{"numberType": 4, "number": email}, {"numberType": 1, "number": digits(cpf)}], .number != null)'`
	const once = `pwd: '=op in ["insert", "read"] ? "secret" : null'`
	for name, test := range map[string]struct {
		mappings string
		within   func(r record) bool
		exact    bool // nothing is coalesced: the vendor has every fan that there ever was
	}{
		"written":  {mappings: `[{name: a, table: a, item: {` + data + `, ` + written + `}}, {name: b, table: b, item: {` + data + `, ` + computed + `}}]`},
		"computed": {mappings: `[{name: a, table: a, coalesce: none, item: {` + data + `, ` + computed + `}}, {name: b, table: b, item: {` + data + `, ` + computed + `}}]`},
		"once":     {mappings: `[{name: a, table: a, item: {` + data + `, ` + written + `, ` + once + `}}, {name: b, table: b, item: {` + data + `, ` + written + `, ` + once + `}}]`, exact: true},
		"filter": {
			mappings: `[{name: a, table: a, when: status != "test", item: {` + data + `, ` + written + `, ` + once + `}}]`, exact: true,
			within: func(r record) bool { return *r["status"] != "test" },
		},
	} {
		t.Run(name, func(t *testing.T) {
			histories(t, func(t *testing.T, rng *rand.Rand) {
				t.Helper()
				last := map[string]string{} // by CPF, what was told last
				alive := map[string]int{}
				changed := func(old, now record) {
					if old != nil {
						alive[*old["cpf"]]--
					}
					if now == nil {
						return
					}
					alive[*now["cpf"]]++
					if test.within == nil || test.within(now) {
						last[*now["cpf"]] = *now["name"]
					}
				}
				tables := []*historyTable{fanTable(1, "a", changed), fanTable(2, "b", changed)}
				if test.within != nil {
					tables = tables[:1]
				}
				vendors, _ := replay(t, sinks.TypeFanbaseBatch, test.mappings, rng, tables...)
				want, got := map[string]string{}, map[string]string{}
				for cpf, name := range last {
					if test.exact || alive[cpf] > 0 {
						want[cpf] = name
					}
				}
				for _, fan := range vendors.Fans() {
					var person struct{ Name1 string }
					if err := json.Unmarshal(fan.Parts["data"], &person); err != nil {
						t.Fatal(err)
					}
					if _, wanted := want[fan.CPF]; wanted || test.exact {
						got[fan.CPF] = person.Name1
					}
					if test.exact && !fan.Account {
						t.Errorf("fan %s has no account: its first item came without a password", fan.CPF)
					}
				}
				same(t, want, got)
			})
		})
	}
}

// TestReplayFanbaseQueue compares what the queue was told last of each fan.
func TestReplayFanbaseQueue(t *testing.T) {
	for name, test := range map[string]struct {
		mappings string
		id       string
		within   func(r record) bool
	}{
		"id":         {mappings: `[{name: a, table: a, item: {id: $id, cpf: $cpf}}]`, id: "id"},
		"cpf":        {mappings: `[{name: a, table: a, key: $id, item: {id: $cpf, cpf: $name}}]`, id: "cpf"},
		"two tables": {mappings: `[{name: a, table: a, item: {id: $cpf, cpf: $name}}, {name: b, table: b, coalesce: none, item: {id: $cpf, cpf: $name}}]`, id: "cpf"},
		"filter": {
			mappings: `[{name: a, table: a, when: status != "test", item: {id: $id, cpf: $cpf}}]`, id: "id",
			within: func(r record) bool { return *r["status"] != "test" },
		},
	} {
		t.Run(name, func(t *testing.T) {
			histories(t, func(t *testing.T, rng *rand.Rand) {
				t.Helper()
				want := map[string]string{}
				value := map[string]string{"id": "cpf", "cpf": "name"}[test.id]
				changed := func(_, now record) {
					if now != nil && (test.within == nil || test.within(now)) {
						want[*now[test.id]] = *now[value]
					}
				}
				tables := []*historyTable{fanTable(1, "a", changed)}
				if name == "two tables" {
					tables = append(tables, fanTable(2, "b", changed))
				}
				vendors, _ := replay(t, sinks.TypeFanbaseQueue, test.mappings, rng, tables...)
				got := map[string]string{}
				for _, q := range vendors.Queue() {
					got[q.DataID] = *q.CPF
				}
				same(t, want, got)
			})
		})
	}
}
